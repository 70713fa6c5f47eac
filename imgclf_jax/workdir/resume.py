"""What a workdir holds before training begins, and whether the run may continue there. Only `heal` changes anything."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from imgclf_jax.data.types import Dataset
from imgclf_jax.devices import processes
from imgclf_jax.errors import UserError
from imgclf_jax.workdir import checkpoint_folder, metrics, record, rows
from imgclf_jax.workdir import folder as workdir

# The parts of the description of a data set that are the same whether it is streamed or not.
COMPARABLE = ("class_names", "image_shape", "counts")


class Before(NamedTuple):
    """What a workdir held when it was found.

    Attributes:
        record: the content of its `run.json`; empty if there is none.
        changed: one line for each field of the config that differs.
        new: whether the folder holds no run yet.
    """

    record: dict[str, Any]
    changed: list[str]
    new: bool


def inspect(folder: Path, config: ConfigDict, allow_change: bool) -> Before:
    """Reads everything in a workdir except the arrays of checkpoints. The first process reads and informs the others.

    Args:
        folder: the workdir; it need not exist.
        config: the config to continue with.
        allow_change: whether it may differ from the config of the run.

    Raises:
        UserError: a file is damaged or stands where a folder belongs, the config has changed, or checkpoints are
            missing.
    """
    return Before(**processes.from_first(lambda: _inspect(folder, config, allow_change)))


def _inspect(folder, config, allow_change):
    changed = workdir.check_config(folder, config, allow_change)
    found = record.read(folder)
    rows.read(folder)
    checkpoint_folder.check_places(folder)
    events = folder / "tensorboard"
    if events.exists() and not events.is_dir():
        raise UserError(f"{events} is a file where a folder belongs; move it away")
    steps = checkpoint_folder.steps(folder)
    if (saved := (found or {}).get("step")) and not steps:
        raise UserError(
            f"{folder / record.NAME} says that step {saved} was saved, but there are no checkpoints in "
            f"{folder / checkpoint_folder.FOLDER}; put them back, choose another --workdir, or delete {record.NAME} to "
            "start over in this one"
        )
    new = found is None and not steps and not (folder / "config.json").exists()
    return {"record": found or {}, "changed": changed, "new": new}


def check_data(
    before: dict[str, Any], dataset: Dataset, folder: Path, warn: Callable[[str], None], allow_change: bool
) -> bool:
    """Refuses to continue training with data other than those it began with, unless that is intended.

    Args:
        before: what is known about the data that the checkpoints were trained on; see `describe`.
        dataset: the data to continue with.
        folder: the workdir.
        warn: called with a line about a change that is allowed.
        allow_change: whether a change is allowed.

    Returns:
        Whether the data have changed.

    Raises:
        UserError: they have, and `allow_change` is false.
    """
    fingerprint = before.get("fingerprint", dataset.fingerprint)
    if fingerprint == dataset.fingerprint:
        return False
    described = describe(dataset)
    # Streamed before and not now, or the other way round: nothing more can be compared than these fields.
    comparable = _kind(fingerprint) == _kind(dataset.fingerprint)
    if not comparable and all(before.get(name) == described[name] for name in COMPARABLE):
        return False
    places = [f"{before.get('name', '?')} in {before.get('location', '?')}", f"{dataset.name} in {dataset.location}"]
    what = f"{places[0]} has changed" if places[0] == places[1] else " -> ".join(places)
    if not allow_change:
        raise UserError(
            f"workdir {folder} holds a run on other data ({what}; fingerprint {fingerprint[:12]} -> "
            f"{dataset.fingerprint[:12]}); choose another --workdir, or continue anyway with --allow_config_change"
        )
    warn(f"data changed: {what}")
    return True


def known_data(before: Before, notes: dict[str, Any]) -> dict[str, Any]:
    """What is known about the data that a checkpoint was trained on; see `describe`.

    Args:
        before: the workdir.
        notes: the checkpoint's notes, which are used if `run.json` was deleted.
    """
    known = before.record.get("data") or {}
    noted = notes.get("data")
    if "fingerprint" not in known and isinstance(noted, dict) and record.find_problem(noted, record.DATA) is None:
        return noted
    return known


def is_complete(before: Before, steps: int, restored_step: int) -> bool:
    """Whether the run has nothing left to train, and the recorded results are those of this config.

    Args:
        before: the workdir.
        steps: the length of the run in steps.
        restored_step: the step of the newest undamaged checkpoint.
    """
    content = before.record
    return (
        content.get("status") == "complete"
        and not before.changed
        and content.get("step") == restored_step == steps
        and "reported_step" in content
    )


def heal(folder: Path, config: ConfigDict) -> None:
    """Writes the `config.json` of a complete run again if it was deleted, and its metrics files if they are damaged."""
    if not processes.is_first():
        return
    if not (folder / "config.json").exists():
        workdir.save_config(folder, config)
    metrics.repair(folder)


def describe(dataset: Dataset) -> dict[str, Any]:
    """The description of a data set that goes into `run.json` and into every checkpoint."""
    return {
        "name": dataset.name,
        "location": dataset.location,
        "fingerprint": dataset.fingerprint,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "counts": {name: len(split.labels) for name, split in dataset.splits.items()},
    }


def explain_difference(mine: str, first: str) -> str:
    """How two descriptions from `describe`, given as JSON, differ."""
    one, other = json.loads(first), json.loads(mine)
    return "; ".join(f"{name}: {one[name]} -> {other[name]}" for name in one if one[name] != other[name])


def _kind(fingerprint):
    return fingerprint.rpartition(":")[0]
