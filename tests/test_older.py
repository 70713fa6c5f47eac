"""older.py: checkpoints that earlier versions wrote can be read, and training continues from them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from synthetic import IDENTITY, SMALL_CNN, make_config, make_data, make_experiment

from imgclf_jax.devices import parallel
from imgclf_jax.errors import UserError
from imgclf_jax.rng import step_keys
from imgclf_jax.training.state import TrainState
from imgclf_jax.workdir import checkpoint, older
from imgclf_jax.workdir.checkpoint import Checkpoints, OtherModel

IMAGES, LABELS = make_data(8)


def build(**changes):
    """(template of a checkpoint, a checkpoint's content as it is written today, the compiled train step)."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    config = make_config(SMALL_CNN, changes)
    ours = make_experiment(config, IMAGES)
    wanted = ours.template()
    step = jax.jit(ours.train_step, donate_argnums=0)
    batch, keys = {"image": IMAGES, "label": LABELS}, step_keys(ours.key, 0)
    state, _ = step(ours.init(ours.key), batch, IDENTITY, keys)
    content = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), wanted) | {"state": state}
    return wanted, content, lambda state: step(state, batch, IDENTITY, keys)


def as_before(content):
    state = content["state"]
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {**content, "state": {name: value for name, value in fields.items() if name != older.ADDED}}


@pytest.mark.parametrize(("norm", "decay"), [("batch", 0.9), ("none", 0.0)])
def test_a_checkpoint_from_before_is_completed_and_trains_on(tmp_path, norm, decay):
    wanted, content, take_step = build(model__norm=norm, optim__ema_decay=decay)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, as_before(content))
    checkpoints.wait()
    newest = checkpoints.restore_newest(wanted)
    checkpoints.close()
    assert newest is not None
    found, step = newest.tree, newest.step
    assert step == 3 and isinstance(found["state"], TrainState)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    state, expected = found["state"], content["state"]
    averaged = decay and norm == "batch"
    jax.tree.map(np.testing.assert_array_equal, state.ema_stats, expected.batch_stats if averaged else {})
    jax.tree.map(np.testing.assert_array_equal, state.replace(ema_stats=expected.ema_stats), expected)
    after, _ = take_step(state)  # Donates every buffer, none of which may be there twice.
    assert int(after.step) == 2


def test_todays_checkpoints_and_other_trees_are_left_alone():
    wanted, content, _ = build(model__norm="batch", optim__ema_decay=0.9)
    saved = jax.tree.map(np.asarray, as_before(content))
    saved["state"] |= {older.ADDED: {}}
    assert older.template(wanted, saved) is wanted
    assert older.complete(content, wanted) is content
    assert older.template({"a": 1}, {"a": 1}) == {"a": 1}


# The meter: a flat dict of scalars whose entries follow the metrics.

SUMS = {"loss": 2.5, "grad_norm": 1.5, "correct": 7, "count": 8, "steps": 3, "bad_step": -1}


def meter(sums):
    return {
        name: np.asarray(value, np.float32 if isinstance(value, float) else np.int32) for name, value in sums.items()
    }


def restored(folder, saved, wanted):
    """What is read of a meter with the entries `saved` by a version that wants the entries `wanted`."""
    replicated = parallel.alone().replicated
    like = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated) for name, leaf in wanted.items()}
    others = {"inputs": jnp.arange(3.0)}
    checkpoints = Checkpoints(folder)
    checkpoints.save(3, {"meter": jax.tree.map(jnp.asarray, saved), **others})
    checkpoints.wait()
    try:
        tree = checkpoints.restore(
            3, {"meter": like, "inputs": jax.ShapeDtypeStruct((3,), "float32", sharding=replicated)}
        )
    finally:
        checkpoints.close()
    np.testing.assert_array_equal(tree["inputs"], others["inputs"])
    assert tree["meter"].keys() == wanted.keys()
    for name, leaf in tree["meter"].items():
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (like[name].shape, like[name].dtype, like[name].sharding)
    return {name: leaf.item() for name, leaf in tree["meter"].items()}


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_the_sum_called_correct_is_now_called_accuracy(tmp_path, kind):
    saved = meter(SUMS)
    wanted = {"accuracy" if name == "correct" else name: leaf for name, leaf in saved.items()}
    wanted["accuracy"] = wanted["accuracy"].astype(kind)
    expected = {"accuracy" if name == "correct" else name: value for name, value in SUMS.items()}
    assert restored(tmp_path, saved, wanted) == expected


def test_a_metric_that_the_checkpoint_lacks_starts_at_zero(tmp_path):
    saved = meter(SUMS)
    wanted = {**saved, "top5": np.zeros((), np.float32), "seen": np.zeros((), np.int32)}
    assert restored(tmp_path, saved, wanted) == SUMS | {"top5": 0.0, "seen": 0}


def test_a_metric_that_is_no_longer_wanted_is_dropped(tmp_path):
    saved = meter(SUMS | {"top5": 4.0})
    assert restored(tmp_path, saved, meter(SUMS)) == SUMS


def test_all_changes_of_the_meter_at_once(tmp_path):
    saved = meter(SUMS | {"top5": 4.0})
    names = ("loss", "top1", "accuracy", "grad_norm", "count", "steps", "bad_step")
    wanted = {name: saved.get(name, np.zeros((), np.float32)) for name in names}
    assert restored(tmp_path, saved, wanted) == {
        "loss": 2.5, "top1": 0.0, "accuracy": 7.0, "grad_norm": 1.5, "count": 8, "steps": 3, "bad_step": -1
    }  # fmt: skip


def test_a_meter_that_is_not_of_scalars_is_another_model(tmp_path):
    with pytest.raises(OtherModel, match="meter/loss is float32 \\(2,\\) there"):
        restored(tmp_path, meter(SUMS) | {"loss": np.zeros(2, np.float32)}, meter(SUMS | {"top5": 0.0}))


def test_a_damaged_checkpoint_of_before_is_noticed(tmp_path, monkeypatch):
    """The checksum is that of the saved bytes, whichever type they are read as."""
    jax.clear_caches()  # The functions that save and verify are compiled once per process.
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "checksum", lambda tree: jnp.uint32(1))
        writer = Checkpoints(tmp_path)
        writer.save(3, {"meter": jax.tree.map(jnp.asarray, meter(SUMS))})
        writer.close()
    jax.clear_caches()
    checkpoints = Checkpoints(tmp_path)
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=parallel.alone().replicated)
        for name, leaf in meter(SUMS).items()
    }
    wanted["accuracy"] = wanted.pop("correct")
    with pytest.raises(UserError, match="is damaged"):
        checkpoints.restore(3, {"meter": wanted})
    checkpoints.close()


def test_a_whole_checkpoint_of_before_gets_state_and_meter(tmp_path):
    wanted, content, _ = build(model__norm="batch", optim__ema_decay=0.9)
    wanted["meter"] = {**wanted["meter"], "top5": wanted["meter"]["loss"]}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, as_before(content))
    checkpoints.wait()
    tree = checkpoints.restore(3, wanted)
    checkpoints.close()
    assert jax.tree.structure(tree) == jax.tree.structure(wanted)
    assert isinstance(tree["state"], TrainState) and tree["meter"]["top5"].sharding == wanted["meter"]["top5"].sharding
