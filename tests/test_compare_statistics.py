"""compare/: statistics of groups of runs, against worked examples, SciPy, what must always hold, simulated tables."""

import math

import calibrate_compare as calibration
import numpy as np
import pytest
from calibrate_compare import Cell
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from imgclf_jax.compare import superiority
from imgclf_jax.compare.holm import holm
from imgclf_jax.compare.power import power, seeds_needed
from imgclf_jax.compare.statistics import Interval, compare, mean_interval
from imgclf_jax.compare.t_tests import compare_means, mean_bounds

TABLES = 2000
RUNS = (3, 5, 7, 10)


def group(values, first=0):
    """Runs with the seeds `first`, `first` + 1 and so on."""
    return {(first + seed, 0): float(value) for seed, value in enumerate(values)}


def one(a, b, **options):
    """The comparison of the group `a` with the baseline `b`."""
    return compare({"b": b, "a": a}, "b", **options)["a"]


def normal(seed, *counts, scale=1.0):
    """Groups with values from one distribution."""
    draws = np.random.default_rng(seed)
    return [group(scale * draws.standard_normal(count)) for count in counts]


def close(a, b):
    return a == b or a == pytest.approx(b, rel=1e-6, abs=1e-9)


# --- intervals and tests


def test_mean_interval_of_a_worked_example():
    # Mean 3, standard deviation sqrt(2.5); the 97.5 % point of t with 4 degrees of freedom is 2.776445.
    assert mean_interval([5, 1, 3, 2, 4]) == pytest.approx(
        (3 - 2.776445 * math.sqrt(0.5), 3 + 2.776445 * math.sqrt(0.5))
    )


def test_mean_interval_of_one_value_or_equal_ones():
    assert mean_interval([0.5]) is None
    assert mean_interval([]) is None
    assert mean_interval([0.1] * 3) == pytest.approx((0.1, 0.1), abs=1e-15)
    low, high = mean_interval([0.1] * 7)
    assert low == high


@pytest.mark.parametrize(("n", "m", "first"), [(2, 5, 0), (10, 10, 1), (12, 9, 0), (9, 12, 0)])
def test_groups_with_other_keys_have_the_freedom_of_the_smaller_one(n, m, first):
    _, a, b = normal(1, 1, n, m)
    b = group(b.values(), first)
    result = one(a, b)
    x, y = list(a.values()), list(b.values())
    error = math.sqrt(np.var(x, ddof=1) / n + np.var(y, ddof=1) / m)
    difference = np.mean(x) - np.mean(y)
    expected = stats.t(min(n, m) - 1, scale=error)
    assert not result.paired
    assert result.p == result.p_holm == pytest.approx(2 * expected.sf(abs(difference)))
    assert result.interval == pytest.approx((difference + expected.ppf(0.025), difference + expected.ppf(0.975)))
    assert result.difference == pytest.approx(difference)


@pytest.mark.parametrize("r", [-0.5, 0, 0.9])
@pytest.mark.parametrize("n", [3, 5, 8])
def test_groups_with_the_same_keys_are_always_paired(n, r):
    a, b = correlated(n, r)
    result = one(a, dict(reversed(b.items())))
    expected = stats.ttest_rel(list(a.values()), list(b.values()))
    assert result.paired
    assert result.correlation == pytest.approx(r)
    assert result.p == pytest.approx(expected.pvalue)
    assert result.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_two_pairs_are_paired_too():
    result = one(group([3, 5]), group([1, 2]))
    assert result.paired and result.correlation is None
    assert result.p == pytest.approx(stats.ttest_rel([3, 5], [1, 2]).pvalue)


def correlated(n, r):
    """Two groups of n runs whose sample correlation is exactly r (up to rounding)."""
    u, v = np.linalg.qr(np.column_stack([np.ones(n), np.random.default_rng(n).standard_normal((n, 2))]))[0].T[1:]
    return group(r * u + math.sqrt(1 - r * r) * v), group(u)


