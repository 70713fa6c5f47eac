"""parallel.py: where a data set is placed, and how a batch of it reaches the devices."""

import os
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from synthetic import Trainer, assert_same_training, make_config, make_data
from synthetic import needs_eight_devices as pytestmark  # noqa: F401

from imgclf_jax.devices import parallel

DEVICES = (1, 2, 8)
# (strategy, data), all that there are.
PLACES = [("jit", "replicated"), ("jit", "sharded"), ("shard_map", "replicated"), ("shard_map", "sharded")]
PLACES.append(("pmap", "replicated"))


def create(devices, strategy="jit", data="replicated", mesh=(), data_bytes=0):
    changes = {"devices": devices, "strategy": strategy, "data": data, "mesh": mesh}
    config = make_config({f"parallel.{name}": value for name, value in changes.items()})
    return parallel.create(config, data_bytes)


# The parts of a batch


def together(strategy, examples, indices):
    """The whole batch, put together from what each device has fetched."""

    def run(examples, indices):
        places = jnp.arange(indices.size, dtype=jnp.int32).reshape(indices.shape)
        share = strategy.share(places)
        parts = strategy.devices if strategy.axis_name else 1
        assert share.shape == (*indices.shape[:-1], indices.shape[-1] // parts)
        fetched = strategy.select(examples, indices)
        whole = jnp.zeros((indices.size, *examples.shape[1:]), jnp.int32).at[share].add(fetched.astype(jnp.int32))
        return strategy.all_sum(whole).reshape(*indices.shape, *examples.shape[1:])

    compiled = strategy.compile(run, shardings={"examples": strategy.examples})
    return compiled(examples=strategy.put_examples(examples), indices=strategy.put(indices))


@pytest.mark.parametrize(("strategy", "data"), PLACES)
@pytest.mark.parametrize("devices", DEVICES)
def test_every_example_of_a_batch_is_fetched_by_one_device(devices, strategy, data):
    # Of 40 examples each device holds the same number; of 43 and of 3 not, some none at all.
    draws = np.random.default_rng(0)
    for count in (40, 43, 3):
        examples = draws.integers(0, 256, (count, 2, 3)).astype(np.uint8)
        indices = draws.integers(0, count, (2, 16)).astype(np.int32)
        indices[0, :2] = 0, count - 1
        found = together(create(devices, strategy, data), examples, indices)
        np.testing.assert_array_equal(found, examples[indices])


@pytest.mark.parametrize("strategy", ["jit", "pmap", "shard_map"])
def test_one_device_has_nothing_to_share_or_to_sum(strategy):
    alone = create(1, strategy)
    examples, indices = jnp.arange(12.0).reshape(6, 2), jnp.array([[5, 0], [3, 3]])
    assert alone.axis_name is None
    np.testing.assert_array_equal(alone.share(indices), indices)
    np.testing.assert_array_equal(alone.select(examples, indices), examples[indices])
    tree = {"sum": examples, "count": 6}
    assert alone.all_sum(tree) is tree


@pytest.mark.parametrize("strategy", ["pmap", "shard_map"])
def test_sums_over_the_devices(strategy):
    several = create(4, strategy)

    def run(values):
        return several.all_sum({"sum": several.share(values).sum(), "devices": 1})

    sums = several.compile(run)(values=several.put(np.arange(8.0, dtype=np.float32)))
    assert (float(sums["sum"]), int(sums["devices"])) == (28, 4)


@pytest.mark.parametrize("mesh", [(8, 1), (2, 4), (1, 8)])
def test_with_jit_a_batch_is_split_over_all_devices(mesh):
    strategy = create(8, mesh=mesh)
    values = np.arange(32, dtype=np.int32).reshape(2, 16)
    pieces = jax.jit(strategy.share)(strategy.put(values)).addressable_shards
    assert {piece.device for piece in pieces} == set(jax.devices()[:8])
    for piece in pieces:
        assert piece.data.shape == (2, 2)
        np.testing.assert_array_equal(piece.data, values[piece.index])


@pytest.mark.parametrize("mesh", [(1, 1), (8, 1), (2, 4)])
def test_the_highest_of_one_process_is_what_it_brings(mesh):
    strategy = create(mesh[0] * mesh[1], mesh=mesh)
    np.testing.assert_array_equal(strategy.highest(np.array([3, -1, 0], np.int32)), [3, -1, 0])


# Where a data set is placed


@pytest.mark.parametrize("strategy", ["jit", "pmap", "shard_map"])
def test_replicated_data_is_whole_on_every_device(strategy):
    images, labels = make_data(6)
    for array, placed in zip((images, labels), create(4, strategy).put_examples((images, labels)), strict=True):
        assert placed.sharding.device_set == set(jax.devices()[:4])
        for piece in placed.addressable_shards:
            np.testing.assert_array_equal(piece.data, array)


@pytest.mark.parametrize(("count", "rows"), [(40, 5), (43, 6), (3, 1)])
@pytest.mark.parametrize("strategy", ["jit", "shard_map"])
def test_of_sharded_data_every_device_holds_its_part_only(strategy, count, rows):
    images, _ = make_data(count)
    pieces = create(8, strategy, "sharded").put_examples(images).addressable_shards
    assert [piece.data.shape for piece in pieces] == [(rows, 8, 8, 3)] * 8
    assert len({piece.device for piece in pieces}) == 8
    in_order = sorted(pieces, key=lambda piece: piece.index[0].start)
    together = np.concatenate([piece.data for piece in in_order])
    np.testing.assert_array_equal(together[:count], images)
    assert not together[count:].any()


def test_a_data_set_is_cut_up_where_it_would_take_too_much_memory():
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    huge = memory // 3
    for strategy in ("jit", "shard_map"):
        assert create(8, strategy, "auto", data_bytes=huge).sharded_data
        assert not create(8, strategy, "auto", data_bytes=1000).sharded_data
        assert not create(8, strategy, "replicated", data_bytes=huge).sharded_data
        assert create(8, strategy, "sharded", data_bytes=1000).sharded_data
        # One device holds all of it either way.
        assert not create(1, strategy, "auto", data_bytes=huge).sharded_data
        assert not create(1, strategy, "sharded").sharded_data
    assert not create(8, "pmap", "auto", data_bytes=huge).sharded_data


# Training on it

SMALL = {
    "model.name": "mlp",
    "model.hidden": (8,),
    "model.dropout": 0.2,
    "augment.flip": True,
    "train.last_batch": "wrap",
    "train.batch_size": 16,
    "eval.batch_size": 16,
}
TEST = make_data(37, seed=2)


@cache
def trained(strategy, devices, data, count, sampling):
    """(trainer, (state, meter of each step), evaluation of the test split)."""
    changes = {"parallel.strategy": strategy, "parallel.devices": devices, "parallel.data": data}
    ours = Trainer(make_config(SMALL, changes, {"train.sampling": sampling}), *make_data(count))
    training = ours.train(ours.init(), 1, 1, 1, 1)
    return ours, training, ours.evaluate(training[0], *TEST)


@pytest.mark.parametrize(("count", "sampling"), [(40, "epoch"), (43, "replacement")])
@pytest.mark.parametrize("strategy", ["jit", "shard_map"])
def test_training_on_sharded_data_is_the_same(strategy, count, sampling):
    ours, training, evaluation = trained(strategy, 8, "sharded", count, sampling)
    theirs, expected_training, expected_evaluation = trained("jit", 1, "replicated", count, sampling)
    assert {piece.data.shape for piece in ours.data[1].addressable_shards} == {(-(-count // 8),)}
    np.testing.assert_array_equal(ours.order(1), theirs.order(1))
    assert_same_training(training, expected_training)
    assert (evaluation["count"], evaluation["correct"]) == (37, expected_evaluation["correct"])
    assert evaluation["loss"] == pytest.approx(expected_evaluation["loss"], rel=1e-5)
