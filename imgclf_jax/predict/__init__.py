"""A trained network as a plain function, and a tool that classifies files with it: `python -m imgclf_jax.predict`.

From Python, for images in memory::

    import imgclf_jax

    network = imgclf_jax.load("runs/cnn/20260101-120000")
    probabilities = network(images)  # uint8 [N, *network.image_shape] -> float32 [N, len(network.class_names)]
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # JAX is slow to import: report mistakes on the command line first.
    from imgclf_jax.predict.network import Network


def load(workdir: str | Path, checkpoint: str = "reported", parts: str | Path | None = None) -> "Network":
    """Loads the network of a run, to call from Python.

    Args:
        workdir: the folder of the run.
        checkpoint: "reported" (the one whose test accuracy the run printed), "last", or "best" by validation accuracy.
        parts: a folder of modules of your own that the network needs; they are also looked for in the current folder.

    Raises:
        UserError: there is no run or no such checkpoint, or the checkpoint is damaged or belongs to another model; or
            the module of the network is not found.
    """
    from imgclf_jax import components
    from imgclf_jax.predict.network import Network
    from imgclf_jax.training import trained

    components.look_in([*([Path(parts).expanduser()] if parts else []), Path.cwd()])

    return Network(trained.load(Path(workdir).expanduser(), checkpoint))
