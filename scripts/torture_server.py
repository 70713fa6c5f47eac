"""Imports everything once and forks a process for each run of `torture.py`, in milliseconds instead of seconds.

Requests and answers are lines of JSON. {"start": {...}} is answered with {"pid"}, and {"poll": pid} with {"code"},
which is null while the process runs. JAX is imported but not initialized, so a fork loses no threads.
"""

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PRELOADED = (
    "jax",
    "flax.linen",
    "optax",
    "orbax.checkpoint",
    "tensorboardX",
    "PIL.Image",
    "imgclf_jax.check",
    "imgclf_jax.evaluate",
    "imgclf_jax.train",
)


def main() -> None:
    """Serves until standard input ends. In a child, it returns after the run, so that Python exits as usual."""
    warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"torture_server: {error}", file=sys.stderr)
    # Signals wait until the child has become a run, which unblocks them.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    gc.freeze()  # Children then do not scan all of this memory when they collect garbage.
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        else:
            pid = os.fork()
            if not pid:
                run(**request["start"])
                return
            with contextlib.suppress(OSError):  # Here too, because a signal may arrive before the child does it.
                os.setpgid(pid, pid)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


def run(
    module: str,
    arguments: list[str],
    cwd: str,
    env: dict[str, str],
    out: str,
    err: str,
    stuck: str,
    limit: int | None,
    die_at_save: int | None,
) -> None:
    """Runs `python -m MODULE ARGUMENTS` in this process, with its output in files.

    Args:
        module: the module of the tool.
        arguments: its command line.
        cwd: the working directory.
        env: environment variables to set.
        out: the file for standard output.
        err: the file for standard error.
        stuck: the file to which SIGUSR1 writes the stacks of all threads.
        limit: the largest size in bytes that a file may reach; `None` for no limit.
        die_at_save: the process kills itself as soon as this checkpoint, counted from 1, is on disk; `None` for never.
    """
    os.setpgid(0, 0)
    for descriptor, path, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, out, os.O_WRONLY | os.O_CREAT),
        (2, err, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        os.dup2(os.open(path, mode, 0o644), descriptor)
    faulthandler.register(signal.SIGUSR1, file=os.open(stuck, os.O_WRONLY | os.O_CREAT, 0o644), all_threads=True)
    os.chdir(cwd)
    os.environ.update(env)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if die_at_save is not None:
        _die_at_save(die_at_save)
    package = importlib.import_module("imgclf_jax")
    sys.argv = [str(Path(package.__file__ or "").with_name(f"{module.rpartition('.')[2]}.py")), *arguments]
    sys.modules.pop(module, None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _die_at_save(count: int) -> None:
    from imgclf_jax.workdir.checkpoint import Checkpoints

    original, calls = Checkpoints.save, 0

    def save(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        original(self, *args, **kwargs)
        if calls == count:
            self.wait()
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints.save = save  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
