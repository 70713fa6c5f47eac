"""multistep.py: any way of cutting a run into dispatches, and what a step's batch depends on."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import AUGMENTED, IDENTITY, SMALL_CNN, make_config, make_data, make_experiment

from imgclf_jax import augment
from imgclf_jax.devices import parallel
from imgclf_jax.rng import step_keys
from imgclf_jax.training import multistep, sampling
from imgclf_jax.training.batches import Epoch, Examples
from imgclf_jax.training.state import TrainState

COUNT, BATCH = 20, 8
STEPS = 3  # an epoch, its last batch filled up
IMAGES, LABELS = make_data(COUNT)
EVERYTHING = {"model.norm": "batch", "model.dropout": 0.2, "optim.ema_decay": 0.9, "train.last_batch": "wrap"}


class Run:
    """An experiment, compiled."""

    def __init__(self, *changes):
        self.experiment = make_experiment(make_config({"train.last_batch": "wrap"}, *changes), IMAGES)
        self.run_steps = jax.jit(self.experiment.run_steps)
        self.train_step = jax.jit(self.experiment.train_step)
        self.start = jax.jit(self.experiment.init)(self.experiment.key)
        self.order = sampling.epoch_order(self.experiment.key, 0, COUNT)

    def dispatches(self, *lengths):
        """(state, meter) after dispatches of these lengths."""
        state, meter = self.start, multistep.empty_meter()
        for length in lengths:
            state, meter = self.run(state, meter, length)
        return jax.device_get((state, meter))

    def run(self, state, meter, count):
        """(state, meter) after one dispatch."""
        data = Epoch(Examples(IMAGES, LABELS), self.order)
        return self.run_steps(state, meter, IDENTITY, data, count, self.experiment.key)

    def step_by_step(self, steps):
        """(state, metrics of each step), without `run_steps`."""
        state, metrics = self.start, []
        for step in range(steps):
            indices = np.asarray(sampling.batch_from_order(self.order, step, BATCH, STEPS))
            batch = {"image": IMAGES[indices], "label": LABELS[indices]}
            state, now = self.train_step(state, batch, IDENTITY, step_keys(self.experiment.key, step))
            metrics.append(jax.device_get(now))
        return jax.device_get(state), metrics


@pytest.fixture(scope="module")
def run():
    return Run(SMALL_CNN, AUGMENTED, EVERYTHING)


@pytest.mark.parametrize("lengths", [(1, 1, 1), (2, 1), (1, 2), (0, 3, 0)])
def test_cutting_a_run_into_dispatches_changes_no_bit(run, lengths):
    expected = run.dispatches(3)
    assert int(expected[0].step) == 3
    jax.tree.map(np.testing.assert_array_equal, run.dispatches(*lengths), expected)


def test_dispatches_take_the_steps_that_train_step_would_take(run):
    state, meter = run.dispatches(3)
    expected, metrics = run.step_by_step(3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state, expected)
    for name in ("loss", "grad_norm"):
        assert meter[name] == pytest.approx(sum(step[name] for step in metrics), rel=1e-5)
    assert meter["accuracy"] == sum(step["accuracy"] for step in metrics)
    assert (meter["count"], meter["steps"], meter["bad_step"]) == (3 * BATCH, 3, -1)


def test_a_meter_goes_on_from_where_it_stood(run):
    _, first = run.dispatches(1)
    _, both = run.dispatches(1, 1)
    meter = multistep.empty_meter() | {"loss": jnp.float32(100.0), "accuracy": jnp.int32(7), "steps": jnp.int32(5)}
    _, meter = run.run(run.start, meter, 1)
    assert float(meter["loss"]) == pytest.approx(100 + first["loss"])
    assert (int(meter["accuracy"]), int(meter["steps"])) == (7 + first["accuracy"], 6)
    assert both["loss"] > first["loss"]


def test_stops_at_the_first_step_that_is_not_finite():
    run = Run({"model.name": "mlp", "model.hidden": (12,), "optim.learning_rate": 1e30})
    _, metrics = run.step_by_step(3)
    finite = [bool(np.isfinite(step["loss"]) and np.isfinite(step["grad_norm"])) for step in metrics]
    assert finite[0] and not all(finite)
    first_bad = finite.index(False) + 1  # counted from 1, as `state.step` is
    for lengths in ((3,), (1, 1, 1), (1, 2)):
        state, meter = run.dispatches(*lengths)
        assert (meter["bad_step"], state.step, meter["steps"]) == (first_bad, first_bad, first_bad)


def test_replacement_draws_from_all_examples_in_any_order():
    run = Run({"model.name": "softmax", "train.sampling": "replacement"})
    expected = run.dispatches(2)
    run.order = jnp.zeros(COUNT, jnp.int32)
    jax.tree.map(np.testing.assert_array_equal, run.dispatches(2), expected)
    state = run.start
    for step in range(2):
        indices = np.asarray(sampling.batch_with_replacement(run.experiment.key, step, BATCH, COUNT))
        batch = {"image": IMAGES[indices], "label": LABELS[indices]}
        state, _ = run.train_step(state, batch, IDENTITY, step_keys(run.experiment.key, step))
    for ours, theirs in zip(jax.tree.leaves(expected[0].params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


# What the network sees at a step is a function of (seed, step) alone


@cache
def recorder(replacement):
    """(seed, state, order, count) -> state, whose parameters are the last step's augmented images and labels."""
    config = make_config(AUGMENTED).augment

    def record(state, batch, normalization, keys):
        seen = augment.augment(config, keys.augment, batch["image"], batch["position"]), batch["label"]
        zero = {name: jnp.zeros((), value.dtype) for name, value in multistep.empty_meter().items()}
        return state.replace(step=state.step + 1, params=seen), zero

    @jax.jit
    def run(seed, state, order, count):
        sampler = sampling.Sampler(COUNT, BATCH, STEPS, replacement)
        run_steps = multistep.make_run_steps(record, sampler, parallel.alone())
        data = Epoch(Examples(jnp.asarray(IMAGES), jnp.asarray(LABELS)), order)
        return run_steps(state, multistep.empty_meter(), IDENTITY, data, count, jax.random.key(seed))[0]

    return run


