"""Normalization, from augmented images in [0, 1] to the input of the network: `(images - shift) * scale`."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from imgclf_jax.augment.batch import output_size

PIXELS = ("unit", "standardized", "mean_image")


def input_shape(config: ConfigDict, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns the (H, W, C) that the network sees, given that of the images: the size of the crop, if there is one."""
    height, width = output_size(config.augment, image_shape[:2])
    return height, width, image_shape[2]


class Normalization(NamedTuple):
    """An affine map of the pixels. It is kept in checkpoints, so that a trained model needs no training data.

    Attributes:
        shift: float32, broadcastable to [B, H, W, C].
        scale: float32, broadcastable to [B, H, W, C].
    """

    shift: jax.Array | np.ndarray
    scale: jax.Array | np.ndarray

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps float32 [B, H, W, C] in [0, 1] to float32 [B, H, W, C]."""
        shift, scale = (x.reshape((1,) * (images.ndim - x.ndim) + x.shape) for x in self)
        return (images - shift) * scale


def normalization(config: ConfigDict, image_shape: tuple[int, int, int], sums: Any = None) -> Normalization:
    """Returns the map that `config.data.pixels` names.

    "unit" is the identity, "standardized" gives each channel zero mean and unit variance, and "mean_image" takes 0 to
    255 minus the mean image.

    Args:
        config: the whole config.
        image_shape: (H, W, C) of the data set's images.
        sums: the sums over the pixels of the training split, the only split that statistics are taken from; see
            `imgclf_jax.data.statistics.Sums`. "unit" needs none.
    """
    pixels, channels = config.data.pixels, image_shape[-1]
    if pixels == "unit":
        return Normalization(np.zeros(channels, np.float32), np.ones(channels, np.float32))
    if pixels == "mean_image":
        mean = (sums.total / (255 * sums.images)).astype(np.float32)
        # If padding makes the crop larger than the image, the mean of the nearest pixel is repeated.
        rows, columns = (
            np.clip(np.arange(size) + (side - size) // 2, 0, side - 1)
            for side, size in zip(image_shape[:2], input_shape(config, image_shape)[:2], strict=True)
        )
        return Normalization(mean[np.ix_(rows, columns)], np.full(channels, 255, np.float32))
    pixels_per_channel = sums.images * math.prod(image_shape[:2])
    mean = sums.total.sum(axis=(0, 1)) / pixels_per_channel
    variance = sums.squares / pixels_per_channel - mean**2
    # A channel that never changes carries no information: leave it at zero instead of dividing by zero.
    deviation = np.where(variance > 0, np.sqrt(np.maximum(variance, 0)), 1)
    return Normalization((mean / 255).astype(np.float32), (255 / deviation).astype(np.float32))


def stand_in(config: ConfigDict, image_shape: tuple[int, int, int]) -> Normalization:
    """Returns the shapes and dtypes of `normalization`, which do not depend on the data."""
    channels = image_shape[-1:]
    shift = input_shape(config, image_shape) if config.data.pixels == "mean_image" else channels
    return Normalization(*(jax.ShapeDtypeStruct(shape, np.float32) for shape in (shift, channels)))  # type: ignore[arg-type]
