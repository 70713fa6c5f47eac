"""Where a network looks: `heat_maps(apply, variables, images, classes=None) -> (logits, maps)`.

    logits, maps = heat_maps(model.apply, variables, images, classes)
    # images float [B, H, W, C], classes int [B] or None -> float32 [B, classes], float32 [B, H, W] in [0, 1]

For a loaded run, `imgclf_jax.load(workdir).explain(images, classes)` does the same for photos, compiled, in batches.

The map of a network with convolutions is that of Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391):
the channels of the last feature map, weighted by the gradient of the class score. The weight is the gradient at each
place, not its mean over the places (HiResCAM, Draelos and Carin 2020, https://arxiv.org/abs/2011.08891). Both are the
same if global average pooling follows, but only the former is right if a dense layer does, as in the small networks
here.

A network without a feature map gets gradient times input (Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713),
smoothed.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imgclf_jax import augment
from imgclf_jax.training import trained
from imgclf_jax.training.trained import Trained

SMALLEST = 6  # fewest rows and columns of a feature map; fewer say little about the place
MORE = 256  # pixels by which a larger image is larger, a multiple of the usual strides
BLUR = 1 / 24  # standard deviation of the smoothing of input gradients, in sides of the image


class _Found(Exception):
    """The rest of the network need not be computed."""


def heat_maps(
    apply: Callable[..., Any], variables: Any, images: jax.Array, classes: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the logits, and how much each place of an image speaks for a class. Pure, to be compiled.

    The score of a class is its logit minus the mean of the other logits, because a number that is added to all logits
    changes no probability. Networks with a sigmoid head have no other score for the first class.

    Args:
        apply: `apply(variables, images, train=False)` -> logits [B, classes]. It calls Flax Linen modules.
        variables: the variables of the network, for evaluation.
        images: float [B, H, W, C], normalized.
        classes: int [B], the class of each image that the map is for; `None`: the one with the highest logit.

    Returns:
        (logits, maps): float32 [B, classes], and float32 [B, H, W], at most 1. A map is 0 where nothing speaks for the
        class, and otherwise its largest value is 1.
    """

    def logits_of(images: jax.Array) -> jax.Array:
        return apply(variables, images, train=False).astype(jnp.float32)

    layer = feature_layer(logits_of, images)
    shape = None if layer is None else _shape(logits_of, images.shape, layer)

    def score(change: jax.Array) -> tuple[jax.Array, Any]:
        kept: list[jax.Array] = []
        if layer is None:
            logits = logits_of(images + change)
        else:
            with nn.intercept_methods(_changing(layer, change, kept)):
                logits = logits_of(images)
        wanted = jax.nn.one_hot(logits.argmax(axis=-1) if classes is None else classes, logits.shape[-1])
        others = (1 - wanted) / max(logits.shape[-1] - 1, 1)
        return jnp.sum(logits * (wanted - others)), (logits, kept[0] if kept else images)

    like = images if shape is None else shape
    gradient, (logits, features) = jax.grad(score, has_aux=True)(jnp.zeros(like.shape, like.dtype))
    maps = (gradient.astype(jnp.float32) * features.astype(jnp.float32)).sum(axis=-1)
    height, width = images.shape[1:3]
    if layer is None:
        maps = _blur(jnp.maximum(maps, 0), BLUR * max(height, width))
    else:
        maps = jnp.maximum(maps, 0)
        for axis, step in zip((1, 2), _steps(logits_of, images.shape, layer, maps.shape), strict=True):
            maps = _spread(maps, axis, images.shape[axis], step)
    largest = maps.max(axis=(1, 2), keepdims=True)
    return logits, jnp.where(largest > 0, maps / jnp.where(largest > 0, largest, 1), 0)


