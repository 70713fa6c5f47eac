"""What runs predicted, from the predictions.csv of their reports: by class, and the most disputed examples."""

import csv
import glob
import os
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imgclf_jax.compare.groups import Group
from imgclf_jax.compare.reading import Run
from imgclf_jax.report import workdirs
from imgclf_jax.terminal import tools
from imgclf_jax.workdir.record import is_natural

# A report may be older than the result of its run. Rounding on another device changes fewer predictions than this.
_LARGEST_DIFFERENCE = 0.005


class Judged(NamedTuple):
    """Which examples a run classified correctly.

    Attributes:
        true: id of an example -> its true class.
        right: the ids that were classified correctly.
    """

    true: dict[str, str]
    right: frozenset[str]


class Example(NamedTuple):
    """An example that groups disagree on.

    Attributes:
        id: as in predictions.csv.
        true: its class.
        right: the number of runs of each group that classified it correctly.
    """

    id: str
    true: str
    right: tuple[int, ...]


class Difference(NamedTuple):
    """Accuracy on a class, minus that of the baseline.

    Attributes:
        value: difference of the means.
        deviation: standard deviation of the difference of two single runs; None if either group has one run.
    """

    value: float
    deviation: float | None


def read(run: Run) -> Judged | None:
    """Reads the predictions of a run; None if there are none, or if they do not belong to the result of the run.

    They are in the report on the run alone, or in one on several runs in a folder around it.
    """
    for path in workdirs.prediction_files(run.folder):
        if (judged := _read(path)) is not None and _belongs(judged, run):
            return judged
    return None


def command(runs: Sequence[Run]) -> str:
    """The command that writes the predictions of runs: one report on all of them."""
    folders = [run.folder for run in runs]
    if len({folder.is_absolute() for folder in folders}) > 1:
        folders = [folder.absolute() for folder in folders]
    pattern = str(folders[0])
    if len(folders) > 1:
        around = os.path.commonpath(folders)
        levels = {len(folder.relative_to(around).parts) for folder in folders}
        pattern = os.path.join(glob.escape(around), *(["*"] * levels.pop() if len(levels) == 1 else ["**"]))  # noqa: PTH118
    return f"{tools.command('report')} {shlex.quote(f'--workdir={pattern}')}"


def _read(path: Path) -> Judged | None:
    true, right = {}, set()
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            for name, label, guess, *_ in list(csv.reader(file))[1:]:
                true[_text(name)] = _text(label)
                if guess == label:
                    right.add(_text(name))
    except (OSError, ValueError, csv.Error):
        return None
    return Judged(true, frozenset(right)) if true else None


def _belongs(judged: Judged, run: Run) -> bool:
    results = run.record.get("results") or {}
    for split in ("test", "valid"):  # The report predicts the test split if the run has one.
        recorded = results.get(split) or {}
        if is_natural(recorded.get("count")) and is_natural(recorded.get("correct")):
            near = abs(recorded["correct"] - len(judged.right)) <= max(1, _LARGEST_DIFFERENCE * len(judged.true))
            return near and recorded["count"] == len(judged.true)
    return True


def by_class(groups: Sequence[Sequence[Judged]]) -> dict[str, list[Difference]]:
    """Class -> the difference of each group but the first to the first, which is the baseline.

    Args:
        groups: the runs of each group, at least one each.
    """
    base, *others = [[_class_accuracies(run) for run in runs] for runs in groups]
    classes = dict.fromkeys(label for group in (base, *others) for run in group for label in run)
    result = {}
    for label in sorted(classes):
        values = [run[label] for run in base if label in run]
        rows = []
        for group in others:
            own = [run[label] for run in group if label in run]
            if values and own:
                both = len(values) > 1 and len(own) > 1
                deviation = (statistics.variance(values) + statistics.variance(own)) ** 0.5 if both else None
                rows.append(Difference(statistics.fmean(own) - statistics.fmean(values), deviation))
        if len(rows) == len(others):
            result[label] = rows
    return result


def disagreements(groups: Sequence[Sequence[Judged]], most: int) -> list[Example]:
    """The examples whose shares of correct runs differ most between groups, among those that all runs have.

    Equal differences are in the order of the variance of the shares, then of the ids.

    Args:
        groups: the runs of each group, at least one each.
        most: how many to return.
    """
    runs = [run for group in groups for run in group]
    shared = set.intersection(*(set(run.true) for run in runs))
    found = []
    for name in shared:
        right = tuple(sum(name in run.right for run in group) for group in groups)
        shares = [count / len(group) for count, group in zip(right, groups, strict=True)]
        if max(shares) > min(shares):
            key = (min(shares) - max(shares), -statistics.pvariance(shares), name)
            found.append((key, Example(name, runs[0].true[name], right)))
    return [example for _, example in sorted(found)[:most]]


def usable(groups: Sequence[Group]) -> tuple[dict[str, list[Judged]], list[Run]]:
    """Reads the predictions of all runs.

    Returns:
        Name of a group -> the predictions of those of its runs that have them, without groups that have none, and the
        runs without predictions.
    """
    found: dict[str, list[Judged]] = {}
    missing = []
    for group in groups:
        for run in group.runs:
            judged = read(run)
            if judged is None:
                missing.append(run)
            else:
                found.setdefault(group.name, []).append(judged)
    return found, missing


def _class_accuracies(run: Judged) -> dict[str, float]:
    counts: dict[str, list[int]] = {}
    for name, label in run.true.items():
        total = counts.setdefault(label, [0, 0])
        total[0] += name in run.right
        total[1] += 1
    return {label: right / total for label, (right, total) in counts.items()}


def _text(cell: str) -> str:
    """A cell without the apostrophe that `imgclf_jax.terminal.output.csv_line` puts before some texts."""
    return cell.removeprefix("'")
