"""Validation: every mistake is found before any data is read, and durations become steps."""

import pytest
from runs import SOFTMAX

from imgclf_jax import data
from imgclf_jax.config import default
from imgclf_jax.data import loading
from imgclf_jax.errors import UserError
from imgclf_jax.training.validate import for_evaluation, plan, validate, warnings

pytest_plugins = ["run_fixtures"]

# 50 steps an epoch of 5000 examples.
VALID = {
    "data.source": "sample",
    "data.train_split": "train[:5000]",
    "train.batch_size": 8,
    "train.epochs": 2.0,
    "eval.batch_size": 8,
    "parallel.devices": 1,
}


def make(**changes):
    config = default()
    config.update_from_flattened_dict(VALID | {name.replace("__", "."): value for name, value in changes.items()})
    return config


def problems(**changes):
    with pytest.raises(UserError) as caught:
        validate(make(**changes))
    return str(caught.value).splitlines()


def test_valid_config_gives_plan_and_description_without_reading_data(monkeypatch):
    monkeypatch.setattr(loading, "load", None)
    found, info = validate(make())
    assert info.is_sample and info.image_shape == (32, 32, 3)
    assert info.split_sizes == {"train": 400, "valid": 400, "test": 1000}
    assert (found.steps, found.steps_per_epoch, found.train_count) == (100, 50, 400)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": -1}, ["seed=-1", "at least 0"]),
        ({"seed": 2**32}, ["seed=4294967296", "below 2**32"]),
        ({"data__pixels": "rgb"}, ["data.pixels='rgb'", "--config.data.pixels=", "standardized"]),
        ({"data__valid_split": "train[:500]"}, ["data.valid_split", "data.train_split"]),
        ({"data__test_split": "tset"}, ["data.test_split", "'tset'"]),
        ({"data__train_split": "train[5:5]"}, ["data.train_split"]),
        ({"augment__crop": (40, 40)}, ["augment.crop"]),
        ({"augment__hue": 0.7}, ["augment.hue"]),
        ({"augment__contrast": (2.0, 1.0)}, ["augment.contrast"]),
        ({"augment__pad_mode": "wrap"}, ["augment.pad_mode"]),
        ({"model__name": "resnet"}, ["model.name='resnet'", "cnn"]),
        ({"model__dtype": "float8"}, ["model.dtype"]),
        ({"model__dropout": 1.5}, ["model.dropout"]),
        ({"model__norm": "layer"}, ["model.norm"]),
        ({"optim__name": "lion"}, ["optim.name='lion'", "adamw"]),
        ({"optim__schedule": "steps"}, ["optim.schedule"]),
        ({"optim__learning_rate": 0.0}, ["optim.learning_rate"]),
        ({"optim__learning_rate": float("nan")}, ["optim.learning_rate"]),
        ({"optim__warmup_steps": 3, "optim__warmup_epochs": 1.0}, ["optim.warmup_steps=3 and optim.warmup_epochs=1.0"]),
        ({"train__batch_size": 0}, ["train.batch_size=0"]),
        ({"train__batch_size": 401}, ["train.batch_size=401", "400 examples", "--config.train.last_batch=wrap"]),
        ({"train__steps": 3}, ["train.steps=3 and train.epochs=2.0", "not both"]),
        ({"train__epochs": None}, ["train.steps or train.epochs"]),
        ({"train__epochs": 0.0}, ["train.steps or train.epochs"]),
        ({"train__epochs": -1.0}, ["train.epochs=-1.0", "at least 0", "--config.train.epochs=0.5"]),
        ({"train__epochs": float("nan")}, ["train.epochs=nan"]),
        ({"train__epochs": float("inf")}, ["train.epochs=inf"]),
        ({"train__epochs": 1e9}, ["train.epochs=1000000000.0 amounts to 5e+10 steps", "--config.train.epochs=10"]),
        ({"train__epochs": None, "train__steps": 3_000_000_000}, ["train.steps=3000000000", "at most 2**30"]),
        ({"optim__warmup_epochs": 1e9}, ["optim.warmup_epochs=1000000000.0 amounts to", "steps"]),
        # The examples since the last row are counted in int32.
        (
            {"train__epochs": 1e7, "log__every_steps": 2**29},
            ["log.every_steps=536870912", "8 examples", "--config.log.every_steps=1000"],
        ),
        ({"train__sampling": "random"}, ["train.sampling"]),
        ({"train__last_batch": "keep"}, ["train.last_batch"]),
        ({"train__accumulate": 3}, ["train.batch_size=8", "--config.train.accumulate=2"]),
        ({"train__accumulate": 0}, ["train.accumulate=0"]),
        ({"train__steps_per_dispatch": -1}, ["train.steps_per_dispatch=-1"]),
        ({"eval__batch_size": 0}, ["eval.batch_size=0"]),
        ({"eval__every_steps": -2}, ["eval.every_steps=-2", "at least 0"]),
        ({"eval__every_steps": 1, "eval__every_epochs": 1.0}, ["eval.every_steps=1 and eval.every_epochs=1.0"]),
        ({"eval__report": "first"}, ["eval.report"]),
        (
            {"eval__report": "best", "data__valid_split": ""},
            ["eval.report='best'", "--config.data.valid_split=", "--config.eval.report=last"],
        ),
        ({"log__every_steps": 0}, ["log.every_steps=0"]),
        ({"log__line_seconds": -1.0}, ["log.line_seconds=-1.0"]),
        ({"log__progress": "loud"}, ["log.progress='loud'", "--config.log.progress=auto", "lines"]),
        ({"checkpoint__keep": 0}, ["checkpoint.keep=0"]),
        ({"checkpoint__every_steps": -2}, ["checkpoint.every_steps=-2"]),
        ({"checkpoint__keep_every": -1}, ["checkpoint.keep_every=-1"]),
        ({"checkpoint__keep_every": 4}, ["only at the end", "--config.checkpoint.every_steps=4"]),
        (
            {"checkpoint__keep_every": 10, "checkpoint__every_steps": 4, "eval__every_steps": 7},
            ["checkpoint.keep_every=10", "every 4 steps", "--config.checkpoint.keep_every=8"],
        ),
        ({"parallel__strategy": "magic"}, ["parallel.strategy='magic'"]),
        ({"parallel__devices": 99}, ["parallel.devices=99"]),
        ({"parallel__mesh": (2, 2)}, ["parallel.mesh=(2, 2)", "parallel.devices"]),
        ({"parallel__data": "split"}, ["parallel.data='split'", "sharded"]),
    ],
)
def test_problem_names_field_value_and_remedy(changes, words):
    (line,) = problems(**changes)
    for word in words:
        assert word in line


