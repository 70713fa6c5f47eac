"""Checkpoints move between topologies: saved on some devices with one strategy, read on others with another."""

from functools import cache

import jax
import numpy as np
import pytest
from synthetic import LARGE_MLP, Trainer, assert_same_state, assert_same_training, make_config, make_data
from synthetic import needs_eight_devices as pytestmark  # noqa: F401

from imgclf_jax.workdir.checkpoint import Checkpoints

TRAIN = make_data(40, (16, 16, 3), seed=1)
# Something of everything that a checkpoint holds.
MLP = LARGE_MLP | {"data.pixels": "standardized"}
ONE = ("jit", 1, ())
MESH = ("jit", 4, (2, 2))
EIGHT = ("shard_map", 8, ())


@cache
def trainer(strategy, devices, mesh):
    topology = {"parallel.strategy": strategy, "parallel.devices": devices, "parallel.mesh": mesh}
    return Trainer(make_config(MLP, topology), *TRAIN)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """topology -> (folder of a checkpoint after one step, what is in it, the training that goes on from there)."""

    @cache
    def save(topology):
        ours = trainer(*topology)
        state, (meter,) = ours.train(ours.init(), 1)
        content = {"state": state, "meter": ours.strategy.put(meter), "inputs": ours.normalization._asdict()}
        folder = tmp_path_factory.mktemp("run")
        checkpoints = Checkpoints(folder)
        checkpoints.save(1, content)
        checkpoints.wait()
        checkpoints.close()
        content = jax.tree.map(np.array, content)  # the next step reuses the buffers
        return folder, content, ours.train(state, 1)

    return save


@pytest.mark.parametrize(
    ("source", "target"),
    [(EIGHT, ("pmap", 2, ())), (EIGHT, MESH), (MESH, ONE), (ONE, EIGHT)],
    ids=lambda topology: "-".join(map(str, topology)),
)
def test_a_checkpoint_goes_on_elsewhere(source, target, saved):
    folder, content, expected = saved(source)
    ours = trainer(*target)
    checkpoints = Checkpoints(folder, read_only=True)
    template = ours.experiment.template()
    restored = checkpoints.restore(1, template)
    checkpoints.close()
    assert_same_state(restored, content, rtol=0, atol=0)
    for leaf, described in zip(jax.tree.leaves(restored), jax.tree.leaves(template), strict=True):
        assert leaf.sharding.device_set == set(jax.devices()[: target[1]])
        assert leaf.sharding.is_equivalent_to(described.sharding, leaf.ndim)
    kernel = restored["state"].params["dense1"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == ((384, 64) if target == MESH else (768, 64))
    assert_same_training(ours.train(restored["state"], 1), expected)
