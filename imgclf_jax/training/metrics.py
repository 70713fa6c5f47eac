"""The metrics of training and evaluation. To add one, add one function to `METRICS`.

The meter of the training loop, the sums of exact evaluation, the columns of the metrics files and the lines on the
console follow from that dictionary. A checkpoint without a metric is restored with its sum at zero.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from imgclf_jax.config import is_on

Sums = dict[str, Any]


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Returns the cross-entropy of each example, float32 [B].

    Args:
        logits: float32 [B, classes].
        labels: int32 [B].
        smoothing: the probability mass that is spread evenly over all classes, see Szegedy et al. 2016
            (https://arxiv.org/abs/1512.00567).
    """
    if not is_on(smoothing):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.softmax_cross_entropy(logits, targets(labels, logits.shape[-1], smoothing))


def targets(labels: jax.Array, classes: int, smoothing: float = 0.0) -> jax.Array:
    """Returns the probabilities of the classes that the labels stand for, float32 [B, classes].

    Args:
        labels: int32 [B].
        classes: the number of classes.
        smoothing: see `cross_entropy`.
    """
    return optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing)


def is_correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns whether the largest logit is that of the label, bool [B]; false if a logit is not finite."""
    # `argmax` alone would take NaN for class 0.
    return (logits.argmax(-1) == labels) & is_finite(logits)


def is_finite(logits: jax.Array) -> jax.Array:
    """Returns whether all logits of an example are finite, bool [B]."""
    return jnp.isfinite(logits).all(-1)


# Name -> function of (logits float32 [B, classes], labels int32 [B]), one value for each example. Values that are bool
# or integers are summed exactly, as int32, all others as float32. The means over the examples are reported.
METRICS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {"loss": cross_entropy, "accuracy": is_correct}

COLUMNS = (*METRICS, "grad_norm")  # of the metrics files; `grad_norm` is a mean over steps


def per_example(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Returns the values [B] of all metrics."""
    return {name: metric(logits, labels) for name, metric in METRICS.items()}


def add_up(values: dict[str, jax.Array], mask: jax.Array | None = None) -> Sums:
    """Returns the sums of values [B] over the examples whose `mask`, bool [B], is set; by default over all."""
    # `where`, not a product: the values of padding may be infinite.
    return {
        name: jnp.sum(value if mask is None else jnp.where(mask, value, 0), dtype=_dtype(value))
        for name, value in values.items()
    }


def zeros() -> Sums:
    """Returns the sum of nothing for each metric, as host arrays."""
    like = jax.eval_shape(per_example, jax.ShapeDtypeStruct((1, 2), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32))
    return {name: np.zeros((), _dtype(like[name])) for name in METRICS}


def means(sums: Sums, count: int, names: Iterable[str] = METRICS) -> dict[str, float]:
    """Returns sums divided by the number of examples, with a single division on the host."""
    return {name: sums[name].item() / max(count, 1) for name in names}


def line(values: dict[str, float]) -> str:
    """Formats the metrics for printing, for example "loss 0.1234  accuracy 0.9876"."""
    return "  ".join(f"{name} {values[name]:.4f}" for name in METRICS)


def _dtype(value):
    return np.float32 if jnp.issubdtype(value.dtype, jnp.floating) else np.int32
