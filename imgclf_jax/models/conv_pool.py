"""Fused convolution and max-pooling, which skips pixels that no window reads and speeds up first layers on the CPU.

With three input channels, a convolution cannot fill the vector registers of the CPU: most of its time goes to gathering
pixels. In training on the CPU, the (k + 1)×(k + 1) pixels that a 2×2 window of outputs sees are therefore gathered
once, as one row of a matrix. The four outputs of the window are the products of that row with the kernel at its four
positions, padded with zeros. The zeros multiply the arithmetic by (k + 1)² / k² and save three quarters of the
gathering.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from imgclf_jax import onednn
from imgclf_jax.models.conv import Padding, Pads, convolve, pads
from imgclf_jax.models.pool import max_pool

FEW_CHANNELS, FEW_FEATURES = 4, 32  # with more channels in or out, the plain convolution is as fast or faster
PLACES = (0, 0), (0, 1), (1, 0), (1, 1)  # positions of an output in its window


def conv2d_max_pool(images: jax.Array, kernel: jax.Array, padding: Padding = "SAME", window: int = 2) -> jax.Array:
    """`max_pool(conv2d(images, kernel, padding), window)`, without computing outputs that pooling drops.

    Args:
        images: float [B, H, W, C].
        kernel: float [kh, kw, C, O], both sides odd for SAME.
        padding: see `conv2d`.
        window: side of the square window in pixels.

    Returns:
        float [B, H' // window, W' // window, O], where H' and W' are the output sizes of `conv2d`.
    """
    kept, needed = [], []
    for size, side, (low, high) in zip(images.shape[1:3], kernel.shape[:2], pads(kernel, padding), strict=True):
        outputs = (size + low + high - side + 1) // window * window
        end = outputs + side - 1 - low  # end of the rows that the windows see, including the padding after the image
        kept.append(min(size, end))
        needed.append((low, max(0, end - size)))
    images = images[:, : kept[0], : kept[1]]
    few = kernel.shape[2] <= FEW_CHANNELS and kernel.shape[3] <= FEW_FEATURES
    odd = kernel.shape[0] % 2 == kernel.shape[1] % 2 == 1
    if jax.default_backend() == "cpu" and not onednn.serves(images) and window == 2 and odd and few:
        return _few_channels(images, kernel, tuple(needed))
    return max_pool(convolve(images, kernel, tuple(needed)), window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _few_channels(images: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """The plain computation, used without a gradient. Both sides of the pooled array are even."""
    return max_pool(convolve(images, kernel, pads), 2)


def _forward(images, kernel, pads):
    patches = _patches(images, kernel.shape, pads)
    products = patches.reshape(-1, patches.shape[-1]) @ _at_all_places(kernel)
    products = products.reshape(*patches.shape[:3], len(PLACES), -1)
    highest = products.max(axis=3)
    first = jnp.full(highest.shape, len(PLACES) - 1, jnp.int8)
    for place in reversed(range(len(PLACES) - 1)):
        first = jnp.where(products[..., place, :] == highest, jnp.int8(place), first)
    return highest, (images, kernel, patches, first)


def _backward(pads, saved, gradient):
    """Both gradients. The compiler drops that of the images if it is unused, as in a first layer."""
    images, kernel, patches, first = saved
    # Four products of arrays in their own layout: a single product would need them interleaved first.
    gradients = [jnp.where(first == place, gradient, 0) for place in range(len(PLACES))]
    rows = patches.reshape(-1, patches.shape[-1])
    by_place = [lax.dot_general(rows, x.reshape(-1, x.shape[-1]), (((0,), (0,)), ((), ()))) for x in gradients]
    (to_kernel,) = jax.linear_transpose(_at_all_places, kernel)(jnp.concatenate(by_place, axis=-1))
    to_patches = jnp.concatenate(gradients, axis=-1) @ _at_all_places(kernel).T
    (to_images,) = jax.linear_transpose(lambda x: _patches(x, kernel.shape, pads), images)(to_patches)
    return to_images, to_kernel


_few_channels.defvjp(_forward, _backward)


def _at_all_places(kernel):
    """float [kh, kw, C, O] -> [(kh + 1) · (kw + 1) · C, 4 · O]."""
    shifted = [jnp.pad(kernel, ((row, 1 - row), (column, 1 - column), (0, 0), (0, 0))) for row, column in PLACES]
    return jnp.concatenate(shifted, axis=-1).reshape(-1, len(PLACES) * kernel.shape[-1])


def _patches(images, kernel_shape, pads):
    """float [B, H, W, C] -> [B, H' / 2, W' / 2, (kh + 1) · (kw + 1) · C]: all pixels that each window sees.

    Implemented as two concatenations of slices that keep pairs of pixels together.
    """
    height, width = kernel_shape[:2]
    images = jnp.pad(images, ((0, 0), *pads, (0, 0)))
    batch, rows, columns, channels = images.shape
    down, across = (rows - height + 1) // 2, (columns - width + 1) // 2
    pairs = images.reshape(batch, rows, columns // 2, 2 * channels)
    lines = jnp.concatenate([pairs[:, :, i : i + across] for i in range((width + 1) // 2)], axis=-1)
    lines = lines.reshape(batch, rows // 2, 2, across, -1)
    return jnp.concatenate([lines[:, i // 2 : i // 2 + down, i % 2] for i in range(height + 1)], axis=-1)
