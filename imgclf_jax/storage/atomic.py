"""Writes files and folders that appear whole or not at all, even if the power fails."""

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
except ImportError:  # Windows has no folder locks: leftovers of killed processes are deleted there once they are old.
    fcntl = None  # type: ignore[assignment]

# A temporary folder or file that has not changed for this long counts as left behind.
_STALE_SECONDS = 24 * 3600
# The limit for folders that this host made before its last restart, or that a host with the same name made.
_RESTARTED_SECONDS = 3600


def _boot() -> str:
    """Returns an id that changes when this host restarts and that tells hosts with the same name apart."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return "0"


_HOST = ".tmp-" + re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname()) + "-"
_PREFIX = f"{_HOST}{_boot()}-"
_TEMPORARY = re.compile(r"\.tmp-([A-Za-z0-9._]+-){0,2}[a-z0-9_]{8}")  # `tempfile` makes such names


def is_writable(folder: Path) -> bool:
    """Returns whether files can be created in `folder`, or in its nearest existing parent if it does not exist yet.

    A folder without any write bit counts as read-only, even for the superuser, who could write to it.
    """
    # Unlike `Path.exists`, this returns False instead of raising an error if a parent folder cannot be entered.
    while not os.path.exists(folder) and folder != folder.parent:  # noqa: PTH110
        folder = folder.parent
    return folder.is_dir() and bool(stat.S_IMODE(folder.stat().st_mode) & 0o222) and os.access(folder, os.W_OK)


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yields a new folder in `parent`. It is deleted at the end of the block unless it has been renamed.

    First deletes what dead processes left behind in `parent`, see `sweep`.

    Raises:
        OSError: the folder cannot be created.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = _lock(folder)
        if folder.exists():
            break
        _unlock(lock)  # Another process swept it before it was locked.
    folder.chmod(0o755)  # mkdtemp makes it private, but everybody may read the published data.
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def sweep(parent: Path) -> None:
    """Deletes the temporary folders and files in `parent` that dead processes left behind.

    The owner of a folder holds a lock on it. The lock is released when the process ends, however it ends, and unlike a
    process id it is never reused. Locks of other hosts are unreliable on network file systems. Therefore folders of
    other hosts, and all files, count as left behind after a day without changes. Folders that this host made before
    its last restart count as left behind after an hour.
    """
    try:
        temporaries = [entry for entry in parent.iterdir() if _TEMPORARY.fullmatch(entry.name)]
    except OSError:
        return
    for old in temporaries:
        with contextlib.suppress(OSError):
            if not stat.S_ISDIR(old.lstat().st_mode):
                if _age(old) > _STALE_SECONDS:
                    old.unlink()
                continue
            lock = _lock(old, wait=False)
            try:
                limit = _RESTARTED_SECONDS if old.name.startswith(_HOST) else _STALE_SECONDS
                if (lock is not None and old.name.startswith(_PREFIX)) or _age(old) > limit:
                    shutil.rmtree(old)
            finally:
                _unlock(lock)


def discard(folder: Path) -> None:
    """Deletes a folder, or a file of that name. Other processes never see it half deleted.

    Raises:
        OSError: it cannot be deleted.
    """
    with temporary_folder(folder.parent) as temporary, contextlib.suppress(FileNotFoundError):
        folder.rename(temporary / "discarded")


_held: dict[Path, int] = {}  # folder -> the descriptor that holds its shared lock


def hold(folder: Path) -> None:
    """Marks a folder as in use until this process ends, for `discard_unused`, where folders can be locked."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            _unlock(descriptor)
            return
        _unlock(_held.pop(folder, None))
        _held[folder] = descriptor


def discard_unused(folder: Path) -> bool:
    """Deletes a folder as `discard` does, unless a process uses it. Returns whether it was deleted.

    Raises:
        OSError: it cannot be deleted.
    """
    try:
        lock = _lock(folder, wait=False)
    except BlockingIOError:
        return False
    try:
        discard(folder)
    finally:
        _unlock(lock)
    return True


def sync(path: Path) -> None:
    """Flushes a file, or a folder and everything in it, to the disk. It then survives a power cut.

    Otherwise, a power cut after a rename may leave a file with its new name but without its content.

    Raises:
        OSError: a file cannot be read or written.
    """
    if not path.is_dir():
        with path.open("rb+") as f:
            os.fsync(f.fileno())
        return
    for entry in path.iterdir():
        sync(entry)
    sync_names(path)


def sync_names(folder: Path) -> None:
    """Flushes the names of a folder's entries to the disk, if the file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replaces a text file (UTF-8), durably and in a single rename: no reader ever sees half of it.

    Only one process may write the file at a time.

    Raises:
        OSError: the file cannot be written. The previous one is kept.
    """
    _replace(path, text, path.with_name(path.name + ".tmp"))


def write_text_if_possible(path: Path, text: str) -> None:
    """Writes a file as `write_text` does, from any number of processes at once. Errors are ignored.

    For files that only save time. Missing parent folders are created.
    """
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=_PREFIX, dir=path.parent)
        os.close(descriptor)
        _replace(path, text, Path(name), mode=0o644)


def _replace(path: Path, text: str, temporary: Path, mode: int | None = None) -> None:
    """Writes `text` to the file `temporary`, sets its permissions to `mode` if given, and renames it to `path`."""
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_names(path.parent)


def _lock(folder, wait=True):
    """Locks a folder. Returns the descriptor that holds the lock, or None if folders cannot be locked here.

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
    """Returns the seconds since the last change of a file, or of anything in a folder."""
    newest = [path, *(path.rglob("*") if path.is_dir() else ())]
    return time.time() - max(entry.lstat().st_mtime for entry in newest)
