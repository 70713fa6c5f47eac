"""From images to what the network sees: (key, images) -> images, batched, pure, on the device; then normalized."""

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
