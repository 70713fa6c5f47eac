"""The t intervals and t tests behind a table, for one comparison or for thousands of simulated ones at once.

Why t tests: they hold for normal values, and they can reach small p values with few runs. Permutation tests cannot.
Sign flips of n pairs have 2^n outcomes, so the least possible two-sided p of 5 pairs is 2 / 2^5 = 0.0625, and no result
could ever be shown at 5 % (nor with 6 pairs after a correction for two comparisons). The bootstrap interval of a mean
of 3 to 10 values is too narrow.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from imgclf_jax.compare import pairing

Array = npt.NDArray[np.float64]
CONFIDENCE = 0.95
_ROUNDING = 1e-12  # Values that differ by less than this, relative to their size, are equal but for rounding.


class Difference(NamedTuple):
    """Differences of the means of two groups, each field of shape [...].

    Attributes:
        value: mean of the first group minus mean of the second.
        low: lower end of the 95 % interval; NaN if either group has fewer than 2 values.
        high: upper end of the interval.
        p: two-sided; NaN if either group has fewer than 2 values or if nothing varies.
        paired: whether interval and p come from pairs.
        deviation: the standard deviation of the difference of two single runs, which decides how many runs are needed:
            of the two runs of a pair, if paired; NaN if either group has fewer than 2 values.
    """

    value: Array
    low: Array
    high: Array
    p: Array
    paired: npt.NDArray[np.bool_]
    deviation: Array


def constant(values: Array) -> npt.NDArray[np.bool_]:
    """Whether values [..., n] are equal, but for rounding, along the last axis: [...]."""
    size = np.abs(values).max(axis=-1)
    return np.ptp(values, axis=-1) <= _ROUNDING * size


def mean_bounds(values: Array) -> tuple[Array, Array]:
    """Ends of the 95 % t intervals of the means of [..., n], n at least 2; width 0 if the values are equal."""
    count = values.shape[-1]
    mean = values.mean(axis=-1)
    error = np.where(constant(values), 0.0, values.std(axis=-1, ddof=1) / np.sqrt(count))
    reach = stats.t.isf((1 - CONFIDENCE) / 2, count - 1) * error
    return mean - reach, mean + reach


def compare_means(a: Array, b: Array, same_keys: bool) -> Difference:
    """Compares groups by a t test: the paired one if the keys are the same, else one that pools no variances.

    `imgclf_jax.compare.pairing` says why, and explains the degrees of freedom. Pairs whose differences are all equal
    are not paired, because nothing is known about the variance of the difference. If neither group varies, no variance
    was observed: the interval has width 0, and there is no p, however large the difference is.

    Args:
        a: [..., n].
        b: [..., m], broadcast against `a` in front of the last axis.
        same_keys: whether n = m and values at the same index have the same seed and fold.
    """
    shape = np.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    a, b = np.broadcast_to(a, (*shape, a.shape[-1])), np.broadcast_to(b, (*shape, b.shape[-1]))
    n, m = a.shape[-1], b.shape[-1]
    value = a.mean(axis=-1) - b.mean(axis=-1)
    paired = np.zeros(shape, dtype=bool)
    if min(n, m) < 2:
        unknown = np.full(shape, np.nan)
        return Difference(value, unknown, unknown, unknown, paired, unknown)
    fixed = constant(a) & constant(b)
    variances = [np.where(constant(values), 0.0, values.var(axis=-1, ddof=1)) for values in (a, b)]
    deviation = np.sqrt(variances[0] + variances[1])
    error = np.sqrt(variances[0] / n + variances[1] / m)
    if same_keys:
        differences = a - b
        # Rounding of a difference is relative to the values, not to the difference.
        size = np.maximum(np.abs(a).max(axis=-1), np.abs(b).max(axis=-1))
        paired = (np.ptp(differences, axis=-1) > _ROUNDING * size) & ~fixed
        deviation = np.where(paired, differences.std(axis=-1, ddof=1), deviation)
        error = np.where(paired, deviation / np.sqrt(n), error)
    freedom = pairing.freedom(n, m)
    reach = stats.t.isf((1 - CONFIDENCE) / 2, freedom) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(value) / error, freedom)
    return Difference(value, value - reach, value + reach, np.where(fixed, np.nan, p), paired, deviation)
