"""A trained network as a plain function, and the tool that classifies files with it, `python -m imgclf_jax.predict`.

From Python, on images in memory::

    from imgclf_jax import predict

    network = predict.load("runs/cnn/20260101-120000")
    probabilities = network(images)  # uint8 [N, *network.image_shape] -> float32 [N, len(network.class_names)]
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # JAX and what needs it are slow to import: mistakes on a command line are told before.
    import numpy as np

    from imgclf_jax.training.trained import Trained


def load(workdir: str | Path, checkpoint: str = "reported") -> "Predictor":
    """The network of a run, to be called from Python.

    Args:
        workdir: the folder of the run.
        checkpoint: "reported": the one whose test accuracy the run printed; "last"; "best" by validation accuracy.

    Raises:
        UserError: no run, no checkpoint of that name, one that is damaged or of another model.
    """
    from imgclf_jax.training import trained

    return Predictor(trained.load(Path(workdir).expanduser(), checkpoint))


class Predictor:
    """A trained network as a plain function.

    Args:
        network: the trained network.
        batch_size: most images that go through it at once.

    Attributes:
        class_names: by label.
        image_shape: (H, W, C) of the images.
    """

    def __init__(self, network: "Trained", batch_size: int = 256):
        from imgclf_jax.training import trained

        self.class_names: tuple[str, ...] = network.class_names
        self.image_shape: tuple[int, int, int] = network.image_shape
        self._predict = trained.predictor(network, batch_size)

    def __call__(self, images: Any) -> "np.ndarray":
        """Images uint8 [N, H, W, C] -> class probabilities float32 [N, classes].

        Pixels are as in files, 0 to 255; crop and normalisation are those of the evaluation. Raises `UserError` for
        another shape or dtype.
        """
        import numpy as np

        return self._predict(images if hasattr(images, "shape") else np.asarray(images))
