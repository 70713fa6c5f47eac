"""Whether XLA hands convolutions to oneDNN, and the kernel gradient in the form that is fast there.

oneDNN computes the columns of an output row at once, 16 of them in one instruction where the processor multiplies
matrices (AMX). The gradient of a kernel is a convolution with as few outputs in a row as the kernel has columns, 3. As
a convolution in three dimensions, over rows, columns and channels, it has as many as the images have channels.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

FLAG = "--xla_cpu_experimental_onednn_custom_call"
MOST_BYTES = 12 * 2**20  # of the operand that oneDNN packs; larger ones do not stay in the cache


def used() -> bool:
    """Whether convolutions and products on the CPU are oneDNN's: as `imgclf_jax.devices.xla` or the user has set it."""
    return f"{FLAG}=true" in os.environ.get("XLA_FLAGS", "") and jax.version.__version_info__ >= (0, 12)


def kernel_gradient(
    images: jax.Array,
    gradient: jax.Array,
    pads: Sequence[tuple[int, int]],
    strides: tuple[int, int],
    dilation: tuple[int, int],
) -> jax.Array:
    """The gradient of the kernel of a convolution without groups.

    Args:
        images: float [B, H, W, C].
        gradient: float [B, H', W', O], of the same dtype.
        pads: rows and columns around the images, up to the last window; negative values crop.
        strides: of the windows.
        dilation: distances between the taps.

    Returns:
        float [kh, kw, C, O].
    """
    batch = images.shape[0]
    parts = _parts(batch, math.prod(gradient.shape[1:]) * gradient.dtype.itemsize)
    edges = ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0))
    images = lax.pad(images, jnp.zeros((), images.dtype), edges)

    def of_part(images: Any, gradient: Any) -> jax.Array:
        return lax.conv_general_dilated(
            images.transpose(1, 2, 3, 0)[None],
            gradient.transpose(1, 2, 0, 3)[:, :, None],
            (*dilation, 1),
            "VALID",
            rhs_dilation=(*strides, 1),
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )[0]

    if parts == 1:
        return of_part(images, gradient)

    # Every `parts`th example, because the first axis may be divided among devices.
    divided = [x.reshape(batch // parts, parts, *x.shape[1:]) for x in (images, gradient)]

    def add(index, total):
        some = [lax.dynamic_index_in_dim(x, index, 1, keepdims=False) for x in divided]
        return total + of_part(*some).astype(jnp.float32)

    shape = jax.eval_shape(of_part, images[: batch // parts], gradient[: batch // parts]).shape
    return lax.fori_loop(0, parts, add, jnp.zeros(shape, jnp.float32)).astype(images.dtype)


def _parts(batch, bytes_of_one):
    """The number of equal parts of a batch that are about as large as the cache allows; 1 if there is none."""
    least = -(-batch * bytes_of_one // MOST_BYTES)
    return next((parts for parts in range(least, min(2 * least, batch) + 1) if batch % parts == 0), 1)
