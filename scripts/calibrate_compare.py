"""Simulates tables without true differences and counts how often `imgclf_jax.compare` is wrong.

    python scripts/calibrate_compare.py --tables=10000 [--seed=0]

A table has a baseline and 8 variants of n runs each, all with the same expected accuracy of 93 % and a standard
deviation of 0.15 points over seeds. Runs with the same seed have the correlation r. Optionally, a run is tested on
10,000 images: its accuracy is the share of successes of a binomial draw, which adds a standard deviation of 0.26 points
and leaves a smaller correlation. Optionally, the variants have several times the standard deviation of the baseline.
Optionally, the baseline has another number of runs, with other seeds.

Printed for each cell: how many intervals of a mean and of a difference contain the true value (the target is 94 to 97
%, and at least 94 % for the differences of groups with different seeds), how many tables have a false "better" or
"worse" (target: at most 5 %), and how many comparisons were paired. Behind
each share stands its 95 % Monte Carlo interval. "outside" marks shares whose Monte Carlo interval excludes the target.
The last lines do the same for the bootstrap intervals of P(A > B), which have no target.

Progress is printed to standard error.
"""

import argparse
import itertools
import sys
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from imgclf_jax.compare.holm import holm
from imgclf_jax.compare.statistics import LEVEL
from imgclf_jax.compare.superiority import superiority_interval
from imgclf_jax.compare.t_tests import compare_means, mean_bounds
from imgclf_jax.terminal.console import duration

ACCURACY, DEVIATION, VARIANTS = 0.93, 0.0015, 8
COVERAGE = (0.94, 0.97)


class Cell(NamedTuple):
    """One setting.

    Attributes:
        runs: of each group.
        correlation: of runs with the same seed.
        images: of the test split, for binomial noise; 0: no such noise.
        ratio: standard deviation of the variants divided by that of the baseline.
        baseline: runs of the baseline, with other seeds than those of the variants; 0: as many, with the same seeds.
    """

    runs: int
    correlation: float
    images: int = 0
    ratio: float = 1.0
    baseline: int = 0


class Counts(NamedTuple):
    """What happened in each table [tables]: shares of covered means and differences, false verdict, share of pairs."""

    means: npt.NDArray[np.float64]
    differences: npt.NDArray[np.float64]
    wrong: npt.NDArray[np.bool_]
    paired: npt.NDArray[np.float64]


CELLS = [
    *(Cell(*values) for values in itertools.product((3, 4, 5, 7, 8, 10), (0.0, 0.5, 0.9), (0, 10_000))),
    *(Cell(runs, r, ratio=ratio) for runs in (3, 4, 5, 7, 8, 10) for r in (0.0, 0.9) for ratio in (3.0, 10.0)),
    *(
        Cell(runs, 0.0, ratio=ratio, baseline=baseline)
        for runs, baseline in ((2, 10), (3, 5), (4, 5), (5, 10), (10, 5), (9, 10))
        for ratio in (1.0, 3.0, 10.0)
    ),
]