def test_correlation_is_over_the_keys_of_both():
    a, b = group([1, 2, 4, 9]), group([9, 1, 3, 3], first=-1)  # of both: 1 2 4 and 1 3 3
    assert one(a, b).correlation == pytest.approx(np.corrcoef([1, 2, 4], [1, 3, 3])[0, 1])
    assert one(a, group([1, 3], first=2)).correlation is None
    assert one(a, group([2, 2, 2, 2])).correlation is None


def test_folds_pair_values_too():
    a = {(seed, fold): seed + 10 * fold + 0.1 * ((seed + fold) % 3) for seed in range(2) for fold in range(4)}
    b = {key: value + 0.01 * index for index, (key, value) in enumerate(a.items())}
    assert one(a, b).paired
    assert not one(a, {(seed, fold + 1): value for (seed, fold), value in b.items()}).paired


# --- verdicts


def test_verdict_follows_the_adjusted_p_and_the_direction():
    baseline, better = group([0.90, 0.91, 0.92]), group([0.95, 0.96, 0.97])
    assert one(better, baseline).verdict == "better"
    assert one(baseline, better).verdict == "worse"
    assert one(better, baseline, higher_is_better=False).verdict == "worse"
    alone = one(group([0.942, 0.93, 0.951]), baseline)
    assert 0.01 < alone.p < 0.05
    assert alone.verdict == "better"
    many = {"b": baseline, "a": group([0.942, 0.93, 0.951]), **{f"c{i}": baseline for i in range(7)}}
    result = compare(many, "b")["a"]
    assert result.p == alone.p
    assert result.p_holm == pytest.approx(8 * alone.p)
    assert result.verdict == "not shown"
    assert result.interval == alone.interval


def test_five_clearly_separated_pairs_can_be_shown():
    a, b = correlated(5, 0.0)
    assert one(group(value + 3 for value in a.values()), b).verdict == "better"


def test_order_of_the_groups_is_kept_and_the_baseline_can_be_any():
    groups = dict(zip("cab", normal(3, 4, 4, 4), strict=True))
    assert list(compare(groups, "a")) == ["c", "b"]
    assert compare({"c": groups["c"]}, "c") == {}


def test_one_run_is_never_enough():
    (a, b), (single,) = normal(2, 5, 5), normal(4, 1)
    for result in (one(single, b), one(b, single), one(single, single)):
        assert (result.interval, result.p, result.p_holm, result.seeds_needed) == (None, None, None, None)
        assert result.p_superior_interval is None
        assert result.verdict == "not shown"
    # It does not count as a test of the table either.
    result = compare({"b": b, "one": single, "a": a}, "b")["a"]
    assert result.p_holm == result.p


@pytest.mark.parametrize("n", [2, 3, 10])
def test_without_variance_nothing_is_shown(n):
    for value in (0.7, 0.9, 0.1 + 0.2):
        result = one(group([value] * n), group([0.7] * n))
        assert result.difference == pytest.approx(value - 0.7)
        assert result.interval == (result.difference, result.difference)
        assert (result.p, result.p_holm, result.correlation, result.seeds_needed) == (None,) * 4
        assert result.verdict == "not shown"


def test_one_group_without_variance_is_compared_with_the_freedom_of_the_other():
    values = [0.1, 0.3, 0.2, 0.4]
    result = one(group(values), group([0.05] * 4))
    assert result.p == pytest.approx(stats.ttest_1samp(values, 0.05).pvalue)


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_pairs_with_equal_differences_say_nothing_of_their_variance(shift):
    values = np.random.default_rng(0).random(10)
    result = one(group(values + shift), group(values))
    assert not result.paired
    error = math.sqrt(2 * np.var(values, ddof=1) / 10)
    assert result.p == pytest.approx(2 * stats.t.sf(shift / error, 9))
    assert result.interval.low < shift < result.interval.high


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(wrong):
    with pytest.raises(ValueError, match=f"group 'a' has a value of {wrong}"):
        one(group([1, wrong, 2]), group([1, 2]))
    with pytest.raises(ValueError, match="without a finite result"):
        mean_interval([1, wrong])


