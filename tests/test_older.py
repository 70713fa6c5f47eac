"""older.py: checkpoints from before the running statistics were averaged are read by all tools, and go on."""

import dataclasses

import jax
import numpy as np
import pytest
from synthetic import IDENTITY, SMALL_CNN, make_config, make_data, make_experiment

from imgclf_jax.rng import step_keys
from imgclf_jax.training.state import TrainState
from imgclf_jax.workdir import older
from imgclf_jax.workdir.checkpoint import Checkpoints

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


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("decay", [0.9, 0.0])
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
