"""Augmentations of your own, named in `augment.extra`. They come after ours, in the order of the list.

A function of two arguments is (key, image float32 [H, W, C] in [0, 1]) -> image, for one image. A function of three is
(keys [B], images, targets float32 [B, classes]) -> (images, targets); it mixes the examples of a batch, or of a
device's share of one. A key depends only on (seed, step), the function's name and the image's place in the batch.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from imgclf_jax import components
from imgclf_jax.errors import UserError
from imgclf_jax.rng import image_keys, operation_keys

SLOT = "augment.extra"


def apply(names: Sequence[str], keys: jax.Array, images: jax.Array) -> jax.Array:
    """Applies those functions that see one image at a time.

    Args:
        names: `augment.extra`.
        keys: [B].
        images: float32 [B, H, W, C].
    """
    for name, function in _found(names, 2):
        images = jax.vmap(function)(operation_keys(keys, name), images)
    return images


def mixing(names: Sequence[str], before: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """Returns a function like `imgclf_jax.augment.mixing.mix` that also applies those that see a batch.

    Args:
        names: `augment.extra`.
        before: what is applied first, if anything.
    """
    functions = _found(names, 3)
    if not functions:
        return before
    return functools.partial(_mix, functions, before)


def _mix(functions, before, key, images, targets, positions=None):
    if before is not None:
        images, targets = before(key, images, targets, positions)
    positions = jnp.arange(len(images)) if positions is None else positions
    keys = image_keys(key, positions)
    for name, function in functions:
        images, targets = function(operation_keys(keys, name), images, targets)
    return images, targets


def problems(names: Sequence[str], shape: tuple[int, int, int], classes: int) -> list[str]:
    """Returns one line for each function that is missing, fails, or changes a shape or dtype.

    Args:
        names: `augment.extra`.
        shape: (h, w, C) of the images after our augmentation.
        classes: the number of classes.
    """
    return [line for name in names for line in _problems(name, shape, classes)]


def _problems(name, shape, classes):
    try:
        function = components.find(name, {}, SLOT)
        count = _arguments(function)
    except UserError as error:
        return [str(error)]
    except (TypeError, ValueError):
        count = 0
    if count not in (2, 3):
        return [f"{SLOT}={name!r} must take (key, image) or (keys, images, targets)"]
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))
    images = jax.ShapeDtypeStruct((4, *shape), jnp.float32)
    targets = jax.ShapeDtypeStruct((4, classes), jnp.float32)
    try:
        if count == 2:
            found: Any = jax.eval_shape(jax.vmap(function), keys, images)
            wanted: Any = images
        else:
            found = jax.eval_shape(function, keys, images, targets)
            wanted = (images, targets)
    except Exception as error:
        return [f"{SLOT}={name!r} fails: {components.explain(error)}"]
    if _described(found) != _described(wanted):
        return [f"{SLOT}={name!r} turns {_described(wanted)} into {_described(found)}; shapes and dtypes must stay"]
    return []


def _described(tree):
    if isinstance(tree, tuple | list):
        return " and ".join(map(_described, tree))
    if not hasattr(tree, "shape"):
        return type(tree).__name__
    return f"{tree.dtype} [{', '.join(map(str, tree.shape))}]"


def _found(names, count):
    found = [(name, components.find(name, {}, SLOT)) for name in names]
    return [(name, function) for name, function in found if _arguments(function) == count]


def _arguments(function):
    """The number of arguments that a function must be called with."""
    kinds = inspect.Parameter
    return sum(
        value.default is kinds.empty and value.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
        for value in inspect.signature(function).parameters.values()
    )