def test_groups_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="'x' is not a group; the groups are 'a', 'b'"):
        compare({"a": group([1]), "b": group([2])}, "x")
    with pytest.raises(ValueError, match="'a' has no values"):
        one({}, group([1, 2]))


# --- what must always hold

VALUES = st.lists(st.integers(-50, 50).map(lambda value: value / 8), min_size=1, max_size=10)
TWO = st.tuples(VALUES, VALUES)


@settings(max_examples=50, deadline=None)
@given(TWO, st.sampled_from([0.001, 0.5, 64.0]), st.integers(-3, 3))
def test_comparison_does_not_depend_on_unit_and_origin(values, scale, shift):
    a, b = map(np.array, values)
    before = one(group(a), group(b))
    after = one(group(scale * (a + shift)), group(scale * (b + shift)))
    assert close(after.difference, scale * before.difference)
    assert after._replace(difference=0, interval=None, p=0, p_holm=0, correlation=0) == before._replace(
        difference=0, interval=None, p=0, p_holm=0, correlation=0
    )
    assert close(after.p, before.p)
    assert close(after.correlation, before.correlation)
    assert after.interval == (before.interval and pytest.approx([scale * end for end in before.interval], abs=1e-9))
    mean = mean_interval(a)
    moved = mean_interval(scale * (a + shift))
    assert moved == (mean and pytest.approx([scale * (end + shift) for end in mean], abs=1e-9))


@settings(max_examples=50, deadline=None)
@given(TWO)
def test_exchanging_the_groups_changes_signs_alone(values):
    a, b = map(group, values)
    there, back = one(a, b), one(b, a)
    assert there.difference == -back.difference
    assert close(there.p, back.p)
    assert (there.paired, there.seeds_needed) == (back.paired, back.seeds_needed)
    assert close(there.correlation, back.correlation)
    assert {there.verdict, back.verdict} in ({"better", "worse"}, {"not shown"})
    assert there.p_superior + back.p_superior == pytest.approx(1)
    if there.interval:
        assert there.interval == pytest.approx((-back.interval.high, -back.interval.low), abs=1e-12)
    if there.p_superior_interval and sorted(a.values()) != sorted(b.values()):
        low, high = back.p_superior_interval
        assert there.p_superior_interval == pytest.approx((1 - high, 1 - low))


@settings(max_examples=50, deadline=None)
@given(TWO, st.randoms())
def test_order_of_the_runs_does_not_matter(values, random):
    a, b = map(group, values)
    items = list(a.items())
    random.shuffle(items)
    assert one(dict(items), b) == one(a, b)
    assert mean_interval([value for _, value in items]) == mean_interval(list(a.values()))


def test_it_does_not_matter_which_seed_has_which_value():
    a, b = (list(values.values()) for values in normal(6, 5, 7))
    before, after = one(group(a), group(b)), one(group(a[::-1]), group(b[2:] + b[:2]))
    assert after.interval == pytest.approx(before.interval)
    assert after.p_superior_interval == before.p_superior_interval
    orders = [list(np.random.default_rng(seed).permutation(b)) for seed in range(20)]
    assert {mean_interval(order) for order in orders} == {mean_interval(b)}


@settings(max_examples=50, deadline=None)
@given(TWO)
def test_smaller_is_better_is_the_mirror_image(values):
    a, b = values
    loss = one(group(a), group(b), higher_is_better=False)
    score = one(group(-value for value in a), group(-value for value in b))
    assert loss.difference == -score.difference
    assert (loss.verdict, loss.p_superior, loss.p_superior_interval) == (
        score.verdict,
        score.p_superior,
        score.p_superior_interval,
    )


# --- Holm


def test_holm_of_a_worked_example():
    # Sorted: 0.005 * 4, 0.01 * 3, then 0.03 * 2, and 0.04 * 1, which is raised to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1, 1])
    assert holm([0.02]) == pytest.approx([0.02])


