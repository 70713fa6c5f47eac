"""What runs predicted, from the predictions.csv of their reports: by class, and the most disputed examples."""

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imgclf_jax.compare.groups import Group
from imgclf_jax.compare.reading import Run
from imgclf_jax.workdir.record import is_natural

FILE = Path("report") / "predictions.csv"
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
    """Reads the predictions of a run; None if there are none, or if they do not belong to the result of the run."""
    true, right = {}, set()
    try:
        with (run.folder / FILE).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            for name, label, guess, *_ in list(csv.reader(file))[1:]:
                true[_text(name)] = _text(label)
                if guess == label:
                    right.add(_text(name))
    except (OSError, ValueError, csv.Error):
        return None
    results = run.record.get("results") or {}
    for split in ("test", "valid"):  # The report predicts the test split if the run has one.
        recorded = results.get(split) or {}
        if is_natural(recorded.get("count")) and is_natural(recorded.get("correct")):
            same = recorded["count"] == len(true)
            near = abs(recorded["correct"] - len(right)) <= max(1, _LARGEST_DIFFERENCE * len(true))
            return Judged(true, frozenset(right)) if true and same and near else None
    return Judged(true, frozenset(right)) if true else None


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


def usable(groups: Sequence[Group]) -> dict[str, list[Judged]]:
    """Name of a group -> the predictions of those of its runs that have them; groups without any are left out."""
    found = {group.name: [judged for run in group.runs if (judged := read(run)) is not None] for group in groups}
    return {name: runs for name, runs in found.items() if runs}


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
