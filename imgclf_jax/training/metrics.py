"""The metrics of training and evaluation. To add one, add one function to `METRICS`.

The meter of the training loop, the sums of exact evaluation, the columns of the metrics files and the lines on the
console follow from that dictionary. A checkpoint without a metric is restored with its sum at zero.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from imgclf_jax import components
from imgclf_jax.config import is_on
from imgclf_jax.errors import UserError

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

# The same, of the logits averaged over the views of `eval.tta`; see `imgclf_jax.augment.tta`.
TTA = {f"tta_{name}": metric for name, metric in METRICS.items()}

COLUMNS = (*METRICS, "grad_norm")  # of the metrics files; `grad_norm` is a mean over steps
SLOT = "metrics"
Metrics = Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]]
# Names that stand for something else in rows and results.
RESERVED = (*METRICS, "grad_norm", "count", "steps", "bad_step", "correct", "not_finite", "step", "epoch", "split")
RESERVED = (*RESERVED, *TTA, "learning_rate", "images_per_second")


def create(names: Iterable[str]) -> Metrics:
    """Returns the metrics of a run: ours, and those of its config by the names of their functions.

    Args:
        names: "module:attribute" of functions like those in `METRICS`.
    """
    return METRICS | {short_name(name): _float(components.find(name, {}, SLOT)) for name in names}


def columns(measures: Iterable[str]) -> tuple[str, ...]:
    """Returns the columns of the metrics files: those of the metrics, and `grad_norm`."""
    return (*measures, "grad_norm")


def problems(names: Sequence[str], classes: int) -> list[str]:
    """Returns one line for each metric of one's own that is missing, fails, or gives no value for each example."""
    short = [short_name(name) for name in names]
    lines = [f"{SLOT}: the name {name} is taken; rename the function" for name in short if name in RESERVED]
    lines += [f"{SLOT}: two functions are called {name}" for name in sorted({n for n in short if short.count(n) > 1})]
    logits, labels = jax.ShapeDtypeStruct((4, classes), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.int32)
    for name in names:
        try:
            values: Any = jax.eval_shape(components.find(name, {}, SLOT), logits, labels)
        except UserError as error:
            lines.append(str(error))
            continue
        except Exception as error:
            lines.append(f"{SLOT}={name!r} fails: {components.explain(error)}")
            continue
        if getattr(values, "shape", None) != (4,):
            found = list(values.shape) if hasattr(values, "shape") else type(values).__name__
            lines.append(f"{SLOT}={name!r} maps 4 examples to {found}; it must be [4]: one value for each example")
    return lines


def short_name(name: str) -> str:
    """Returns the name of a metric in rows and results: "my_metrics:top5" is "top5"."""
    return name.rpartition(":")[2].rpartition(".")[2]


def _float(metric):
    return lambda logits, labels: metric(logits, labels).astype(jnp.float32)


def per_example(logits: jax.Array, labels: jax.Array, measures: Metrics = METRICS) -> dict[str, jax.Array]:
    """Returns the values [B] of all metrics."""
    return {name: metric(logits, labels) for name, metric in measures.items()}


def add_up(values: dict[str, jax.Array], mask: jax.Array | None = None) -> Sums:
    """Returns the sums of values [B] over the examples whose `mask`, bool [B], is set; by default over all."""
    # `where`, not a product: the values of padding may be infinite.
    return {
        name: jnp.sum(value if mask is None else jnp.where(mask, value, 0), dtype=_dtype(value))
        for name, value in values.items()
    }


def zeros(measures: Iterable[str] = METRICS) -> Sums:
    """Returns the sum of nothing for each metric, as host arrays. Sums of metrics that are not ours are float32."""
    ours = functools.partial(per_example, measures=METRICS | TTA)
    like = jax.eval_shape(ours, jax.ShapeDtypeStruct((1, 2), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32))
    return {name: np.zeros((), _dtype(like[name]) if name in like else np.float32) for name in measures}


def means(sums: Sums, count: int, names: Iterable[str] = METRICS) -> dict[str, float]:
    """Returns sums divided by the number of examples, with a single division on the host."""
    return {name: sums[name].item() / max(count, 1) for name in names}


def line(values: dict[str, float], measures: Iterable[str] = METRICS) -> str:
    """Formats the metrics for printing, for example "loss 0.1234  accuracy 0.9876"."""
    return "  ".join(f"{name} {values[name]:.4f}" for name in measures)


def _dtype(value):
    return np.float32 if jnp.issubdtype(value.dtype, jnp.floating) else np.int32
