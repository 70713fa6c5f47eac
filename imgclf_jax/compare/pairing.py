"""When two groups of runs are compared pair by pair, and with how many degrees of freedom: decided by the keys alone.

Runs with the same seed and fold form a pair. The rule does not look at the values:

- Groups with the same keys are always paired. The paired t test is exact, for any correlation of the pairs and even if
  one group varies more than the other. If what a seed or a fold decides (initialization, order of examples, which
  examples are held out) affects both groups alike, the difference within a pair varies less than the runs themselves.
- Groups with different keys are not paired: the mean difference of the pairs would not be the difference of the means.
  Their variances are not pooled, and the t distribution has the degrees of freedom of the smaller group, with which the
  interval covers at least 95 % and the test errs at most in 5 %, for any variances (Mickey and Brown, 1966, "Bounds on
  the distribution functions of the Behrens-Fisher statistic"). It is too cautious if runs vary equally in both groups:
  it then covers 98 % for groups of 4 and 5 runs or 5 and 10, and nearly always for 2 and 10. The remedy is to train the
  runs that are missing.

So a test of n runs each has n - 1 degrees of freedom. Welch's approximation has up to 2 n - 2: for 3, 5, 7 and 10
uncorrelated runs that vary equally in both groups, its intervals are 35, 17, 11 and 7 % shorter. It is not used,
because it is wrong too often far out in the tails, where a table with many variants is decided. With 8 variants whose
runs vary 3 or 5 times as much as those of the baseline, 6 to 8 % of tables without true differences have a false
verdict for 4 and 5 runs each, and 12 to 13 % for 3 runs of each variant and 5 of the baseline. For 2 and 10 runs it is
24 %, even if all runs vary equally. With a correlation of 0.9, its intervals are much too long and cover more than 99
%. Choosing one of the tests by the correlation that is found would not mend that.

The price is paid by few, uncorrelated runs: with 3 each, a single comparison shows a true difference of 3.4 standard
deviations of a run in 60 % of cases (Welch: 78 %), and with 5 each in 97 % (Welch: 100 %). With a correlation of 0.5,
3 runs show it in 82 % of cases with either test; with 0.8, in 99 % (Welch: 87 %).

`scripts/calibrate_compare.py` simulates whole tables with this rule.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def freedom(n: int, m: int) -> int:
    """Degrees of freedom of the comparison of groups of n and m runs, at least 2 each, paired or not."""
    return min(n, m) - 1


def correlation(a: Array, b: Array) -> Array:
    """Pearson's r of [..., n] and [..., n] over the last axis, [...]; NaN if either does not vary or n is below 3."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    if shape[-1] < 3:
        return np.full(shape[:-1], np.nan)
    a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
        return np.clip((a * b).sum(axis=-1) / scale, -1, 1)
