"""Depthwise convolution as sums of shifted images, which the CPU computes tens of times faster.

Each channel has a kernel of its own, so there is no sum over channels that a matrix product could take, and XLA's CPU
compiler treats every channel as a convolution of a single one. As sums of products of whole images it is a few passes
over the memory. The gradient of the kernel takes one sum for each of its taps.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], ...]


def convolve(
    images: jax.Array, kernel: jax.Array, pads: Pads, strides: tuple[int, int], dilation: tuple[int, int]
) -> jax.Array:
    """Convolution with as many groups as channels. Sums are float32.

    Args:
        images: float [B, H, W, C].
        kernel: float [kh, kw, 1, C · m]: m outputs of each channel, next to each other.
        pads: rows and columns of zeros around the images; negative values crop.
        strides: steps of the window, in pixels.
        dilation: distances between the pixels of a window.

    Returns:
        float [B, H', W', C · m].
    """
    multiplier = kernel.shape[3] // images.shape[3]
    if multiplier > 1:
        images = jnp.repeat(images, multiplier, axis=3)
    return _convolve(images, kernel, pads, strides, dilation)


def _value(images, kernel, pads, strides, dilation):
    images = _pad(images.astype(jnp.float32), pads)
    sides = [
        (size - (side - 1) * far - 1) // step + 1
        for size, side, far, step in zip(images.shape[1:3], kernel.shape[:2], dilation, strides, strict=True)
    ]
    seen = shifted(images, kernel.shape, (images.shape[0], *sides), strides, dilation)
    return _weighted(seen, kernel).astype(kernel.dtype)


_convolve = jax.custom_vjp(_value, nondiff_argnums=(2, 3, 4))


def _forward(images, kernel, pads, strides, dilation):
    return _value(images, kernel, pads, strides, dilation), (images, kernel)


def _backward(pads, strides, dilation, saved, gradient):
    images, kernel = saved
    gradient = gradient.astype(jnp.float32)
    # Images: the gradient, spread out by the strides, correlated with the rotated kernel.
    inside, edges = [], []
    for axis in range(2):
        reach = (kernel.shape[axis] - 1) * dilation[axis]
        size, low = images.shape[axis + 1], reach - pads[axis][0]
        inside.append(strides[axis] - 1)
        edges.append((low, size + reach - low - ((gradient.shape[axis + 1] - 1) * strides[axis] + 1)))
    spread = _pad(gradient, edges, inside)
    seen = shifted(spread, kernel.shape, images.shape, (1, 1), dilation)
    to_images = _weighted(seen, jnp.flip(kernel, (0, 1))).astype(images.dtype)
    # Kernel: one sum over all pixels for each tap.
    whole = full_pads(images.shape, kernel.shape, gradient.shape, pads, strides, dilation)
    seen = shifted(_pad(images.astype(jnp.float32), whole), kernel.shape, gradient.shape, strides, dilation)
    to_kernel = jnp.stack([(pixels * gradient).sum(axis=(0, 1, 2)) for pixels in seen])
    return to_images, to_kernel.reshape(kernel.shape).astype(kernel.dtype)


_convolve.defvjp(_forward, _backward)


def shifted(
    images: jax.Array,
    kernel_shape: Sequence[int],
    output_shape: Sequence[int],
    strides: tuple[int, int],
    dilation: tuple[int, int],
) -> Iterator[jax.Array]:
    """The pixels that each tap of a kernel meets, row by row: float [B, H', W', C] for each tap.

    Args:
        images: float [B, H, W, C], with their padding.
        kernel_shape: (kh, kw, ...).
        output_shape: (B, H', W', ...).
        strides: steps of the window.
        dilation: distances between the taps.
    """
    down, across = ((size - 1) * step + 1 for size, step in zip(output_shape[1:3], strides, strict=True))
    for row in range(0, kernel_shape[0] * dilation[0], dilation[0]):
        for column in range(0, kernel_shape[1] * dilation[1], dilation[1]):
            yield images[:, row : row + down : strides[0], column : column + across : strides[1]]


def full_pads(
    image_shape: Sequence[int],
    kernel_shape: Sequence[int],
    output_shape: Sequence[int],
    pads: Pads,
    strides: tuple[int, int],
    dilation: tuple[int, int],
) -> Pads:
    """The padding that ends where the last window ends. Rows and columns that no window sees are cropped."""
    whole = []
    for axis, (low, _) in enumerate(pads):
        needed = (output_shape[axis + 1] - 1) * strides[axis] + (kernel_shape[axis] - 1) * dilation[axis] + 1
        whole.append((low, needed - image_shape[axis + 1] - low))
    return tuple(whole)


def _weighted(seen, kernel):
    total = None
    for pixels, weights in zip(seen, kernel.astype(jnp.float32).reshape(-1, kernel.shape[-1]), strict=True):
        product = pixels * lax.broadcast_to_rank(weights, pixels.ndim)
        total = product if total is None else total + product
    return total


def _pad(images, pads, inside=(0, 0)):
    config = ((0, 0, 0), *((low, high, gap) for (low, high), gap in zip(pads, inside, strict=True)), (0, 0, 0))
    return lax.pad(images, jnp.zeros((), images.dtype), config)
