"""The sentences that a paper needs beside the numbers: what varies, n, and how intervals and tests are made."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgclf_jax.compare.groups import Group

_UNPAIRED = "an unpaired t test without pooled variances and with the degrees of freedom of the smaller group"
SEEDS = "initialization, order of examples, augmentation and dropout"


def write(metric: str, baseline: str, groups: Sequence["Group"], report: str) -> str:
    """Writes the sentences.

    Args:
        metric: what is compared.
        baseline: the name of the group that the others are compared with.
        groups: the rows.
        report: the config's `eval.report`.
    """
    parts = [_spread(metric, groups), *_comparison(baseline, groups), *_protocol(metric, report)]
    return " ".join(parts)


def _spread(metric, groups):
    counts = sorted({len(group.values) for group in groups if group.values})
    if not counts:
        return f"No run has a finite {metric}."
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    if counts == [1]:
        return f"{metric} of one run per group."
    keys = {key for group in groups for key in group.values}
    seeds = {seed for seed, _ in keys}
    folds = any(run.folds for group in groups for run in group.runs)
    varies = f"seed ({SEEDS})" if len(seeds) > 1 else ""
    if folds:
        varies += " and validation fold" if varies else "validation fold"
    text = (
        f"Mean ± standard deviation (not standard error) of {metric} over {n} runs that differ in {varies}; brackets "
        "after it: 95 % t interval of the mean, mean ± t s / √n."
    )
    if folds:
        text += " Folds share training examples, so their values are not independent and the intervals are too short."
    return text


def _comparison(baseline, groups):
    compared = [group for group in groups if group.comparison and group.comparison.interval]
    if not compared:
        return []
    paired = [group.name for group in compared if group.comparison.paired]
    if len(paired) == len(compared):
        test = "a paired t test over the shared seeds"
    elif not paired:
        test = _UNPAIRED
    else:
        test = f"a paired t test over the shared seeds ({', '.join(paired)}) or {_UNPAIRED} (all others)"
    tested = sum(group.comparison.p is not None for group in compared)
    holm = f", p adjusted by Holm's method for {tested} comparisons" if tested > 1 else ""
    parts = [f"Differences to {baseline}: 95 % interval (not adjusted) and two-sided p from {test}{holm}."]
    parts.append(f'"Better" or "worse": {"adjusted " if holm else ""}p below 0.05.')
    bootstrap = any(group.comparison.p_superior_interval for group in compared)
    interval = ", with a 95 % percentile bootstrap interval" if bootstrap else ""
    parts.append(f"P(A > B): probability that a run is better than a run of {baseline}{interval}.")
    if any(group.comparison.seeds_needed for group in compared):
        parts.append(
            "In parentheses after the verdict: seeds per group that would show the observed difference with 80 % power "
            "at the 5 % level."
        )
    return parts


def _protocol(metric, report):
    split, _, field = metric.partition(".")
    if not field:
        return []
    checkpoint = "the last checkpoint" if report == "last" else "the checkpoint with the best validation accuracy"
    if split == "test":
        return [f"The test split was read once, at the end of each run, with {checkpoint}."]
    parts = [f"The {split} split was evaluated at the end of each run, with {checkpoint}."]
    if (split, report) == ("valid", "best"):
        parts.append("It also chose the checkpoint, so its values are too favorable.")
    return parts
