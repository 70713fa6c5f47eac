"""Pictures of the weights of the first layer of a network."""

from typing import Any, NamedTuple

import numpy as np

from imgclf_jax.models.cost import parameter_table
from imgclf_jax.training.trained import Trained

SMALLEST = 5  # fewest rows and columns of a kernel that is worth looking at


class Filters(NamedTuple):
    """The kernels of the first convolution, in an order to look at.

    Attributes:
        layer: the name of the parameter.
        images: uint8 [O, kh, kw, C], where C is 3 for kernels with three input channels, otherwise 1.
        norms: float [O], the Euclidean norm of each kernel.
        channels: number of input channels of the layer.
    """

    layer: str
    images: np.ndarray
    norms: np.ndarray
    channels: int


def templates(network: Trained) -> dict[str, np.ndarray] | None:
    """The weights of a softmax classifier by class, each an image uint8 [H, W, C]; `None` for other models.

    Mid-gray is a weight of 0; in each channel, brighter is evidence for the class and darker against it. A sigmoid head
    has one template, for the second class.
    """
    if network.config.model.name != "softmax":
        return None
    kernel = np.asarray(network.variables["params"]["output"]["kernel"], np.float32)
    names = network.class_names[-kernel.shape[1] :]
    shape = network.experiment.input_shape
    return {name: _visible(kernel[:, index].reshape(shape)) for index, name in enumerate(names)}


def filters(network: Trained) -> Filters | None:
    """The kernels of the first convolution, sorted from pure brightness to pure color.

    If there are not three input channels, each kernel is averaged over them, and the largest come first. `None` for a
    network without convolutions, and for kernels too small to show a pattern.
    """
    table = parameter_table(network.variables["params"])
    layer = next((name for name, shape, _ in table if len(shape) == 4), None)
    if layer is None or min(next(shape for name, shape, _ in table if name == layer)[:2]) < SMALLEST:
        return None
    parameter: Any = network.variables["params"]
    for part in layer.split("/"):
        parameter = parameter[part]
    kernels = np.asarray(parameter, np.float32).transpose(3, 0, 1, 2)
    channels = kernels.shape[-1]
    norms = np.sqrt((kernels**2).sum(axis=(1, 2, 3)))
    if channels == 3:
        color = kernels - kernels.mean(axis=-1, keepdims=True)
        order = np.argsort((color**2).sum(axis=(1, 2, 3)) / np.maximum(norms**2, 1e-12), kind="stable")
    else:
        kernels = kernels.mean(axis=-1, keepdims=True)
        order = np.argsort(-norms, kind="stable")
    return Filters(layer, np.stack([_visible(kernels[index]) for index in order]), norms[order], channels)


def _visible(weights):
    """Scales weights to uint8: 0 becomes mid-gray; the 99th percentile of their magnitude, black or white."""
    largest = np.percentile(np.abs(weights), 99) or 1.0
    return np.round(127.5 + 127.5 * np.clip(weights / largest, -1, 1)).astype(np.uint8)
