"""The folder of a run: its lock, its `config.json`, and the writing of its `run.json`."""

import contextlib
import datetime
import errno
import os
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imgclf_jax import config as configs
from imgclf_jax.errors import UserError
from imgclf_jax.storage.files import read_json, write_json
from imgclf_jax.terminal import streams
from imgclf_jax.workdir import record

CONFIG_ADVICE = (
    "; if you know that your --config is the one of this run, delete the file: training with it writes the file again"
)


def default_path(config_file: str) -> Path:
    """`runs/NAME/YYYYmmdd-HHMMSS`, after the config file's name and the time."""
    return Path("runs") / Path(config_file).stem / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")


class Claim:
    """A workdir and its lock, which is held until the end of the `with` block.

    The folders and the lock file that had to be created for it are removed at the end unless `keep` was called, so that
    a run that is refused leaves nothing behind.

    Attributes:
        folder: the workdir.
    """

    def __init__(self, folder: Path, lock: Any, undo: contextlib.ExitStack):
        self.folder = folder
        self._lock, self._undo = lock, undo

    def keep(self) -> None:
        """Keeps the folder at the end. To be called before anything is written to it."""
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
        new: whether it must not exist yet. If the name is taken, -2, -3 and so on is appended to it.

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
    """The folder that was created or found; `undo` removes what was created."""
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
    """The open lock file."""
    path = folder / ".lock"
    while True:
        there = os.path.lexists(path)
        lock = path.open("a")
        undo.callback(lock.close)
        if not there:
            undo.callback(_remove, path)
        try:
            import fcntl
        except ImportError:  # Windows has no such locks; two runs in one folder are the user's to avoid.
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
        # A run that was refused may have removed the file after it was opened here. Then the lock protects nothing.
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


def check_config(workdir: Path, config: ConfigDict, allow_change: bool) -> list[str]:
    """Compares a config with the one that `workdir` was started with.

    Returns:
        The fields that differ and can change what training computes, a line each.

    Raises:
        UserError: there are such fields and `allow_change` is not set.
    """
    old = _read_config(workdir)
    changed = configs.differences(configs.to_json(old), configs.to_json(config)) if old is not None else []
    if changed and not allow_change:
        raise UserError(
            f"workdir {workdir} holds a run with another config:\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\nchoose another --workdir, or continue anyway with --allow_config_change"
        )
    return changed


def load_config(workdir: Path) -> ConfigDict:
    """The config of the run in `workdir`. Raises `UserError` if there is none, or if it cannot be read."""
    config = _read_config(workdir)
    if config is None:
        raise UserError(f"{workdir} holds no run (no config.json); give the workdir that training printed")
    return config


def _read_config(workdir):
    """The config, or `None` if there is no such file."""
    path = workdir / "config.json"
    values = read_json(path, CONFIG_ADVICE)
    try:
        return None if values is None else configs.from_json(values)
    except UserError as error:
        raise UserError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error


def save_config(workdir: Path, config: ConfigDict) -> None:
    """Writes `config.json`."""
    write_json(workdir / "config.json", configs.to_json(config))


class RunRecord:
    """`run.json`: rewritten whole whenever something is known, so that it is right at any moment.

    Attributes:
        content: what the file holds, or would hold if this process wrote it.
    """

    def __init__(self, workdir: Path, before: dict[str, Any] | None = None, writes: bool = True):
        """Prepares the record; writes nothing yet.

        Args:
            workdir: the folder of the run.
            before: the record that earlier sessions of the same run have written; see `imgclf_jax.workdir.record.read`.
            writes: whether this process is the one that writes.
        """
        self._path = workdir / record.NAME
        self._writes = writes
        self._lock = threading.Lock()
        self.content = dict(before or {})
        self._spent = self.content.get("wall_time_seconds", 0.0)
        self._started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._clock = time.monotonic()  # The time of day may be set while a run goes on.

    def begin(self, **content: Any) -> None:
        """Starts a session with the status "running". How an earlier one ended is dropped; its time is carried over."""
        before = self.content
        self.content = {
            "status": "running",
            "started": before.get("started", self._started),
            "sessions": before.get("sessions", 0) + 1,
            **content,
        }
        # The time that a killed session spent after it last wrote this record is unknown, and is not counted.
        if killed := before.get("killed_sessions", 0) + (before.get("status") == "running"):
            self.content["killed_sessions"] = killed
        self.update()

    @property
    def wall_time(self) -> float:
        """Seconds that this run has taken, over all its sessions."""
        return self._spent + time.monotonic() - self._clock

    def update(self, **content: Any) -> None:
        """Adds fields to the record and writes it. May be called from any thread."""
        with self._lock:
            self._update(content)

    def _update(self, content):
        self.content |= content
        self.content["wall_time_seconds"] = round(self.wall_time, 3)
        if streams.lost() and "console" not in self.content:
            self.content["console"] = f"lost, as noticed at step {self.content.get('step', 0)}: {streams.lost()}"
        if self._writes:
            write_json(self._path, self.content)