def test_holm_does_not_count_tests_that_were_not_made():
    assert holm([[math.nan, 0.01, 0.03], [0.5, math.nan, math.nan]]) == pytest.approx(
        np.array([[math.nan, 0.02, 0.03], [0.5, math.nan, math.nan]]), nan_ok=True
    )


@given(st.lists(st.floats(0, 1), max_size=9))
def test_holm_is_monotone_and_between_none_and_bonferroni(p):
    adjusted = holm(p)
    assert np.all(np.diff(adjusted[np.argsort(p)]) >= 0)
    assert np.all(adjusted >= np.array(p))
    assert np.all(adjusted <= np.minimum(1, len(p) * np.array(p)))


# --- P(A > B)


def test_superiority_of_a_worked_example():
    # 2 beats 1 of (1, 3); 3 beats 1 and ties with 3; 5 beats both.
    result = one(group([2, 3, 5]), group([1, 3]))
    assert result.p_superior == pytest.approx((1 + 1.5 + 2) / 6)
    assert result.p_superior_interval is None
    assert one(group([5, 6, 7]), group([1, 2, 3])).p_superior_interval == Interval(1, 1)


def test_superiority_interval_agrees_with_a_written_out_bootstrap():
    a, b = (np.array(list(values.values())) for values in normal(5, 8, 6))
    draws = np.random.default_rng(1)
    again, other = draws.choice(a, (4000, len(a), 1)), draws.choice(b, (4000, 1, len(b)))
    shares = ((again > other) + (again == other) / 2).mean(axis=(1, 2))
    assert superiority.superiority_interval(a, b) == pytest.approx(np.percentile(shares, [2.5, 97.5]), abs=0.03)


# --- power


@pytest.mark.parametrize(("points", "seeds"), [(0.5, 4), (0.3, 6), (0.2, 11), (0.1, 36)])
def test_seeds_needed_for_the_deviation_of_cifar10(points, seeds):
    deviation = 0.147 * math.sqrt(2)
    assert seeds_needed(points, deviation) == seeds_needed(-points, deviation) == seeds
    assert direct_power(points / deviation, seeds) >= 0.8 > direct_power(points / deviation, seeds - 1)


@pytest.mark.parametrize(("effect", "runs"), [(0.3, 20), (1.0, 3), (2.5, 5), (0.0, 7), (4.0, 2)])
def test_power_agrees_with_an_integral_over_the_sample_deviation(effect, runs):
    assert power(effect, 1, runs) == pytest.approx(direct_power(effect, runs), abs=1e-6)


def direct_power(effect, runs):
    """P(|Z + shift| > t_crit * s), Z normal, integrated over the distribution of s."""
    freedom = runs - 1
    shift = effect * math.sqrt(runs)
    reach = stats.t.ppf(0.975, freedom)

    def rejected(square):
        limit = reach * math.sqrt(square / freedom)
        return (stats.norm.sf(limit - shift) + stats.norm.cdf(-limit - shift)) * stats.chi2.pdf(square, freedom)

    return integrate.quad(rejected, 0, 1, limit=200)[0] + integrate.quad(rejected, 1, np.inf, limit=200)[0]


def test_seeds_needed_is_the_least_number_everywhere():
    for effect in (0.03, 0.05, 0.11, 0.4, 0.9, 3.0):
        seeds = seeds_needed(effect, 1)
        assert power(effect, 1, seeds) >= 0.8 > power(effect, 1, seeds - 1)
    # Where the series takes over, it agrees with the noncentral t distribution.
    seeds = seeds_needed(0.025, 1)
    assert power(0.025, 1, seeds + 1) >= 0.8 > power(0.025, 1, seeds - 2)


def test_power_and_seeds_needed_at_the_extremes():
    assert power(1e9, 1, 50) == 1
    assert [seeds_needed(1e6, 1), seeds_needed(1e300, 1e-300)] == [2, 2]
    assert seeds_needed(1e-300, 1e300) is None
    assert [seeds_needed(*values) for values in ((0, 1), (1, 0), (math.nan, 1), (1, math.nan))] == [None] * 4


