"""problems.py: which topologies are refused, and what the messages name."""

import jax
import pytest
from synthetic import make_config
from synthetic import needs_eight_devices as pytestmark  # noqa: F401

from imgclf_jax.devices import parallel
from imgclf_jax.devices import problems as parallel_problems

ALL = jax.device_count()


def problems(batch_size=16, accumulate=1, **fields):
    config = make_config({"parallel.devices": 8}, {f"parallel.{name}": value for name, value in fields.items()})
    return parallel_problems.problems(config.parallel, batch_size, accumulate)


@pytest.mark.parametrize("strategy", parallel.STRATEGIES)
@pytest.mark.parametrize("data", ["auto", "replicated"])
@pytest.mark.parametrize(("devices", "mesh"), [(1, ()), (2, (2, 1)), (8, ()), (8, (8, 1))])
def test_what_can_be_run_is_accepted(strategy, data, devices, mesh):
    assert problems(16, strategy=strategy, data=data, devices=devices, mesh=mesh) == []


@pytest.mark.parametrize("mesh", [(2, 4), (4, 2), (1, 8)])
def test_jit_accepts_a_model_axis(mesh):
    for strategy in ("auto", "jit"):
        for data in parallel.PLACEMENTS:
            assert problems(16, strategy=strategy, mesh=mesh, data=data) == []
    assert problems(strategy="shard_map", data="sharded") == []


def test_one_device_shares_a_batch_of_any_size():
    assert problems(7, devices=1) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"strategy": "pipeline"},
            ["parallel.strategy='pipeline'", "give --config.parallel.strategy=", "jit", "pmap", "shard_map"],
        ),
        ({"data": "split"}, ["parallel.data='split'", "give --config.parallel.data=", "auto", "replicated", "sharded"]),
        (
            {"devices": ALL + 1},
            [f"parallel.devices={ALL + 1}", f"there are {ALL}", "--config.parallel.devices=0 uses all"],
        ),
        ({"devices": -1}, ["parallel.devices=-1", f"there are {ALL}"]),
        ({"mesh": (8,)}, ["parallel.mesh=(8,)", "two positive whole numbers", "(data, model)"]),
        ({"mesh": (2, 2, 2)}, ["parallel.mesh=(2, 2, 2)", "two positive whole numbers"]),
        ({"mesh": (8, 0)}, ["parallel.mesh=(8, 0)", "two positive whole numbers"]),
        ({"mesh": (-2, -4)}, ["parallel.mesh=(-2, -4)", "two positive whole numbers"]),
        ({"mesh": (2.0, 4)}, ["parallel.mesh=(2.0, 4)", "two positive whole numbers"]),
        ({"mesh": (2, 2)}, ["parallel.mesh=(2, 2)", "needs 4 devices", "8 are used", "parallel.devices"]),
        ({"mesh": (4, 4)}, ["parallel.mesh=(4, 4)", "needs 16 devices", "8 are used"]),
        ({"mesh": (2, 4), "devices": 2}, ["parallel.mesh=(2, 4)", "needs 8 devices", "2 are used"]),
        ({"mesh": (2, 4), "strategy": "pmap"}, ["parallel.mesh=(2, 4)", "pmap has no model axis", "(8, 1)", "jit"]),
        ({"mesh": (1, 8), "strategy": "shard_map"}, ["parallel.mesh=(1, 8)", "shard_map has no model axis", "(8, 1)"]),
        (
            {"strategy": "pmap", "data": "sharded"},
            ["parallel.data='sharded'", "pmap", "--config.parallel.strategy=jit (or shard_map)"],
        ),
    ],
)
def test_a_problem_names_the_field_and_what_to_do(fields, words):
    (line,) = problems(**fields)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "fields", "line"),
    [
        (
            12,
            1,
            {},
            "train.batch_size=12 cannot be divided evenly among the 8 devices; use --config.train.batch_size=8 or "
            "--config.train.batch_size=16",
        ),
        (
            40,
            2,
            {"devices": 8},
            "train.batch_size=40 in train.accumulate=2 parts cannot be divided evenly among the 8 devices; use "
            "--config.train.batch_size=32 or --config.train.batch_size=48",
        ),
        # Batches are shared by all devices of a mesh.
        (
            4,
            1,
            {"mesh": (2, 4)},
            "train.batch_size=4 cannot be divided evenly among the 8 devices; use --config.train.batch_size=8",
        ),
        (
            8,
            3,
            {"devices": 1},
            "train.batch_size=8 is not divisible by train.accumulate=3; use --config.train.batch_size=6 or "
            "--config.train.batch_size=9, or --config.train.accumulate=2",
        ),
    ],
)
def test_batches_that_cannot_be_cut_evenly_come_with_the_flags_to_type(batch_size, accumulate, fields, line):
    assert problems(batch_size, accumulate, **fields) == [line]


def test_zero_devices_share_a_batch_as_all_of_them():
    (line,) = problems(ALL + 1, devices=0)
    assert f"among the {ALL} devices" in line


def test_several_problems_are_reported_at_once():
    lines = problems(9, strategy="pmap", data="sharded", mesh=(2, 4))
    for word in ("parallel.mesh", "parallel.data", "train.batch_size"):
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
    assert "parallel.strategy='pmap'" in line and "--config.parallel.strategy=jit (or shard_map)" in line


# What is made of a config


def test_zero_devices_are_all_of_them():
    strategy = parallel.create(make_config({"parallel.devices": 0}))
    assert strategy.devices == ALL
    assert (strategy.name, dict(strategy.mesh.shape)) == ("jit", {"data": ALL, "model": 1})


@pytest.mark.parametrize("strategy", ["jit", "pmap", "shard_map"])
def test_devices_are_the_first_ones(strategy):
    made = parallel.create(make_config({"parallel.strategy": strategy, "parallel.devices": 4}))
    assert (made.name, list(made.mesh.devices.flat)) == (strategy, jax.devices()[:4])


def test_a_mesh_is_arranged_as_asked():
    made = parallel.create(make_config({"parallel.devices": 8, "parallel.mesh": (2, 4)}))
    assert dict(made.mesh.shape) == {"data": 2, "model": 4}
    assert made.devices == 8
