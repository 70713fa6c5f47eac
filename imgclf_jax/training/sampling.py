"""The examples of each step: a function of (seed, epoch, step) alone, computed on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imgclf_jax.rng import stream


def steps_per_epoch(count: int, batch_size: int, last_batch: str) -> int:
    """Returns the number of steps in an epoch of `count` examples. `last_batch="drop"` drops the partial batch."""
    return count // batch_size if last_batch == "drop" else -(-count // batch_size)


def epoch_order(key: jax.Array, epoch: int | jax.Array, count: int) -> jax.Array:
    """Returns the order of an epoch: a permutation of `range(count)`, int32 [count].

    Args:
        key: the experiment's key.
        epoch: int32 scalar, from 0.
        count: number of examples.
    """
    return jax.random.permutation(stream(key, "order", epoch), jnp.arange(count, dtype=jnp.int32))


def batch_from_order(order: jax.Array, step: jax.Array, batch_size: int, steps: int) -> jax.Array:
    """Returns the examples of one step, in epoch order: int32 [batch_size].

    Positions past the end of the epoch wrap around to its beginning.

    Args:
        order: int32 [count], the order of the epoch that contains `step`.
        step: int32 scalar, counted from the start of training.
        batch_size: examples per step.
        steps: steps per epoch.
    """
    positions = (step % steps) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    return order[positions % order.size]


def batch_with_replacement(key: jax.Array, step: jax.Array, batch_size: int, count: int) -> jax.Array:
    """Returns the examples of one step, each drawn uniformly from all `count`: int32 [batch_size]."""
    return jax.random.randint(stream(key, "replacement", step), (batch_size,), 0, count, jnp.int32)


def balanced_order(key: jax.Array, epoch: int | jax.Array, labels: np.ndarray) -> jax.Array:
    """Returns independent draws, int32 [count]: a class, each with the same probability, and one of its examples.

    Args:
        key: the experiment's key.
        epoch: int32 scalar, from 0.
        labels: int32 [count]; a constant of the compiled program.
    """
    by_class = np.argsort(labels, kind="stable").astype(np.int32)
    _, first, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    key = stream(key, "balanced", epoch)
    classes = jax.random.randint(stream(key, "class"), labels.shape, 0, len(sizes))
    places = jax.random.randint(stream(key, "example"), labels.shape, 0, jnp.asarray(sizes, jnp.int32)[classes])
    return jnp.asarray(by_class)[jnp.asarray(first, jnp.int32)[classes] + places]


class Sampler(NamedTuple):
    """Selects the examples of each step of an experiment.

    Attributes:
        examples: the number of training examples.
        batch_size: examples per step, on all devices together.
        steps_per_epoch: see `steps_per_epoch`.
        replacement: whether each batch is drawn from all examples instead of following the order of the epoch.
        parts: the number of equal parts that a batch is split into, see `train.accumulate`.
        balanced: whether the order of an epoch is drawn with replacement, and each class with the same probability.
        labels: the bytes of the labels int32 [examples], if `balanced`.
    """

    examples: int
    batch_size: int
    steps_per_epoch: int
    replacement: bool
    parts: int = 1
    balanced: bool = False
    labels: bytes = b""

    def order(self, key: jax.Array, epoch: int | jax.Array) -> jax.Array:
        """Returns `epoch_order`, or `balanced_order`, int32 [examples]."""
        if self.balanced and self.labels:
            return balanced_order(key, epoch, np.frombuffer(self.labels, np.int32))
        return epoch_order(key, epoch, self.examples)

    def indices(self, key: jax.Array, order: jax.Array, step: jax.Array) -> jax.Array:
        """Returns the examples of a step, int32 [batch_size]; `order` is the order of its epoch."""
        if self.replacement:
            return batch_with_replacement(key, step, self.batch_size, self.examples)
        return batch_from_order(order, step, self.batch_size, self.steps_per_epoch)

    def epoch(self, key: jax.Array, epoch: int | jax.Array) -> jax.Array:
        """Returns the examples of all steps of an epoch, int32 [steps_per_epoch, batch_size]."""
        order = self.order(key, epoch)
        steps = epoch * self.steps_per_epoch + jnp.arange(self.steps_per_epoch, dtype=jnp.int32)
        return jax.lax.map(lambda step: self.indices(key, order, step), steps)