def test_a_comparison_needs_the_seeds_of_its_own_deviation():
    a, b = correlated(9, 0.9)
    within = np.std(np.array(list(a.values())) - np.array(list(b.values())), ddof=1)
    a = group(value + 0.1 for value in a.values())
    assert one(a, b).seeds_needed == seeds_needed(0.1, within)
    a, b = group([1, 2, 4]), group([1, 3, 3, 7])
    deviation = math.sqrt(np.var([1, 2, 4], ddof=1) + np.var([1, 3, 3, 7], ddof=1))
    assert one(a, b).seeds_needed == seeds_needed(one(a, b).difference, deviation)


# --- calibration: a small part of what scripts/calibrate_compare.py simulates


@pytest.mark.parametrize("ratio", [1.0, 3.0])
@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize("runs", RUNS)
def test_few_tables_without_differences_have_a_verdict_and_intervals_cover_95_percent(runs, correlation, ratio):
    counts = calibration.simulate(Cell(runs, correlation, ratio=ratio), TABLES, seed=0)
    assert counts.wrong.sum() <= stats.binom.ppf(0.99, TABLES, 0.05)
    assert 0.94 <= counts.means.mean() <= 0.97
    assert 0.94 <= counts.differences.mean() <= 0.97
    assert counts.paired.all()


@pytest.mark.parametrize("runs", RUNS)
def test_the_binomial_noise_of_a_test_split_changes_nothing(runs):
    counts = calibration.simulate(Cell(runs, 0.0, 10_000), TABLES, seed=0)
    assert counts.wrong.sum() <= stats.binom.ppf(0.99, TABLES, 0.05)
    assert 0.94 <= counts.means.mean() <= 0.97
    assert 0.94 <= counts.differences.mean() <= 0.97


@pytest.mark.parametrize("ratio", [1.0, 3.0, 10.0])
@pytest.mark.parametrize(("runs", "baseline"), [(2, 10), (3, 5), (10, 5)])
def test_groups_of_different_sizes_keep_the_promise(runs, baseline, ratio):
    counts = calibration.simulate(Cell(runs, 0.0, ratio=ratio, baseline=baseline), TABLES, seed=0)
    assert counts.wrong.sum() <= stats.binom.ppf(0.99, TABLES, 0.05)
    assert counts.differences.mean() >= 0.94
    assert not counts.paired.any()


@pytest.mark.parametrize("runs", [3, 5, 10])
def test_simulated_tables_are_compared_as_real_ones(runs):
    baseline, variants = calibration.accuracies(Cell(runs, 0.9), 5, seed=1)
    values = np.concatenate([baseline, variants], axis=1)
    expected = compare_means(variants, baseline, same_keys=True)
    adjusted, bounds = holm(expected.p), mean_bounds(values)
    for table, rows in enumerate(values):
        groups = {str(index): group(row) for index, row in enumerate(rows)}
        assert mean_interval(rows[0]) == pytest.approx((bounds[0][table, 0], bounds[1][table, 0]))
        for index, result in enumerate(compare(groups, "0").values()):
            assert result.p_holm == pytest.approx(adjusted[table, index])
            assert result.paired == expected.paired[table, index]
            assert result.interval == pytest.approx((expected.low[table, index], expected.high[table, index]))
            assert (result.verdict != "not shown") == (adjusted[table, index] < 0.05)


def test_the_script_prints_a_line_for_each_cell(monkeypatch, capsys):
    monkeypatch.setattr(calibration, "CELLS", [Cell(3, 0.0), Cell(4, 0.5, 10_000, 3.0), Cell(4, 0.0, baseline=6)])
    monkeypatch.setattr("sys.argv", ["calibrate_compare.py", "--tables=20"])
    calibration.main()
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert "20 tables" in lines[0]
    assert lines[3].split()[:5] == ["3", "3", "0.0", "-", "1.0"]
    assert lines[4].split()[:5] == ["4", "4", "0.5", "10000", "3.0"]
    assert lines[5].split()[:5] == ["4", "6", "0.0", "-", "1.0"]
    assert "3/3 cells, ETA 0.0 s" in err
