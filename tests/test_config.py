"""The config: every field documented, typed and survivable through JSON."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from imgclf_jax import config as configs
from imgclf_jax.errors import UserError
from imgclf_jax.training import validate

ROOT = Path(__file__).parent.parent
FIELDS = configs.flatten(configs.to_json(configs.default()))


def changed(**fields):
    config = configs.default()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def test_default_is_locked():
    config = configs.default()
    with pytest.raises((AttributeError, KeyError)):
        config.model.nmae = "cnn"
    with pytest.raises((AttributeError, KeyError)):
        config.modle = {}


def test_every_default_is_a_new_object():
    configs.default().model.name = "mlp"
    assert configs.default().model.name == "cnn"


def test_every_field_has_a_type():
    config = configs.default()
    for path in FIELDS:
        section, _, name = path.rpartition(".")
        owner = config[section] if section else config
        assert owner.get_type(name) in (int, float, bool, str, tuple) or path in configs.FREE, path


def test_every_field_is_explained_in_the_source():
    """By a comment above it, or above the group of fields that it stands in."""
    lines = Path(configs.__file__).read_text().splitlines()
    found, explained = [], False
    for line in lines:
        text = line.strip()
        if text.startswith("#"):
            explained = True
        elif match := re.match(r'"(\w+)": (?!_\w+\(\))', text):
            found.append((match[1], explained))
        else:  # A field under a field shares its comment; anything else ends it.
            explained = False
    assert sorted(name for name, _ in found) == sorted(path.rpartition(".")[2] for path in FIELDS)
    assert [name for name, has in found if not has] == []


def test_json_round_trip_of_the_default():
    config = configs.default()
    assert configs.from_json(configs.to_json(config)).to_dict() == config.to_dict()


def test_json_round_trip_keeps_tuples_placeholders_and_numbers():
    config = changed(
        augment__crop=(24, 24),
        augment__contrast=(0.3, 1.0),
        model__widths=(1, 2, 3),
        train__epochs=3.5,
        optim__warmup_steps=7,
        optim__eps=1e-8,
        data__dir="a/ü",
        seed=2**32 - 1,
    )
    again = configs.from_json(configs.to_json(config))
    assert again.to_dict() == config.to_dict()
    assert again.augment.crop == (24, 24) and isinstance(again.augment.crop, tuple)
    assert again.train.steps is None and again.train.epochs == 3.5
    # An empty field of a config that was read back still knows its type.
    again.train.steps = 3
    with pytest.raises(TypeError):
        again.train.steps = "three"
    assert again.is_locked


def test_older_config_without_a_field_gets_its_default():
    values = configs.to_json(configs.default())
    del values["optim"]["clip_norm"]
    assert configs.from_json(values).optim.clip_norm == 0.0


def test_unknown_field_names_the_nearest():
    values = configs.to_json(configs.default())
    values["optim"]["learning_rat"] = 1.0
    values["zebra"] = {"stripes": 1}
    with pytest.raises(UserError) as caught:
        configs.from_json(values)
    first, second = sorted(str(caught.value).splitlines())
    assert first == "unknown config field optim.learning_rat; did you mean optim.learning_rate?"
    assert second.startswith("unknown config field zebra.stripes")


@pytest.mark.parametrize("values", [{"model": 3}, {"seed": "zero"}, {"train": {"steps": [1]}}])
def test_value_that_a_field_cannot_hold_is_refused(values):
    with pytest.raises(UserError, match=r"(model|seed|train\.steps)"):
        configs.from_json(values)


def odd(path, value):
    """A config in which a field holds what the lock and the types would have kept out."""
    config = configs.default().unlock()
    *sections, name = path.split(".")
    owner = config
    for section in sections:
        owner = owner[section]
    with owner.ignore_type():
        owner[name] = value
    return config


def test_configs_that_can_be_read_back_have_no_problems():
    assert configs.problems(configs.default()) == []
    plain = {"optim__learning_rate": np.float64(0.1), "augment__crop": (24, 24), "train__epochs": 3.0, "seed": 2**31}
    assert configs.problems(changed(**plain)) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optim.learning_rat", 1.0, "unknown config field optim.learning_rat; did you mean optim.learning_rate?"),
        ("learning_rate", 1.0, "unknown config field learning_rate; did you mean optim.learning_rate?"),
        ("nesterov", True, "unknown config field nesterov; did you mean optim.nesterov?"),
        ("zebra", {"stripes": 1}, "unknown config field zebra.stripes"),
        ("model.extra", {}, "unknown config field model.extra"),
        ("model", 3, "the config lacks model."),
        ("seed", {"a": 1}, "the config lacks seed"),
        ("seed", np.int64(3), "seed=np.int64(3) (int64) cannot be kept in config.json; give a plain int"),
        ("optim.learning_rate", np.float32(0.1), "(float32) cannot be kept in config.json; give a plain float"),
        ("optim.eps", float("nan"), "optim.eps=nan (float) cannot be kept in config.json"),
        ("model.widths", {1, 2}, "(set) cannot be kept in config.json; give a plain tuple"),
        ("model.widths", np.array([1, 2]), "(ndarray) cannot be kept in config.json; give a plain tuple"),
        ("model.widths", (np.int64(1),), "(tuple) cannot be kept in config.json; give a plain tuple"),
        ("model.name", max, "(builtin_function_or_method) cannot be kept in config.json; give a plain str"),
        ("train.steps", b"3", "(bytes) cannot be kept in config.json; give a plain number or name"),
        ("seed", "3", "config field seed cannot be '3'"),
    ],
)
def test_what_could_not_be_read_back_is_reported_before_training(path, value, message):
    config = odd(path, value)
    (line,) = configs.problems(config)
    assert message in line
    # If only the value is wrong, validation may say what the field can hold instead.
    reported = message if configs.field_problems(config) else f"{path}="
    with pytest.raises(UserError, match=re.escape(reported)):
        validate.validate(config)


@pytest.mark.parametrize(
    "values", [{"seed": {"a": 1}}, {"seed": {}}, {"model": {"name": {"c": 1}}}, {"model": []}, {"train": {"steps": {}}}]
)
def test_objects_in_the_wrong_place_are_refused(values):
    with pytest.raises(UserError, match="config field"):
        configs.from_json(values)


def test_differences_name_field_and_both_values():
    old = configs.to_json(configs.default())
    new = configs.to_json(changed(optim__learning_rate=0.5, train__steps=3, augment__crop=(24, 24)))
    assert configs.differences(old, old) == []
    assert configs.differences(old, new) == [
        "augment.crop: [] -> [24, 24]",
        "optim.learning_rate: 0.1 -> 0.5",
        "train.steps: None -> 3",
    ]


def test_differences_ignore_what_does_not_change_the_numbers():
    other = changed(
        data__dir="elsewhere",
        data__archive="a.tar.gz",
        data__url="https://example.org",
        data__download=False,
        data__allow_sample=False,
        eval__batch_size=7,
        eval__train=False,
        log__every_steps=3,
        log__line_seconds=0.0,
        log__tensorboard=False,
        checkpoint__every_steps=5,
        checkpoint__keep=9,
        train__steps_per_dispatch=1,
    )
    assert configs.differences(configs.to_json(configs.default()), configs.to_json(other)) == []


def test_every_other_field_is_a_difference():
    for path, value in FIELDS.items():
        if not path.startswith(configs.NOT_MATHEMATICS):
            old = configs.to_json(configs.default())
            *sections, name = path.split(".")
            owner = old[sections[0]] if sections else old
            owner[name] = "something else"
            (line,) = configs.differences(old, configs.to_json(configs.default()))
            assert line == f"{path}: 'something else' -> {value!r}"


def test_field_that_is_newer_than_a_run_counts_as_its_default():
    old, new = configs.to_json(configs.default()), configs.to_json(configs.default())
    del old["optim"]["clip_norm"]
    assert configs.differences(old, new) == []
    new["optim"]["clip_norm"] = 1.0
    assert configs.differences(old, new) == ["optim.clip_norm: 0.0 -> 1.0"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_says_its_command_its_accuracy_and_its_time_or_that_it_has_not_been_run(path):
    text = ast.get_docstring(ast.parse(path.read_text()), clean=False)
    assert f"\n    python -m imgclf_jax.main --config=configs/{path.name}" in text
    if "has not been run" in text:
        return
    assert re.search(r"est accuracy \d\.\d{4} ± \d\.\d{4}", text)
    assert re.search(r"in \d+(\.\d+)? to \d+(\.\d+)?\s+(s|minutes)\s", text)


def test_the_identity_is_that_of_the_experiment_not_of_its_repetition():
    same, other = configs.default(), configs.default()
    same.seed, same.log.every_steps, same.parallel.devices = 7, 3, 1
    assert configs.identity(same) == configs.identity(configs.default())
    other.optim.learning_rate = 0.5
    assert configs.identity(other) != configs.identity(same)
    other.optim.learning_rate = configs.default().optim.learning_rate
    assert configs.identity(other) == configs.identity(same)