@jax.jit
def order_of(seed, epoch):
    return sampling.epoch_order(jax.random.key(seed), epoch, COUNT)


def seen_at(seed, step, start, lengths, replacement):
    """What `step` sees of a run that starts at step `start`, as a resumed one does, in dispatches of `lengths`."""
    images = jnp.zeros((BATCH, 6, 6, 3)), jnp.zeros(BATCH, jnp.int32)
    state = TrainState(step=jnp.int32(start), params=images, batch_stats={}, opt_state=(), ema={}, ema_stats={})
    lengths = list(lengths)
    while int(state.step) <= step:
        now = int(state.step)
        # As the loop does: no dispatch goes past the end of an epoch.
        count = min(lengths.pop() if lengths else 1, STEPS - now % STEPS, step + 1 - now)
        state = recorder(replacement)(seed, state, order_of(seed, now // STEPS), count)
    return jax.tree.map(np.asarray, state.params)


@given(
    seed=st.integers(0, 2**31 - 2),
    step=st.integers(0, 7),
    history=st.integers(0, 7),
    lengths=st.lists(st.integers(1, 4), max_size=8),
    replacement=st.booleans(),
)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_what_a_step_sees_depends_on_seed_and_step_alone(seed, step, history, lengths, replacement):
    alone = seen_at(seed, step, step, [], replacement)
    after_a_history = seen_at(seed, step, min(history, step), lengths, replacement)
    jax.tree.map(np.testing.assert_array_equal, after_a_history, alone)
    for other in (seen_at(seed + 1, step, step, [], replacement), seen_at(seed, step + 1, step + 1, [], replacement)):
        assert np.any(other[0] != alone[0])


def test_alternating_flips_depend_on_the_image_and_its_epoch():
    # One image per class tells the images apart; two epochs of four steps.
    images = np.zeros((16, 8, 8, 3), np.uint8)
    images[:, :, :4] = 255
    labels = np.arange(16, dtype=np.int32)
    changes = {"augment.flip": True, "augment.flip_mode": "alternating", "train.batch_size": 4, "model.name": "softmax"}
    built = make_experiment(make_config(changes), images, classes=16)
    seen = np.zeros((2, 16), np.int32)

    def look(state, batch, normalization, keys):
        left = augment.augment(built.config.augment, keys.augment, batch["image"], batch["position"], batch["mirrored"])
        flipped = (left[:, 0, 0, 0] == 0).astype(jnp.int32)
        sums = multistep.empty_meter() | {"count": jnp.int32(4)}
        seen = state.seen.at[state.step // 4, batch["label"]].set(flipped)
        return Seen(state.step + 1, seen), sums

    run = multistep.make_run_steps(look, built.sampler, built.strategy, alternating=True)
    state = Seen(jnp.int32(0), jnp.asarray(seen))
    for epoch in range(2):
        data = Epoch(Examples(jnp.asarray(images), jnp.asarray(labels)), built.sampler.order(built.key, epoch))
        state, _ = jax.jit(run)(state, multistep.empty_meter(), IDENTITY, data, jnp.int32(4), built.key)
    first, second = np.asarray(state.seen)
    np.testing.assert_array_equal(first, 1 - second)
    assert 0 < first.sum() < 16


class Seen(NamedTuple):
    step: jax.Array
    seen: jax.Array
