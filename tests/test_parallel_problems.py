"""parallel_problems.py: which topologies are refused, and what the messages name."""

import jax
import pytest
from synthetic import make_config
from synthetic import needs_eight_devices as pytestmark  # noqa: F401

from imgclf_jax import parallel, parallel_problems

ALL = jax.device_count()


def problems(batch_sizes=None, **fields):
    config = make_config({"parallel.devices": 8}, {f"parallel.{name}": value for name, value in fields.items()})
    return parallel_problems.problems(config.parallel, batch_sizes or {})


@pytest.mark.parametrize("strategy", parallel.STRATEGIES)
@pytest.mark.parametrize("data", ["auto", "replicated"])
@pytest.mark.parametrize(("devices", "mesh"), [(1, ()), (2, (2, 1)), (8, ()), (8, (8, 1))])
def test_what_can_be_run_is_accepted(strategy, data, devices, mesh):
    assert problems({"train": 16, "eval": 8 * devices}, strategy=strategy, data=data, devices=devices, mesh=mesh) == []


@pytest.mark.parametrize("mesh", [(2, 4), (4, 2), (1, 8)])
def test_jit_accepts_a_model_axis(mesh):
    for strategy in ("auto", "jit"):
        for data in parallel.PLACEMENTS:
            assert problems({"train": 16}, strategy=strategy, mesh=mesh, data=data) == []
    assert problems(strategy="shard_map", data="sharded") == []


def test_one_device_shares_a_batch_of_any_size():
    assert problems({"train": 7, "eval": 1}, devices=1) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"strategy": "pipeline"}, ["parallel.strategy='pipeline'", "auto, jit, pmap, shard_map"]),
        ({"data": "split"}, ["parallel.data='split'", "auto, replicated, sharded"]),
        ({"devices": ALL + 1}, [f"parallel.devices={ALL + 1}", f"there are {ALL}", "0 uses all"]),
        ({"devices": -1}, ["parallel.devices=-1", f"there are {ALL}"]),
        ({"mesh": (8,)}, ["parallel.mesh=(8,)", "two positive whole numbers", "(data, model)"]),
        ({"mesh": (2, 2, 2)}, ["parallel.mesh=(2, 2, 2)", "two positive whole numbers"]),
        ({"mesh": (8, 0)}, ["parallel.mesh=(8, 0)", "two positive whole numbers"]),
        ({"mesh": (-2, -4)}, ["parallel.mesh=(-2, -4)", "two positive whole numbers"]),
        ({"mesh": (2.0, 4)}, ["parallel.mesh=(2.0, 4)", "two positive whole numbers"]),
        ({"mesh": (2, 2)}, ["parallel.mesh=(2, 2)", "makes 4 devices", "8 are used", "parallel.devices"]),
        ({"mesh": (4, 4)}, ["parallel.mesh=(4, 4)", "makes 16 devices", "8 are used"]),
        ({"mesh": (2, 4), "devices": 2}, ["parallel.mesh=(2, 4)", "makes 8 devices", "2 are used"]),
        ({"mesh": (2, 4), "strategy": "pmap"}, ["parallel.mesh=(2, 4)", "pmap has no model axis", "(8, 1)", "jit"]),
        ({"mesh": (1, 8), "strategy": "shard_map"}, ["parallel.mesh=(1, 8)", "shard_map has no model axis", "(8, 1)"]),
        ({"strategy": "pmap", "data": "sharded"}, ['parallel.data="sharded"', "pmap", "jit or shard_map"]),
    ],
)
def test_a_problem_names_the_field_and_what_to_do(fields, words):
    (line,) = problems(**fields)
    for word in words:
        assert word in line


def test_batches_that_the_devices_cannot_share_are_named():
    train, evaluate = problems({"train.batch_size": 12, "eval.batch_size": 9, "fine": 16})
    assert "train.batch_size=12" in train and "multiple of 8" in train
    assert "eval.batch_size=9" in evaluate and "multiple of 8" in evaluate
    # They are shared by all devices of a mesh, and by what zero devices stand for.
    (line,) = problems({"train.batch_size": 4}, mesh=(2, 4))
    assert "train.batch_size=4" in line and "multiple of 8" in line
    (line,) = problems({"eval.batch_size": ALL + 1}, devices=0)
    assert f"multiple of {ALL}" in line


def test_several_problems_are_told_at_once():
    lines = problems({"eval.batch_size": 9}, strategy="pmap", data="sharded", mesh=(2, 4))
    for word in ("parallel.mesh", "parallel.data", "eval.batch_size"):
        assert sum(line.startswith(word) for line in lines) == 1, word
    assert len(lines) == 3


def test_several_processes_must_use_all_devices(monkeypatch):
    # Or some of them would have none.
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert problems(devices=0) == problems(devices=ALL) == []
    (line,) = problems(devices=ALL // 2)
    assert f"parallel.devices={ALL // 2}" in line and f"in 2 processes all {ALL} devices" in line
    (line,) = problems(devices=ALL + 1)
    assert f"there are {ALL} in 2 processes" in line
    (line,) = problems(devices=ALL, strategy="pmap")
    assert "parallel.strategy='pmap'" in line and "jit or shard_map" in line


# What is made of a config


def test_zero_devices_are_all_of_them():
    strategy = parallel.create(make_config({"parallel.devices": 0}).parallel)
    assert strategy.devices == ALL
    assert (strategy.strategy, dict(strategy.mesh.shape)) == ("jit", {"data": ALL, "model": 1})


@pytest.mark.parametrize("strategy", ["jit", "pmap", "shard_map"])
def test_devices_are_the_first_ones(strategy):
    made = parallel.create(make_config({"parallel.strategy": strategy, "parallel.devices": 4}).parallel)
    assert (made.strategy, list(made.mesh.devices.flat)) == (strategy, jax.devices()[:4])


def test_a_mesh_is_arranged_as_asked():
    made = parallel.create(make_config({"parallel.devices": 8, "parallel.mesh": (2, 4)}).parallel)
    assert dict(made.mesh.shape) == {"data": 2, "model": 4}
    assert made.devices == 8
