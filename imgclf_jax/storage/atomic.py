"""Files and folders that appear whole or not at all, even if the power fails."""

import contextlib
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no folder locks. What a killed process leaves there is deleted once it is old.
    fcntl = None  # type: ignore[assignment]

# After so long without a change, a temporary folder or file counts as left behind.
_STALE_SECONDS = 24 * 3600
# The same for folders of this host from before its restart, or of another host with the same name.
_RESTARTED_SECONDS = 3600


def _boot() -> str:
    """Returns an id that changes when this host restarts, and tells apart hosts that share a name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return "0"


_HOST = ".tmp-" + re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname()) + "-"
_PREFIX = f"{_HOST}{_boot()}-"
_TEMPORARY = re.compile(r"\.tmp-([A-Za-z0-9._]+-){0,2}[a-z0-9_]{8}")  # a name that `tempfile` makes from such a prefix


def is_writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, or in the nearest folder above it when it does not exist yet.

    A folder without a write bit is meant to stay as it is, even where the superuser could write to it.
    """
    # Unlike `Path.exists`, this returns False instead of raising an error if a folder above cannot be entered.
    while not os.path.exists(folder) and folder != folder.parent:  # noqa: PTH110
        folder = folder.parent
    return folder.is_dir() and bool(stat.S_IMODE(folder.stat().st_mode) & 0o222) and os.access(folder, os.W_OK)


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yields a new folder in `parent`, which is deleted at the end unless it was renamed before.

    First deletes what dead processes left behind in `parent`, see `sweep`. Raises `OSError`.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = _lock(folder)
        if folder.exists():
            break
        _unlock(lock)  # Another process swept it before it was locked.
    folder.chmod(0o755)  # mkdtemp makes it private, but what is published is for everybody who reads the data
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def sweep(parent: Path) -> None:
    """Deletes the temporary folders and files in `parent` that dead processes left behind.

    The owner of a folder holds a lock on it. The lock ends with the process, however the process ends; unlike a process
    id, it never passes to another process. Locks of other hosts are not reliable on network file systems. So their
    folders, and all files, count as left behind if nothing in them has changed for a day; folders with this host's name
    from before its restart, for an hour.
    """
    try:
        found = [entry for entry in parent.iterdir() if _TEMPORARY.fullmatch(entry.name)]
    except OSError:
        return
    for old in found:
        with contextlib.suppress(OSError):
            if not stat.S_ISDIR(old.lstat().st_mode):
                if _age(old) > _STALE_SECONDS:
                    old.unlink()
                continue
            lock = _lock(old, wait=False)
            try:
                quiet = _RESTARTED_SECONDS if old.name.startswith(_HOST) else _STALE_SECONDS
                if (lock is not None and old.name.startswith(_PREFIX)) or _age(old) > quiet:
                    shutil.rmtree(old)
            finally:
                _unlock(lock)


def discard(folder: Path) -> None:
    """Deletes a folder, or a file in its place; other processes never see it half deleted. Raises `OSError`."""
    with temporary_folder(folder.parent) as temporary, contextlib.suppress(FileNotFoundError):
        folder.rename(temporary / "discarded")


def sync(path: Path) -> None:
    """Writes a file, or a folder with everything in it, to the disk, so that it survives a power cut.

    Without this, a power cut after a rename may leave a file that has its new name but not its content.

    Raises:
        OSError: something cannot be read or written.
    """
    if not path.is_dir():
        with path.open("rb+") as f:
            os.fsync(f.fileno())
        return
    for inside in path.iterdir():
        sync(inside)
    sync_names(path)


def sync_names(folder: Path) -> None:
    """Writes the names of the entries of a folder to the disk; does nothing if the file system cannot do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text_if_possible(path: Path, text: str) -> None:
    """Writes a small file in one piece; gives up silently where it cannot: for what merely saves time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=_PREFIX, dir=path.parent)
    except OSError:
        return
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(descriptor)
        Path(name).chmod(0o644)
        Path(name).replace(path)
        sync_names(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            Path(name).unlink(missing_ok=True)


def _lock(folder, wait=True):
    """Returns a descriptor that holds a lock on a folder; None if folders cannot be locked here.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
    """
    if fcntl is None:
        return None
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return descriptor
    except OSError as e:
        _unlock(descriptor)
        if isinstance(e, BlockingIOError):
            raise
        return None


def _unlock(descriptor):
    if descriptor is not None:
        os.close(descriptor)


def _age(path):
    """Returns the seconds since a file, or anything in a folder, was last changed."""
    newest = [path, *(path.rglob("*") if path.is_dir() else ())]
    return time.time() - max(entry.lstat().st_mtime for entry in newest)
