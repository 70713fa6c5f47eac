"""What is known of a run: its files, its network, its predictions, and what of these could not be had."""

from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from ml_collections import ConfigDict

from imgclf_jax.data.types import Progress
from imgclf_jax.errors import UserError
from imgclf_jax.report import predictions
from imgclf_jax.report.predictions import Predictions
from imgclf_jax.training import trained
from imgclf_jax.workdir import checkpoint_folder, record, saved_config
from imgclf_jax.workdir.rows import Row, read_rows

# Of a probability: where two are closer than this, another device or batch size may swap them.
_ROUNDING = {"float32": 1e-4, "bfloat16": 2e-2}


class Run(NamedTuple):
    """A run, as far as it can be read on this machine.

    Attributes:
        name: short, and of no other run in the report.
        folder: its workdir.
        config: its config.
        record: its `run.json`.
        rows: of its `metrics.jsonl`.
        network: its reported checkpoint, `None` where there is none that can be read.
        found: the network's predictions, `None` where they could not be made.
        notes: what the reader must know before believing anything, a sentence each.
    """

    name: str
    folder: Path
    config: ConfigDict
    record: dict[str, Any]
    rows: list[Row]
    network: trained.Trained | None
    found: Predictions | None
    notes: tuple[str, ...]

    @property
    def split(self) -> str:
        """The split that is reported: "test", or "valid" of a run without one."""
        counts = (self.record.get("data") or {}).get("counts") or {}
        return "valid" if counts.get("valid") and not counts.get("test") else "test"

    @property
    def result(self) -> dict[str, Any] | None:
        """`correct`, `count`, `accuracy` and `loss` on that split: of the predictions, else those of `run.json`."""
        if self.found is None:
            told = (self.record.get("results") or {}).get(self.split)
            return told if is_result(told) else None
        correct, count = self.found.correct, len(self.found.labels)
        return {
            "correct": correct,
            "count": count,
            "accuracy": correct / count,
            "loss": float(-self.found.own_scores().mean(dtype="float64")),
        }


def is_result(value: Any) -> TypeGuard[dict[str, Any]]:
    """Returns whether a value is the result of an evaluation, as `run.json` holds it."""
    return isinstance(value, dict) and all(
        isinstance(value.get(name), int | float) for name in ("correct", "count", "accuracy", "loss")
    )


def read(folders: list[Path], progress: Progress) -> list[Run]:
    """Reads runs and predicts with their networks.

    Raises:
        UserError: a line for each folder that holds no run, or is given twice.
    """
    check(folders)
    return [_read(folder, name, progress) for folder, name in zip(folders, names(folders), strict=True)]


def check(folders: list[Path]) -> None:
    """Raises `UserError` with a line for each folder that holds no run, or is given twice; reads little."""
    problems: list[str] = []
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            problems.append(f"--workdir={folder} is given twice")
        seen.add(folder.resolve())
        try:
            saved_config.load_config(folder)
            if record.read(folder) is None and not checkpoint_folder.exists(folder):
                problems.append(f"{folder} holds no run (no run.json); give the workdir that training printed")
            read_rows(folder)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def names(folders: list[Path]) -> list[str]:
    """Short names that differ: as much of the ends of the paths as that takes, and at least `NAME/TIME` of a run."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        found = ["/".join(path[-max(length, 1 + path[-1].replace("-", "").isdigit()) :]) for path in parts]
        if len(set(found)) == len(found):
            return found
    raise AssertionError(f"equal folders among {folders}")


def _read(folder: Path, name: str, progress: Progress) -> Run:
    config, content = saved_config.load_config(folder), record.read(folder) or {}
    notes = _incomplete(content)
    network, found = None, None
    try:
        network = trained.load(folder, "reported")
        content = network.record
        notes += _replaced(network)
        found = predictions.predict(network, progress)
    except UserError as error:
        what = "There are no predictions in this report" if network else "There is no network in this report"
        notes.append(f"{what}, only curves and settings: {' '.join(str(error).split())}.")
    if found is not None:
        if found.split != "test":
            notes.append(
                "The run has no test split: this report is on its validation split, by which checkpoints and settings "
                "may have been chosen, so its accuracy may flatter."
            )
        if lost := int((~found.finite).sum()):
            notes.append(
                f"For {lost:,} of {len(found.labels):,} examples of the {found.split} split the network's "
                "probabilities are NaN. They count as wrong in the accuracy; everything else is about the others."
            )
        notes += _different(found, content, config)
    return Run(name, folder, config, content, read_rows(folder), network, found, tuple(notes))


def _incomplete(record):
    status = record.get("status", "of unknown status")
    if status == "complete":
        return []
    where = f", its last checkpoint is that of step {record['step']:,}" if record.get("step") else ""
    why = f" ({record['error']})" if record.get("error") else ""
    return [f"Not complete: the run is {status}{why}{where}. What follows is its state so far, not its result."]


def _replaced(network):
    """Returns a note if the reported checkpoint is damaged or gone, so that the network is that of another one."""
    reported = network.record.get("reported_step")
    if reported is None or reported == network.step:
        return []
    return [
        f"The reported checkpoint, that of step {reported:,}, cannot be read: what follows is about that of step "
        f"{network.step:,}, which the accuracies in run.json do not belong to."
    ]


def _different(found, record, config):
    """The accuracy of these predictions must be that of the run, or this is a report on something else."""
    told = (record.get("results") or {}).get(found.split)
    if not is_result(told) or (told["correct"], told["count"]) == (found.correct, len(found.labels)):
        return []
    what = (
        f"This is not quite the result of the run: {found.correct:,} of {len(found.labels):,} predictions are right, "
        f"run.json says {told['correct']:,} of {told['count']:,}. "
    )
    ties = found.near_ties(_ROUNDING[config.model.dtype])
    if told["count"] == len(found.labels) and abs(told["correct"] - found.correct) <= ties:
        return [
            f"{what}For {ties:,} examples the two likeliest classes are as good as equal, so that rounding on another "
            "device can account for this."
        ]
    return [f"{what}The data or the checkpoint has changed since, and what follows is about what is there now."]
