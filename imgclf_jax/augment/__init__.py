"""Augmentation and normalization: pure, batched functions (key, images) -> network inputs, on the device."""

from imgclf_jax.augment import tta
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
from imgclf_jax.augment.erasing import random_erasing
from imgclf_jax.augment.mixing import mixing, pair_problems
from imgclf_jax.augment.normalize import PIXELS, Normalization, input_shape, normalization, stand_in
from imgclf_jax.augment.resized_crop import random_resized_crop

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
    "mixing",
    "normalization",
    "output_size",
    "pair_problems",
    "problems",
    "random_brightness",
    "random_contrast",
    "random_crop",
    "random_erasing",
    "random_flip",
    "random_hue",
    "random_resized_crop",
    "random_saturation",
    "stand_in",
    "tta",
]
