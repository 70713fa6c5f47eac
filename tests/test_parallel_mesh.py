"""parallel.py: a mesh with a model axis computes the same, and its devices hold less."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from synthetic import LARGE_MLP, Trainer, assert_same_state, assert_same_training, make_config, make_data
from synthetic import needs_eight_devices as pytestmark  # noqa: F401

from imgclf_jax.devices import parallel

MESHES = [(2, 4), (1, 8)]
TRAIN = make_data(40, (16, 16, 3), seed=1)
TEST = make_data(37, (16, 16, 3), seed=2)
CONFIG = LARGE_MLP | {
    "optim.clip_norm": 1.0,
    "train.accumulate": 2,
    "train.last_batch": "wrap",
    "eval.batch_size": 16,
}


def create(mesh):
    devices = mesh[0] * mesh[1]
    return parallel.create(make_config({"parallel.devices": devices, "parallel.mesh": mesh}))


@cache
def trainer(mesh):
    topology = {"parallel.devices": mesh[0] * mesh[1], "parallel.mesh": mesh}
    return Trainer(make_config(CONFIG, topology), *TRAIN)


@cache
def trained(mesh):
    """((state, meter of each step), evaluation of the test split)."""
    ours = trainer(mesh)
    state, meters = ours.train(ours.init(), 1, 1, 1, 1)
    return (state, meters), ours.evaluate(state, *TEST)


def is_large(leaf):
    return leaf.size == 768 * 64


@pytest.mark.parametrize("mesh", MESHES)
def test_the_same_numbers_as_on_one_device(mesh):
    training, evaluation = trained(mesh)
    expected_training, expected_evaluation = trained((1, 1))
    assert_same_training(training, expected_training)
    assert (evaluation["count"], evaluation["correct"]) == (37, expected_evaluation["correct"])
    assert evaluation["loss"] == pytest.approx(expected_evaluation["loss"], rel=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_the_same_initialisation_as_on_one_device(mesh):
    assert_same_state(trainer(mesh).init(), trainer((1, 1)).init(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mesh", MESHES)
def test_large_leaves_are_cut_up_and_small_ones_are_whole(mesh):
    # Before the first step and after the last.
    for state in (trainer(mesh).init(), trained(mesh)[0][0]):
        for part in (state.params, state.opt_state, state.ema):
            assert any(is_large(leaf) for leaf in jax.tree.leaves(part))
        for leaf in jax.tree.leaves(state):
            assert len(leaf.addressable_shards) == 8
            if is_large(leaf):
                assert leaf.sharding.spec == PartitionSpec("model")
                assert leaf.addressable_shards[0].data.shape == (768 // mesh[1], 64)
            else:
                assert leaf.sharding.is_fully_replicated


def bytes_on_a_device(state):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))


@pytest.mark.parametrize("mesh", MESHES)
def test_a_device_holds_less_of_parameters_and_optimiser(mesh):
    whole = bytes_on_a_device(trainer((8, 1)).init())
    for state in (trainer(mesh).init(), trained(mesh)[0][0]):
        # Nearly all of it is in the large leaves: of the parameters and of Adam's two moments.
        assert 3 * 768 * 64 * 4 / mesh[1] < bytes_on_a_device(state) < 1.2 * whole / mesh[1]


def test_without_a_model_axis_every_device_holds_everything():
    state = trainer((8, 1)).init()
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    assert bytes_on_a_device(state) == sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))


@pytest.mark.parametrize("mesh", [(2, 4), (1, 8)])
def test_the_given_state_is_reused(mesh):
    given = trainer(mesh).init()
    trainer(mesh).train(given, 1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))


@pytest.mark.parametrize(
    ("shape", "cut"),
    [
        ((4, 8192), (4, 2048)),  # along the longest axis
        ((8192, 4), (2048, 4)),
        ((128, 128), (32, 128)),  # just large enough
        ((127, 128), (127, 128)),  # just not
        ((64, 1001), (16, 1001)),  # the longest axis that the devices divide
        ((3, 3, 64, 256), (3, 3, 64, 64)),
        ((16385,), (16385,)),  # nothing to cut
        ((), ()),
    ],
)
def test_which_axis_is_cut(shape, cut):
    sharding = create((2, 4)).state_sharding({"leaf": jax.ShapeDtypeStruct(shape, jnp.float32)})["leaf"]
    assert sharding.shard_shape(shape) == cut
    assert create((8, 1)).state_sharding(np.zeros(shape)).shard_shape(shape) == shape
