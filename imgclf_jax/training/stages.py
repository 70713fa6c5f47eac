"""Stages: parts of a run with programs of their own, for images of another size or with other parameters frozen."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imgclf_jax import models


class Stage(NamedTuple):
    """A part of a run, which ends where the next one begins.

    Attributes:
        first: the number of steps taken before it.
        side: rows of the images that the network sees; 0: as many as they have.
        frozen: patterns of parameters that it does not train; see `imgclf_jax.training.freezing`.
    """

    first: int = 0
    side: int = 0
    frozen: tuple[str, ...] = ()


WHOLE = Stage()


def stages(config: ConfigDict, steps: int, ends: Sequence[tuple[int, str]] = ()) -> tuple[Stage, ...]:
    """Returns the stages of a run, at least one.

    Args:
        config: a valid config.
        steps: the length of the run.
        ends: (step from which on parameters are frozen, their pattern).
    """
    sides = config.augment.sizes or (0,)
    begins = {round(index * steps / len(sides)): side for index, side in enumerate(sides)}
    found: list[Stage] = []
    side = 0
    for first in sorted({*begins, *(end for end, _ in ends if 0 < end < steps)}):
        side = begins.get(first, side)
        frozen = tuple(pattern for end, pattern in ends if end <= first)
        if not found or (side, frozen) != found[-1][1:]:
            found.append(Stage(first, side, frozen))
    return tuple(found)


def at(stages: Sequence[Stage], step: int) -> Stage:
    """Returns the stage of the step that follows `step` steps."""
    return max(stage for stage in stages if stage.first <= step)


def resized(augment: Callable[..., jax.Array], side: int) -> Callable[..., jax.Array]:
    """Returns an augmentation whose images [B, H, W, C] are resized to [B, side, side · W / H, C]; 0: unchanged.

    Bilinear interpolation of the nearest pixels, without a filter: `align_corners=False` in PyTorch.
    """

    def smaller(*arguments):
        images = augment(*arguments)
        batch, height, width, channels = images.shape
        size = (batch, side, round(side * width / height), channels)
        return jax.image.resize(images, size, "linear", antialias=False)

    return smaller if side else augment


def input_shape(shape: tuple[int, int, int], side: int) -> tuple[int, int, int]:
    """Returns the (H, W, C) that the network sees in a stage, given that of whole images."""
    height, width, channels = shape
    return (side, round(side * width / height), channels) if side else shape


def problems(config: ConfigDict, shape: tuple[int, int, int], classes: int) -> list[str]:
    """Returns one line for each problem with `augment.sizes`.

    Args:
        config: a config whose other fields are valid.
        shape: (H, W, C) that the network sees at full size.
        classes: the number of classes.
    """
    sizes = config.augment.sizes
    if sizes and config.data.pixels == "mean_image":
        return ["augment.sizes needs an image of each size; give --config.data.pixels=standardized (or unit)"]
    lines = []
    for side in sorted(set(sizes)):
        smaller = input_shape(shape, side)
        wrong = models.problems(config.model, smaller, classes)
        if not wrong and (changed := sorted(_shapes(config, shape, classes) ^ _shapes(config, smaller, classes))):
            name = changed[0][0].strip("'[]").replace("']['", "/")
            wrong = [f"{config.model.name} would have another {name}; it must not depend on the size of the images"]
        lines += [f"augment.sizes={sizes!r}: with {side} rows, {line}" for line in wrong]
    return lines


def _shapes(config, shape, classes):
    model, images = models.create(config.model, classes), jnp.zeros((1, *shape))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    return {(jax.tree_util.keystr(path[1:]), leaf.shape) for path, leaf in jax.tree.leaves_with_path(variables)}
