"""The folder of a sweep: the configs of its groups as files, from which workers on any machine read their runs."""

from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from imgclf_jax.config import from_json, to_json
from imgclf_jax.errors import UserError
from imgclf_jax.storage import files
from imgclf_jax.sweep import plan_file
from imgclf_jax.terminal import tools

GROUP = "group.json"


class Run(NamedTuple):
    """A run of a sweep, as a worker sees it.

    Attributes:
        name: "GROUP seed 3" or "GROUP seed 3 fold 1", for people.
        group: the name of its group.
        folder: the run directory.
        seed: its seed.
        fold: its fold; 0 without cross-validation.
    """

    name: str
    group: str
    folder: Path
    seed: int
    fold: int

    def config(self) -> ConfigDict:
        """Reads the config of the run.

        Raises:
            UserError: the file of the group is missing or damaged.
        """
        path = self.folder.parent / GROUP
        content = files.read_json(path)
        if content is None or not isinstance(content.get("config"), dict):
            raise UserError(f"{path} is missing or damaged; start the sweep again to write it")
        config = from_json(content["config"])
        config.seed = self.seed
        config.data.fold = self.fold
        # One file per run has its output. A progress bar would fill it.
        config.log.progress = "lines" if config.log.progress in ("auto", "bar") else config.log.progress
        return config


def write(folder: Path, study: Any, plan: dict[str, Any]) -> None:
    """Writes everything that a worker needs.

    Args:
        folder: the folder of the sweep.
        study: see `imgclf_jax.sweep.resolving.Study`.
        plan: see `imgclf_jax.sweep.plan_file.content`.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for group in study.groups:
            place = folder / group.folder
            place.mkdir(exist_ok=True)
            # Written each time: fields that change nothing in what is computed, such as data.dir, may have changed.
            content = {"name": group.name, "changes": group.changes, "config": to_json(group.config)}
            files.write_json(place / GROUP, content)
        plan_file.write(folder, plan)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}; choose another --workdir") from error


def runs(folder: Path) -> list[Run]:
    """Returns the runs of a sweep in the order in which they are taken: all groups of the first seed come first.

    Raises:
        UserError: the folder holds no sweep, or its file is damaged.
    """
    plan = plan_file.read(folder)
    if plan is None:
        raise UserError(f"{folder} holds no sweep; give the --workdir of `{tools.command('sweep')}`")
    found = []
    for seed in plan["seeds"]:
        for fold in range(plan["folds"] or 1):
            for group in plan["groups"]:
                place = f"seed{seed}-fold{fold}" if plan["folds"] else f"seed{seed}"
                name = f"{group['name']} seed {seed}" + (f" fold {fold}" if plan["folds"] else "")
                found.append(Run(name, group["name"], folder / group["folder"] / place, seed, fold))
    return found
