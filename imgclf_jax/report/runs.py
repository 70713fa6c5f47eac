"""Reads a run for a report: its files, its network and its predictions, with notes on what is missing."""

from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from ml_collections import ConfigDict

from imgclf_jax.data.types import Progress
from imgclf_jax.errors import UserError
from imgclf_jax.report import predictions
from imgclf_jax.report.predictions import Predictions
from imgclf_jax.training import trained
from imgclf_jax.workdir import checkpoint_folder, record
from imgclf_jax.workdir.rows import Row, read_rows
from imgclf_jax.workdir.saved_config import load_config

# If two probabilities differ by less than this, another device or batch size may swap their order.
_ROUNDING = {"float32": 1e-4, "bfloat16": 2e-2}


class Run(NamedTuple):
    """A run, as far as it can be read on this machine.

    Attributes:
        name: short, and unique in the report.
        folder: its workdir.
        config: its config.
        record: its `run.json`.
        rows: of its `metrics.jsonl`.
        network: its reported checkpoint; `None` if no checkpoint can be read.
        predictions: of the network; `None` if they could not be made.
        notes: what the reader must know to trust the report, each a sentence or two.
    """

    name: str
    folder: Path
    config: ConfigDict
    record: dict[str, Any]
    rows: list[Row]
    network: trained.Trained | None
    predictions: Predictions | None
    notes: tuple[str, ...]

    @property
    def split(self) -> str:
        """The split that is reported: "test", or "valid" if the run has no test split."""
        counts = (self.record.get("data") or {}).get("counts") or {}
        return "valid" if counts.get("valid") and not counts.get("test") else "test"

    @property
    def result(self) -> dict[str, Any] | None:
        """`correct`, `count`, `accuracy` and `loss` on that split, from the predictions or else from `run.json`."""
        if self.predictions is None:
            recorded = (self.record.get("results") or {}).get(self.split)
            return recorded if is_result(recorded) else None
        correct, count = self.predictions.correct, len(self.predictions.labels)
        return {
            "correct": correct,
            "count": count,
            "accuracy": correct / count,
            "loss": float(-self.predictions.own_scores().mean(dtype="float64")),
        }


def is_result(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a value is the result of an evaluation, as stored in `run.json`."""
    return isinstance(value, dict) and all(
        isinstance(value.get(name), int | float) for name in ("correct", "count", "accuracy", "loss")
    )


def read(folders: list[Path], progress: Progress, images: bool = True) -> list[Run]:
    """Reads runs and predicts with their networks.

    Args:
        folders: their workdirs.
        progress: called with the progress of the work.
        images: whether to keep the images of the predictions. Those of many runs may need more memory than there is.

    Raises:
        UserError: a folder has no run or is given twice; one line for each.
    """
    check(folders)
    loaded = []
    for folder, name in zip(folders, names(folders), strict=True):
        run = _read(folder, name, progress)
        if not images and run.predictions is not None:
            nothing = np.empty((0, *run.predictions.images.shape[1:]), np.uint8)
            run = run._replace(predictions=run.predictions._replace(images=nothing))
        loaded.append(run)
    return loaded


def check(folders: list[Path]) -> None:
    """Checks the folders without reading much.

    Raises:
        UserError: a folder has no run or is given twice; one line for each.
    """
    problems: list[str] = []
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            problems.append(f"--workdir={folder} is given twice")
        seen.add(folder.resolve())
        try:
            load_config(folder)
            if record.read(folder) is None and not checkpoint_folder.exists(folder):
                problems.append(f"{folder} holds no run (no run.json); give the workdir that training printed")
            read_rows(folder)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def names(folders: list[Path]) -> list[str]:
    """Short unique names: the shortest ends of the paths that differ, and at least `NAME/TIME` of a run."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(path[-max(length, 1 + path[-1].replace("-", "").isdigit()) :]) for path in parts]
        if len(set(ends)) == len(ends):
            return ends
    raise AssertionError(f"equal folders among {folders}")


def _read(folder: Path, name: str, progress: Progress) -> Run:
    config, content = load_config(folder), record.read(folder) or {}
    notes = _incomplete(content)
    network, predicted = None, None
    try:
        network = trained.load(folder, "reported")
        content = network.record
        notes += _replaced(network)
        predicted = predictions.predict(network, progress)
    except UserError as error:
        missing = "predictions" if network else "network"
        notes.append(f"This report has only curves and settings, no {missing}: {' '.join(str(error).split())}.")
    if predicted is not None:
        if predicted.split != "test":
            notes.append(
                "The run has no test split, so this report is about its validation split. If checkpoints or settings "
                "were chosen by it, its accuracy is too optimistic."
            )
        if not_finite := int((~predicted.finite).sum()):
            notes.append(
                f"For {not_finite:,} of {len(predicted.labels):,} examples of the {predicted.split} split, the "
                "network's probabilities are NaN. They count as wrong in the accuracy and are left out of everything "
                "else."
            )
        notes += _different(predicted, content, config)
    return Run(name, folder, config, content, read_rows(folder), network, predicted, tuple(notes))


def _incomplete(record):
    status = record.get("status", "of unknown status")
    if status == "complete":
        return []
    checkpoint = f", and its last checkpoint is from step {record['step']:,}" if record.get("step") else ""
    reason = f" ({record['error']})" if record.get("error") else ""
    return [f"Not complete: the run is {status}{reason}{checkpoint}. This is its state so far, not its result."]


def _replaced(network):
    """Returns a note if the network is from another checkpoint because the reported one is damaged or missing."""
    reported = network.record.get("reported_step")
    if reported is None or reported == network.step:
        return []
    return [
        f"The reported checkpoint, from step {reported:,}, cannot be read. This report is about the checkpoint from "
        f"step {network.step:,}; the accuracies in run.json do not belong to it."
    ]


def _different(predicted, record, config):
    """Returns a note if the accuracy of the predictions is not the recorded accuracy of the run."""
    recorded = (record.get("results") or {}).get(predicted.split)
    correct, count = predicted.correct, len(predicted.labels)
    if not is_result(recorded) or (recorded["correct"], recorded["count"]) == (correct, count):
        return []
    difference = (
        f"This is not exactly the result of the run: {correct:,} of {count:,} predictions are correct, but run.json "
        f"says {recorded['correct']:,} of {recorded['count']:,}. "
    )
    ties = predicted.near_ties(_ROUNDING[config.model.dtype])
    if recorded["count"] == count and abs(recorded["correct"] - correct) <= ties:
        return [
            f"{difference}For {ties:,} examples the two most probable classes are nearly equal, so rounding on another "
            "device can explain this."
        ]
    return [f"{difference}The data or the checkpoint has changed since; this report is about the current ones."]
