"""From augmented images in [0, 1] to what the network sees: `(images - shift) * scale`."""

import math
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from imgclf_jax import augment
from imgclf_jax.data import statistics
from imgclf_jax.data.types import Images

PIXELS = ("unit", "standardized", "mean_image")


def shape(config: ConfigDict, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(H, W, C) of what the network sees of images (H, W, C): the crop's size, where there is one."""
    height, width = augment.output_size(config.augment, image_shape[:2])
    return height, width, image_shape[2]


class Normalization(NamedTuple):
    """An affine map of the pixels. Kept in checkpoints, so that a trained model needs no training data.

    Attributes:
        shift: float32, broadcastable to [B, H, W, C].
        scale: float32, likewise.
    """

    shift: jax.Array | np.ndarray
    scale: jax.Array | np.ndarray

    def __call__(self, images: jax.Array) -> jax.Array:
        """float32 [B, H, W, C] in [0, 1] -> float32 [B, H, W, C]."""
        shift, scale = (jax.lax.broadcast_to_rank(array, images.ndim) for array in self)
        return (images - shift) * scale


def normalization(
    pixels: str, images: Images, crop: tuple[int, ...] = (), sums: statistics.Sums | None = None
) -> Normalization:
    """The map that `config.data.pixels` names.

    Args:
        pixels: "unit" (identity), "standardized" (zero mean and unit variance a channel) or "mean_image" (0 to 255
            minus the mean image).
        images: uint8 [N, H, W, C], the training split; the only one that statistics are taken from.
        crop: (height, width) that the network sees; the mean image is cropped to its centre. Empty: all of it.
        sums: of these images, where they are known.
    """
    channels = images.shape[-1]
    if pixels == "unit":
        return Normalization(np.zeros(channels, np.float32), np.ones(channels, np.float32))
    total, squares = sums or statistics.add_up(_chunks(images), images.shape[1:], squares=pixels == "standardized")
    if pixels == "mean_image":
        mean = (total / (255 * len(images))).astype(np.float32)
        if crop:
            # Where padding makes the window larger than the image, the mean of the nearest pixel goes on.
            rows, columns = (
                np.clip(np.arange(side) + (size - side) // 2, 0, size - 1)
                for size, side in zip(mean.shape, crop, strict=False)
            )
            mean = mean[np.ix_(rows, columns)]
        return Normalization(mean, np.full(channels, 255, np.float32))
    pixels_a_channel = math.prod(images.shape[:3])
    mean = total.sum(axis=(0, 1)) / pixels_a_channel
    variance = squares / pixels_a_channel - mean**2
    # A channel that never changes carries nothing: leave it at zero instead of dividing by zero.
    deviation = np.where(variance > 0, np.sqrt(np.maximum(variance, 0)), 1)
    return Normalization((mean / 255).astype(np.float32), (255 / deviation).astype(np.float32))


def _chunks(images, size=2048):
    return (np.asarray(images[start : start + size]) for start in range(0, len(images), size))
