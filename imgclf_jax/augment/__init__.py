"""Augmentation and normalization: pure, batched functions (key, images) -> network inputs, on the device."""

from imgclf_jax.augment.batch import (
    PAD_MODES,
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

__all__ = [
    "PAD_MODES",
    "augment",
    "central",
    "central_crop",
    "cutout",
    "output_size",
    "problems",
    "random_brightness",
    "random_contrast",
    "random_crop",
    "random_flip",
    "random_hue",
    "random_saturation",
]
