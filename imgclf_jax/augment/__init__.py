"""Augmentation and normalization: pure, batched functions (key, images) -> network inputs, on the device."""

from imgclf_jax.augment.batch import (
    PAD_MODES,
    alternating,
    augment,
    central,
    central_crop,
    cutout,
    output_size,
    problems,
    random_brightness,
    random_contrast,
    random_crop,
    random_flip,
    random_hue,
    random_saturation,
)
from imgclf_jax.augment.normalize import PIXELS, Normalization, input_shape, normalization, stand_in

__all__ = [
    "PAD_MODES",
    "PIXELS",
    "Normalization",
    "alternating",
    "augment",
    "central",
    "central_crop",
    "cutout",
    "input_shape",
    "normalization",
    "output_size",
    "problems",
    "random_brightness",
    "random_contrast",
    "random_crop",
    "random_flip",
    "random_hue",
    "random_saturation",
    "stand_in",
]
