"""Many training steps in one dispatch, on data that is stored on the devices or streamed to them."""

from collections.abc import Callable
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


def empty_meter() -> Meter:
    """Returns a meter with all sums at zero, as host arrays."""
    return {
        **metrics.zeros(),
        "grad_norm": np.zeros((), np.float32),
        "count": np.zeros((), np.int32),
        "steps": np.zeros((), np.int32),
        "bad_step": np.full((), -1, np.int32),
    }


def means(meter: Meter) -> dict[str, float]:
    """Returns the means since the last row: the metrics over the examples, and `grad_norm` over the steps."""
    norm = metrics.means(meter, meter["steps"].item(), ["grad_norm"])
    return metrics.means(meter, meter["count"].item()) | norm


def make_run_steps(
    train_step: Callable[..., tuple[TrainState, Any]], sampler: Sampler, strategy: Parallel, alternating: bool = False
) -> Callable[..., tuple[TrainState, Meter]]:
    """Builds `run_steps(state, meter, normalization, data, count, key) -> (state, meter)`.

    The number of steps is an argument rather than a constant, so one compiled program serves every length. A run
    computes the same bits, however it is divided into dispatches.

    Args:
        train_step: see `imgclf_jax.training.steps`.
        sampler: which examples a step sees. Each part of a batch is split over the devices.
        strategy: where the arrays are.
        alternating: whether batches say which images are mirrored; see `imgclf_jax.augment.alternating`.

    Returns:
        The function. `normalization` is an argument of `train_step`; `data` is what batches are taken from, see
        `imgclf_jax.training.batches`; `count` is the number of steps to take, int32; `key` is that of the experiment
        (an argument, so that all seeds share one compiled program). It stops early after the first step whose loss or
        gradient, or the sum of the losses, is not finite.
    """

    def batch_at(step, data, key):
        images, labels, indices = data.batch(strategy, sampler, step, key)
        positions = jnp.arange(sampler.batch_size, dtype=jnp.int32).reshape(sampler.parts, -1)
        batch = {"image": images, "label": labels, "position": strategy.share(positions)}
        if alternating:
            epoch = step // sampler.steps_per_epoch
            batch["mirrored"] = augment.alternating(key, indices.ravel(), epoch).reshape(indices.shape)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

    def run_steps(
        state: TrainState, meter: Meter, normalization: Normalization, data: Data, count: jax.Array, key: jax.Array
    ) -> tuple[TrainState, Meter]:
        last = state.step + count

        def unfinished(carry):
            state, meter = carry
            return (state.step < last) & (meter["bad_step"] < 0)

        def one_step(carry):
            state, meter = carry
            batch = batch_at(state.step, data, key)
            new_state, sums = train_step(state, batch, normalization, step_keys(key, state.step))
            added = {name: meter[name] + sums[name] for name in (*metrics.METRICS, "grad_norm", "count")}
            finite = jnp.isfinite(added["loss"]) & jnp.isfinite(added["grad_norm"])
            return new_state, {
                **added,
                "steps": meter["steps"] + 1,
                "bad_step": jnp.where(finite, meter["bad_step"], new_state.step),
            }

        return jax.lax.while_loop(unfinished, one_step, (state, meter))

    return run_steps
