"""The views of an image over which test-time augmentation averages the logits of a network."""

import jax
import jax.numpy as jnp
import numpy as np

# What `eval.tta` may be -> the weight of each view; "none" has no views.
WEIGHTS = {"none": (), "flip": (1 / 2, 1 / 2), "flip_shift": (1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8)}


def is_on(mode: str) -> bool:
    """Whether a value of `eval.tta` asks for views."""
    return mode != "none"


def views(images: jax.Array, mode: str) -> tuple[jax.Array, np.ndarray]:
    """Returns the views of images, and their weights in the mean of the logits.

    "flip": the images, and their mirror images. "flip_shift": these two, with half of the weight; and both for the
    images shifted by a pixel, down and to the right, and up and to the left, with a quarter of the weight each. What is
    shifted in is a reflection. These are the levels 1 and 2 of Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a
    Single GPU" (https://arxiv.org/abs/2404.00498), section 3.5, and of https://github.com/KellerJordan/cifar10-airbench.

    Args:
        images: float32 [B, H, W, C] in [0, 1], as the network sees them except for the normalization.
        mode: a key of `WEIGHTS` other than "none".

    Returns:
        (views, weights): float32 [V, B, H, W, C], of which the first are the images themselves, and float32 [V]. The
        weights sum to 1.
    """
    seen = [images]
    if mode == "flip_shift":
        height, width = images.shape[1:3]
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        seen += [padded[:, start : start + height, start : start + width] for start in (0, 2)]
    both = [view for one in seen for view in (one, one[:, :, ::-1])]
    return jnp.stack(both), np.asarray(WEIGHTS[mode], np.float32)
