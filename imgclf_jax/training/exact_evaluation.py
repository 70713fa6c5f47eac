"""Exact evaluation: every example counts once, with any batch size."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imgclf_jax.augment import Normalization
from imgclf_jax.devices.parallel import Parallel
from imgclf_jax.training import metrics
from imgclf_jax.training.batches import Chunk, Examples
from imgclf_jax.training.metrics import Sums


def nothing(measures: Iterable[str] = metrics.METRICS) -> Sums:
    """Returns the sums over no examples, as host arrays."""
    return metrics.zeros(measures) | {name: np.zeros((), np.int32) for name in ("count", "not_finite")}


def make_evaluate(eval_step: Callable[..., Sums], batch_size: int, strategy: Parallel) -> Callable[..., Sums]:
    """Builds `evaluate(variables, normalization, data, total, sums) -> sums`, one dispatch for a split or a part of it.

    The last batch of a split is padded with repetitions of its last example, which the mask leaves out of the sums.

    Args:
        eval_step: see `imgclf_jax.training.steps.make_eval_step`.
        batch_size: examples per batch, on all devices together; see `shared`.
        strategy: where the arrays are.

    Returns:
        The function. `data` is what batches are taken from, see `imgclf_jax.training.batches`; `total` (int32) is the
        number of examples in it, without padding; `sums` are those of the earlier parts, see `nothing`. The result has
        the same entries as `sums`.
    """
    batch_size = shared(batch_size, strategy)

    def evaluate(
        variables: dict[str, Any], normalization: Normalization, data: Examples | Chunk, total: jax.Array, sums: Sums
    ) -> Sums:
        def add(index, sums):
            positions = index * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
            images, labels = data.select(strategy, index, jnp.minimum(positions, total - 1))
            batch = {"image": images, "label": labels, "mask": strategy.share(positions < total)}
            return jax.tree.map(jnp.add, sums, eval_step(variables, normalization, batch))

        start = strategy.part_of_sum(jax.tree.map(jnp.asarray, sums))
        return strategy.all_sum(jax.lax.fori_loop(0, -(-total // batch_size), add, start))

    return evaluate


def evaluate_split(
    evaluate: Callable[..., Sums],
    split: Any,
    variables: dict[str, Any],
    normalization: Normalization,
    batch_size: int,
    progress: Callable[[int, int], None],
    measures: Iterable[str] = metrics.METRICS,
) -> dict[str, float | int]:
    """Evaluates a placed split.

    Args:
        evaluate: the compiled function of `make_evaluate`.
        split: from `imgclf_jax.training.placed.placement`.
        variables: the network's variables for evaluation.
        normalization: the normalization of its inputs.
        batch_size: as for `make_evaluate`.
        progress: called from time to time with (examples done, total examples).
        measures: the metrics that `evaluate` sums.

    Returns:
        See `result`.

    Raises:
        UserError: an image cannot be read.
    """
    run = functools.partial(evaluate, variables=variables, normalization=normalization)
    sums = split.sums(run, batch_size, progress, nothing(measures))
    return result(jax.device_get(sums), len(split))


def result(sums: Sums, expected: int) -> dict[str, float | int]:
    """Turns sums, which must cover `expected` examples, into means with a single division.

    Returns:
        The means of the metrics, `accuracy` first; then `correct`, `count` and `not_finite`, the number of examples
        with a logit that is not finite.

    Raises:
        AssertionError: the sums cover another number of examples.
    """
    count = int(sums["count"])
    if count != expected:
        raise AssertionError(f"evaluation saw {count} of {expected} examples")
    counts = {"correct": int(sums["accuracy"]), "count": count, "not_finite": int(sums["not_finite"])}
    own = sorted(sums.keys() - {*metrics.METRICS, "count", "not_finite"})
    means = metrics.means(sums, count, [*metrics.METRICS, *own])
    return {"accuracy": means["accuracy"], **means, **counts}


def shared(batch_size: int, strategy: Parallel) -> int:
    """Returns `batch_size`, rounded up to a multiple of the number of devices. The excess is padding."""
    return -(-batch_size // strategy.devices) * strategy.devices
