"""The outputs that `torture.py` makes fail: full disks, full or closed streams."""

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torture_judge as judge
from torture_runs import product
from torture_try import SINGLE, Try


def full(a: Try) -> None:
    """Fills the disk of the workdir or the caches, then makes room and runs the same command again."""
    recipe, where = a.random.choice(SINGLE), a.random.choice(("workdir", "workdir", "cache"))
    a.world.reference(recipe)  # Its compiled programs must exist.
    real, again = a.random.random() < 0.15, a.random.randint(1, 2)
    room = int(2 ** a.random.uniform(*((2, 8.5) if where == "workdir" else (3, 14.5))))
    disk = a.folder / "disk"
    a.folder.mkdir(parents=True, exist_ok=True)
    with small_disk(disk, room, a.random.random() < 0.3 and where == "workdir") as (kind, more):
        a.note(f"{recipe}: {where} on a disk of {room} KiB, {kind}")
        workdir, cache = (disk / "run", None) if where == "workdir" else (a.workdir, disk / "cache")
        if cache and a.random.random() < 0.7 and room > 4096:
            with contextlib.suppress(OSError, shutil.Error):
                shutil.copytree(a.world.cache / "imgclf_jax" / "xla", cache / "imgclf_jax" / "xla")
        limit = None if kind.startswith("tmpfs") else room * 1024
        for _ in range(again):
            (run,) = a.world.train(a.logs, recipe, workdir, cache, real=real, limit=limit)
            a.finish(run)
            a.findings.refusals += run.code == 2
            if run.code == 0:
                break
        more()
        a.complete(recipe, cache, workdir)
        if kind.startswith("tmpfs") and where == "workdir" and a.findings.bad:
            shutil.copytree(workdir, a.workdir, dirs_exist_ok=True)  # The disk is about to go away.


def output(a: Try) -> None:
    """Closes or fills standard output or standard error, or closes its reader."""
    recipe = a.random.choice(SINGLE)
    tool = a.random.choice(("train", "train", "train", "eval", "predict", "report", "export"))
    how = a.random.choice(("reader", "reader", ">/dev/full", ">&-", "2>&-", "2>/dev/full", "ascii"))
    a.folder.mkdir(parents=True, exist_ok=True)
    env = a.world.environment() | ({"PYTHONIOENCODING": "ascii"} if how == "ascii" else {})
    reference = a.world.reference(recipe)[0]
    source = None if tool == "train" else reference
    expected = None if tool == "train" else a.world.product(recipe, tool, False)
    fifo, result = a.folder / "fifo", a.folder / "result"
    a.note(f"{tool} of {recipe}: {how}")
    options: dict[str, Any] = {"real": True, "redirect": how if how not in ("reader", "ascii") else ""}
    if how == "reader":
        options = {"real": a.random.random() < 0.2, "out": str(fifo)}
        os.mkfifo(fifo)
        _read_a_little(fifo, a.random.choice((0, 1, a.random.randint(1, 2000))))
    if source:
        run = a.world.start_tool(a.logs, tool, source, result, env, **options)
    else:
        arguments = a.world.arguments(recipe, a.workdir)
        run = a.world.processes.start(a.logs, "imgclf_jax.main", arguments, env, **options)
    # A process without standard error cannot print a message. A tool whose reader has gone ends quietly.
    a.finish(run, mute=how.startswith("2>") or (tool != "train" and how == "reader"))
    if tool == "train":
        if run.code == 0:
            judge.compare(a.workdir, a.world.reference(recipe)[1], a.findings)
        else:
            why = judge.recorded_error(a.workdir)
            a.findings.add("wrong", f"{how}: training did not outlive its output; it ended with {run.code} ({why})")
        a.complete(recipe)
    elif tool != "eval" and run.code == 0 and product(tool, run, result) != expected:
        a.findings.add("wrong", f"{how}: {tool} gave a different result")


@contextlib.contextmanager
def small_disk(folder: Path, kib: int, few_files: bool) -> Iterator[tuple[str, Callable[[], int]]]:
    """Makes a folder with room for `kib` KiB, or for few files.

    It is a tmpfs if this process may mount one. Otherwise it is a plain folder, and RLIMIT_FSIZE limits its files.

    Yields:
        A description of the folder, and a function that makes room in it.
    """
    folder.mkdir()
    size = "nr_inodes=40,size=65536k" if few_files else f"size={kib}k"
    mounted = os.geteuid() == 0 and not _command("mount", "-t", "tmpfs", "-o", size, "torture", str(folder))
    try:
        grow = ("mount", "-o", "remount,size=131072k,nr_inodes=100k", str(folder))
        yield ("tmpfs" + ", 40 files" * few_files, lambda: _command(*grow)) if mounted else ("RLIMIT_FSIZE", lambda: 0)
    finally:
        if mounted:
            _command("umount", "-l", str(folder))


def _command(*words):
    return subprocess.run(words, capture_output=True, check=False).returncode


def _read_a_little(fifo, size):
    """Reads `size` bytes in a thread and then closes the FIFO, as `| head` does."""

    def read():
        with fifo.open("rb", buffering=0) as file:
            got = 0
            while got < size and (chunk := file.read(size - got)):
                got += len(chunk)

    threading.Thread(target=read, daemon=True).start()
