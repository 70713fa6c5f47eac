"""Models by name. A model is a Flax Linen module: images float [B, H, W, C] -> logits [B, classes]."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from imgclf_jax import components
from imgclf_jax.errors import UserError, flag, unknown
from imgclf_jax.models import adapter
from imgclf_jax.models.adapter import Adapter
from imgclf_jax.models.cnn import CNN, SmallCNN, TutorialCNN
from imgclf_jax.models.linear import MLP, Softmax
from imgclf_jax.models.resnet import ResNet18, ResNet34, ResNet50
from imgclf_jax.models.speednet import SpeedNet
from imgclf_jax.models.vit import ViT
from imgclf_jax.models.wide_resnet import WideResNet

MODELS: dict[str, type[nn.Module]] = {
    "softmax": Softmax,
    "mlp": MLP,
    "cnn": CNN,
    "tutorial_cnn": TutorialCNN,
    "small_cnn": SmallCNN,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "wide_resnet": WideResNet,
    "vit": ViT,
    "speednet": SpeedNet,
}
HEADS = ("softmax", "sigmoid", "auto")
# The values of config.model fields that leave the choice to the model.
UNSET = {"widths": (), "hidden": (), "norm": "none", "dropout": None}
# Fields of a module that are no options of its own.
SHARED = {*UNSET, "num_classes", "head", "dtype", "axis_name", "parent", "name"}
SLOT = "model.name"


def create(config: ConfigDict, num_classes: int, axis_name: str | None = None) -> Any:
    """Creates the network of `config.model`, with a head for `num_classes` classes.

    Args:
        config: the `model` section of a config that `problems` accepts.
        num_classes: number of logits.
        axis_name: name of the device axis, if each device sees only its part of a batch.

    Returns:
        An unbound module, called as `module.apply(variables, images, train=..., keys=...)`. If it is not ours, the
        module in an `Adapter`.

    Raises:
        UserError: a module of one's own cannot be found or made.
    """
    if components.is_own(config.name):
        return Adapter(_make(config, num_classes, axis_name), axis_name)
    fields = _fields(config.name)
    options = {name: config[name] for name in UNSET if name in fields and config[name] != UNSET[name]}
    if "axis_name" in fields:
        options["axis_name"] = axis_name
    options |= _options(config)
    dtype = jnp.dtype(config.dtype)
    return MODELS[config.name](num_classes=num_classes, head=_head(config, num_classes), dtype=dtype, **options)


def head_of(model: Any) -> str:
    """Returns the head of a network that `create` made: "softmax" or "sigmoid"."""
    return getattr(getattr(model, "module", model), "head", "softmax")


def _head(config, num_classes):
    if config.head != "auto":
        return config.head
    return "sigmoid" if num_classes == 2 else "softmax"


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
    if components.is_own(config.name):
        return _own_problems(config, input_shape, num_classes)
    try:
        components.find(config.name, MODELS, SLOT)
    except UserError as error:
        return [str(error)]
    fields = _fields(config.name)
    lines = [
        f"model.{name}={config[name]!r}: model {config.name} has no such option; {_default(name, default)}"
        for name, default in UNSET.items()
        if name not in fields and config[name] and config[name] != default
    ]
    for name in ("widths", "hidden"):
        if not all(isinstance(size, int) and size > 0 for size in config[name]):
            lines.append(f"model.{name}={config[name]!r} must be a tuple of positive whole numbers")
    norms = ("none", *getattr(MODELS[config.name], "norms", ("batch",)))
    if config.norm not in norms:
        lines.append(unknown("model.norm", config.norm, norms))
    lines += _option_problems(config)
    lines += _value_problems(config, num_classes)
    if not lines:
        network: Any = create(config, num_classes=1)
        lines += network.problems(input_shape) if hasattr(network, "problems") else []
        if input_shape and hasattr(network, "last_side") and min(map(network.last_side, input_shape[:2])) < 1:
            height, width = input_shape[:2]
            lines.append(
                f"model.name={config.name!r}: {height}x{width} images are too small for all its convolutions; use "
                "larger images (--config.data.image_size, --config.augment.crop) or fewer --config.model.widths"
            )
    return lines


def _value_problems(config, num_classes):
    lines = []
    if config.head not in HEADS:
        lines.append(unknown("model.head", config.head, HEADS))
    if config.head == "sigmoid" and num_classes not in (None, 2):
        lines.append(
            f"model.head='sigmoid' needs two classes, but the data has {num_classes}; give --config.model.head=softmax"
        )
    if config.dropout is not None and not 0 <= config.dropout < 1:
        lines.append(f"model.dropout={config.dropout} must be at least 0 and below 1")
    if config.dtype not in ("float32", "bfloat16"):
        lines.append(unknown("model.dtype", config.dtype, ("float32", "bfloat16")))
    return lines


def _make(config, num_classes, axis_name):
    """Makes a module of one's own. It gets those of our fields that it has and the options, which take precedence."""
    part = components.find(config.name, MODELS, SLOT)
    head, dtype = _head(config, num_classes), jnp.dtype(config.dtype)
    shared = {"num_classes": num_classes, "dtype": dtype, "head": head, "axis_name": axis_name}
    shared |= {name: config[name] for name in UNSET if config[name] != UNSET[name]}
    known = components.parameters(part) or {}
    arguments = {name: value for name, value in shared.items() if name in known} | _options(config)
    try:
        return part(**arguments)
    except Exception as error:
        raise UserError(f"{SLOT}={config.name!r} cannot be made: {components.explain(error)}") from error


def _own_problems(config, input_shape, num_classes):
    call = components.Call(given=())
    try:
        part = components.find(config.name, MODELS, SLOT)
    except UserError as error:
        return [str(error)]
    known = components.parameters(part) or {}
    given = {name: None for name in SHARED if name in known} | _options(config)
    lines = components.option_problems(part, config.name, "model.options", given, call)
    lines += [
        f"model.{name}={config[name]!r}: {config.name} has no field {name}; {_default(name, default)}"
        for name, default in (UNSET | {"head": "softmax"}).items()
        if name not in known and config[name] and config[name] not in (default, "auto")
    ]
    lines += _value_problems(config, num_classes)
    if lines:
        return lines
    try:
        module = _make(config, num_classes or 2, None)
        if input_shape and (wrong := adapter.problems(module, config.name, input_shape, num_classes)):
            lines.append(f"{SLOT}={config.name!r} {wrong}")
    except UserError as error:
        lines.append(str(error))
    except Exception as error:
        lines.append(f"{SLOT}={config.name!r} fails on images {list(input_shape or ())}: {components.explain(error)}")
    return lines


def _default(name, default):
    """What to do about a field that should have its default; None cannot be given on the command line."""
    return "leave it out" if default is None else f"give {flag(f'model.{name}', default)}"


def _options(config):
    return dict(config.get("options", {}))


def _option_problems(config):
    """One line for each option that the model does not have, and for each of the wrong type."""
    fields, options = _fields(config.name), _options(config)
    misplaced = [name for name in options if name in UNSET and name in fields]
    lines = [
        f"model.options.{name}: this option has a field of its own; give {flag(f'model.{name}', options[name])}"
        for name in misplaced
    ]
    known = {f.name: f.default for f in dataclasses.fields(MODELS[config.name]) if f.name not in SHARED}
    rest = {name: value for name, value in options.items() if name not in misplaced}
    return lines + components.known_option_problems(f"model {config.name}", "model.options", rest, known)


def _fields(name):
    return {field.name for field in dataclasses.fields(MODELS[name])}
