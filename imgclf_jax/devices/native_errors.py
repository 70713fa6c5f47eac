"""Filters a false alarm of native code out of standard error, in a process that outlives ours.

Native code may write why it aborts, so the filter of standard error must not be part of the process that dies. This
file is both the module that starts the filter and the program that the filter runs.
"""

import atexit
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

_MARK = b"\0end of a block of imgclf_jax\0"
filters: dict[tuple[int, int], Any] = {}  # (device, inode) of what it writes to -> the filter; at most one


@contextlib.contextmanager
def without(noise: str) -> Iterator[None]:
    """Drops the lines that contain `noise` from what the process writes to standard error while the block lasts.

    Everything else is written at once, and at the latest when the block ends. If the filter cannot be started or has
    been killed, the noise is written as well. Blocks may be nested: then the noise of the outermost one counts.
    """
    try:
        running = _start(noise)
    except OSError:
        running = None
    if running is None:
        yield
        return
    _flush()
    original = os.dup(2)
    os.dup2(running.stdin.fileno(), 2)
    try:
        yield
    finally:
        _flush()
        os.dup2(original, 2)
        os.close(original)
        with contextlib.suppress(OSError):
            running.stdin.write(_MARK + b"\n")
            running.stdout.read(1)


def _start(noise):
    """The running filter for the current standard error; `None` within another block."""
    if any(os.path.sameopenfile(running.stdin.fileno(), 2) for running in filters.values()):
        return None
    status = os.fstat(2)
    target = status.st_dev, status.st_ino
    if target not in filters or filters[target].poll() is not None:
        _drop()
        atexit.register(_drop)
        # In its own session: Ctrl-C must not end the process that writes our last messages.
        command = [sys.executable, "-I", "-S", __file__, noise]
        pipe = subprocess.PIPE
        filters[target] = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True)
    return filters[target]


def _flush():
    if sys.stderr is not None:
        sys.stderr.flush()


def _drop():
    while filters:
        _, old = filters.popitem()
        old.stdin.close()
        old.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # The filter ends when it has written everything.
            old.wait(1)


def _run(noise: bytes) -> None:
    """Copies standard input to standard error. Every mark is answered with a byte on standard output."""
    kept = b""
    while data := os.read(0, 65536):
        *lines, kept = (kept + data).split(b"\n")
        for line in lines:
            text, mark, _ = line.partition(_MARK)
            if noise not in text:
                _write(text if mark else text + b"\n")
            if mark:
                os.write(1, b".")
    _write(kept)


def _write(data: bytes) -> None:
    with contextlib.suppress(OSError):  # The terminal may be gone; the process must still be able to write here.
        while data:
            data = data[os.write(2, data) :]


if __name__ == "__main__":
    _run(sys.argv[1].encode())
