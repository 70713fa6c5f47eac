"""Many training steps in one dispatch, on data that is stored on the devices or streamed to them."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imgclf_jax import augment
from imgclf_jax.augment import Normalization
from imgclf_jax.devices.parallel import Parallel
from imgclf_jax.rng import step_keys
from imgclf_jax.training import metrics
from imgclf_jax.training.batches import Data
from imgclf_jax.training.sampling import Sampler
from imgclf_jax.training.state import TrainState

# Sums since the last row of the metrics files. They are kept on the device and in checkpoints, so that a resumed run
# writes the rows that the uninterrupted one would have written. `bad_step`: the first step whose loss or gradient was
# not finite, or -1.
Meter = dict[str, Any]


def empty_meter(measures: Iterable[str] = metrics.METRICS) -> Meter:
    """Returns a meter of these metrics with all sums at zero, as host arrays."""
    return {
        **metrics.zeros(measures),
        "grad_norm": np.zeros((), np.float32),
        "count": np.zeros((), np.int32),
        "steps": np.zeros((), np.int32),
        "bad_step": np.full((), -1, np.int32),
    }


class Diverged(Exception):
    """The loss, a gradient or a parameter is not finite.

    Attributes:
        step: the step that made it so, counted from 1.
    """

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


def means(meter: Meter) -> dict[str, float]:
    """Returns the means since the last row: the metrics over the examples, and `grad_norm` over the steps.

    Args:
        meter: a meter on the host.

    Raises:
        Diverged: the meter has a `bad_step`.
    """
    if meter["bad_step"] >= 0:
        raise Diverged(int(meter["bad_step"]))
    norm = metrics.means(meter, meter["steps"].item(), ["grad_norm"])
    names = [*metrics.METRICS, *sorted(meter.keys() - {*metrics.METRICS, "grad_norm", "count", "steps", "bad_step"})]
    return metrics.means(meter, meter["count"].item(), names) | norm


def make_run_steps(
    train_step: Callable[..., tuple[TrainState, Any]], sampler: Sampler, strategy: Parallel, alternating: bool = False
) -> Callable[..., tuple[TrainState, Meter]]:
    """Builds `run_steps(state, meter, normalization, data, count, key) -> (state, meter)`.

    The number of steps is an argument rather than a constant, so one compiled program serves every length. A run
    computes the same bits, however it is divided into dispatches.

    Args:
        train_step: see `make_one_step`, as for the arguments below.
        sampler: which examples a step sees.
        strategy: where the arrays are.
        alternating: whether batches say which images are mirrored.

    Returns:
        The function. `count` is the number of steps to take, int32; for the other arguments see `make_one_step`. It
        stops early after the first step that sets `bad_step`.
    """
    one_step = make_one_step(train_step, sampler, strategy, alternating)

    def run_steps(
        state: TrainState, meter: Meter, normalization: Normalization, data: Data, count: jax.Array, key: jax.Array
    ) -> tuple[TrainState, Meter]:
        last = state.step + count

        def unfinished(carry):
            state, meter = carry
            return (state.step < last) & (meter["bad_step"] < 0)

        return jax.lax.while_loop(unfinished, lambda carry: one_step(*carry, normalization, data, key), (state, meter))

    return run_steps


def make_one_step(
    train_step: Callable[..., tuple[TrainState, Any]], sampler: Sampler, strategy: Parallel, alternating: bool = False
) -> Callable[..., tuple[TrainState, Meter]]:
    """Builds `one_step(state, meter, normalization, data, key) -> (state, meter)`, which takes its own batch.

    Args:
        train_step: see `imgclf_jax.training.steps`.
        sampler: which examples a step sees. Each part of a batch is split over the devices.
        strategy: where the arrays are.
        alternating: whether batches say which images are mirrored; see `imgclf_jax.augment.alternating`.

    Returns:
        The function. `normalization` is an argument of `train_step`; `data` is what batches are taken from, see
        `imgclf_jax.training.batches`; `key` is that of the experiment (an argument, so that all seeds share one
        compiled program). The first step whose loss or gradient, or the sum of the losses, is not finite sets
        `bad_step` in the meter.
    """

    def batch_at(step, data, key):
        images, labels, indices = data.batch(strategy, sampler, step, key)
        positions = jnp.arange(sampler.batch_size, dtype=jnp.int32).reshape(sampler.parts, -1)
        batch = {"image": images, "label": labels, "position": strategy.share(positions)}
        if alternating:
            epoch = step // sampler.steps_per_epoch
            batch["mirrored"] = augment.alternating(key, indices.ravel(), epoch).reshape(indices.shape)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

    def one_step(
        state: TrainState, meter: Meter, normalization: Normalization, data: Data, key: jax.Array
    ) -> tuple[TrainState, Meter]:
        batch = batch_at(state.step, data, key)
        new_state, sums = train_step(state, batch, normalization, step_keys(key, state.step))
        added = {name: meter[name] + sums[name] for name in meter if name not in ("steps", "bad_step")}
        good = jnp.isfinite(added["loss"]) & jnp.isfinite(added["grad_norm"]) | (meter["bad_step"] >= 0)
        bad_step = jnp.where(good, meter["bad_step"], new_state.step)
        return new_state, {**added, "steps": meter["steps"] + 1, "bad_step": bad_step}

    return one_step
