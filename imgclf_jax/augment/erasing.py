"""Random erasing: a rectangle of some images is blanked or filled with noise (Zhong et al. 2017).

The paper is https://arxiv.org/abs/1708.04896; areas, ratios and tries are those of torchvision's RandomErasing. There
the images are usually normalized first, so that 0 is the mean color; here they are in [0, 1], and 0 is black.
"""

import math

import jax
import jax.numpy as jnp

from imgclf_jax.augment import rectangles
from imgclf_jax.rng import image_uniform, operation_keys

AREA = (0.02, 0.33)  # fractions of the image
RATIO = (1 / 3.3, 1 / 0.3)  # width / height; torchvision's (0.3, 3.3) is height / width
FILLS = ("zero", "noise")


def random_erasing(keys: jax.Array, images: jax.Array, probability: float, fill: str = "zero") -> jax.Array:
    """Fills a rectangle of each image with the given probability.

    An image for which no rectangle smaller than itself is found in ten tries stays whole.

    Args:
        keys: [B], of the images.
        images: float32 [B, H, W, C] in [0, 1].
        probability: of each image.
        fill: "zero", or "noise": a level from 0 to 255 for each pixel and channel, the variant RE-R of the paper.

    Returns:
        float32 [B, H, W, C] in [0, 1].

    Raises:
        ValueError: the fill is unknown.
    """
    if fill not in FILLS:
        raise ValueError(f"fill={fill!r} is not one of {', '.join(FILLS)}")
    height, width = images.shape[1:3]
    size = (height, width)
    places, found = rectangles.draw(
        operation_keys(keys, "erasing"), size, AREA, RATIO, (max(height - 1, 0), max(width - 1, 0))
    )
    erased = found & (image_uniform(keys, "erasing chance", 0.0, 1.0) < probability)
    rows = rectangles.within(places.top, places.height, height) & erased[:, None]
    columns = rectangles.within(places.left, places.width, width)
    inside = (rows[:, :, None] & columns[:, None, :])[..., None].astype(images.dtype)
    # Products: see `imgclf_jax.augment.batch.cutout`.
    kept = images * (1 - inside)
    if fill == "zero":
        return kept
    return kept + inside * _noise(operation_keys(keys, "erasing noise"), images.shape[1:])


def _noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Levels from 0 to 255, as float32 [B, *shape] in [0, 1]: four of them from each drawn word of 32 bits."""
    size = math.prod(shape)
    words = jax.vmap(lambda key: jax.random.bits(key, (-(-size // 4),), jnp.uint32))(keys)
    levels = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(len(keys), -1)[:, :size]
    return levels.reshape(-1, *shape).astype(jnp.float32) / 255
