"""parallel.py: one meaning for every strategy and number of devices."""

from functools import cache

import jax
import numpy as np
import pytest
from synthetic import SMALL_CNN, Trainer, assert_same_state, assert_same_training, make_config, make_data
from synthetic import needs_eight_devices as pytestmark  # noqa: F401

STRATEGIES = ("jit", "pmap", "shard_map")
TOPOLOGIES = [("jit", 2), ("jit", 8), ("pmap", 2), ("pmap", 8), ("shard_map", 1), ("shard_map", 8)]
TRAIN = make_data(40, seed=1)
TEST = make_data(37, seed=2)  # no batch divides it
STEPS = 4  # the third fills its batch from the beginning of the epoch, the fourth is in the next
# Everything that sees more than one example at a time, or draws at random.
EVERYTHING = SMALL_CNN | {
    "augment.crop": (6, 6),
    "augment.pad": 1,
    "augment.flip": True,
    "augment.brightness": 0.2,
    "model.norm": "batch",
    "model.dropout": 0.3,
    "optim.ema_decay": 0.9,
    "optim.label_smoothing": 0.1,
    "optim.clip_norm": 1.0,
    "train.batch_size": 16,
    "train.accumulate": 2,
    "train.last_batch": "wrap",
    "eval.batch_size": 16,
}


@cache
def trainer(strategy, devices):
    topology = {"parallel.strategy": strategy, "parallel.devices": devices}
    return Trainer(make_config(EVERYTHING, topology), *TRAIN)


@cache
def trained(strategy, devices):
    """((state, meter of each step), evaluation of the test split)."""
    ours = trainer(strategy, devices)
    state, meters = ours.train(ours.init(), *[1] * STEPS)
    return (state, meters), ours.evaluate(state, *TEST)


@pytest.mark.parametrize(("strategy", "devices"), TOPOLOGIES)
def test_the_same_numbers_as_with_jit_on_one_device(strategy, devices):
    training, evaluation = trained(strategy, devices)
    expected_training, expected_evaluation = trained("jit", 1)
    assert [int(meter["count"]) for meter in training[1]] == [16] * STEPS
    assert_same_training(training, expected_training)
    assert (evaluation["count"], evaluation["correct"]) == (37, expected_evaluation["correct"])
    assert evaluation["loss"] == pytest.approx(expected_evaluation["loss"], rel=1e-5)


def test_training_moved_everything():
    # Or the comparison above would say nothing.
    (state, meters), evaluation = trained("jit", 1)
    before = trainer("jit", 1).init()
    for part in ("params", "batch_stats", "ema", "ema_stats"):
        for old, new in zip(jax.tree.leaves(getattr(before, part)), jax.tree.leaves(getattr(state, part)), strict=True):
            assert np.abs(np.asarray(old) - new).max() > 1e-3, part
    assert np.abs(state.params["conv1"]["kernel"] - state.ema["conv1"]["kernel"]).max() > 1e-3
    assert len({float(meter["loss"]) for meter in meters}) == STEPS
    assert 0 < evaluation["correct"] < 37


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_device_holds_the_whole_state(strategy):
    (state, _), _ = trained(strategy, 8)
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.device_set == set(jax.devices()[:8])
        first, *others = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        assert first.shape == leaf.shape
        for other in others:
            np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cutting_a_run_into_dispatches_changes_no_bit(strategy):
    ours = trainer(strategy, 8)
    state, (first, second) = ours.train(ours.init(), 3, 1)  # the end of an epoch ends a dispatch
    (expected, meters), _ = trained(strategy, 8)
    assert (first["steps"], second["steps"]) == (3, 1)
    assert first["accuracy"] == sum(meter["accuracy"] for meter in meters[:3])
    assert_same_state(state, expected, rtol=0, atol=0)


@pytest.mark.parametrize("devices", (1, 8))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_given_state_is_reused_and_the_data_set_is_not(strategy, devices):
    ours = trainer(strategy, devices)
    given = ours.init()
    ours.train(given, 1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    assert not any(leaf.is_deleted() for leaf in ours.data)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_order_of_examples_depends_on_no_device(strategy):
    for epoch in (0, 1):
        order = trainer(strategy, 8).order(epoch)
        assert sorted(order.tolist()) == list(range(40))
        np.testing.assert_array_equal(order, trainer("jit", 1).order(epoch))