def test_all_problems_are_reported_at_once():
    lines = problems(
        seed=-1,
        model__name="cn",
        optim__name="sdg",
        train__batch_size=0,
        train__steps=3,
        eval__every_steps=-1,
        data__train_split="trian",
        augment__hue=2.0,
        log__progress="loud",
    )
    for word in ("seed", "model.name", "optim.name", "train.batch_size", "train.steps", "eval.every_steps"):
        assert sum(line.startswith(word) for line in lines) == 1, word
    for word in ("data.train_split", "augment.hue", "log.progress"):
        assert sum(line.startswith(word) for line in lines) == 1, word
    assert len(lines) == 9


def test_zero_counts_as_not_given_so_that_the_unit_can_be_changed():
    assert plan(make(train__epochs=0.0, train__steps=7), {"train": 100}).steps == 7


def test_config_that_lacks_fields_is_refused():
    from ml_collections import ConfigDict

    with pytest.raises(UserError, match=r"lacks .*model\.name.*default\(\)"):
        validate(ConfigDict({"seed": 0}))


def test_checkpoints_may_be_kept_at_the_steps_of_evaluations_too():
    validate(make(checkpoint__keep_every=14, checkpoint__every_steps=4, eval__every_steps=7))
    validate(make(checkpoint__keep_every=12, checkpoint__every_steps=4, eval__every_steps=7))


def test_training_batches_must_be_shared_evenly_by_the_devices_and_those_of_evaluation_need_not():
    import jax

    devices = jax.local_device_count()
    if devices == 1:
        pytest.skip("one device shares everything")
    (line,) = problems(parallel__devices=devices, train__batch_size=devices + 1)
    assert f"train.batch_size={devices + 1}" in line and f"--config.train.batch_size={2 * devices}" in line
    validate(make(parallel__devices=devices, train__batch_size=devices, eval__batch_size=devices + 1))


def test_a_value_that_several_checks_refuse_is_reported_once():
    (line,) = problems(augment__hue=float("nan"))
    assert line.startswith("augment.hue=nan must be a number, at least 0 and at most 0.5; for example --config.")


