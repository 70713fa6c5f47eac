"""The folder of a run: who may use it, its `config.json` and its `run.json`."""

import datetime
import errno
import json
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imgclf_jax import config as configs
from imgclf_jax.errors import UserError
from imgclf_jax.logs import write_json


def default_path(config_file: str) -> Path:
    """`runs/NAME/YYYYmmdd-HHMMSS`, after the config file's name and the time."""
    return Path("runs") / Path(config_file).stem / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")


def open_workdir(workdir: Path) -> Any:
    """Makes the folder and takes its lock; the lock lasts as long as the returned file is open.

    Raises:
        UserError: the folder cannot be written, or another process is training in it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a")
    except OSError as error:
        raise UserError(f"cannot write to workdir {workdir}: {error.strerror}; choose another --workdir") from error
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; two runs in one folder are the user's to avoid.
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(f"another process is using workdir {workdir}; choose another --workdir") from error
    return lock


def check_usable(workdir: Path) -> None:
    """Raises the `UserError` that `open_workdir` would raise; makes nothing."""
    place = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    problem = 0
    if not place.is_dir():
        problem = errno.EEXIST if place == workdir else errno.ENOTDIR
    elif not os.access(place, os.W_OK | os.X_OK):
        problem = errno.EACCES
    if problem:
        reason = os.strerror(problem)
        raise UserError(f"cannot write to workdir {workdir}: {reason}; choose another --workdir")
    if (workdir / ".lock").exists():
        open_workdir(workdir).close()


def check_config(workdir: Path, config: ConfigDict, allow_change: bool) -> list[str]:
    """Compares a config with the one that `workdir` was started with.

    Returns:
        The fields that differ and can change what training computes, a line each.

    Raises:
        UserError: there are such fields and `allow_change` is not set.
    """
    old = read_json(workdir / "config.json")
    changed = configs.differences(old, configs.to_json(config)) if old else []
    if changed and not allow_change:
        raise UserError(
            f"workdir {workdir} holds a run with another config:\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\nchoose another --workdir, or insist with --allow_config_change"
        )
    return changed


def load_config(workdir: Path) -> ConfigDict:
    """The config of the run in `workdir`. Raises `UserError` where there is none."""
    values = read_json(workdir / "config.json")
    if values is None:
        raise UserError(f"{workdir} holds no run (no config.json); give the workdir that training printed")
    return configs.from_json(values)


def save_config(workdir: Path, config: ConfigDict) -> None:
    """Writes `config.json`."""
    write_json(workdir / "config.json", configs.to_json(config))


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or `None` where there is no such file. Raises `UserError` if it holds no object."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"cannot read {path}: it holds no JSON object")
    return content


class RunRecord:
    """`run.json`: rewritten whole whenever something is known, so that it is right at any moment."""

    def __init__(self, workdir: Path, writes: bool = True, **content: Any):
        """Starts a record with status "running"; what an earlier session of the same run spent is carried over.

        Args:
            workdir: the folder of the run.
            writes: whether this process is the one that writes it.
            content: what is known already.
        """
        self._path = workdir / "run.json"
        self._writes = writes
        before = read_json(self._path) or {}
        self._spent = before.get("wall_time_seconds", 0.0)
        self._began = datetime.datetime.now(datetime.UTC)
        self.content = {
            "status": "running",
            "started": before.get("started", self._began.isoformat(timespec="seconds")),
            "sessions": before.get("sessions", 0) + 1,
            **content,
        }
        # Of a session that was killed, the time after it last wrote this record is not known, and not counted.
        if killed := before.get("killed_sessions", 0) + (before.get("status") == "running"):
            self.content["killed_sessions"] = killed
        self.update()

    @property
    def wall_time(self) -> float:
        """Seconds that this run has taken, over all its sessions."""
        return self._spent + (datetime.datetime.now(datetime.UTC) - self._began).total_seconds()

    def update(self, **content: Any) -> None:
        """Adds to the record and writes it."""
        self.content |= content
        self.content["wall_time_seconds"] = round(self.wall_time, 3)
        if self._writes:
            write_json(self._path, self.content)
