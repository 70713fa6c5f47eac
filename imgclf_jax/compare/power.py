"""How many runs a comparison needs."""

import math

from scipy import stats

POWER = 0.8
LEVEL = 0.05
_MANY = 10_000  # Above this number of runs, a series replaces the noncentral t distribution.


def power(difference: float, deviation: float, runs: int) -> float:
    """The probability that a two-sided t test at 5 % shows a true difference, by the noncentral t distribution.

    The test has `runs` - 1 degrees of freedom; see `imgclf_jax.compare.pairing`.

    Args:
        difference: true difference of the means.
        deviation: standard deviation of the difference of two single runs, one of each group. Above 0.
        runs: number of runs of each group, at least 2.
    """
    freedom = runs - 1
    shift = abs(difference) / deviation * math.sqrt(runs)
    shift = min(shift, 1e4)  # The power is 1 here. SciPy returns NaN far above it.
    critical = stats.t.isf(LEVEL / 2, freedom)
    return float(stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift))


def seeds_needed(difference: float, deviation: float) -> int | None:
    """The least number of runs of each group at which a test at 5 % has a power of 80 %.

    It assumes that the given difference is the true one and that this is the only comparison of the table. An observed
    difference is itself uncertain, and tends to be too large if it was picked as the largest: take the number as a plan
    for new runs. Adding runs until a difference is shown raises the rate of false positives.

    Args:
        difference: difference of the means.
        deviation: as for `power`.

    Returns:
        The number, at least 2; `None` if it is unknown: the difference or the deviation is 0 or NaN.
    """
    if not (abs(difference) > 0 and deviation > 0):
        return None
    quantile = stats.norm.isf(LEVEL / 2)
    # The number if the deviation were known. It is below the t test's, which is reached within a few steps.
    root = float(quantile + stats.norm.ppf(POWER)) * deviation / abs(difference)
    if not root < 1e150:
        return None
    runs = max(2, math.floor(root * root))
    if runs > _MANY:  # Guenther, 1981, "Sample size formulas for normal theory t tests"
        return math.ceil(root * root + quantile * quantile / 2)
    while power(difference, deviation, runs) < POWER:
        runs += 1
    return runs
