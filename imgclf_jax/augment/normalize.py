"""Normalization, from augmented images in [0, 1] to the input of the network: `(images - shift) * scale`."""

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
    """(H, W, C) of the input of the network for images (H, W, C): the size of the crop, if there is one."""
    height, width = augment.output_size(config.augment, image_shape[:2])
    return height, width, image_shape[2]


class Normalization(NamedTuple):
    """An affine map of the pixels. It is saved in checkpoints, so that a trained model needs no training data.

    Attributes:
        shift: float32, broadcastable to [B, H, W, C].
        scale: float32, broadcastable to [B, H, W, C].
    """

    shift: jax.Array | np.ndarray
    scale: jax.Array | np.ndarray

    def __call__(self, images: jax.Array) -> jax.Array:
        """float32 [B, H, W, C] in [0, 1] -> float32 [B, H, W, C]."""
        return (images - self.shift) * self.scale


def normalization(
    pixels: str, images: Images, crop: tuple[int, ...] = (), sums: statistics.Sums | None = None
) -> Normalization:
    """The normalization for `config.data.pixels`.

    Args:
        pixels: "unit" (identity), "standardized" (zero mean and unit variance per channel) or "mean_image" (0 to 255
            minus the mean image).
        images: uint8 [N, H, W, C], the training split, the only split that statistics are computed from.
        crop: (height, width) of the network's input; the mean image is cropped to its center. Empty: not cropped.
        sums: of these images, if they are known.
    """
    channels = images.shape[-1]
    if pixels == "unit":
        return Normalization(np.zeros(channels, np.float32), np.ones(channels, np.float32))
    total, squares = sums or statistics.add_up(_chunks(images), images.shape[1:], squares=pixels == "standardized")
    if pixels == "mean_image":
        mean = (total / (255 * len(images))).astype(np.float32)
        if crop:
            # If padding makes the window larger than the image, extend the mean from the nearest pixel.
            rows, columns = (
                np.clip(np.arange(side) + (size - side) // 2, 0, size - 1)
                for size, side in zip(mean.shape, crop, strict=False)
            )
            mean = mean[np.ix_(rows, columns)]
        return Normalization(mean, np.full(channels, 255, np.float32))
    pixels_a_channel = math.prod(images.shape[:3])
    mean = total.sum(axis=(0, 1)) / pixels_a_channel
    variance = squares / pixels_a_channel - mean**2
    # A constant channel carries no information: leave it at zero instead of dividing by zero.
    deviation = np.where(variance > 0, np.sqrt(np.maximum(variance, 0)), 1)
    return Normalization((mean / 255).astype(np.float32), (255 / deviation).astype(np.float32))


def _chunks(images, size=2048):
    return (np.asarray(images[start : start + size]) for start in range(0, len(images), size))
