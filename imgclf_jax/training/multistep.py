"""Many training steps in one dispatch, on data that lives on the device or is streamed to it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imgclf_jax.devices.parallel import Parallel, alone
from imgclf_jax.rng import stream
from imgclf_jax.training import sampling
from imgclf_jax.training.state import TrainState

# Sums since the last row of the metrics files, kept on the device and in checkpoints, so that a resumed run writes
# the rows that the uninterrupted one would have written. `bad_step`: the first step whose loss or gradient was not
# finite, or -1.
Meter = dict[str, Any]


def empty_meter() -> Meter:
    """Nothing counted yet; on the host, for every process to hand to its devices."""
    return {
        "loss": np.zeros((), np.float32),
        "grad_norm": np.zeros((), np.float32),
        "correct": np.zeros((), np.int32),
        "count": np.zeros((), np.int32),
        "steps": np.zeros((), np.int32),
        "bad_step": np.full((), -1, np.int32),
    }


def make_run_steps(
    train_step: Callable[[TrainState, dict[str, jax.Array], jax.Array], tuple[TrainState, Any]],
    *,
    batch_size: int,
    examples: int,
    steps_per_epoch: int,
    replacement: bool,
    accumulate: int = 1,
    strategy: Parallel | None = None,
) -> Callable[..., tuple[TrainState, Meter]]:
    """Builds `run_steps(state, meter, images, labels, order, count, key) -> (state, meter)`.

    The number of steps is an argument, not a constant: one compiled program serves every length, and every way of
    cutting a run into dispatches computes the same bits.

    Args:
        train_step: see `imgclf_jax.training.steps`.
        batch_size: examples a step, on all devices together.
        examples: N, the number of training examples.
        steps_per_epoch: see `imgclf_jax.training.sampling`.
        replacement: draw each batch from all examples instead of following `order`.
        accumulate: as in `train_step`, whose parts of the batch are each split over the devices.
        strategy: where the arrays are; by default on one device.

    Returns:
        The function: `images` uint8 [N, H, W, C] and `labels` int32 [N] are the training split, from
        `strategy.put_examples`; `order` int32 [N] is that of the epoch in which all the steps lie; `count` int32 is
        how many steps to take; `key` is the experiment's (an argument, so that all seeds share one compiled program).
        Where data is streamed, `images` [K, accumulate, B, H, W, C] and `labels` [K, accumulate, B] are the batches of
        K steps, from `strategy.put_batches`, that of a step at its number modulo K; `order` is then `()`.
        Stops early at the first step whose loss or gradient, or the sum of the losses, is not finite.
    """

    strategy = strategy or alone()

    def fetch(step, order, key, arrays):
        if strategy.streamed:
            return [strategy.take(batches, step % len(batches)) for batches in arrays]
        if replacement:
            indices = sampling.batch_with_replacement(key, step, batch_size, examples)
        else:
            indices = sampling.batch_from_order(order, step, batch_size, steps_per_epoch)
        return [strategy.fetch(array, indices.reshape(accumulate, -1)) for array in arrays]

    def batch_at(step, images, labels, order, key):
        positions = jnp.arange(batch_size, dtype=jnp.int32).reshape(accumulate, -1)
        image, label = fetch(step, order, key, (images, labels))
        batch = {"image": image, "label": label, "position": strategy.share(positions)}
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

    def run_steps(state, meter, images, labels, order, count, key):
        last = state.step + count

        def unfinished(carry):
            state, meter = carry
            return (state.step < last) & (meter["bad_step"] < 0)

        def one_step(carry):
            state, meter = carry
            batch = batch_at(state.step, images, labels, order, key)
            new_state, metrics = train_step(state, batch, stream(key, "step", state.step))
            added = {name: meter[name] + metrics[name] for name in ("loss", "grad_norm", "correct", "count")}
            finite = jnp.isfinite(added["loss"]) & jnp.isfinite(added["grad_norm"])
            return new_state, {
                **added,
                "steps": meter["steps"] + 1,
                "bad_step": jnp.where(finite, meter["bad_step"], new_state.step),
            }

        return jax.lax.while_loop(unfinished, one_step, (state, meter))

    return run_steps
