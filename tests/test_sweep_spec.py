"""The description of a sweep: names, combinations and draws."""

import itertools
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import ROOT, environment

from imgclf_jax import config as configs
from imgclf_jax import sweep
from imgclf_jax.errors import UserError
from imgclf_jax.sweep import Variant, spec

RANGES = {
    "optim.learning_rate": sweep.log(1e-3, 1),
    "optim.momentum": sweep.linear(0.8, 0.99),
    "train.batch_size": sweep.choice(32, 64, 128),
}
FIELDS = sorted(configs.flatten(configs.to_json(configs.default())))
VALUES = st.one_of(st.booleans(), st.integers(-5, 5), st.floats(0, 1), st.sampled_from(["a", "b"]))
GRIDS = st.dictionaries(st.sampled_from(FIELDS), st.lists(VALUES, min_size=1, max_size=3), min_size=1, max_size=3)


def names(variants):
    return [variant.name for variant in variants]


def line(function, *arguments, **options):
    """The one line about a mistake."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    (text,) = str(caught.value).splitlines()
    return text


# Named variants and ablations


def test_named_variants_keep_their_order_and_changes():
    found = sweep.variants({"base": {}, "no_flip": {"augment.flip": False}})
    assert found == [Variant("base", {}), Variant("no_flip", {"augment.flip": False})]


def test_an_ablation_is_everything_and_everything_but_one():
    found = sweep.minus_one({"flip": {"augment.flip": False}, "hue": {"augment.hue": 0.0}})
    assert found == [
        Variant("all", {}),
        Variant("no_flip", {"augment.flip": False}),
        Variant("no_hue", {"augment.hue": 0.0}),
    ]


def test_arrays_and_their_scalars_become_plain_values():
    (found,) = sweep.variants({"a": {"train.batch_size": np.int64(3), "model.widths": np.array([1, 2])}})
    assert found.changes == {"train.batch_size": 3, "model.widths": (1, 2)}
    assert type(found.changes["train.batch_size"]) is int
    rates = sweep.grid({"optim.learning_rate": np.array([0.1, 0.2])})
    assert names(rates) == ["learning_rate=0.1", "learning_rate=0.2"]
    assert all(type(variant.changes["optim.learning_rate"]) is float for variant in rates)


# Grids


def test_a_grid_has_every_combination_and_the_last_field_changes_fastest():
    found = sweep.grid({"optim.learning_rate": (0.01, 0.1), "model.dropout": (0, 0.5)})
    assert names(found) == [
        "learning_rate=0.01,dropout=0",
        "learning_rate=0.01,dropout=0.5",
        "learning_rate=0.1,dropout=0",
        "learning_rate=0.1,dropout=0.5",
    ]
    assert found[1].changes == {"optim.learning_rate": 0.01, "model.dropout": 0.5}


def test_fields_can_change_together():
    found = sweep.grid({("train.batch_size", "optim.learning_rate"): ((64, 0.1), (128, 0.2)), "augment.flip": [True]})
    assert [variant.changes for variant in found] == [
        {"train.batch_size": 64, "optim.learning_rate": 0.1, "augment.flip": True},
        {"train.batch_size": 128, "optim.learning_rate": 0.2, "augment.flip": True},
    ]
    assert found[0].name == "train.batch_size=64,learning_rate=0.1,flip=True"


@settings(max_examples=30, deadline=None)
@given(GRIDS)
def test_a_grid_is_the_cartesian_product(fields):
    found = sweep.grid(fields)
    assert [tuple(variant.changes.values()) for variant in found] == list(itertools.product(*fields.values()))
    assert all(list(variant.changes) == list(fields) for variant in found)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("optim.learning_rate", "learning_rate"),
        ("model.dropout", "dropout"),
        ("optim.name", "optim.name"),
        ("train.batch_size", "train.batch_size"),
        ("train.steps", "steps"),
        ("seed", "seed"),
        ("no.such.field", "field"),
    ],
)
def test_names_use_the_shortest_end_of_a_path_that_no_other_field_has(path, name):
    assert spec.short_name(path) == name


def test_no_two_fields_have_the_same_short_name():
    assert len({spec.short_name(path) for path in FIELDS}) == len(FIELDS)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1 + 0.2, "0.3"),
        (1e-05, "1e-05"),
        (1.0, "1"),
        (True, "True"),
        ((2, 3.5), "(2,3.5)"),
        ((), "()"),
        ("sgd", "sgd"),
    ],
)
def test_values_are_short_in_names(value, text):
    assert spec.value_text(value) == text


def test_zipped_takes_the_first_values_then_the_second():
    found = sweep.zipped({"optim.learning_rate": (0.01, 0.1), "train.batch_size": (32, 64)})
    assert names(found) == ["learning_rate=0.01,train.batch_size=32", "learning_rate=0.1,train.batch_size=64"]


def test_a_product_joins_names_and_merges_changes():
    optimizers = sweep.variants({"sgd": {"optim.name": "sgd"}, "adam": {"optim.name": "adam"}})
    found = sweep.product(optimizers, sweep.grid({"model.dropout": (0.1, 0.2)}), [Variant("x", {})])
    assert names(found) == ["sgd,dropout=0.1,x", "sgd,dropout=0.2,x", "adam,dropout=0.1,x", "adam,dropout=0.2,x"]
    assert found[-1].changes == {"optim.name": "adam", "model.dropout": 0.2}


@settings(max_examples=30, deadline=None)
@given(GRIDS)
def test_a_product_of_one_field_grids_is_the_grid(fields):
    assert sweep.product(*(sweep.grid({path: values}) for path, values in fields.items())) == sweep.grid(fields)


# Random search


@pytest.mark.parametrize("method", ["sobol", "halton", "uniform"])
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_more_samples_extend_fewer(method, count, more, seed):
    few = sweep.random(count, RANGES, method=method, seed=seed)
    assert len(few) == count
    assert sweep.random(count + more, RANGES, method=method, seed=seed)[:count] == few


def test_more_samples_extend_fewer_even_if_points_are_left_out():
    ranges = {"train.batch_size": sweep.linear(1, 40)}
    many = sweep.random(40, ranges)
    assert sorted(variant.changes["train.batch_size"] for variant in many) == list(range(1, 41))
    assert all(sweep.random(count, ranges) == many[:count] for count in (1, 7, 16, 17, 33))


def test_the_draws_depend_on_seed_and_method():
    drawn = {method: sweep.random(8, RANGES, method=method) for method in ("sobol", "halton", "uniform")}
    assert len({str(variants) for variants in drawn.values()}) == 3
    assert sweep.random(8, RANGES, seed=1) != drawn["sobol"]
    assert sweep.random(8, RANGES) == drawn["sobol"]


@pytest.mark.parametrize("method", ["sobol", "halton", "uniform"])
def test_draws_fill_their_ranges(method):
    found = sweep.random(200, RANGES | {"train.accumulate": sweep.linear(1, 3), "model.widths": sweep.choice((8,))})
    rates, momenta, sizes, parts, _ = zip(*(variant.changes.values() for variant in found), strict=True)
    assert all(1e-3 <= rate <= 1 for rate in rates) and all(0.8 <= momentum <= 0.99 for momentum in momenta)
    assert 80 < sum(rate < 10**-1.5 for rate in rates) < 120, "half of them are in each half of the logarithms"
    assert 80 < sum(momentum < 0.895 for momentum in momenta) < 120
    assert set(sizes) == {32, 64, 128} and set(parts) == {1, 2, 3}
    assert all(type(part) is int for part in parts)
    assert all(50 < parts.count(part) < 84 for part in (1, 2, 3)), "both ends are as probable as the rest"


def test_drawn_numbers_have_four_digits_and_stay_in_their_range():
    low, high = 0.123456, 0.123467
    for variant in sweep.random(2, {"optim.momentum": sweep.linear(low, high), "optim.eps": sweep.log(1e-9, 1e-7)}):
        assert low <= variant.changes["optim.momentum"] <= high
        assert float(f"{variant.changes['optim.eps']:.4g}") == variant.changes["optim.eps"]
    assert sweep.linear(0.0, 10.0).at(0.123456) == 1.235
    assert sweep.linear(0, 10).at(0.999) == 10
    assert sweep.log(1, 1000).at(0.0) == 1 and sweep.log(1, 1000).at(math.nextafter(1, 0)) == 1000


def test_no_warning_of_the_library_reaches_the_user():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method, count in itertools.product(("sobol", "halton"), (1, 3, 17)):
            sweep.random(count, RANGES, method=method)


def test_fields_can_be_drawn_together():
    found = sweep.random(2, {("train.batch_size", "optim.learning_rate"): sweep.choice((64, 0.1), (128, 0.2))})
    assert sorted(
        variant.changes["train.batch_size"] / variant.changes["optim.learning_rate"] for variant in found
    ) == [
        640,
        640,
    ]


# Mistakes


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (sweep.variants, [{}], ["variants", "empty"]),
        (sweep.variants, [["a"]], ["variants takes a dict", "['a']"]),
        (sweep.variants, [{"a": 3}], ["variants: a needs a dict", "3"]),
        (sweep.minus_one, [{"flip": False}], ["minus_one: flip needs a dict"]),
        (sweep.grid, [{}], ["grid", "empty"]),
        (sweep.grid, [{"optim.name": "adam"}], ["grid: optim.name needs a tuple of values", "('adam',)"]),
        (sweep.grid, [{"optim.learning_rate": 0.1}], ["grid: optim.learning_rate needs a tuple", "(0.1,)"]),
        (sweep.grid, [{"optim.learning_rate": ()}], ["grid: optim.learning_rate has no values"]),
        (sweep.grid, [{3: (1, 2)}], ["grid: 3 is not a field"]),
        (sweep.grid, [{(): (1, 2)}], ["grid: () is not a field"]),
        (sweep.grid, [{("a.b", "a.c"): ((1, 2), (3,))}], ["(a.b, a.c) needs 2 values each time, not (3,)"]),
        (sweep.grid, [{("a.b", "a.c"): ((1, 2),), "a.b": (1,)}], ["grid: a.b is given twice"]),
        (sweep.zipped, [{"a.b": (1, 2), "a.c": (1,)}], ["zipped", "a.b has 2, a.c has 1"]),
        (
            sweep.product,
            [[Variant("x", {"a.b": 1})], [Variant("y", {"a.b": 2})]],
            ["product: x and y both change a.b"],
        ),
        (sweep.product, [[Variant("x", {})], {"y": {}}], ["product: {'y': {}} is not a list of variants"]),
        (sweep.product, [Variant("x", {})], ["product: Variant(", "is not a list of variants"]),
        (sweep.product, [["x"]], ["product: 'x' is not a list of variants"]),
        (sweep.log, [0, 1], ["log(0, 1)", "above 0"]),
        (sweep.log, [1, 1], ["log(1, 1)", "the lower one first"]),
        (sweep.linear, [2, 1], ["linear(2, 1)", "the lower one first"]),
        (sweep.linear, ["a", 1], ["linear('a', 1)", "two numbers"]),
        (sweep.linear, [0.0, math.inf], ["linear(0.0, inf)"]),
        (sweep.linear, [0.0, math.nan], ["linear(0.0, nan)"]),
        (sweep.choice, [], ["choice() has no values"]),
        (sweep.random, [0, RANGES], ["count=0", "from 1"]),
        (sweep.random, [2.0, RANGES], ["count=2.0"]),
        (sweep.random, [2, RANGES, "grid"], ["method='grid'", "'sobol'"]),
        (sweep.random, [2, RANGES, "sobol", -1], ["seed=-1"]),
        (sweep.random, [2, {}], ["random needs ranges"]),
        (sweep.random, [2, {"a.b": (1, 2)}], ["random: a.b needs a range", "sweep.log", "(1, 2)"]),
        (sweep.random, [2, {("a.b", "a.c"): sweep.log(1, 2)}], ["(a.b, a.c) needs tuples"]),
        (sweep.random, [2, {("a.b", "a.c"): sweep.choice(1)}], ["(a.b, a.c) needs 2 values each time, not 1"]),
        (sweep.random, [2, {"a.b": sweep.log(1, 2), ("a.b",): sweep.choice((1,))}], ["a.b is given twice"]),
        (sweep.random, [5, {"a.b": sweep.choice(1, 2)}], ["only 2 different variants were found, but count=5"]),
    ],
)
def test_a_mistake_is_one_line(function, arguments, words):
    text = line(function, *arguments)
    for word in words:
        assert word in text


def test_a_sweep_file_imports_nothing_heavy():
    code = (
        "import sys\nfrom imgclf_jax import sweep\n"
        "sweep.product(sweep.grid({'a.b': (1, 2)}), sweep.minus_one({'c': {'d.e': 3}}))\n"
        "assert not {'jax', 'flax', 'scipy', 'tensorflow_datasets', 'orbax'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
