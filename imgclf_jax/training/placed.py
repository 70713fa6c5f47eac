"""The placement of a split in use: stored on the devices, or on disk and streamed to them."""

from types import ModuleType

from imgclf_jax.devices.parallel import Parallel
from imgclf_jax.training import resident, streamed


def placement(strategy: Parallel) -> ModuleType:
    """Returns the module that places the splits of a strategy. No other code depends on which of the two it is.

    `imgclf_jax.training.resident` and `imgclf_jax.training.streamed` have the same functions:

    - `place(split, strategy)`: an object with `feed(...)` for training and `sums(...)` for evaluation.
    - `stand_ins(strategy, sampler, image_shape)`: shapes, dtypes and shardings of the training data, to compile with.
    - `training_shardings(strategy)`, `evaluation_shardings(strategy)`: the shardings of the `data` argument
      of `run_steps` and of `evaluate`.
    - `notice(config, info)`: the line to print about where the data is; empty if there is nothing to say.
    - `memory(strategy, sampler, image_shape)`: a description of the training data on a device, and its size in bytes.
    """
    return streamed if strategy.streamed else resident
