"""Makes networks of stock Flax layers as fast inside a loop as outside, without changes to their source."""

import contextlib
from collections.abc import Iterator

import flax.linen as nn
import jax

from imgclf_jax.models.conv import conv_general_dilated


@contextlib.contextmanager
def fast_convolutions() -> Iterator[None]:
    """Within this block, each `nn.Conv` computes with `imgclf_jax.models.conv.conv_general_dilated`.

    The same function to rounding. On the CPU it has a reverse-mode derivative only; elsewhere the block has no effect.
    A layer that has been given a convolution of its own keeps it. Put the block around `model.apply` where it is
    traced::

        with fast_convolutions():
            logits = model.apply(variables, images)
    """
    if jax.default_backend() != "cpu":
        yield
        return
    with nn.intercept_methods(_replace):
        yield


def _replace(call, arguments, options, context):
    layer = context.module
    stock = isinstance(layer, nn.Conv) and layer.conv_general_dilated is None and layer.conv_general_dilated_cls is None
    if not stock or context.method_name != "__call__":
        return call(*arguments, **options)
    # Modules are frozen, and a clone would not have this module's scope.
    object.__setattr__(layer, "conv_general_dilated", conv_general_dilated)
    try:
        return call(*arguments, **options)
    finally:
        object.__setattr__(layer, "conv_general_dilated", None)
