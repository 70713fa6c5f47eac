"""Statistics of many runs."""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import special

Key = tuple[int, int]


class Interval(NamedTuple):
    """An interval."""

    low: float
    high: float


class Comparison(NamedTuple):
    """A group compared with the baseline."""

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
    """95 % t interval of the mean."""
    if len(values) < 2:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return _around(statistics.fmean(values), error, len(values) - 1)


def compare(groups: dict[str, dict[Key, float]], baseline: str, higher_is_better: bool = True) -> dict[str, Comparison]:
    """Compares every group with the baseline."""
    base = groups[baseline]
    results = {name: _compare(values, base, higher_is_better) for name, values in groups.items() if name != baseline}
    order = sorted((name for name, one in results.items() if one.p is not None), key=lambda name: results[name].p or 0)
    highest = 0.0
    for place, name in enumerate(order):
        highest = max(highest, min(1.0, (results[name].p or 0.0) * (len(order) - place)))
        better = (results[name].difference > 0) == higher_is_better
        verdict = "not shown" if highest >= 0.05 else "better" if better else "worse"
        results[name] = results[name]._replace(p_holm=highest, verdict=verdict)
    return results


def _compare(mine, base, higher_is_better):
    one, other = list(mine.values()), list(base.values())
    difference = statistics.fmean(one) - statistics.fmean(other)
    pairs = [(a, b) if higher_is_better else (b, a) for a, b in itertools.product(one, other)]
    superior = statistics.fmean((a > b) + (a == b) / 2 for a, b in pairs)
    paired = mine.keys() == base.keys() and len(mine) > 1
    result = Comparison(difference, None, None, None, superior, None, None, paired, "not shown", None)
    if min(len(one), len(other)) < 2:
        return result
    if paired:
        error, freedom = statistics.stdev(mine[key] - base[key] for key in mine) / math.sqrt(len(mine)), len(mine) - 1
    else:
        parts = [statistics.variance(values) / len(values) for values in (one, other)]
        error = math.sqrt(sum(parts))
        freedom = sum(parts) ** 2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (one, other), strict=True))
    p = float(2 * special.stdtr(freedom, -abs(difference) / error)) if error else None
    needed = math.ceil(len(one) * ((1.96 + 0.84) * error / difference) ** 2) if difference and error else None
    return result._replace(interval=_around(difference, error, freedom), p=p, seeds_needed=needed)


def _around(middle, error, freedom):
    half = float(special.stdtrit(freedom, 0.975)) * error
    return Interval(middle - half, middle + half)
