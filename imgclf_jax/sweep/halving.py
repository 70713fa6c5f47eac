"""Asynchronous successive halving: runs that are worse than the others at a rung stop there.

After Li et al. (2020), "A System for Massively Parallel Hyperparameter Tuning", https://arxiv.org/abs/1810.05934. Here
a run that reaches a rung continues or stops at once. Nothing is stored: its value at a rung is its validation accuracy
at the first evaluation at or after that step, in its own metrics files.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from imgclf_jax.errors import UserError
from imgclf_jax.workdir.rows import Row, read_rows


class Halving(NamedTuple):
    """The rule.

    Attributes:
        factor: one in `factor` runs passes a rung.
        first: the first rung, as a fraction of a run. Each further rung is `factor` times as far.
    """

    factor: int
    first: float


def parse(text: str) -> Halving | None:
    """Parses "3" or "3,0.1": the factor, and the first rung (by default 1 / factor ** 2). Returns `None` for "".

    Raises:
        UserError: the text is something else.
    """
    if not text:
        return None
    factor, _, first = text.partition(",")
    try:
        rule = Halving(int(factor), float(first) if first else 1 / int(factor) ** 2)
    except (ValueError, ZeroDivisionError):
        rule = Halving(0, 0.0)
    if rule.factor < 2 or not 0 < rule.first < 1:
        raise UserError(f"--halving={text} must be a factor from 2 and a fraction of a run, as in --halving=3,0.1")
    return rule


def rungs(rule: Halving, steps: int) -> list[int]:
    """Returns the steps of the rungs of runs of `steps` steps."""
    found, place = [], rule.first * steps
    while round(place) < steps:
        found.append(max(1, round(place)))
        place *= rule.factor
    return found


def value_at(rows: Iterable[Row], rung: int) -> float | None:
    """Returns the validation accuracy of a run at a rung; `None` if it has not got there."""
    reached = [row for row in rows if row["split"] == "valid" and row["step"] >= rung]
    return min(reached, key=lambda row: row["step"])["accuracy"] if reached else None


def stops(rule: Halving, steps: int, before: int, step: int, accuracy: float, others: Iterable[Path]) -> bool:
    """Whether a run that has just been evaluated stops.

    Args:
        rule: the rule.
        steps: the length of the run.
        before: the step of its evaluation before this one; 0 if there was none.
        step: the step of this evaluation.
        accuracy: its validation accuracy.
        others: the folders of the other runs of the sweep. Those that have not reached the rung do not count.

    Returns:
        Whether the run has passed a rung since `before` and is not among the best one in `factor` of the runs that
        have been there so far, including itself. The best run always continues.
    """
    passed = [rung for rung in rungs(rule, steps) if before < rung <= step]
    if not passed:
        return False
    rows = [read_rows(folder) for folder in others]
    for rung in passed:
        values = [value for value in (value_at(one, rung) for one in rows) if value is not None]
        better = sum(value > accuracy for value in values)
        if better >= max(1, (len(values) + 1) // rule.factor):
            return True
    return False
