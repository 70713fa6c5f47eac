"""Random rectangles by area and aspect ratio, as torchvision's RandomResizedCrop and RandomErasing draw them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

TRIES = 10


class Rectangles(NamedTuple):
    """One rectangle of whole pixels in each image; int32 [B] each.

    Attributes:
        top: the first row.
        left: the first column.
        height: the number of rows.
        width: the number of columns.
    """

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def draw(
    keys: jax.Array,
    size: tuple[int, int],
    area: tuple[float, float],
    ratio: tuple[float, float],
    largest: tuple[int, int],
) -> tuple[Rectangles, jax.Array]:
    """Draws the area uniformly and the logarithm of the ratio uniformly, then the place, in at most `TRIES` tries.

    Args:
        keys: [B], of the operation.
        size: (H, W) of the images.
        area: the least and largest fraction of the image's area.
        ratio: the least and largest width / height.
        largest: (height, width) of the largest rectangle that is taken; others are drawn again.

    Returns:
        The rectangles, which lie within the images; and whether one was found, bool [B]. Where none was, the rectangle
        is the top left pixel.
    """
    height, width = size

    def one(key):
        shape_key, place_key = jax.random.split(key)
        shapes = jax.random.uniform(shape_key, (2, TRIES))
        pixels = height * width * (area[0] + shapes[0] * (area[1] - area[0]))
        low, high = map(math.log, ratio)
        root = jnp.exp((low + shapes[1] * (high - low)) / 2)
        wide, tall = (jnp.round(jnp.sqrt(pixels) * factor).astype(jnp.int32) for factor in (root, 1 / root))
        fits = (tall > 0) & (tall <= largest[0]) & (wide > 0) & (wide <= largest[1])
        first = fits.argmax()
        tall, wide = (jnp.where(fits[first], side[first], 1) for side in (tall, wide))
        # Whole numbers below the number of places; the product may be rounded up to it.
        places = jnp.stack([height - tall, width - wide])
        drawn = (jax.random.uniform(place_key, (2,)) * (places + 1)).astype(jnp.int32)
        top, left = jnp.minimum(drawn, places)
        return Rectangles(top, left, tall, wide), fits[first]

    return jax.vmap(one)(keys)


def within(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """Returns which of `size` places lie in [start, start + length), bool [B, size]; `start` and `length` are [B]."""
    offset = jnp.arange(size)[None, :] - start[:, None]
    return (offset >= 0) & (offset < length[:, None])
