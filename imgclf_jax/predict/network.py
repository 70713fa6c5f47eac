"""A trained network to call from Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from imgclf_jax.errors import UserError
from imgclf_jax.predict import heat_maps
from imgclf_jax.terminal import tools
from imgclf_jax.training import trained
from imgclf_jax.training.trained import Trained


class Network:
    """A trained network as functions of images.

    Images are uint8 [N, H, W, C]; pixels are 0 to 255, as in files. Crop and normalization are those of evaluation. All
    functions raise `UserError` if the images have another shape or dtype.

    Args:
        network: the trained network.
        batch_size: most images that go through the network at once.

    Attributes:
        class_names: by label.
        image_shape: (H, W, C) of the images.
        config: the config of the run.
    """

    def __init__(self, network: Trained, batch_size: int = 256):
        self.class_names: tuple[str, ...] = network.class_names
        self.image_shape: tuple[int, int, int] = network.image_shape
        self.config: ConfigDict = network.config
        self._network, self._batch_size = network, batch_size
        self._compiled: dict[Any, Callable[[Any], np.ndarray]] = {}
        self._explain: Callable[..., tuple[np.ndarray, np.ndarray]] | None = None
        self._layers: dict[str, tuple[int, ...]] | None = None

    def __call__(self, images: Any) -> np.ndarray:
        """Returns `probabilities`."""
        return self.probabilities(images)

    def __repr__(self) -> str:
        """Names the run and what the network takes and gives."""
        shape = ", ".join(map(str, self.image_shape))
        return f"Network({str(self._network.folder)!r}: uint8 [N, {shape}] -> {len(self.class_names)} classes)"

    def probabilities(self, images: Any) -> np.ndarray:
        """Returns the probabilities of the classes, float32 [N, classes]."""
        return self._run("probabilities", lambda *inputs: jax.nn.softmax(self._logits(*inputs)), images)

    def logits(self, images: Any) -> np.ndarray:
        """Returns the logits, float32 [N, classes]."""
        return self._run("logits", self._logits, images)

    def features(self, images: Any, layer: str | None = None) -> np.ndarray:
        """Returns the output of a layer, float [N, ...].

        Args:
            images: as for all functions.
            layer: one of `layers`; by default, the input of the last dense layer, from which it computes the logits.

        Raises:
            UserError: as all functions; also if there is no such layer.
        """
        if layer is not None and layer not in self.layers:
            raise UserError(f"there is no layer {layer!r}; there are {', '.join(self.layers)}")
        return self._run(("features", layer), lambda *inputs: _capture(self._logits, inputs, layer), images)

    def explain(self, images: Any, classes: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns the probabilities and where the network looks; see `imgclf_jax.predict.heat_maps`.

        Args:
            images: as for all functions.
            classes: int [N], the class that each map is for; by default, the most probable one.

        Returns:
            (probabilities, maps): float32 [N, classes], and float32 [N, H, W] from 0 to 1.
        """
        if self._explain is None:
            self._explain = heat_maps.explainer(self._network, self._batch_size)
        return self._explain(_array(images, self._network.folder), classes)

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """The names of the layers, in the order of computation, and the shapes of their outputs for one image."""
        if self._layers is None:
            images = jax.ShapeDtypeStruct((1, *self.image_shape), np.uint8)
            found: dict[str, tuple[int, ...]] = {}
            record = _recorder(lambda name, given, output: found.update({name: output.shape[1:]}))
            with nn.intercept_methods(record):
                # A new function: JAX remembers the trace of one that it has seen, and would call no layer.
                fresh = lambda *inputs: self._logits(*inputs)  # noqa: E731
                jax.eval_shape(fresh, self._network.variables, self._network.normalization, images)
            self._layers = found
        return self._layers

    def _logits(self, *inputs):
        return self._network.experiment.logits(*inputs)

    def _run(self, name, function, images):
        if name not in self._compiled:
            self._compiled[name] = trained.in_batches(self._network, function, self._batch_size)
        return self._compiled[name](_array(images, self._network.folder))


def _array(images, folder):
    if isinstance(images, str | Path):
        raise UserError(
            f"{images} is a path, but the network takes pixels; for files, use "
            f"{tools.command('predict')} --workdir={folder} {images}"
        )
    return images if hasattr(images, "shape") else np.asarray(images)


def _capture(function, inputs, layer):
    """Returns the output of a layer, or the input of the last dense layer, during a call of the network."""
    kept = {}

    def keep(name, given, output):
        if name == layer:
            kept[layer] = output
        elif layer is None and isinstance(given, tuple):
            kept[layer] = given[0]

    with nn.intercept_methods(_recorder(keep)):
        function(*inputs)
    return kept[layer]


def _recorder(keep):
    """Returns an interceptor that calls `keep(name, arguments of a dense layer or None, output)` for each layer."""

    def record(call, arguments, options, context):
        output = call(*arguments, **options)
        if context.method_name == "__call__" and context.module.path:
            dense = isinstance(context.module, nn.Dense)
            keep("/".join(context.module.path), arguments if dense else None, output)
        return output

    return record
