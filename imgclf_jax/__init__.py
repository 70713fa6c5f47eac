"""imgclf_jax: image classification in JAX and Flax. One config file is one experiment.

Importing the package imports nothing heavy: no JAX, no TFDS, no Orbax, no matplotlib, no TensorFlow.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgclf_jax.predict.network import Network

__version__ = "0.1.0"


def load(workdir: Any, checkpoint: str = "reported", parts: Any = None) -> "Network":
    """Loads the network of a run; see `imgclf_jax.predict.load`."""
    from imgclf_jax import predict

    return predict.load(workdir, checkpoint, parts)
