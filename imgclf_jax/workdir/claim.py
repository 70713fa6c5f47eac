"""The folder of a run: its default path and its lock."""

import contextlib
import datetime
import errno
import os
import warnings
from pathlib import Path
from typing import Any

from imgclf_jax.errors import UserError


def default_path(config_file: str) -> Path:
    """`runs/NAME/YYYYmmdd-HHMMSS`, after the config file's name and the time."""
    return Path("runs") / Path(config_file).stem / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")


class Claim:
    """A workdir and its lock, which is held until the end of the `with` block.

    Folders and a lock file that were created for it are removed at the end unless `keep` was called, so a refused run
    leaves nothing behind.

    Attributes:
        folder: the workdir.
    """

    def __init__(self, folder: Path, lock: Any, undo: contextlib.ExitStack):
        self.folder = folder
        self._lock, self._undo = lock, undo

    def keep(self) -> None:
        """Keeps the folder at the end. Must be called before anything is written to it."""
        self._undo.pop_all()

    def __enter__(self) -> "Claim":
        """Returns the claim itself."""
        return self

    def __exit__(self, *error: Any) -> None:
        """See `close`."""
        self.close()

    def close(self) -> None:
        """Releases the lock, and removes what was created unless `keep` was called."""
        self._undo.close()
        self._lock.close()


def claim(workdir: Path, new: bool = False) -> Claim:
    """Creates the folder and takes its lock.

    Args:
        workdir: the folder.
        new: whether the folder must be new. If the name is taken, -2, -3 and so on are tried as suffixes.

    Raises:
        UserError: the folder cannot be written, or another process is training in it.
    """
    with contextlib.ExitStack() as undo:
        try:
            folder = _make(workdir, new, undo)
            lock = _lock(folder, undo)
        except OSError as error:
            raise _unusable(workdir, error) from error
        return Claim(folder, lock, undo.pop_all())


def _error(number):
    return OSError(number, os.strerror(number))


def _unusable(workdir, error):
    return UserError(f"cannot write to workdir {workdir}: {error.strerror}; choose another --workdir")


def _make(workdir, new, undo):
    """Returns the folder, which is created if necessary; `undo` removes what was created."""
    if not workdir.parent.is_dir():
        _make(workdir.parent, False, undo)
    folder, number = workdir, 2
    while True:
        try:
            folder.mkdir()
        except FileExistsError:
            if not new:
                if folder.is_dir():
                    return folder
                raise
            folder = workdir.with_name(f"{workdir.name}-{number}")
            number += 1
        else:
            undo.callback(_remove, folder)
            return folder


def _lock(folder, undo):
    """Returns the open lock file."""
    path = folder / ".lock"
    while True:
        existed = os.path.lexists(path)
        lock = path.open("a")
        undo.callback(lock.close)
        if not existed:
            undo.callback(_remove, path)
        try:
            import fcntl
        except ImportError:  # Windows has no such locks; users must not start two runs in one folder.
            return lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                undo.pop_all()  # The file and the folder belong to the other process.
                lock.close()
                raise UserError(f"another process is using workdir {folder}; choose another --workdir") from error
            warnings.warn(
                f"cannot lock workdir {folder} ({error.strerror}); make sure that no other run uses it", stacklevel=2
            )
            return lock
        # A refused run may have removed the file after it was opened here. Then the lock protects nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        lock.close()


def _remove(path):
    with contextlib.suppress(OSError):
        path.rmdir() if path.is_dir() else path.unlink()


def check_usable(workdir: Path) -> None:
    """Raises the `UserError` that `claim` would raise, without creating anything."""
    try:
        place = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
        if not place.is_dir():
            raise _error(errno.EEXIST if place == workdir else errno.ENOTDIR)
        if not os.access(place, os.W_OK | os.X_OK):
            raise _error(errno.EACCES)
        if (workdir / ".lock").exists():
            with contextlib.ExitStack() as undo:
                _lock(workdir, undo)
    except OSError as error:
        raise _unusable(workdir, error) from error
