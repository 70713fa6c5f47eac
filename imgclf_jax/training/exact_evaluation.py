"""Exact evaluation: every example once, whatever the batch size."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imgclf_jax.data.stream import NOTHING as NO_EXAMPLE
from imgclf_jax.data.stream import Chunks, Reader
from imgclf_jax.data.types import Split
from imgclf_jax.devices.parallel import Parallel, alone
from imgclf_jax.training.feed import chunk_steps

PIECE = 64  # examples that one thread decodes at a time, at most
COUNTS = ("correct", "count", "not_finite")
NOTHING = {"loss": np.zeros((), np.float32)} | {name: np.zeros((), np.int32) for name in COUNTS}


def make_evaluate(
    eval_step: Callable[[dict[str, Any], dict[str, jax.Array]], dict[str, jax.Array]],
    batch_size: int,
    strategy: Parallel | None = None,
) -> Callable[..., dict[str, jax.Array]]:
    """Builds `evaluate(variables, images, labels, total, sums) -> sums`, one dispatch for a split or a part of it.

    The last batch of a split is padded with repetitions of its last example, which the mask leaves out of the sums.

    Args:
        eval_step: see `imgclf_jax.training.steps.make_eval_step`.
        batch_size: examples a batch, on all devices together; rounded up to a multiple of their number.
        strategy: where the arrays are; by default on one device.

    Returns:
        The function: `images` uint8 [N, H, W, C] and `labels` int32 [N] from `strategy.put_examples`, `total` int32:
        N, not counting what they were filled up with; `sums`: where to go on from, by default `NOTHING`. The result
        holds `loss` (float32 sum), `correct`, `count` and `not_finite` (int32). If data is streamed, `images`
        [K, 1, B, H, W, C] and `labels` [K, 1, B] are batches from `strategy.put_batches`, and `total` counts theirs.
    """
    strategy = strategy or alone()
    batch_size = _shared(batch_size, strategy)

    def fetch(index, array, inside):
        if strategy.streamed:
            batch = strategy.take(array, index)
            return batch.reshape(-1, *batch.shape[2:])
        return strategy.fetch(array, inside)

    def evaluate(variables, images, labels, total, sums=NOTHING):
        def add(index, sums):
            positions = index * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
            inside = jnp.minimum(positions, total - 1)
            batch = {
                "image": fetch(index, images, inside),
                "label": fetch(index, labels, inside),
                "mask": strategy.share(positions < total),
            }
            return jax.tree.map(jnp.add, sums, eval_step(variables, batch))

        start = strategy.part_of_sum(jax.tree.map(jnp.asarray, sums))
        return strategy.all_sum(jax.lax.fori_loop(0, -(-total // batch_size), add, start))

    return evaluate


def stream(
    run: Callable[..., dict[str, jax.Array]],
    variables: dict[str, Any],
    split: Split,
    strategy: Parallel,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, jax.Array]:
    """The sums of a split whose images stay on disk. They go to the devices in chunks, read ahead by threads.

    Args:
        run: from `make_evaluate`, compiled; on one device the sums are those of the whole split in one dispatch.
        variables: for `run`.
        split: the images and labels.
        strategy: where the batches go.
        batch_size: as for `make_evaluate`.
        progress: called between chunks with the number of examples that are done, and of all.

    Raises:
        UserError: an image cannot be read.
    """
    batch_size = _shared(batch_size, strategy)
    count, columns = len(split), strategy.columns(batch_size)
    length = min(chunk_steps(batch_size, split.images.shape[1:]), -(-count // batch_size))
    chunks = -(-count // (length * batch_size))
    rows = np.arange(chunks * length)[:, None] * batch_size + columns
    rows = np.where(rows < count, rows, NO_EXAMPLE).reshape(chunks, length, 1, -1)
    # Threads take pieces of a batch: in all of one there may be seconds of work, and much memory.
    piece = math.gcd(len(columns), PIECE)
    pieces = rows.reshape(-1, piece)
    sums: Any = strategy.put(NOTHING)
    with Chunks(Reader(split.images, pieces.__getitem__), 0, len(pieces), len(pieces) // chunks, 0, piece) as read:
        for index, places in enumerate(rows):
            images = read.get().reshape(*places.shape, *split.images.shape[1:])
            labels = np.where(places == NO_EXAMPLE, 0, split.labels[places])
            arrays = strategy.put_batches((images, labels), batch_size)
            done = index * length * batch_size
            before, sums = sums, run(variables, *arrays, np.int32(min(count - done, length * batch_size)), sums)
            jax.block_until_ready(before)  # Two chunks on the devices are enough.
            if done:
                progress(done, count)
    return sums


def result(sums: dict[str, Any], expected: int) -> dict[str, float | int]:
    """Turns sums, which must cover `expected` examples, into means with a single division.

    Returns:
        `accuracy`, `loss` (a mean), `correct`, `count`, and `not_finite`: how many examples have a logit that is not
        finite.

    Raises:
        AssertionError: the sums cover another number of examples.
    """
    counts = {name: int(sums[name]) for name in COUNTS}
    if (count := counts["count"]) != expected:
        raise AssertionError(f"evaluation saw {count} of {expected} examples")
    return {"accuracy": counts["correct"] / count, "loss": float(sums["loss"]) / count, **counts}


def _shared(batch_size, strategy):
    """Rounds up to a size that the devices can share evenly; what exceeds the examples of a split is padding."""
    return -(-batch_size // strategy.devices) * strategy.devices
