"""The statistics of a table of runs: an interval for each group, and the comparison of each group with the baseline.

A group is the runs of one config with several seeds, or several seeds and folds. What is shown holds for new seeds on
the same data. It does not hold for new data: all runs share the test images, and runs of different folds share most of
their training images (Bengio and Grandvalet, 2004, "No unbiased estimator of the variance of k-fold cross-validation").
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from imgclf_jax.compare.holm import holm
from imgclf_jax.compare.pairing import correlation
from imgclf_jax.compare.power import seeds_needed
from imgclf_jax.compare.superiority import superiority, superiority_interval
from imgclf_jax.compare.t_tests import Difference, compare_means, constant, mean_bounds

Key = tuple[int, int]  # (seed, fold) of a run; fold 0 without cross-validation
LEVEL = 0.05


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Comparison(NamedTuple):
    """Comparison of a group with the baseline.

    Attributes:
        difference: mean of the group minus mean of the baseline, also if lower is better.
        interval: 95 % t interval of the difference, not adjusted for the number of groups. It has width 0 if neither
            group varies. `None` if either group has fewer than 2 values.
        p: of the two-sided t test of no difference. `None` if either group has fewer than 2 values or if neither
            varies.
        p_holm: `p`, adjusted over all groups of the table that have one.
        p_superior: probability that a run of the group is better than a run of the baseline, ties counting half.
        p_superior_interval: 95 % bootstrap interval of it; `None` if either group has fewer than 3 values.
        correlation: Pearson's r of the group and the baseline over the keys of both; `None` if there are fewer than 3
            or if either does not vary over them.
        paired: whether `interval` and `p` come from pairs; see `imgclf_jax.compare.pairing` for the rule.
        verdict: "better" or "worse" if `p_holm` is below 0.05, else "not shown". "Not shown" does not mean "equal".
        seeds_needed: runs of each group to show the observed difference, if it is the true one, with a power of 80 %
            and as the only comparison. `None` if it is 0 or if there is no variance to go by.
    """

    difference: float
    interval: Interval | None
    p: float | None
    p_holm: float | None
    p_superior: float
    p_superior_interval: Interval | None
    correlation: float | None
    paired: bool
    verdict: str
    seeds_needed: int | None


def mean_interval(values: Sequence[float]) -> Interval | None:
    """95 % t interval of the mean; width 0 if all values are equal, `None` if there are fewer than 2.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    checked = _finite(values, "the group")
    if len(checked) < 2:
        return None
    low, high = mean_bounds(np.sort(checked))
    return Interval(float(low), float(high))


def compare(
    groups: Mapping[str, Mapping[Key, float]], baseline: str, higher_is_better: bool = True
) -> dict[str, Comparison]:
    """Compares every group with the baseline.

    Two groups that are each constant but differ are "not shown": no variance was observed, so nothing says how much
    another run would differ. The probability of any false "better" or "worse" in a table without true differences is
    at most 5 % for normal values, with any number of groups and of runs, also if runs vary more in some groups than in
    others and if the seeds of different groups are correlated. If groups have the same keys, an interval of a
    difference covers 95 %, else at least 95 %; see `imgclf_jax.compare.pairing`, and `scripts/calibrate_compare.py`,
    which simulates it.

    Args:
        groups: group name -> key of a run -> its value. Runs without a result, such as diverged ones, are left out.
        baseline: name of the group that the others are compared with.
        higher_is_better: whether larger values are better, as for an accuracy, or smaller ones, as for a loss.

    Returns:
        Group name -> its comparison, in the given order, without the baseline.

    Raises:
        ValueError: there is no such baseline, a group has no values, or a value is NaN or infinite.
    """
    if baseline not in groups:
        raise ValueError(f"{baseline!r} is not a group; the groups are {', '.join(map(repr, groups))}")
    for name, runs in groups.items():
        if not runs:
            raise ValueError(f"group {name!r} has no values")
        _finite(list(runs.values()), f"group {name!r}")
    names = [name for name in groups if name != baseline]
    differences = {name: _difference(groups[name], groups[baseline]) for name in names}
    adjusted = holm([float(difference.p) for difference in differences.values()])
    return {
        name: _comparison(groups[name], groups[baseline], differences[name], float(p_holm), higher_is_better)
        for name, p_holm in zip(names, adjusted, strict=True)
    }


def _difference(a: Mapping[Key, float], b: Mapping[Key, float]) -> Difference:
    # In the order of the keys: pairs are aligned, and rounding does not depend on the order in which runs were read.
    return compare_means(_values(a, sorted(a)), _values(b, sorted(b)), same_keys=a.keys() == b.keys())


def _comparison(
    a: Mapping[Key, float], b: Mapping[Key, float], difference: Difference, p_holm: float, higher_is_better: bool
) -> Comparison:
    sign = 1 if higher_is_better else -1
    better_a, better_b = (sign * _values(runs, sorted(runs)) for runs in (a, b))
    superior = superiority_interval(better_a, better_b)
    value, low, paired = float(difference.value), float(difference.low), bool(difference.paired)
    verdict = "not shown"
    if p_holm < LEVEL:  # false if NaN
        verdict = "better" if sign * value > 0 else "worse"
    return Comparison(
        difference=value,
        interval=None if math.isnan(low) else Interval(low, float(difference.high)),
        p=_known(difference.p),
        p_holm=_known(p_holm),
        p_superior=superiority(better_a, better_b),
        p_superior_interval=None if superior is None else Interval(*superior),
        correlation=_correlation(a, b),
        paired=paired,
        verdict=verdict,
        seeds_needed=seeds_needed(value, float(difference.deviation)),
    )


def _correlation(a: Mapping[Key, float], b: Mapping[Key, float]) -> float | None:
    keys = sorted(a.keys() & b.keys())
    if len(keys) < 3:
        return None
    shared_a, shared_b = _values(a, keys), _values(b, keys)
    if constant(shared_a) or constant(shared_b):
        return None
    return _known(correlation(shared_a, shared_b))


def _values(runs: Mapping[Key, float], keys: Sequence[Key]) -> npt.NDArray[np.float64]:
    return np.array([runs[key] for key in keys], dtype=float)


def _finite(values: Sequence[float], owner: str) -> npt.NDArray[np.float64]:
    checked = np.array(values, dtype=float)
    if wrong := [value for value in checked.tolist() if not math.isfinite(value)]:
        raise ValueError(f"{owner} has a value of {wrong[0]}; leave out runs without a finite result")
    return checked


def _known(value) -> float | None:
    return None if math.isnan(value) else float(value)
