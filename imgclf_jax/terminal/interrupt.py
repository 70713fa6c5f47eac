"""How signals end a tool: at once while it imports, by an exception while it works, after a save while it trains."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

# Sent by Ctrl-C, by a cluster whose time is up, and by a terminal that is closed. Windows has no SIGHUP.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_POLL_SECONDS = 0.05
_working = False


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end. `number` is the number of the signal."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Interrupt:
    """How a run takes signals: they raise `Stopped` until `defer` is called. After that, the first only sets `number`.

    Attributes:
        number: the first signal since `defer` was called, or 0.
    """

    number = 0
    _deferred = False
    _raised = 0

    def defer(self) -> None:
        """From now on, the first signal only sets `number`, which the caller must check. A second raises `Stopped`.

        Raises:
            Stopped: a signal came before, but a library has caught the exception and gone on.
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
    """Handles `SIGNALS`: until `begin_work` is called, they print a line and end the process at once.

    A tool calls this before its other imports, because some extension modules swallow a `KeyboardInterrupt` that is
    raised while they are imported. A signal that is ignored, as after `nohup`, stays ignored.
    """
    for number in SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, _handle):
            signal.signal(number, _handle)


def begin_work() -> None:
    """From now on, a signal raises `Stopped`, so that unfinished work is cleaned up."""
    global _working
    _working = True


def end_work() -> None:
    """From now on, a signal ends the process at once again: only the shutdown of Python is left."""
    global _working
    _working = False


def raise_later(number: int) -> None:
    """Raises `Stopped` a moment later: raised now, it would be lost, or it was lost in a callback of Python."""
    signal.signal(signal.SIGALRM, lambda _, frame: _raise(number, frame))
    signal.setitimer(signal.ITIMER_REAL, _POLL_SECONDS)


def ending(error: KeyboardInterrupt) -> tuple[int, str]:
    """The exit status and the last line of a process that a signal stops."""
    return _ending(getattr(error, "number", signal.SIGINT))


def _ending(number):
    return 128 + number, "stopped" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


@contextlib.contextmanager
def catch() -> Iterator[Interrupt]:
    """Handles `SIGNALS` as `Interrupt` describes while the block lasts. Signals that are ignored stay ignored."""
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
    """Raises `Stopped`; within an import, which might swallow it, only when the import is over."""
    if not (_importing(frame) and hasattr(signal, "setitimer")):
        raise Stopped(number)
    raise_later(number)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
