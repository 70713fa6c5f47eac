"""Finds the checkpoint that `init.run` names. Cheap: it is not read."""

from pathlib import Path
from typing import Any

from imgclf_jax.errors import UserError
from imgclf_jax.workdir import checkpoint_folder, record


def trained_step(text: str) -> tuple[Path, int, dict[str, Any]]:
    """Returns the workdir, the step of the checkpoint, and the content of `run.json`.

    Args:
        text: the value of `init.run`: a workdir, whose reported checkpoint is meant, or the folder of a checkpoint.

    Raises:
        UserError: there is no such workdir or checkpoint.
    """
    path = Path(text)
    folder = path.parent.parent if path.parent.name == checkpoint_folder.FOLDER and path.name.isdecimal() else path
    if not folder.is_dir():
        raise UserError(f"init.run={text}: there is no folder {folder}; give the workdir that training printed")
    steps, content = checkpoint_folder.steps(folder), record.read(folder) or {}
    if not steps:
        raise UserError(f"init.run={text}: {folder} holds no checkpoint; give the workdir that training printed")
    if folder != path:
        if int(path.name) not in steps:
            there = ", ".join(map(str, steps))
            raise UserError(f"init.run={text}: there is no checkpoint of that step; there are those of step {there}")
        return folder, int(path.name), content
    reported = content.get("reported_step", steps[-1])
    if reported not in steps:
        raise UserError(
            f"init.run={text}: the reported checkpoint, that of step {reported}, is missing; choose another one with "
            f"--config.init.run={folder / checkpoint_folder.FOLDER / str(steps[-1])}"
        )
    return folder, reported, content
