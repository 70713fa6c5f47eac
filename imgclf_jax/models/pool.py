"""Pooling with gradients that are fast on the CPU and deterministic everywhere, unlike that of `lax.reduce_window`."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from imgclf_jax import onednn


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
    if onednn.serves(images):
        return _max_onednn(images, window)
    batch, height, width, channels = images.shape
    rows, columns = height // window, width // window
    images = images[:, : rows * window, : columns * window]
    return _max_of_windows(images.reshape(batch, rows, window, columns, window, channels))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_onednn(images, window):
    return onednn.max_pool(images, window)[0]


def _onednn_forward(images, window):
    highest, places = onednn.max_pool(images, window)
    return highest, (places, images)


def _onednn_backward(window, saved, gradient):
    places, images = saved  # Of the images, only the shape is used.
    return (onednn.max_pool_gradient(gradient, places, images.shape, window),)


_max_onednn.defvjp(_onednn_forward, _onednn_backward)


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


def overlapping_max_pool(images: jax.Array, window: int = 3, stride: int = 2, pad: int = 1) -> jax.Array:
    """Max-pooling of windows that may overlap, as in the stem of a ResNet. The padding is never the maximum.

    A maximum over shifted slices, one for each pixel of the window. If several pixels share it, the first one gets the
    gradient.

    Args:
        images: float [B, H, W, C].
        window: side of the square window in pixels.
        stride: step of the window in pixels.
        pad: rows and columns around the images, in pixels, less than `window`.

    Returns:
        float [B, H', W', C] with H' = (H + 2 · pad - window) // stride + 1.
    """
    return _max_of_slices(images, (window, stride, pad), images.shape[1:3])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_of_slices(images, windows, size):
    return functools.reduce(jnp.maximum, _slices(images, windows))


def _slices(images, windows):
    """The pixels at each place of the windows, row by row: float [B, H', W', C] for each place."""
    window, stride, pad = windows
    lowest = jnp.array(-jnp.inf, images.dtype)
    padded = lax.pad(images, lowest, ((0, 0, 0), (pad, pad, 0), (pad, pad, 0), (0, 0, 0)))
    down, across = ((side - window) // stride * stride + 1 for side in padded.shape[1:3])
    for row in range(window):
        for column in range(window):
            yield padded[:, row : row + down : stride, column : column + across : stride]


def _slices_forward(images, windows, size):
    highest = _max_of_slices(images, windows, size)
    first = jnp.full(highest.shape, windows[0] ** 2 - 1, jnp.int8)
    for place, pixels in reversed(list(enumerate(_slices(images, windows)))[:-1]):
        first = jnp.where(pixels == highest, jnp.int8(place), first)
    return highest, first


def _slices_backward(windows, size, first, gradient):
    """Each place of the windows gets the gradient of those whose first maximum it is, where it lies in the image."""
    window, stride, pad = windows
    total = None
    for place in range(window * window):
        here = jnp.where(first == place, gradient, 0)
        edges = []
        for side, outputs, low in zip(size, gradient.shape[1:3], divmod(place, window), strict=True):
            low -= pad
            edges.append((low, side - low - ((outputs - 1) * stride + 1), stride - 1))
        spread = lax.pad(here, jnp.zeros((), here.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
        total = spread if total is None else total + spread
    return (total,)


_max_of_slices.defvjp(_slices_forward, _slices_backward)
