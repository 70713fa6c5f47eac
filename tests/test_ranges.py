"""ranges.py: a value is refused in a line that names the field, or a step can be built with it."""

import ast

import jax
import jax.numpy as jnp
import pytest

from imgclf_jax import augment
from imgclf_jax.config import default
from imgclf_jax.devices import parallel
from imgclf_jax.errors import UserError
from imgclf_jax.training import exact_evaluation, experiment, ranges
from imgclf_jax.training.validate import validate

BASE = {
    "data.source": "sample",
    "data.train_split": "train[:5000]",
    "augment.crop": (24, 24),
    "augment.pad_mode": "zero",
    "model.name": "mlp",
    "model.hidden": (8,),
    "train.batch_size": 8,
    "train.epochs": 2.0,
    "parallel.devices": 1,
}
FIELDS = {path: (value, required) for path, value, required in ranges.all_fields()}
NUMERIC = [path for path, (_, required) in FIELDS.items() if required in (int, float)]
TEXTS = {"init.freeze"}  # a tuple, but neither of numbers nor of pairs
NUMBERS = [float("nan"), float("inf"), -1, 0, 1e-50, 1 - 1e-12, 1e39, 2**31]


def make(path, value):
    config = default()
    config.update_from_flattened_dict(BASE)
    if path in ("train.steps", "train.epochs"):
        config.train.epochs = config.train.steps = None
    section, _, field = path.rpartition(".")
    with config.ignore_type():
        (config[section] if section else config)[field] = value
    return config


def build(config):
    """Traces everything that a run compiles."""
    plan, info = validate(config)
    strategy = parallel.create(config, info.image_bytes)
    ours = experiment.build(config, plan, info.image_shape, info.class_names, strategy)
    template = ours.template()
    state, meter = template["state"], template["meter"]
    normalization, number = augment.Normalization(**template["inputs"]), jax.ShapeDtypeStruct((), jnp.int32)
    data = ours.data_stand_ins()
    jax.eval_shape(ours.run_steps, state, meter, normalization, data, number, ours.key)
    if not strategy.streamed:
        sums = exact_evaluation.nothing()
        jax.eval_shape(ours.evaluate, state.eval_variables(), normalization, data.examples, number, sums)
    jax.eval_shape(ours.schedule, number)


def test_every_number_has_a_range():
    assert set(NUMERIC) == set(ranges.NUMBERS)
    assert {path for path, (_, required) in FIELDS.items() if required is tuple} - TEXTS == {
        *ranges.TUPLES,
        *ranges.PAIRS,
        *ranges.PARTS,
    }


@pytest.mark.parametrize("path", NUMERIC)
def test_any_number_is_refused_by_name_or_can_be_trained_with(path):
    refused = 0
    for number in NUMBERS:
        value = number
        if FIELDS[path][1] is float and isinstance(number, int):
            value = float(number)  # As ConfigDict makes it.
        try:
            build(make(path, value))
        except UserError as error:
            assert path in str(error), (value, error)
            refused += 1
    assert refused >= 3  # All that are not finite, what is negative, and the largest.


@pytest.mark.parametrize("path", NUMERIC)
def test_messages_come_with_a_flag_that_is_accepted(path):
    (line,) = ranges.problems(make(path, float("nan") if FIELDS[path][1] is float else -1), path)
    assert line.startswith(f"{path}=")
    flag, _, text = line.partition("for example --config.")[2].partition("=")
    assert flag == path
    assert ranges.problems(make(path, FIELDS[path][1](text)), path) == []


@pytest.mark.parametrize("path", ranges.TUPLES)
@pytest.mark.parametrize(
    "items",
    [(number, number) for number in NUMBERS] + [(), (1,), (1, 1, 1), ("a", "b"), (True, True), (None, 1), ((1, 1), 1)],
)
def test_any_tuple_is_refused_by_name_or_valid(path, items):
    try:
        validate(make(path, items))
    except UserError as error:
        assert path in str(error), error
    else:
        assert all(isinstance(item, int | float) and 0 <= item < 10**6 for item in items)


@pytest.mark.parametrize("path", ranges.PAIRS)
@pytest.mark.parametrize("number", NUMBERS)
def test_any_pair_is_refused_by_name_or_can_be_trained_with(path, number):
    first = "dense1" if ranges.PAIRS[path].first is None else 0.5
    config = make(path, ((first, number),))
    if path == "optim.knots":
        config.optim.schedule, config.optim.knots = "knots", (*config.optim.knots, (1, number))
    try:
        build(config)
    except UserError as error:
        assert path in str(error), error
    else:
        assert 0 <= number <= 2**31


@pytest.mark.parametrize("path", ranges.PAIRS)
@pytest.mark.parametrize(
    "value", [(1,), ("a", 1), (("a",),), ((1, "a"),), (("a", "b"),), (("", 1),), ((2.0, 1),), [None]]
)
def test_pairs_of_something_else_are_refused_with_an_example_that_is_accepted(path, value):
    (line,) = ranges.problems(make(path, value), path)
    assert line.startswith(f"{path}=") and "pairs" in line
    flag, _, text = line.partition("for example --config.")[2].partition("=")
    assert flag == path
    assert ranges.problems(make(path, ast.literal_eval(text.strip('"'))), path) == []


@pytest.mark.parametrize("path", FIELDS)
@pytest.mark.parametrize("value", [None, True, "text", 1, 1.5, (), object()])
def test_values_of_another_type_are_refused_by_name(path, value):
    standard, required = FIELDS[path]
    fits = type(value) is required or (value is None and standard is None)
    fits = fits or (required is float and isinstance(value, int))  # ConfigDict makes floats of True and 1.
    config = make(path, value)
    found = ranges.wrong_types(config)
    assert [line.partition("=")[0] for line in found] == ([] if fits else [path])
    if not fits:
        with pytest.raises(UserError, match=f"^{path}="):
            validate(config)
