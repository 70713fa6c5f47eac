"""When two groups of runs are compared pair by pair: runs with the same seed and fold form a pair.

The difference within a pair varies less than the runs themselves if what a seed or a fold decides (initialization,
order of examples, which examples are held out) affects both groups alike. The price is half the degrees of freedom:
for uncorrelated groups of 3, 5, 8 and 10 runs, the interval becomes 55, 20, 10 and 8 % wider. Choosing the shorter of
two intervals or the smaller of two p values would cover less than 95 %, so the rule is fixed in advance:

- Groups with different keys are not paired: the mean difference of the pairs would not be the difference of the means.
- With `ALWAYS` keys or more, groups are always paired. The decision does not depend on the values, so the error rate is
  exactly 5 % for any correlation.
- With `LEAST` to `ALWAYS` - 1 keys, they are paired if the correlation is positive and significant at 1 %, one-sided.
  This depends on the values, but is rare if the groups are uncorrelated. In a simulation of one comparison (300,000
  times, standard error 0.04 points), false positives are then 4.5, 4.7, 4.9 and 5.0 % for 4, 5, 6 and 7 runs (Welch's
  test alone: 4.1, 4.3, 4.6 and 4.7 %). They are fewer if the groups are correlated, because Welch's test is then
  conservative. With a level of 5 % instead of 1 %, they would be 5.4 to 5.7 %; with a fixed threshold of 0.5, more
  than 6 %.
- With fewer keys, they are never paired: a correlation of 3 pairs says nothing.

`scripts/calibrate_compare.py` simulates whole tables with this rule.
"""

import numpy as np
import numpy.typing as npt
from scipy import stats

LEAST = 4
ALWAYS = 8
LEVEL = 0.01

Array = npt.NDArray[np.float64]


def correlation(a: Array, b: Array) -> Array:
    """Pearson's r of [..., n] and [..., n] over the last axis, [...]; NaN if either does not vary or n is below 3."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    if shape[-1] < 3:
        return np.full(shape[:-1], np.nan)
    a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
        return np.clip((a * b).sum(axis=-1) / scale, -1, 1)


def least_correlation(count: int) -> float:
    """The least r with which groups of `count` pairs are paired: 0.98, 0.93, 0.88 and 0.83 for 4 to 7 pairs.

    It is -1 where groups are always paired and infinite where they never are.
    """
    if count >= ALWAYS:
        return -1.0
    if count < LEAST:
        return float("inf")
    t = float(stats.t.isf(LEVEL, count - 2))
    return t / float(np.sqrt(t * t + count - 2))