def test_every_file_is_named_even_if_names_hold_an_equals_sign(monkeypatch):
    lines = ["/data/set=1: two files are wrong", "  a/x=1.jpg: a pipe", "  a/x=2.jpg: a pipe"]

    def describe(config_data):
        raise UserError("\n".join(lines))

    monkeypatch.setattr(data, "describe", describe)
    assert problems() == lines


# What is valid but may not be what its author expects


def test_batch_normalization_in_parts_is_warned_of():
    parts = {"model__widths": (4,), "train__accumulate": 2}
    for changes, count in (
        (parts | {"model__norm": "batch"}, 1),
        (parts, 0),
        ({"model__norm": "batch"}, 0),
    ):
        config = make(**changes)
        _, info = validate(config)
        lines = warnings(config, info)
        assert len(lines) == count
        assert all("train.accumulate=2" in line and "4 examples" in line for line in lines)


def test_check_and_training_print_the_same_warnings(run, tmp_path):
    parts = [*SOFTMAX, "--config.model.name=cnn", "--config.model.widths=(4,)", "--config.model.hidden=(4,)"]
    parts += ["--config.model.norm=batch", "--config.train.accumulate=2", "--config.data.valid_split=test[:500]"]
    for arguments in (["--mode=check"], [f"--workdir={tmp_path}"]):
        done = run(*parts, *arguments)
        assert done.code == 0, done.err
        overlap, in_parts = done.err.splitlines()
        assert "the validation and test splits share" in overlap
        assert in_parts.startswith("train.accumulate=2")


def test_overlapping_splits_are_warned_of():
    config = make(data__valid_split="test[:500]")
    _, info = validate(config)
    assert warnings(config, info) == list(info.overlaps) != []


def test_a_mistake_is_reported_once(tmp_path):
    (line,) = problems(data__source="disk")
    assert line.startswith("data.source='disk'")
    fractions = {"data.source": "folder", "data.dir": str(tmp_path), "data.image_size": (8, 8), "data.on_bad": "maybe"}
    lines = problems(**fractions)
    assert len({line.partition("=")[0] for line in lines}) == len(lines) > 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval__batch_size": 0}, ["eval.batch_size=0", "--config.eval.batch_size=512"]),
        ({"parallel__devices": 99}, ["parallel.devices=99"]),
        ({"parallel__strategy": "magic"}, ["parallel.strategy='magic'"]),
        ({"data__workers": -1}, ["data.workers=-1"]),
    ],
)
def test_what_evaluation_cannot_use_is_refused_too(changes, words):
    assert for_evaluation(make()) == []
    (line,) = for_evaluation(make(**changes))
    for word in words:
        assert word in line


# Plans


def test_durations_are_taken_in_steps_or_epochs():
    counts = {"train": 100, "valid": 20}
    found = plan(make(train__epochs=2.5, optim__warmup_epochs=0.5, eval__every_epochs=1.0), counts)
    assert found.steps_per_epoch == 12
    assert (found.steps, found.warmup_steps, found.eval_every) == (30, 6, 12)
    found = plan(make(train__epochs=None, train__steps=7, optim__warmup_steps=3, eval__every_steps=2), counts)
    assert (found.steps, found.warmup_steps, found.eval_every) == (7, 3, 2)
    assert (found.train_count, found.valid_count) == (100, 20)


def test_last_batch_decides_whether_an_epoch_has_one_step_more():
    assert plan(make(train__last_batch="drop"), {"train": 100}).steps_per_epoch == 12
    assert plan(make(train__last_batch="wrap"), {"train": 100}).steps_per_epoch == 13


def test_a_duration_that_is_given_is_at_least_one_step():
    found = plan(make(train__epochs=0.001, eval__every_epochs=0.001, optim__warmup_epochs=0.001), {"train": 100})
    assert (found.steps, found.eval_every, found.warmup_steps) == (1, 1, 1)


def test_checkpoints_come_with_evaluations_by_default():
    counts = {"train": 100}
    assert plan(make(), counts).checkpoint_every == 0
    assert plan(make(eval__every_steps=5), counts).checkpoint_every == 5
    assert plan(make(eval__every_steps=5, checkpoint__every_steps=3), counts).checkpoint_every == 3
    assert plan(make(checkpoint__every_epochs=2.0), counts).checkpoint_every == 24