def main() -> None:
    """Simulates all cells and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=10_000, help="tables of each cell (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulation (default: 0)")
    options = parser.parse_args()
    if options.tables < 2:
        parser.error(f"--tables={options.tables} must be at least 2")
    if options.seed < 0:
        parser.error(f"--seed={options.seed} must be at least 0")
    start = time.monotonic()
    print(f"{options.tables} tables of a baseline and {VARIANTS} variants for each line, seed {options.seed}\n")
    titles = (f"{title:37}" for title in ("mean covered", "difference covered", "tables with a false verdict"))
    print(f"{'runs':>4} {'base':>4} {'r':>3} {'images':>6} {'ratio':>5}  {'  '.join(titles)} {'paired':>6}")
    for done, cell in enumerate(CELLS, start=1):
        print(line(cell, simulate(cell, options.tables, options.seed)), flush=True)
        progress(done, len(CELLS), start)
    print("\nbootstrap interval of P(A > B), where A and B have the same distribution")
    for runs in (3, 5, 10):
        covered = superiority_covered(runs, options.tables, options.seed)
        print(f"{runs:>4} runs  {share(covered, (0, 1))}", flush=True)


def simulate(cell: Cell, tables: int, seed: int) -> Counts:
    """Simulates tables of a cell with the functions that `imgclf_jax.compare.statistics` uses."""
    baseline, variants = accuracies(cell, tables, seed)
    covered = [(low <= ACCURACY) & (high >= ACCURACY) for low, high in map(mean_bounds, (baseline, variants))]
    difference = compare_means(variants, baseline, same_keys=not cell.baseline)
    return Counts(
        np.concatenate(covered, axis=1).mean(axis=1),
        ((difference.low <= 0) & (difference.high >= 0)).mean(axis=1),
        np.any(holm(difference.p) < LEVEL, axis=1),
        difference.paired.mean(axis=1),
    )


def accuracies(cell: Cell, tables: int, seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Accuracies without true differences: of the baseline [tables, 1, runs], of the variants [tables, VARIANTS, runs].

    Raises:
        ValueError: runs with other seeds than the baseline's are to be correlated with it.
    """
    if cell.baseline and cell.correlation:
        raise ValueError("only runs with the same seeds can be correlated")
    draws = np.random.default_rng(
        [seed, cell.runs, round(100 * cell.correlation), cell.images, round(100 * cell.ratio), cell.baseline]
    )
    shared = 0.0 if cell.baseline else draws.standard_normal((tables, 1, cell.runs))
    found = []
    for groups, runs, scale in ((1, cell.baseline or cell.runs, 1.0), (VARIANTS, cell.runs, cell.ratio)):
        own = draws.standard_normal((tables, groups, runs))
        noise = np.sqrt(cell.correlation) * shared + np.sqrt(1 - cell.correlation) * own
        values = ACCURACY + scale * DEVIATION * noise
        found.append(draws.binomial(cell.images, values) / cell.images if cell.images else values)
    return found[0], found[1]


def superiority_covered(runs: int, count: int, seed: int) -> npt.NDArray[np.float64]:
    """Whether the interval of P(A > B) contains 0.5, for `count` pairs of groups with the same distribution."""
    draws = np.random.default_rng([seed, runs])
    covered = np.zeros(count)
    for index, (a, b) in enumerate(draws.standard_normal((count, 2, runs))):
        low, high = superiority_interval(a, b) or (0, 1)
        covered[index] = low <= 0.5 <= high
    return covered


def line(cell: Cell, counts: Counts) -> str:
    """A line of the printed table."""
    cells = (
        share(counts.means, COVERAGE, 1 + VARIANTS),
        share(counts.differences, (COVERAGE[0], 1) if cell.baseline else COVERAGE, VARIANTS),
        share(counts.wrong, (0, LEVEL)),
    )
    setting = (
        f"{cell.runs:>4} {cell.baseline or cell.runs:>4} {cell.correlation:>3} {cell.images or '-':>6} {cell.ratio:>5}"
    )
    return f"{setting}  {'  '.join(f'{text:37}' for text in cells)} {counts.paired.mean():>6.1%}"


def share(values: npt.NDArray, target: tuple[float, float], groups: int = 1) -> str:
    """Formats shares [tables] of `groups` events each: their number, their mean, its interval, and if off target."""
    low, high = monte_carlo(values)
    mark = " outside" if high < target[0] or low > target[1] else ""
    return f"{round(float(values.sum()) * groups):>5} {values.mean():.2%} [{low:.2%}, {high:.2%}]{mark}"


def monte_carlo(values: npt.NDArray) -> tuple[float, float]:
    """95 % interval of an expected share, from independent tables [tables]: Wilson's if each is 0 or 1, else normal."""
    if set(np.unique(values)) <= {0, 1}:
        result = stats.binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
        return float(result.low), float(result.high)
    reach = stats.norm.isf(0.025) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - reach), float(values.mean() + reach)


def progress(done: int, total: int, start: float) -> None:
    """Prints the progress and the remaining time to standard error."""
    left = (time.monotonic() - start) / done * (total - done)
    print(f"{done}/{total} cells, ETA {duration(left)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
