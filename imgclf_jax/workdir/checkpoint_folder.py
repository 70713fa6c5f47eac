"""Lists the checkpoints of a workdir and moves damaged ones away. Does not read them."""

import os
from pathlib import Path

from imgclf_jax.devices import processes
from imgclf_jax.errors import UserError

FOLDER = "checkpoints"
DAMAGED = "damaged_checkpoints"


def exists(workdir: Path) -> bool:
    """Whether there is a finished checkpoint in `workdir`. Cheap, and without side effects. Raises like `steps`."""
    return bool(steps(workdir))


def steps(workdir: Path) -> list[int]:
    """The steps of the checkpoints in `workdir`, damaged or not, in ascending order. Cheap, and without side effects.

    Raises:
        UserError: the folder of checkpoints cannot be read, for instance because it is a file.
    """
    folder = Path(workdir) / FOLDER
    try:
        entries = list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}; move it away") from error
    return sorted(int(entry.name) for entry in entries if _is_step(entry.name) and entry.is_dir())


def check_places(workdir: Path) -> None:
    """Raises `UserError` if a file is where a checkpoint, or the folder for damaged ones, belongs."""
    steps(workdir)
    folder, damaged = Path(workdir) / FOLDER, Path(workdir) / DAMAGED
    entries = [entry for entry in folder.iterdir() if _is_step(entry.name)] if folder.is_dir() else []
    for entry in [*entries, damaged]:
        if os.path.lexists(entry) and not entry.is_dir():
            raise UserError(f"{entry} is a file where a folder belongs; move it away")


def set_aside(workdir: Path, damaged: dict[int, str]) -> None:
    """Moves damaged checkpoints to `damaged_checkpoints`. All processes must call it.

    Args:
        workdir: the folder of the run.
        damaged: step -> what is wrong; see `imgclf_jax.workdir.checkpoint.Found`. Only the steps are used.
    """
    for step in damaged:
        aside = Path(workdir) / DAMAGED / str(step)
        if processes.is_first():
            aside.parent.mkdir(exist_ok=True)
            number = 2
            while os.path.lexists(aside):
                aside = aside.with_name(f"{step}-{number}")
                number += 1
            (Path(workdir) / FOLDER / str(step)).rename(aside)
    if damaged:
        processes.gather("moved")


def _is_step(name):
    return name.isascii() and name.isdecimal() and str(int(name)) == name
