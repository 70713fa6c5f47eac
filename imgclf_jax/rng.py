"""Named random streams: every draw is a function of (seed, name, step), never of earlier draws."""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp


def stream(key: jax.Array, name: str, step: int | jax.Array | None = None) -> jax.Array:
    """The key for one purpose (`"init"`, `"order"`, `"step"`, ...), at one step or epoch if the purpose recurs.

    Args:
        key: scalar typed PRNG key, such as `jax.random.key(config.seed)`.
        name: the purpose. Its CRC-32 is folded in, so adding a stream does not change the others.
        step: int32 scalar, folded in after the name.

    Returns:
        A scalar typed PRNG key.
    """
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return key if step is None else jax.random.fold_in(key, step)


class StepKeys(NamedTuple):
    """The keys of one training step, one for each purpose."""

    augment: jax.Array
    dropout: jax.Array


def step_keys(key: jax.Array, step: int | jax.Array) -> StepKeys:
    """Returns the keys of a step; `key` is that of the experiment, `step` an int32 scalar, from 0."""
    key = stream(key, "step", step)
    return StepKeys(stream(key, "augment"), stream(key, "dropout"))


def image_keys(key: jax.Array, positions: jax.Array) -> jax.Array:
    """One key per image of a batch. It depends only on the image's position in the global batch.

    Args:
        key: the key of the step for one purpose, typed or raw.
        positions: int [B].

    Returns:
        Keys [B] (raw keys: uint32 [B, 2]).
    """
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)


def operation_keys(keys: jax.Array, operation: str) -> jax.Array:
    """The keys [B] of one operation, derived from the image keys, so that operations draw independently."""
    name = zlib.crc32(operation.encode())
    return jax.vmap(lambda key: jax.random.fold_in(key, name))(keys)


def image_uniform(keys: jax.Array, operation: str, low: float, high: float) -> jax.Array:
    """float32 [B], uniform in [low, high): one draw per image key for the named operation."""
    draw = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32, low, high))
    return draw(operation_keys(keys, operation))
