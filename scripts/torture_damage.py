"""Damages the files of runs and of caches for `torture.py`, and checks what happens then."""

import contextlib
import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import torture_judge as judge
from torture_kinds import interrupted
from torture_processes import Run
from torture_runs import TOOLS, product
from torture_try import SINGLE, Try

PAGE = 4096
JUNK = (b"\n", b"\xff\xfe\x80\n", b"{}\n", b"null\n", b"[1, 2]\n", b'{"step": "three"}\n', b"\0" * 64)
NAMES = ("config.json", "run.json", "metrics.jsonl", "metrics.csv")


def damage(a: Try) -> None:
    """Damages one to three files of a workdir, then resumes it or uses a tool on it."""
    recipe, half = a.random.choice(SINGLE), a.random.random() < 0.5
    tool = a.random.choice(("resume", "resume", "resume", *TOOLS))
    source = a.world.half(recipe) if half else a.world.reference(recipe)[0]
    shutil.copytree(source, a.workdir)
    checkpoints = sorted(path for path in a.workdir.glob("checkpoints/**/*") if path.is_file())
    named = [path for name in NAMES for path in a.workdir.glob(name)] + list(a.workdir.glob("tensorboard/*"))
    a.note(f"a {'half-done' if half else 'complete'} run of {recipe}, then {tool}")
    for _ in range(a.random.choice((1, 1, 1, 2, 3))):
        harm(a.random.choice(a.random.choice((checkpoints, named))), a)
    _use(a, recipe, tool, half)


def lost(a: Try) -> None:
    """Damages all checkpoints of a workdir, then runs the same command again and again."""
    recipe, half = a.random.choice(SINGLE), a.random.random() < 0.5
    shutil.copytree(a.world.half(recipe) if half else a.world.reference(recipe)[0], a.workdir)
    how, draws = a.random.choice((zero_page, truncate, flip_bits)), a.random
    a.note(f"all checkpoints of a {'half-done' if half else 'complete'} run of {recipe}: {how.__name__}")
    for path in sorted(a.workdir.glob("checkpoints/*/default/d/*")):
        how(path, draws)
    for path in sorted(a.workdir.glob("checkpoints/*/default/_METADATA")):
        truncate(path, draws)
    _use(a, recipe, "resume", half)


def launcher(a: Try) -> None:
    """Starts a run again and again, as a launcher does; in between, kills it and damages its newest checkpoint."""
    recipe = a.random.choice(SINGLE)
    for _ in range(a.random.randint(3, 6)):
        interrupted(a, recipe, False, (signal.SIGKILL, signal.SIGTERM), 1)
        there = [path for path in a.workdir.glob("checkpoints/*") if path.name.isdigit()]
        hurts, draws = a.random.random() < 0.3, random.Random(a.random.random())
        if hurts and there:
            newest = max(there, key=lambda path: int(path.name))
            files = sorted(path for path in newest.rglob("*") if path.is_file())
            harm(draws.choice(files), a, draws)
    for _ in range(3):
        (run,) = a.world.train(a.logs, recipe, a.workdir)
        if a.finish(run).code == 0:
            judge.compare(a.workdir, a.world.reference(recipe)[1], a.findings)
            return
        a.findings.refusals += 1


def cache(a: Try) -> None:
    """Damages files of the caches: decoded arrays, labels, ids, statistics, compiled programs."""
    recipe, half = a.random.choice(SINGLE), a.random.random() < 0.5
    tool = a.random.choice(("train", "train", "resume", "eval", "report"))
    source = a.world.half(recipe) if half else a.world.reference(recipe)[0]
    expected = a.world.product(recipe, tool, half) if tool in TOOLS else None
    caches = a.folder / "cache"
    with contextlib.suppress(shutil.Error):  # Other tries may be writing new compiled programs.
        shutil.copytree(a.world.cache, caches)
    files = [path for path in caches.rglob("*") if path.is_file()]
    photos = a.world.photos
    if recipe.startswith("photos"):
        photos = Path(shutil.copytree(a.world.photos, a.folder / "photos"))
        files += [path for path in photos.glob(".imgclf_jax/**/*") if path.is_file()]
    groups = [sorted(path for path in files if ("xla" in path.parts) == compiled) for compiled in (False, True)]
    a.note(f"the caches of {recipe}, then {tool}")
    if tool != "train":
        shutil.copytree(source, a.workdir)
    group = groups[a.random.random() < 0.25]
    for _ in range(a.random.choice((1, 1, 2, 3))):
        if group:
            harm(a.random.choice(group), a)
    if a.random.random() < 0.2 and group is groups[True]:
        for path in group:
            truncate(path, a.random)
        a.note("truncated all compiled programs")
    _use(a, recipe, tool, half, photos=photos, caches=caches, expected=expected)


def harm(path: Path, a: Try, draws: random.Random | None = None) -> None:
    """Damages one file, in one of several ways."""
    draws = draws or a.random
    ways: tuple[Callable[[Path, random.Random], None], ...]
    ways = (flip_bits, flip_bits, zero_page, truncate, delete, append, line_of_junk, replace_by_junk)
    how = draws.choice(ways)
    a.note(f"{how.__name__} {path.relative_to(a.folder)}")
    if path.is_file():  # It may have been deleted by then.
        how(path, draws)


