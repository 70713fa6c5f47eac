"""Convolution and max-pooling whose gradients are fast on every backend.

XLA's CPU compiler rewrites convolutions to the layout of its fast kernels only in the entry computation, not inside
loops (https://github.com/jax-ml/jax/issues/12868). In a `lax.while_loop` over training steps, the gradients that JAX
derives have operands in permuted layouts and run tens of times slower than necessary. Here the gradients are written
so that every operation is a plain NHWC/HWIO convolution, which is already fast. On other backends, `conv2d` is just
`lax.conv_general_dilated`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

Padding = Literal["SAME", "VALID"]
Pads = tuple[tuple[int, int], ...]  # (above, below), (left, right) of the images, in pixels


def conv2d(images: jax.Array, kernel: jax.Array, padding: Padding = "SAME") -> jax.Array:
    """2-D convolution (cross-correlation) with stride 1.

    Args:
        images: float [B, H, W, C].
        kernel: float [kh, kw, C, O], both sides odd for SAME.
        padding: "SAME" keeps H and W; "VALID" uses only whole windows.

    Returns:
        float [B, H, W, O] or [B, H - kh + 1, W - kw + 1, O].
    """
    return convolve(images, kernel, pads(kernel, padding))


def max_pool(images: jax.Array, window: int = 2) -> jax.Array:
    """Max-pooling with stride equal to the window. Rows and columns that do not fill a window are dropped.

    A reshape and a maximum, because the gradient of `lax.reduce_window` is serial on the CPU and has no deterministic
    implementation on GPUs. If several pixels of a window share the maximum, the first one gets the gradient.

    Args:
        images: float [B, H, W, C].
        window: side of the square window in pixels.

    Returns:
        float [B, H // window, W // window, C].
    """
    batch, height, width, channels = images.shape
    rows, columns = height // window, width // window
    images = images[:, : rows * window, : columns * window]
    return _max_of_windows(images.reshape(batch, rows, window, columns, window, channels))


@jax.custom_vjp
def _max_of_windows(windows: jax.Array) -> jax.Array:
    """[B, rows, window, columns, window, C] -> [B, rows, columns, C]."""
    return windows.max(axis=(2, 4))


def _max_forward(windows):
    highest = windows.max(axis=(2, 4))
    return highest, (windows, highest)


def _max_backward(saved, gradient):
    """Two passes over the windows. The gradient that JAX derives also counts the equal pixels, in further passes."""
    windows, highest = saved
    side = windows.shape[2]
    first = jnp.full(highest.shape, side * side - 1, jnp.int8)
    for position in reversed(range(side * side - 1)):
        pixel = windows[:, :, position // side, :, position % side]
        first = jnp.where(pixel == highest, jnp.int8(position), first)
    rows = jax.lax.broadcasted_iota(jnp.int8, (side, 1, side, 1), 0)
    columns = jax.lax.broadcasted_iota(jnp.int8, (side, 1, side, 1), 2)
    here = first[:, :, None, :, None] == (rows * side + columns)[None, None]
    return (jnp.where(here, gradient[:, :, None, :, None], 0),)


_max_of_windows.defvjp(_max_forward, _max_backward)


def convolve(images: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """`conv2d` with explicit padding: rows and columns of zeros around the images."""
    return (_conv_cpu if jax.default_backend() == "cpu" else _conv)(images, kernel, pads)


def _conv(images: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(images, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def pads(kernel: jax.Array, padding: Padding) -> Pads:
    """The explicit padding of a named one, for a kernel [kh, kw, C, O]."""
    return tuple(((side - 1) // 2, side // 2) if padding == "SAME" else (0, 0) for side in kernel.shape[:2])


_conv_cpu = jax.custom_vjp(_conv, nondiff_argnums=(2,))


def _forward(images, kernel, pads):
    return _conv(images, kernel, pads), (images, kernel)


def _backward(pads, saved, gradient):
    images, kernel = saved
    # Input: the full correlation of the gradient with the kernel rotated by 180 degrees.
    rotated = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    full = tuple((side - 1 - low, side - 1 - high) for side, (low, high) in zip(kernel.shape[:2], pads, strict=True))
    return _conv(gradient, rotated, full), _kernel_gradient(images, gradient, pads)


def _kernel_gradient(images, gradient, pads):
    """The images correlated with the gradient: a convolution with channels and examples swapped."""
    transposed = _conv(images.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), pads)
    return transposed.transpose(1, 2, 0, 3)


_conv_cpu.defvjp(_forward, _backward)
