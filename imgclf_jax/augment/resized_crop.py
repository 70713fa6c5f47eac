"""Random windows of any size and shape, resampled to one size: torchvision's RandomResizedCrop.

The source is "Going Deeper with Convolutions" (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842, section 6).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from imgclf_jax.augment import rectangles
from imgclf_jax.augment.rectangles import Rectangles
from imgclf_jax.rng import operation_keys

RATIO = (3 / 4, 4 / 3)  # width / height


def random_resized_crop(
    keys: jax.Array, images: jax.Array, area: Sequence[float], size: Sequence[int] = ()
) -> jax.Array:
    """A window of each image with a drawn area and a ratio of its sides in `RATIO`, resampled to one size.

    Images for which no window fits in ten tries give the largest central window with a ratio in `RATIO`, as in
    torchvision.

    Args:
        keys: [B], of the images.
        images: float32 [B, H, W, C].
        area: (least, largest) fraction of the image's area, in (0, 1].
        size: (h, w) of the result; by default that of the images.

    Returns:
        float32 [B, h, w, C], in [0, 1] if the images are.
    """
    whole = images.shape[1], images.shape[2]
    return resample(images, windows(keys, whole, area), size or whole)


def windows(keys: jax.Array, size: tuple[int, int], area: Sequence[float]) -> Rectangles:
    """Returns the windows that `random_resized_crop` draws in images of (H, W) `size`."""
    height, width = size
    low, high = area
    drawn, found = rectangles.draw(operation_keys(keys, "resized crop"), size, (low, high), RATIO, size)
    wide = min(width, round(height * RATIO[1])) if width > height * RATIO[1] else width
    tall = min(height, round(width / RATIO[0])) if width < height * RATIO[0] else height
    middle = Rectangles(*map(jnp.int32, ((height - tall) // 2, (width - wide) // 2, tall, wide)))
    return jax.tree.map(lambda ours, other: jnp.where(found, ours, other), drawn, middle)


def resample(images: jax.Array, places: Rectangles, size: Sequence[int]) -> jax.Array:
    """Resizes a window of each image linearly, with antialiasing: `PIL.Image.resize` with BILINEAR and a box.

    The weights are PIL's; the results are not rounded to bytes.

    Args:
        images: float32 [B, H, W, C].
        places: the windows.
        size: (h, w) of the results.

    Returns:
        float32 [B, h, w, C], in [0, 1] if the images are.
    """
    rows = _weights(places.top, places.height, images.shape[1], size[0])
    columns = _weights(places.left, places.width, images.shape[2], size[1])
    # Two products with small matrices; float32 on every device.
    exact = jax.lax.Precision.HIGHEST
    shorter = jnp.einsum("byi,bijc->byjc", rows, images, precision=exact)
    result = jnp.einsum("bxj,byjc->byxc", columns, shorter, precision=exact)
    return jnp.clip(result, 0, 1)  # The weights add up to 1 only up to rounding.


def _weights(start: jax.Array, length: jax.Array, source: int, target: int) -> jax.Array:
    """What each of `source` pixels contributes to each of `target` ones: float32 [B, target, source]."""
    scale = (length / target).astype(jnp.float32)[:, None, None]
    center = (jnp.arange(target, dtype=jnp.float32) + 0.5)[None, :, None] * scale + start[:, None, None]
    distance = jnp.abs((jnp.arange(source, dtype=jnp.float32) + 0.5)[None, None, :] - center)
    weights = jnp.maximum(1 - distance / jnp.maximum(scale, 1), 0)
    weights = weights * rectangles.within(start, length, source)[:, None, :]
    return weights / weights.sum(-1, keepdims=True)
