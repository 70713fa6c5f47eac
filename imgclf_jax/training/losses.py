"""The loss that training minimizes: (logits, targets) -> one value for each example.

Evaluation and the training rows of other metrics do not depend on it; evaluation always reports the cross-entropy.
"""

import ast
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from imgclf_jax import components
from imgclf_jax.errors import UserError

Loss = Callable[[jax.Array, jax.Array], jax.Array]
SLOT = "loss.name"


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The sum over the classes of the cross-entropy of a yes-or-no decision for each, float32 [B].

    As in Beyer et al. 2020 (https://arxiv.org/abs/2006.07159); timm's loss of this name, with the sum over classes.

    Args:
        logits: float32 [B, classes].
        targets: float32 [B, classes].
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)


def focal(logits: jax.Array, targets: jax.Array, gamma: float = 2.0) -> jax.Array:
    """The softmax focal loss, float32 [B]: the cross-entropy, times (1 - p)^gamma for each class.

    See Lin et al. 2017 (https://arxiv.org/abs/1708.02002), equation 4. With gamma 0 it is the cross-entropy.

    Args:
        logits: float32 [B, classes].
        targets: float32 [B, classes].
        gamma: how much less examples count that are classified well.
    """
    logs = jax.nn.log_softmax(logits)
    # Not 1 - exp(log p) to the power of gamma directly: its derivative at p = 1 is not finite for gamma below 1.
    rest = jnp.maximum(-jnp.expm1(logs), 1e-12)
    return -(targets * rest**gamma * logs).sum(-1)


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "cross_entropy": optax.softmax_cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "focal": focal,
}


def create(config: ConfigDict, classes: int, counts: np.ndarray | None = None) -> Loss | None:
    """Returns the loss of `config.loss`; `None` for the cross-entropy with all weights 1.

    Args:
        config: the `loss` section.
        classes: the number of classes.
        counts: training examples of each class, int [classes], for "balanced" weights; `None`: they do not matter.
    """
    weights = class_weights(config.class_weights, classes, counts)
    if config.name == "cross_entropy" and weights is None:
        return None
    loss = functools.partial(components.find(config.name, LOSSES, SLOT), **config.options)
    if weights is None:
        return loss
    return lambda logits, targets: loss(logits, targets) * (targets @ weights)


def class_weights(text: str, classes: int, counts: np.ndarray | None = None) -> np.ndarray | None:
    """Returns the factors of `loss.class_weights`, float32 [classes], or `None` for none.

    "balanced" is N / (C n): N examples, n of them in the class, C classes with examples. Over all examples, the mean is
    1. The factor of an example with mixed or smoothed targets is the mean of those of its classes.

    Raises:
        ValueError: the text has another form.
    """
    if not text:
        return None
    if text == "balanced":
        if counts is None:
            return np.ones(classes, np.float32)
        used = max(1, np.count_nonzero(counts))
        return np.where(counts > 0, counts.sum() / (used * np.maximum(counts, 1)), 0).astype(np.float32)
    try:
        values = ast.literal_eval(text)
        weights = np.asarray(values if isinstance(values, tuple | list) else (values,), np.float32)
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(text) from error
    if weights.shape != (classes,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(text)
    return weights


def problems(config: ConfigDict, classes: int | None) -> list[str]:
    """Returns one line per problem with the `loss` section.

    Args:
        config: the section.
        classes: the number of classes, if it is known.
    """
    lines = components.problems(config.name, LOSSES, SLOT, config.options, components.Call(positional=2))
    if classes is not None:
        try:
            class_weights(config.class_weights, classes)
        except ValueError:
            example = ", ".join(["1.0"] * min(classes, 3)) + (", ..." if classes > 3 else "")
            lines.append(
                f'loss.class_weights={config.class_weights!r} must be "", "balanced" or {classes} numbers of at least '
                f'0, one for each class: --config.loss.class_weights="{example}"'
            )
    return lines or _shape_problems(config, classes or 3)


def _shape_problems(config, classes):
    loss = functools.partial(components.find(config.name, LOSSES, SLOT), **config.options)
    like = jax.ShapeDtypeStruct((4, classes), jnp.float32)
    try:
        values: Any = jax.eval_shape(loss, like, like)
        jax.eval_shape(jax.grad(lambda *arguments: jnp.sum(loss(*arguments))), like, like)
    except UserError:
        raise
    except Exception as error:
        return [f"{SLOT}={config.name!r} fails: {components.explain(error)}"]
    shape = getattr(values, "shape", None)
    if shape != (4,):
        found = type(values).__name__ if shape is None else list(shape)
        return [
            f"{SLOT}={config.name!r} maps 4 examples to {found}; it must be [4]: one value for each example, not a mean"
        ]
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return [f"{SLOT}={config.name!r} returns {values.dtype}; it must return float32"]
    return []