def explainer(network: Trained, batch_size: int = 256) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Returns a function of photos: (images, classes=None) -> (probabilities, maps), compiled once for a batch size.

    Images are uint8 [N, H, W, C], classes int [N]; the results are float32 [N, classes] and float32 [N, H, W]. A map is
    0 outside of the crop that the network sees. See `heat_maps`, and `imgclf_jax.training.trained.in_batches` about the
    batches and the errors.
    """
    experiment = network.experiment

    def explain(variables: Any, normalization: Any, images: jax.Array, classes: jax.Array | None = None) -> Any:
        seen = normalization(augment.central(experiment.config.augment, images))
        logits, maps = heat_maps(experiment.model.apply, variables, seen, classes)
        return jax.nn.softmax(logits), _in_frame(maps, images.shape[1:3])

    compiled = trained.in_batches(network, explain, batch_size)

    def call(images: Any, classes: Any = None) -> tuple[np.ndarray, np.ndarray]:
        return compiled(images, more=() if classes is None else (np.asarray(classes, np.int32),))

    return call


def feature_layer(logits_of: Callable[[jax.Array], jax.Array], images: Any) -> tuple[str, int] | None:
    """Finds the last feature map of a network; computes nothing.

    It is the last output [B, h, w, channels] of a module that covers the image, with at least `SMALLEST` rows and
    columns.

    Args:
        logits_of: images [B, H, W, C] -> logits. It calls Flax Linen modules.
        images: float [B, H, W, C], or their shape and dtype.

    Returns:
        (path of the module, number of its call, from 0); `None` if there is no such output.
    """
    found: list[tuple[str, int]] = []
    traces: list[Any] = []
    height, width = images.shape[1:3]

    def note(layer: tuple[str, int], module: nn.Module, output: Any) -> Any:
        shape: tuple[int, ...] = getattr(output, "shape", ())
        # The parts of attention are [B, tokens, heads, channels]. What is inside of `nn.scan` or `nn.remat` belongs to
        # another trace, and cannot be taken out.
        if len(shape) == 4 and min(shape[1:3]) >= SMALLEST and not isinstance(module, nn.DenseGeneral):
            ratio = (height / shape[1]) / (width / shape[2])
            if 1 / 2 <= ratio <= 2 and getattr(output, "_trace", None) is traces[0]:
                found.append(layer)
        return output

    def fresh(images: jax.Array) -> jax.Array:  # JAX remembers the trace of a function that it has seen.
        traces.append(getattr(images, "_trace", None))
        with nn.intercept_methods(_calls(note)):
            return logits_of(images)

    jax.eval_shape(fresh, jax.ShapeDtypeStruct(images.shape, images.dtype))
    return found[-1] if found else None


def _shape(logits_of, images_shape, layer, stop=False):
    """The shape and dtype of a feature map. With `stop`, what follows it need not fit images of this shape."""

    def features(images):
        kept: list[Any] = []
        with contextlib.suppress(_Found), nn.intercept_methods(_changing(layer, None, kept, stop)):
            logits_of(images)
        return kept[0]

    return jax.eval_shape(features, jax.ShapeDtypeStruct(images_shape, jnp.float32))


def _steps(logits_of, images_shape, layer, shape):
    """The distance in pixels between rows, and between columns, of a feature map.

    It is less than the side of the image divided by that of the map if convolutions are not padded. The distance shows
    in how the map grows with the image, as far as the network takes images of other sizes up to that layer.
    """
    batch, height, width, channels = images_shape
    try:
        larger = _shape(logits_of, (batch, height + MORE, width + MORE, channels), layer, stop=True).shape
        return MORE / (larger[1] - shape[1]), MORE / (larger[2] - shape[2])
    except Exception:  # of any kind: the module may be anyone's
        return height / shape[1], width / shape[2]


def _spread(maps, axis, size, step):
    """Linear interpolation of an axis of float [B, h, w] to `size` pixels; the map is in the middle of the image.

    Within half a step around the map, its edge continues. Further out, where no convolution is centered, it fades.
    """
    last = maps.shape[axis] - 1
    at = (np.arange(size) - (size - 1) / 2) / step + last / 2
    inside = np.clip(at, 0, last)
    weights = np.maximum(1 - np.abs(inside - np.arange(last + 1)[:, None]), 0) * np.clip(
        1.5 - np.abs(at - inside), 0, 1
    )
    return _along(maps, axis, weights)


def _changing(layer, change, kept, stop=False):
    """Returns an interceptor that keeps the output of a layer, and adds `change` to it or ends the call there."""

    def at(this, module, output):
        if this != layer:
            return output
        kept.append(output)
        if stop:
            raise _Found
        return output if change is None else output + change

    return _calls(at)


def _calls(at):
    """Returns an interceptor that replaces each output of a module by `at((path, number of the call), module, it)`."""
    times: dict[str, int] = {}

    def intercept(call, arguments, options, context):
        output = call(*arguments, **options)
        if context.method_name != "__call__" or not context.module.path:
            return output
        path = "/".join(context.module.path)
        times[path] = times.get(path, -1) + 1
        return at((path, times[path]), context.module, output)

    return intercept


def _in_frame(maps, size):
    """Puts the maps of central crops, float [B, h, w], where they are in images of `size`."""
    for axis, side in zip((1, 2), size, strict=True):
        low = (side - maps.shape[axis]) // 2
        edges = [(0, 0, 0)] * 3
        edges[axis] = (low, side - maps.shape[axis] - low, 0)
        maps = jax.lax.pad(maps, jnp.float32(0), edges)
    return maps


def _blur(maps, deviation):
    """Gaussian smoothing of float [B, H, W]."""
    for axis in (1, 2):
        side = np.arange(maps.shape[axis])
        weights = np.exp(-0.5 * ((side[:, None] - side) / deviation) ** 2)
        maps = _along(maps, axis, weights / weights.sum(axis=0))
    return maps


def _along(maps, axis, weights):
    """Multiplies an axis of float [B, h, w] by a matrix [old size, new size]."""
    return jnp.moveaxis(jnp.tensordot(maps, jnp.asarray(weights, jnp.float32), ((axis,), (0,))), -1, axis)
