"""A trained network as a plain function, and a tool that classifies files with it: `python -m imgclf_jax.predict`.

From Python, for images in memory::

    from imgclf_jax import predict

    network = predict.load("runs/cnn/20260101-120000")
    probabilities = network(images)  # uint8 [N, *network.image_shape] -> float32 [N, len(network.class_names)]
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # JAX is slow to import: report mistakes on the command line first.
    import numpy as np

    from imgclf_jax.training.trained import Trained


def load(workdir: str | Path, checkpoint: str = "reported") -> "Predictor":
    """Loads the network of a run, to call from Python.

    Args:
        workdir: the folder of the run.
        checkpoint: "reported" (the one whose test accuracy the run printed), "last", or "best" by validation accuracy.

    Raises:
        UserError: there is no run or no such checkpoint, or the checkpoint is damaged or belongs to another model.
    """
    from imgclf_jax.training import trained

    return Predictor(trained.load(Path(workdir).expanduser(), checkpoint))


class Predictor:
    """A trained network as a plain function.

    Args:
        network: the trained network.
        batch_size: most images that go through the network at once.

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

        Pixels are 0 to 255, as in files. Crop and normalization are those of evaluation.

        Raises:
            UserError: the images have another shape or dtype.
        """
        import numpy as np

        return self._predict(images if hasattr(images, "shape") else np.asarray(images))