def flip_bits(path: Path, draws: random.Random) -> None:
    """Flips one, two or sixteen bits, or as many as the file has pages."""
    content = bytearray(path.read_bytes())
    for _ in range(draws.choice((1, 2, 16, len(content) // PAGE + 1))):
        if content:
            content[int(draws.random() * len(content))] ^= 1 << draws.randrange(8)
    _write(path, content)


def zero_page(path: Path, draws: random.Random) -> None:
    """Zeroes a page, a tenth of the file or all of it, as after a power cut."""
    content = bytearray(path.read_bytes())
    first = int(draws.random() * (len(content) // PAGE + 1)) * PAGE
    first, length = draws.choice(((first, PAGE), (first, max(PAGE, len(content) // 10)), (0, len(content))))
    content[first : first + length] = bytes(len(content[first : first + length]))
    _write(path, content)


def truncate(path: Path, draws: random.Random) -> None:
    """Keeps only the beginning of the file, or nothing."""
    content = path.read_bytes()
    _write(path, content[: int(draws.random() * len(content)) * (draws.random() < 0.7)])


def delete(path: Path, draws: random.Random) -> None:
    """Deletes the file."""
    path.unlink()


def append(path: Path, draws: random.Random) -> None:
    """Appends random bytes or junk."""
    _write(path, path.read_bytes() + draws.choice((draws.randbytes(draws.randint(1, 200)), *JUNK)))


def line_of_junk(path: Path, draws: random.Random) -> None:
    """Inserts junk between two lines."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(int(draws.random() * (len(lines) + 1)), draws.choice(JUNK))
    _write(path, b"".join(lines))


def replace_by_junk(path: Path, draws: random.Random) -> None:
    """Replaces the whole content with junk."""
    _write(path, draws.choice(JUNK))


def _write(path: Path, content: bytes | bytearray) -> None:
    """Writes in place and restores the times, so that neither the inode nor the times reveal the damage."""
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _use(a, recipe, tool, half, photos=None, caches=None, expected=None):
    """Uses the damaged files, a second time after a refusal, and compares the results."""
    reference = a.world.reference(recipe)[1]
    if expected is None and tool in TOOLS:
        expected = a.world.product(recipe, tool, half)
    real, env = a.random.random() < 0.12, a.world.environment(caches)
    newest = max((int(path.name) for path in a.workdir.glob("checkpoints/*") if path.name.isdigit()), default=0)
    for attempt in (1, 2):
        before = judge.snapshot(a.workdir)
        result = a.folder / f"result-{attempt}"
        if tool in TOOLS:
            run = _start_tool(a, tool, result, env, real, recipe, photos)
        else:
            arguments = a.world.arguments(recipe, a.workdir, photos)
            run = a.world.processes.start(a.logs, "imgclf_jax.main", arguments, env, real=real)
        a.finish(run)
        if run.code == 0:
            if tool in TOOLS:
                _compare_product(a, tool, run, result, expected)
            else:
                judge.compare(a.workdir, reference, a.findings, run.text())
                _look_for_silence(a, run, newest, attempt)
            return
        if run.hung or run.code is None or run.code < 0:
            return
        a.findings.refusals += 1
        if changed := judge.changes(before, judge.snapshot(a.workdir)):
            a.findings.add("wrong", f"refused by {tool}, but {'; '.join(changed)[:300]}")
        if tool in TOOLS and result.exists():
            a.findings.add("wrong", f"refused by {tool}, but it left {result.name}")


def _start_tool(a, tool, result, env, real, recipe, photos) -> Run:
    if tool == "eval" and photos and recipe.startswith("photos"):
        # The config names the copy of the photos, whose caches are damaged.
        arguments = [*a.world.arguments(recipe, a.workdir, photos), "--mode=eval"]
        return a.world.processes.start(a.logs, "imgclf_jax.main", arguments, env, real=real)
    return a.world.start_tool(a.logs, tool, a.workdir, result, env, real=real)


def _compare_product(a, tool, run, result, expected):
    if tool == "report" and "There is no network in this report" in run.text():
        a.findings.refusals += 1  # The page has only curves and settings, and says why.
        return
    try:
        actual = product(tool, run, result)
    except Exception as error:
        a.findings.add("wrong", f"{tool}: exit status 0, but no result: {type(error).__name__}: {str(error)[:150]}")
        return
    if expected is None:
        a.findings.add("wrong", f"{tool} accepts after damage what it refused before")
    elif actual != expected and re.search("the one of step .* is used instead", run.text()):
        a.findings.refusals += 1  # The result is of an older checkpoint, and the output says so.
    elif actual != expected:
        shown = f": {expected} -> {actual}" if tool == "eval" else ""
        a.findings.add("wrong", f"{tool}: exit status 0, but a different result{shown}"[:400])


def _look_for_silence(a, run, newest, attempt):
    """Checks that saved steps are repeated only with a message about the checkpoints."""
    start = judge.resumed_at(run)
    if start < newest and not re.search("checkpoint", run.text()):
        again = ", after a refusal" if attempt > 1 else ""
        a.findings.add("silent", f"continued from step {start} instead of {newest} without a message{again}")
