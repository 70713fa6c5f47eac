"""The states of the runs of a sweep, from their files alone."""

from pathlib import Path
from typing import Any, NamedTuple

from imgclf_jax.errors import UserError
from imgclf_jax.sweep import locks
from imgclf_jax.workdir import failure, record

STATES = ("waiting", "running", "stale", "interrupted", "complete", "diverged", "failed", "pruned")
# Another session would change nothing about these. A run that failed may succeed after a repair.
FINAL = ("complete", "diverged")


class State(NamedTuple):
    """The state of a run.

    Attributes:
        name: one of `STATES`. "stale" is a run whose process died without a word; it can be resumed.
        detail: the process that runs it, or the reason why it failed; may be empty.
        record: the content of its `run.json`, or an empty object.
    """

    name: str
    detail: str
    record: dict[str, Any]


def lock_path(folder: Path) -> Path:
    """Returns the lock of a run directory, which is not in it, because a refused run must leave no folder."""
    return _beside(folder, "locks", "lock")


def log_path(folder: Path) -> Path:
    """Returns the text file with the console output of a run."""
    return _beside(folder, "logs", "txt")


def note_path(folder: Path) -> Path:
    """Returns the file with the error of the last attempt at a run; see `fail`."""
    return failure.path(folder)


def _beside(folder, name, suffix):
    return folder.parent.parent / name / f"{folder.parent.name}-{folder.name}.{suffix}"


def fail(folder: Path, invocation: str, error: str) -> None:
    """Notes that a run failed, possibly before it could write anything itself.

    Args:
        folder: the run directory.
        invocation: the command during which it failed; the same command does not try it again.
        error: the reason.
    """
    failure.write(folder, failure.Failure(invocation, error))


def read(folder: Path) -> State:
    """Returns the state of a run.

    Args:
        folder: the run directory, DIR/GROUP/NAME. It need not exist.
    """
    lock = lock_path(folder)
    state = unlocked(folder)
    if not lock.exists():
        return state
    holder = locks.read(lock)
    process = f"process {holder.pid} on {holder.host}" if holder else ""
    if locks.is_held(lock):
        return state._replace(name="running", detail=process)
    return state if state.name in FINAL else state._replace(name="stale", detail=process)


def unlocked(folder: Path) -> State:
    """Returns the state of a run that no process has."""
    try:
        content = record.read(folder) or {}
    except UserError as error:
        return State("failed", str(error), {})
    status = content.get("status", "")
    if status in (*FINAL, "pruned", "interrupted"):
        return State(status, "", content)
    if note := failure.read(folder):
        return State("failed", note.error, content)
    if status == "running":
        return State("stale", "", content)
    return State("failed", content.get("error", ""), content) if status == "failed" else State("waiting", "", content)


def failed_in(folder: Path) -> str:
    """Returns the invocation during which a run failed; empty if it did not."""
    note = failure.read(folder)
    return note.invocation if note else ""
