"""Locks of runs that processes on several machines share: a file each, whose time of change is a heartbeat."""

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

BEAT_SECONDS = 10.0
# The holder of a lock on another machine counts as dead if its lock has not changed for this long. Longer than a
# network file system caches attributes, and than a busy machine may keep a thread waiting.
DEAD_SECONDS = 120.0


class Holder(NamedTuple):
    """The process that holds a lock, as written in the file.

    Attributes:
        host: the name of its machine.
        machine: what tells machines of the same name, restarts and containers apart.
        pid: its process id.
        born: the start of the process in the clock of its machine, because process ids are reused.
    """

    host: str
    machine: str
    pid: int
    born: str


def myself() -> Holder:
    """Returns this process."""
    return Holder(socket.gethostname(), _machine(), os.getpid(), _born(os.getpid()))


def read(path: Path) -> Holder | None:
    """Returns the holder of a lock; `None` if there is no lock, or if the file has not been written completely."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def is_held(path: Path) -> bool:
    """Whether a living process holds a lock.

    A process of this machine is alive if it exists. One of another machine cannot be seen: it counts as alive until its
    heartbeat is older than `DEAD_SECONDS`.
    """
    try:
        changed = path.stat().st_mtime
    except OSError:
        return False
    holder = read(path)
    if holder is not None and (holder.host, holder.machine) == (socket.gethostname(), _machine()):
        return _born(holder.pid) == holder.born != ""
    return _now(path.parent) - changed < DEAD_SECONDS


@contextlib.contextmanager
def hold(path: Path, lost: Callable[[], Any] = lambda: os._exit(3)) -> Iterator[bool]:
    """Holds a lock within the block, if no living process holds it. Yields whether it was obtained.

    Args:
        path: the file. Its folder is created.
        lost: called from a thread if another machine has taken the lock, because this process stood still for too
            long. Both would write to the same run, so the process ends by default.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _take(path):
        yield False
        return
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, done, lost), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        done.set()
        beat.join()
        if read(path) == myself():
            path.unlink(missing_ok=True)


def _take(path):
    if not _create(path):
        if is_held(path):
            return False
        # Only one process at a time may remove a dead lock: otherwise a second one could remove the lock of the first.
        mutex = path.with_name(f"{path.name}.takeover")
        if not _create(mutex):
            with contextlib.suppress(OSError):
                if not is_held(mutex):
                    mutex.unlink()  # The next attempt succeeds.
            return False
        try:
            if is_held(path):
                return False
            path.unlink(missing_ok=True)
            return _create(path)
        finally:
            mutex.unlink(missing_ok=True)
    return True


def _create(path):
    try:
        with path.open("x") as file:
            json.dump(myself()._asdict(), file)
    except FileExistsError:
        return False
    return True


def _beat(path, done, lost):
    me = myself()
    while not done.wait(BEAT_SECONDS):
        if read(path) != me:
            if not done.is_set():
                lost()
            return
        with contextlib.suppress(OSError):
            os.utime(path)


def _now(folder):
    """The time by the clock of the file system, which may differ from that of this machine."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()


def _machine():
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _born(pid):
    """The start time of a process; empty if it does not exist or has ended without being waited for."""
    try:
        # The second field is the name of the program in parentheses, which may contain spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        return "" if Path("/proc/self/stat").exists() else _born_elsewhere(pid)
    except (OSError, IndexError):
        return ""


def _born_elsewhere(pid):
    """Without /proc, only whether the process exists is known."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "unknown"
