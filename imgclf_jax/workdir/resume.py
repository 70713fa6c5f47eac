"""Checks what a workdir holds before training begins, and whether the run may continue. Only `heal` writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from imgclf_jax import components
from imgclf_jax.devices import processes
from imgclf_jax.errors import UserError
from imgclf_jax.workdir import checkpoint_folder, metrics, provenance, record, rows, same_data, saved_config


class Before(NamedTuple):
    """What a workdir held before the command began.

    Attributes:
        record: the content of its `run.json`; empty if there is none.
        changed: one line for each field of the config that differs.
        new: whether the folder holds no run yet.
    """

    record: dict[str, Any]
    changed: list[str]
    new: bool


def inspect(
    folder: Path, config: ConfigDict, allow_change: bool, parts: dict[str, dict[str, Any]] | None = None
) -> Before:
    """Reads everything in a workdir except the arrays of checkpoints. The first process reads and informs the others.

    Args:
        folder: the workdir; it need not exist.
        config: the config to continue with.
        allow_change: whether it may differ from the config of the run.
        parts: the parts to continue with; see `imgclf_jax.components.sources`.

    Raises:
        UserError: a file is damaged or is in the place of a folder, the config or a part has changed, or checkpoints
            are missing.
    """
    return Before(**processes.from_first(lambda: _inspect(folder, config, allow_change, parts or {})))


def _inspect(folder, config, allow_change, parts):
    changed = saved_config.check_config(folder, config, allow_change)
    content = record.read(folder)
    if content and content.get("provenance") and (other := components.changes(provenance.parts_of(content), parts)):
        if not allow_change:
            raise UserError(
                f"workdir {folder} holds a run with other code of your own:\n"
                + "\n".join(f"  {line}" for line in other)
                + "\nchoose another --workdir, or continue anyway with --allow_config_change"
            )
        changed += other
    rows.read(folder)
    checkpoint_folder.check_places(folder)
    events = folder / "tensorboard"
    if events.exists() and not events.is_dir():
        raise UserError(f"{events} is a file where a folder belongs; move it away")
    steps = checkpoint_folder.steps(folder)
    if (saved := (content or {}).get("step")) and not steps:
        raise UserError(
            f"{folder / record.NAME} says that step {saved} was saved, but there are no checkpoints in "
            f"{folder / checkpoint_folder.FOLDER}; put them back, choose another --workdir, or delete {record.NAME} to "
            "start over in this one"
        )
    new = content is None and not steps and not (folder / "config.json").exists()
    return {"record": content or {}, "changed": changed, "new": new}


def check_data(
    before: dict[str, Any], facts: dict[str, Any], folder: Path, warn: Callable[[str], None], allow_change: bool
) -> bool:
    """Checks that training continues with the data that it began with.

    Args:
        before: the recorded facts about the data that the checkpoints were trained on; see `known_data`.
        facts: the same facts about the data to continue with; see `imgclf_jax.data.types.Dataset.facts`.
        folder: the workdir.
        warn: called with one line if the data have changed and `allow_change` is true.
        allow_change: whether the data may have changed.

    Returns:
        Whether the data have changed.

    Raises:
        UserError: they have, and `allow_change` is false.
    """
    if change := _other_labels(before, facts):
        if not allow_change:
            raise UserError(
                f"workdir {folder} holds a run on other training labels ({change}); choose another --workdir, or "
                "continue anyway with --allow_config_change"
            )
        warn(f"data changed: training labels, {change}")
    if same_data.is_same(before, facts):
        return bool(change)
    old, new = before["fingerprint"], facts["fingerprint"]
    places = [f"{data.get('name', '?')} in {data.get('location', '?')}" for data in (before, facts)]
    change = f"{places[0]} has changed" if places[0] == places[1] else " -> ".join(places)
    if not allow_change:
        raise UserError(
            f"workdir {folder} holds a run on different data ({change}; fingerprint {old[:12]} -> {new[:12]}); choose "
            "another --workdir, or continue anyway with --allow_config_change"
        )
    warn(f"data changed: {change}")
    return True


def _other_labels(before, facts):
    """Returns how the file that replaces the training labels has changed, or ""."""
    if "fingerprint" not in before:  # Nothing is known about the data.
        return ""
    old, new = (data.get("labels") or {} for data in (before, facts))
    if old.get("sha256") == new.get("sha256"):
        return ""
    if old.get("file") == new.get("file"):
        return f"{new['file']} has changed; SHA-256 {str(old.get('sha256'))[:12]} -> {new['sha256'][:12]}"
    return f"{old.get('file', 'those of the data set')} -> {new.get('file', 'those of the data set')}"


def known_data(before: Before, notes: dict[str, Any]) -> dict[str, Any]:
    """The recorded facts of the data that a checkpoint was trained on; empty or incomplete if they are not known.

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
    early = content.get("stopped_early")
    return (
        content.get("status") == "complete"
        and not before.changed
        and content.get("step") == restored_step == (early["step"] if early else steps)
        and "reported_step" in content
    )


def heal(folder: Path, config: ConfigDict) -> None:
    """Writes the `config.json` of a complete run again if it was deleted, and its metrics files if they are damaged."""
    if not processes.is_first():
        return
    if not (folder / "config.json").exists():
        saved_config.save_config(folder, config)
    metrics.repair(folder)


def explain_difference(mine: str, first: str) -> str:
    """Describes how the facts of two data sets, given as JSON, differ; see `imgclf_jax.data.types.Dataset.facts`."""
    one, other = json.loads(first), json.loads(mine)
    return "; ".join(
        f"{name}: {one.get(name)} -> {other.get(name)}"
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    )
