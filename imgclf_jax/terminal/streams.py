"""Robust standard output and standard error: either may be closed, full, without a reader, or lack a character."""

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

_lost: dict[str, OSError] = {}
_survives = False


class OutputLost(Exception):
    """Standard output can no longer be written. Not an `OSError`, so that it is not mistaken for a file error."""

    def __init__(self, error: OSError):
        super().__init__(f"cannot write standard output: {error.strerror or error}")


def prepare() -> None:
    """Makes both streams safe to write to. A tool calls this before it writes or opens anything.

    Characters that standard output cannot encode are replaced. A failure to write to standard error is ignored; a
    failure to write to standard output raises `OutputLost`. After either, further output is discarded.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # It is closed. The next file opened would get this number, and the output of libraries would go into that
            # file. Read-only, so that writing fails and is noticed.
            os.open(os.devnull, os.O_RDONLY if number < 2 else os.O_WRONLY)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "w", closefd=False)  # noqa: SIM115
        if not isinstance(stream, _Stream):
            if name == "stdout" and hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
            setattr(sys, name, _Stream(stream, name))


def survive() -> None:
    """From now on, losing standard output raises nothing: the tool continues, because its results go to files."""
    global _survives
    _survives = True


def lost() -> str:
    """The reason why standard output or standard error was lost, or an empty string."""
    return next((error.strerror or str(error) for error in _lost.values()), "")


def status() -> int:
    """Flushes both streams and returns the exit status for a lost standard output, or 0 if it is not lost.

    The status is 141, as for a process killed by SIGPIPE, if the reader is gone, as with `| head`. Otherwise it is 2,
    and a line is printed. After `survive`, it is always 0.
    """
    with contextlib.suppress(OutputLost):
        sys.stdout.flush()
    sys.stderr.flush()
    error = _lost.get("stdout")
    if error is None or _survives:
        return 0
    if error.errno == errno.EPIPE:
        return 128 + getattr(signal, "SIGPIPE", 13)
    print(f"error: {OutputLost(error)}", file=sys.stderr)
    return 2


class _Stream:
    """A text stream whose failures are recorded in `_lost`."""

    def __init__(self, stream: Any, name: str):
        self._stream = stream
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Any:
        return iter(self._stream)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error):
        _lost.setdefault(self._name, error)
        # Buffered output and the output of native code must not fail again when Python exits.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if self._name == "stdout" and not _survives:
            raise OutputLost(error)


def ignore_in_threads() -> None:
    """Suppresses the traceback of a thread that failed while drawing a progress bar or writing TensorBoard files."""
    before = threading.excepthook

    def hook(arguments):
        if not (isinstance(arguments.exc_value, OutputLost) or is_about_tensorboard(arguments.exc_value)):
            before(arguments)

    threading.excepthook = hook


def is_about_tensorboard(error: BaseException | None) -> bool:
    """Whether the error is a failed write by tensorboardX, which its threads and its exit handler raise too.

    The main thread reports the same failure when it flushes the files.
    """
    if not isinstance(error, OSError):
        return False
    return any("tensorboardX" in Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__))
