"""Exact evaluation: every example once, whatever the batch size."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from imgclf_jax.parallel import Parallel, alone


def make_evaluate(
    eval_step: Callable[[dict[str, Any], dict[str, jax.Array]], dict[str, jax.Array]],
    batch_size: int,
    strategy: Parallel | None = None,
) -> Callable[..., dict[str, jax.Array]]:
    """Builds `evaluate(variables, images, labels, total) -> sums`, one dispatch for a whole split.

    The last batch is padded with repetitions of the last example, which the mask leaves out of the sums.

    Args:
        eval_step: see `imgclf_jax.steps.make_eval_step`.
        batch_size: examples a batch, on all devices together.
        strategy: where the arrays are; by default on one device.

    Returns:
        The function: `images` uint8 [N, H, W, C] and `labels` int32 [N] from `strategy.put_examples`, `total` int32:
        N, not counting what they were filled up with; the result holds `loss` (float32 sum),
        `correct` and `count` (int32).
    """

    strategy = strategy or alone()

    def evaluate(variables, images, labels, total):
        def add(index, sums):
            positions = index * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
            inside = jnp.minimum(positions, total - 1)
            batch = {
                "image": strategy.fetch(images, inside),
                "label": strategy.fetch(labels, inside),
                "mask": strategy.share(positions < total),
            }
            return jax.tree.map(jnp.add, sums, eval_step(variables, batch))

        zero = jnp.zeros((), jnp.int32)
        start = {"loss": jnp.zeros((), jnp.float32), "correct": zero, "count": zero}
        return strategy.all_sum(jax.lax.fori_loop(0, -(-total // batch_size), add, start))

    return evaluate


def result(sums: dict[str, Any], expected: int) -> dict[str, float | int]:
    """Divides once: `accuracy`, `loss` (a mean) and `count`, from sums that must cover `expected` examples."""
    count = int(sums["count"])
    if count != expected:
        raise AssertionError(f"evaluation saw {count} of {expected} examples")
    correct = int(sums["correct"])
    return {"accuracy": correct / count, "loss": float(sums["loss"]) / count, "correct": correct, "count": count}
