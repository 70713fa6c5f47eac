"""Random search: variants whose values are drawn from ranges, by low-discrepancy sequences or independently.

Points of a sequence fill the ranges more evenly than independent draws do, so that fewer of them suffice: J. Bergstra
and Y. Bengio, "Random search for hyper-parameter optimization", JMLR 13 (2012), section 4, compare both. The sequences
are Sobol' points, scrambled by a random linear matrix and a digital shift, and Halton points, scrambled by random
permutations (A. Owen, "A randomized Halton algorithm in R", 2017), as SciPy implements them.

A variant depends on the seed, the method, the ranges and its index alone: there is no state, and a larger count adds
variants without changing the first ones. (Another version of SciPy or NumPy may draw other points.)
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from imgclf_jax.errors import UserError
from imgclf_jax.sweep.spec import Key, Variant, combination, key_text, plain, values_of

METHODS = ("sobol", "halton", "uniform")
DIGITS = 4  # significant digits of drawn values
MOST = 2**16  # variants
TRIES = 32  # points that are drawn for each variant, at most


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included, uniform in the value or, if `log` is set, in its logarithm.

    They are whole if both ends are ints.
    """

    low: float
    high: float
    log: bool

    def at(self, point: float) -> float:
        """Returns the value at a point in [0, 1): whole, or rounded to `DIGITS` significant digits."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        low, high = self.low, self.high + 1 if whole else self.high
        if self.log:
            value = math.exp(math.log(low) + point * (math.log(high) - math.log(low)))
        else:
            value = low + point * (high - low)
        rounded = math.floor(value) if whole else float(f"{value:.{DIGITS}g}")
        return min(max(rounded, self.low), self.high)


class Choice(NamedTuple):
    """Values that are equally probable."""

    values: tuple[Any, ...]

    def at(self, point: float) -> Any:
        """Returns the value at a point in [0, 1)."""
        return self.values[min(int(point * len(self.values)), len(self.values) - 1)]


def log(low: float, high: float) -> Range:
    """Returns the range from `low` to `high`, uniform in the logarithm; whole numbers if both ends are ints.

    Raises:
        UserError: the ends are not numbers with 0 < low < high.
    """
    low, high = _ends("log", low, high)
    if low <= 0:
        raise UserError(f"log({low!r}, {high!r}): the lower end must be above 0")
    return Range(low, high, True)


def linear(low: float, high: float) -> Range:
    """Returns the range from `low` to `high`, uniform; whole numbers if both ends are ints: write 0.0 for fractions.

    Raises:
        UserError: the ends are not numbers with low < high.
    """
    low, high = _ends("linear", low, high)
    return Range(low, high, False)


def choice(*values: Any) -> Choice:
    """Returns a choice between values.

    Raises:
        UserError: there are no values.
    """
    if not values:
        raise UserError("choice() has no values; for example choice(32, 64, 128)")
    return Choice(tuple(map(plain, values)))


def random(count: int, ranges: Mapping[Key, Range | Choice], method: str = "sobol", seed: int = 0) -> list[Variant]:
    """Returns variants with values drawn from ranges.

    Points that give the same values as an earlier one are left out, and the sequence is continued.

    Args:
        count: the number of variants.
        ranges: {"section.field": range}, with ranges from `log`, `linear` and `choice`; several fields that change
            together may share a choice of tuples.
        method: "sobol", "halton" or "uniform" (independent draws).
        seed: the seed of the points. It is not the seed of the runs.

    Returns:
        The variants, named after their values as in `grid`.

    Raises:
        UserError: an argument is wrong, or the ranges do not hold `count` different variants.
    """
    _check(count, ranges, method, seed)
    found: dict[str, Variant] = {}
    size = 2 ** max(4, math.ceil(math.log2(count)))
    last = TRIES * size
    while len(found) < count and size <= last:
        for point in _points(size, len(ranges), method, seed).tolist():
            values = (spread.at(x) for spread, x in zip(ranges.values(), point, strict=True))
            variant = combination(ranges, values)
            found.setdefault(variant.name, variant)
        size *= 2
    if len(found) < count:
        raise UserError(f"random: only {len(found)} different variants were found, but count={count}; lower the count")
    return list(found.values())[:count]


def _points(count, dimensions, method, seed):
    """Returns `count` points, a power of two, as float64 [count, dimensions] in [0, 1)."""
    generator = np.random.default_rng(seed)
    if method == "uniform":
        return generator.random((count, dimensions))
    from scipy.stats import qmc  # slow to import

    kind = qmc.Sobol if method == "sobol" else qmc.Halton
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(dimensions, scramble=True, seed=generator).random(count)


def _ends(name, low, high):
    low, high = plain(low), plain(high)
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    if not numbers or not -math.inf < low < high < math.inf:
        raise UserError(f"{name}({low!r}, {high!r}): give two numbers, the lower one first")
    return low, high


def _check(count, ranges, method, seed):
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST:
        raise UserError(f"random: count={count!r} must be a whole number from 1 to {MOST}")
    if method not in METHODS:
        raise UserError(f"random: method={method!r} must be one of {', '.join(map(repr, METHODS))}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"random: seed={seed!r} must be a whole number, at least 0")
    if not isinstance(ranges, Mapping) or not ranges:
        raise UserError('random needs ranges, for example {"optim.learning_rate": sweep.log(1e-3, 1.0)}')
    names: list[str] = []
    for key, spread in ranges.items():
        if not isinstance(spread, Range | Choice):
            example = "sweep.log(1e-3, 1.0), sweep.linear(0.8, 0.99) or sweep.choice(32, 64)"
            raise UserError(f"random: {key_text(key)} needs a range such as {example}, not {spread!r}")
        if isinstance(key, tuple) and isinstance(spread, Range):
            raise UserError(f"random: {key_text(key)} needs tuples, such as sweep.choice((32, 0.1), (64, 0.2))")
        values_of("random", key, spread.values if isinstance(spread, Choice) else (0,))
        names += [key] if isinstance(key, str) else key
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"random: {', '.join(repeated)} is given twice")
