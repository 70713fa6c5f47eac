"""The note on a run of a sweep that failed: beside its run directory, because it may have failed before it had one."""

from pathlib import Path
from typing import NamedTuple

from imgclf_jax.errors import UserError
from imgclf_jax.storage.files import read_json, write_json

_LONGEST = 2000  # characters of a reason


class Failure(NamedTuple):
    """Why the last attempt at a run failed.

    Attributes:
        invocation: the command during which it failed.
        error: the reason.
    """

    invocation: str
    error: str


def path(folder: Path) -> Path:
    """Returns the file of the note on a run.

    Args:
        folder: the run directory, DIR/GROUP/NAME. It need not exist.
    """
    return folder.parent.parent / "logs" / f"{folder.parent.name}-{folder.name}.failed.json"


def write(folder: Path, failure: Failure) -> None:
    """Writes the note on a run."""
    path(folder).parent.mkdir(parents=True, exist_ok=True)
    write_json(path(folder), {"invocation": failure.invocation, "error": failure.error[:_LONGEST]})


def read(folder: Path) -> Failure | None:
    """Reads the note on a run; `None` if there is none. A damaged one says only that the run failed."""
    try:
        content = read_json(path(folder))
    except UserError:
        content = {}
    if content is None:
        return None
    invocation, error = content.get("invocation"), content.get("error")
    if isinstance(invocation, str) and isinstance(error, str):
        return Failure(invocation, error)
    return Failure("", "unknown; the note about it is damaged")
