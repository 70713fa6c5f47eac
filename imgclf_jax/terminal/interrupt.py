"""How signals end a tool: immediately during imports, by an exception during work, after a save during training."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

# Sent by Ctrl-C, by a scheduler whose time limit is reached, and by closing the terminal. Windows has no SIGHUP.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_POLL_SECONDS = 0.05
_working = False


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Interrupt:
    """Signal handling of a run: signals raise `Stopped` until `defer` is called. Then the first only sets `number`.

    Attributes:
        number: the first signal since `defer` was called, or 0.
    """

    number = 0
    _deferred = False
    _raised = 0

    def defer(self) -> None:
        """From now on, the first signal only sets `number`, which the caller must check. A second one raises `Stopped`.

        Raises:
            Stopped: a signal came before, but a library caught the exception.
        """
        self._deferred = True
        if self._raised:
            _raise(self._raised, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._deferred and not self.number:
            self.number = number
        else:
            self._raised = number
            _raise(number, frame)


def install() -> None:
    """Installs handlers for `SIGNALS`: until `begin_work` is called, they print a line and end the process.

    A tool calls this before its other imports, because some extension modules swallow a `KeyboardInterrupt` raised
    during their import. Ignored signals, as under `nohup`, stay ignored.
    """
    for number in SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, _handle):
            signal.signal(number, _handle)


def begin_work() -> None:
    """From now on, a signal raises `Stopped`, so that unfinished work can be cleaned up."""
    global _working
    _working = True


def end_work() -> None:
    """From now on, a signal ends the process immediately again: only the shutdown of Python is left."""
    global _working
    _working = False


def raise_later(number: int) -> None:
    """Raises `Stopped` a moment later, because raised now it would be lost, as in a callback of Python."""
    signal.signal(signal.SIGALRM, lambda _, frame: _raise(number, frame))
    signal.setitimer(signal.ITIMER_REAL, _POLL_SECONDS)


def ending(error: KeyboardInterrupt) -> tuple[int, str]:
    """The exit status and the last line of output of a process stopped by a signal."""
    return _ending(getattr(error, "number", signal.SIGINT))


def _ending(number):
    return 128 + number, "stopped" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


@contextlib.contextmanager
def catch() -> Iterator[Interrupt]:
    """Handles `SIGNALS` as described in `Interrupt` within the block. Ignored signals stay ignored."""
    flag = Interrupt()
    before: dict[int, Any] = {}
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, flag._handle)
    try:
        yield flag
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _handle(number: int, frame: FrameType | None) -> None:
    if _working:
        _raise(number, frame)
    status, line = _ending(number)
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
    os._exit(status)


def _raise(number: int, frame: FrameType | None) -> None:
    """Raises `Stopped`; during an import, which might swallow it, only after the import."""
    if not (_importing(frame) and hasattr(signal, "setitimer")):
        raise Stopped(number)
    raise_later(number)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
