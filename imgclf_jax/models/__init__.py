"""Models by name. A model is a Flax Linen module: images float [B, H, W, C] -> logits [B, classes]."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from imgclf_jax.models.cnn import CNN, SmallCNN, TutorialCNN
from imgclf_jax.models.linear import MLP, Softmax

MODELS: dict[str, type[nn.Module]] = {
    "softmax": Softmax,
    "mlp": MLP,
    "cnn": CNN,
    "tutorial_cnn": TutorialCNN,
    "small_cnn": SmallCNN,
}
HEADS = ("softmax", "sigmoid")
# The values of config.model fields that leave the choice to the model.
UNSET = {"widths": (), "hidden": (), "norm": "none", "dropout": None}


def create(config: ConfigDict, num_classes: int, axis_name: str | None = None) -> nn.Module:
    """Creates the network of `config.model`, with a head for `num_classes` classes.

    Args:
        config: the `model` section of a config that `problems` accepts.
        num_classes: number of logits.
        axis_name: name of the device axis, if each device sees only its part of a batch.

    Returns:
        An unbound module, called as `module.apply(variables, images, train=..., keys=...)`.
    """
    fields = _fields(config.name)
    options = {name: config[name] for name in UNSET if name in fields and config[name] != UNSET[name]}
    if "axis_name" in fields:
        options["axis_name"] = axis_name
    dtype = jnp.dtype(config.dtype)
    return MODELS[config.name](num_classes=num_classes, head=config.head, dtype=dtype, **options)


def problems(
    config: ConfigDict, input_shape: tuple[int, int, int] | None = None, num_classes: int | None = None
) -> list[str]:
    """Checks `config.model`.

    Args:
        config: the `model` section.
        input_shape: (H, W, C) of the network's input, if it is known.
        num_classes: number of classes of the data set, if it is known.

    Returns:
        One line per problem: an unknown model, an option that it does not have, a value out of range, images that are
        too small, a head for another number of classes.
    """
    if config.name not in MODELS:
        return [f"model.name={config.name!r} is unknown; choose one of {', '.join(MODELS)}"]
    fields = _fields(config.name)
    lines = [
        f"model.{name}={config[name]!r}: model {config.name} has no such option; leave it at its default, {default!r}"
        for name, default in UNSET.items()
        if name not in fields and config[name] and config[name] != default
    ]
    for name in ("widths", "hidden"):
        if not all(isinstance(size, int) and size > 0 for size in config[name]):
            lines.append(f"model.{name}={config[name]!r} must be a tuple of positive whole numbers")
    if config.norm not in ("none", "batch"):
        lines.append(f'model.norm={config.norm!r} must be "none" or "batch"')
    if config.head not in HEADS:
        lines.append(f'model.head={config.head!r} must be "softmax" or "sigmoid"')
    if config.head == "sigmoid" and num_classes not in (None, 2):
        lines.append(f'model.head="sigmoid" needs two classes, but the data has {num_classes}; set it to "softmax"')
    if config.dropout is not None and not 0 <= config.dropout < 1:
        lines.append(f"model.dropout={config.dropout} must be at least 0 and below 1")
    if config.dtype not in ("float32", "bfloat16"):
        lines.append(f'model.dtype={config.dtype!r} must be "float32" or "bfloat16"')
    if input_shape and not lines:
        network = create(config, num_classes=1)
        if min(getattr(network, "last_side", int)(side) for side in input_shape[:2]) < 1:
            height, width = input_shape[:2]
            lines.append(
                f"model.name={config.name!r}: {height}x{width} images are too small for all its convolutions; use "
                "larger images (data.image_size, augment.crop) or fewer model.widths"
            )
    return lines


def _fields(name):
    return {field.name for field in dataclasses.fields(MODELS[name])}
