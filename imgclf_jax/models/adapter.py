"""Lets any Flax Linen module be called like the networks of this package.

Ours draw dropout from one key for each image, so that the draw of an image does not depend on the other images or on
the devices. `nn.Dropout` takes one stream for all images that a device sees: still a function of (seed, step), but also
of the number of devices, of the strategy and of `train.accumulate`.
"""

import contextlib
import functools
import inspect
import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgclf_jax.models.stock import fast_convolutions

KEPT = ("params", "batch_stats")  # the collections of variables that a training state holds


class Adapter:
    """A module with the calling convention of this package.

    `train=True` is passed as `train=True` or `deterministic=False`, whichever the module's `__call__` takes, or not at
    all; and the image keys as `keys` if it takes them. All random streams of the module derive from these keys. Stock
    `nn.BatchNorm` layers use the global batch with every strategy.

    Attributes:
        module: the module.
    """

    def __init__(self, module: nn.Module, axis_name: str | None = None):
        """Wraps a module.

        Args:
            module: images float32 [B, H, W, C] -> logits [B, classes].
            axis_name: name of the device axis, if each device sees only its part of a batch.
        """
        self.module, self._axis_name = module, axis_name
        # What `nnx.bridge.to_linen` returns passes its arguments on to the class that it wraps.
        wrapped = getattr(module, "nnx_class", type(module))
        self._takes = set(inspect.signature(wrapped.__call__).parameters)

    def init(self, key: jax.Array, images: jax.Array, train: bool = False) -> Any:
        """Returns the initial variables; see `flax.linen.Module.init`."""
        variables = self.module.init(_streams(key), images, **self._mode(train, None))
        return {name: value for name, value in variables.items() if name in KEPT}

    def apply(
        self, variables: Any, images: jax.Array, *, train: bool, keys: jax.Array | None = None, mutable: Any = False
    ) -> Any:
        """Computes logits; see `flax.linen.Module.apply`.

        Args:
            variables: "params" and "batch_stats".
            images: float32 [B, H, W, C].
            train: whether the network is trained.
            keys: one key for each image [B]; only in training.
            mutable: the collections that change, whose new values are then returned too.
        """
        rngs: dict[str, jax.Array] = {}
        if keys is not None:
            # Flax takes streams of other names from "params".
            rngs = {name: jax.random.fold_in(keys[0], zlib.crc32(name.encode())) for name in ("dropout", "params")}
        # Only gradients are slow without it, and an exported network has a batch of unknown size.
        fast = fast_convolutions() if train else contextlib.nullcontext()
        with fast, nn.intercept_methods(functools.partial(_over_devices, self._axis_name)):
            return self.module.apply(variables, images, **self._mode(train, keys), rngs=rngs, mutable=mutable)

    def _mode(self, train, keys):
        options = {"train": train, "deterministic": not train, "keys": keys}
        return {name: value for name, value in options.items() if name in self._takes}


def _streams(key):
    """The random streams of an initialization: modules of Flax NNX want their dropout's stream when they are made."""
    return {"params": key, "dropout": jax.random.fold_in(key, zlib.crc32(b"dropout"))}


def _over_devices(axis_name, call, arguments, options, context):
    """Gives stock batch normalization the name of the device axis."""
    layer = context.module
    stock = isinstance(layer, nn.BatchNorm) and context.method_name == "__call__" and layer.axis_name is None
    if axis_name is None or not stock:
        return call(*arguments, **options)
    # Modules are frozen, and a clone would not have this module's scope.
    object.__setattr__(layer, "axis_name", axis_name)
    try:
        return call(*arguments, **options)
    finally:
        object.__setattr__(layer, "axis_name", None)


def problems(module: Any, name: str, input_shape: tuple[int, int, int], classes: int | None) -> str | None:
    """Returns what is wrong with the shapes and variables of a module, or `None`; computes nothing.

    Args:
        module: what the class or function `name` returned.
        name: "module:attribute".
        input_shape: (H, W, C).
        classes: the number of classes; `None` if it is not known.

    Raises:
        Exception: that of the module.
    """
    if not isinstance(module, nn.Module):
        return f"makes {type(module).__name__}, not a Flax Linen module"
    network = Adapter(module)
    images = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables: Any = jax.eval_shape(
        lambda key, images: module.init(_streams(key), images, **network._mode(False, None)), key, images
    )
    if others := sorted(set(variables) - {*KEPT, "intermediates", "losses"}):
        return f"has variables in {', '.join(others)}; only {' and '.join(KEPT)} are kept"
    if not variables.get("params"):
        return "has no parameters"
    variables = {kept: variables[kept] for kept in KEPT if kept in variables}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))

    def train(variables, images, keys):
        return network.apply(variables, images, train=True, keys=keys, mutable=["batch_stats"])[0]

    logits: Any = jax.eval_shape(train, variables, images, keys)
    shape = getattr(logits, "shape", None)
    wanted = "classes" if classes is None else classes
    if shape is None or len(shape) != 2 or shape[0] != 2 or (classes is not None and shape[1] != classes):
        what = type(logits).__name__ if shape is None else list(shape)
        return f"maps images {list(images.shape)} to {what}; it must be logits [2, {wanted}]"
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        return f"returns {logits.dtype}; logits must be floating-point numbers"
    return None
