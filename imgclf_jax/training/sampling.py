"""Which examples a step sees: a function of (seed, epoch, step) alone, computed on the device."""

import jax
import jax.numpy as jnp

from imgclf_jax.rng import stream


def steps_per_epoch(count: int, batch_size: int, last_batch: str) -> int:
    """Steps in which an epoch of `count` examples is used up; the partial batch is dropped or filled up."""
    return count // batch_size if last_batch == "drop" else -(-count // batch_size)


def epoch_order(key: jax.Array, epoch: int | jax.Array, count: int) -> jax.Array:
    """The order of an epoch: a permutation of `range(count)`, int32 [count].

    Args:
        key: the experiment's key.
        epoch: int32 scalar, from 0.
        count: number of examples.
    """
    return jax.random.permutation(stream(key, "order", epoch), jnp.arange(count, dtype=jnp.int32))


def batch_from_order(order: jax.Array, step: jax.Array, batch_size: int, steps: int) -> jax.Array:
    """The examples of one step, in epoch order: int32 [batch_size].

    Args:
        order: int32 [count], the order of the epoch that `step` lies in.
        step: int32 scalar, counted from the start of training.
        batch_size: examples a step.
        steps: steps an epoch.

    Positions past the end of the epoch wrap around to its beginning.
    """
    positions = (step % steps) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    return order[positions % order.size]


def batch_with_replacement(key: jax.Array, step: jax.Array, batch_size: int, count: int) -> jax.Array:
    """The examples of one step, each drawn uniformly from all `count`: int32 [batch_size]."""
    return jax.random.randint(stream(key, "replacement", step), (batch_size,), 0, count, jnp.int32)


def epoch_batches(
    key: jax.Array, epoch: int | jax.Array, *, batch_size: int, count: int, steps: int, replacement: bool
) -> jax.Array:
    """The examples of all steps of an epoch: int32 [steps, batch_size].

    Args:
        key: the experiment's key.
        epoch: int32 scalar, from 0.
        batch_size: examples a step.
        count: number of examples.
        steps: steps an epoch.
        replacement: as `batch_with_replacement` draws them, instead of in epoch order.
    """
    order = epoch_order(key, epoch, count)

    def batch(step):
        if replacement:
            return batch_with_replacement(key, step, batch_size, count)
        return batch_from_order(order, step, batch_size, steps)

    return jax.lax.map(batch, epoch * steps + jnp.arange(steps, dtype=jnp.int32))
