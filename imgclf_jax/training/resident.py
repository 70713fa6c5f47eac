"""A split that is stored on the devices."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from imgclf_jax.data.types import Info, Split
from imgclf_jax.devices.parallel import Parallel
from imgclf_jax.training import exact_evaluation
from imgclf_jax.training.batches import Epoch, Examples
from imgclf_jax.training.metrics import Sums
from imgclf_jax.training.sampling import Sampler


class Resident:
    """A split on the devices."""

    def __init__(self, split: Split, strategy: Parallel):
        """Copies the split to the devices."""
        self._count, self._strategy = len(split), strategy
        self.examples = Examples(*strategy.put_examples((split.images, split.labels)))

    def __len__(self) -> int:
        """Returns the number of examples."""
        return self._count

    def feed(self, sampler: Sampler, steps: int, key: jax.Array, workers: int) -> "Feed":
        """Returns the data source of the training loop.

        Args:
            sampler: selects the examples of each step.
            steps: the length of the run.
            key: the key of the experiment, on the devices.
            workers: the number of processes that decode streamed images; 0: threads of this process.
        """
        order_of = functools.partial(_order(sampler, self._strategy), key)
        return Feed(self.examples, self._strategy, sampler.steps_per_epoch, order_of)

    def sums(
        self, evaluate: Any, batch_size: int, progress: Callable[[int, int], None], start: Sums | None = None
    ) -> Sums:
        """Returns the sums of exact evaluation over the split.

        Args:
            evaluate: (data, total, sums) -> sums; see `imgclf_jax.training.exact_evaluation.make_evaluate`.
            batch_size: examples per batch.
            progress: not called, because this is a single dispatch.
            start: the sums over no examples; by default those of our metrics.
        """
        total, sums = self._strategy.put((np.int32(self._count), start or exact_evaluation.nothing()))
        return evaluate(data=self.examples, total=total, sums=sums)


class Feed:
    """Gives the training loop the data of its next steps."""

    def __init__(
        self,
        examples: Examples,
        strategy: Parallel,
        steps_per_epoch: int,
        order_of: Callable[[jax.Array], jax.Array],
    ):
        """Keeps what it needs.

        Args:
            examples: the training split.
            strategy: where it is.
            steps_per_epoch: steps per epoch.
            order_of: epoch, an int32 scalar on the devices -> the order of its examples.
        """
        self._examples = examples
        self._strategy = strategy
        self._steps_per_epoch = steps_per_epoch
        self._order_of = order_of
        self._epoch = -1
        self._order: Any = None

    def begin(self, step: int, wanted: int) -> int:
        """Does nothing. Returns 0, the number of steps whose data was read before training."""
        return 0

    def __call__(self, step: int, wanted: int) -> tuple[Epoch, int]:
        """Returns the data for the next steps, up to the end of the epoch, and the number of steps that it covers.

        Args:
            step: the number of the next step.
            wanted: the largest number of steps to cover.
        """
        epoch, within = divmod(step, self._steps_per_epoch)
        if epoch != self._epoch:
            self._order, self._epoch = self._order_of(self._strategy.put(np.int32(epoch))), epoch
        return Epoch(self._examples, self._order), min(wanted, self._steps_per_epoch - within)

    def stop(self) -> None:
        """Does nothing: there is nothing to stop."""

    def close(self) -> None:
        """Does nothing: there is nothing to close."""


@functools.lru_cache(maxsize=16)
def _order(sampler, strategy):
    """The order of an epoch, compiled: during training, nothing compiles."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = strategy.stand_ins((key, jax.ShapeDtypeStruct((), np.int32)))
    return strategy.jit(sampler.order).lower(*arguments).compile()


place = Resident


def stand_ins(strategy: Parallel, sampler: Sampler, image_shape: tuple[int, int, int]) -> Epoch:
    """See `imgclf_jax.training.placed.placement`."""
    count = sampler.examples
    rows = count + (-count % strategy.devices if strategy.sharded_data else 0)
    images = jax.ShapeDtypeStruct((rows, *image_shape), np.uint8, sharding=strategy.examples)
    labels = jax.ShapeDtypeStruct((rows,), np.int32, sharding=strategy.examples)
    examples = Examples(images, labels)  # type: ignore[arg-type]
    return Epoch(examples, jax.ShapeDtypeStruct((count,), np.int32, sharding=strategy.replicated))  # type: ignore[arg-type]


def training_shardings(strategy: Parallel) -> Epoch:
    """Returns the shardings of the data of `run_steps`."""
    return Epoch(evaluation_shardings(strategy), strategy.replicated)  # type: ignore[arg-type]


def evaluation_shardings(strategy: Parallel) -> Examples:
    """Returns the shardings of the data of `evaluate`."""
    return Examples(strategy.examples, strategy.examples)  # type: ignore[arg-type]


def notice(config: ConfigDict, info: Info) -> str:
    """See `imgclf_jax.training.placed.placement`."""
    return ""


def memory(strategy: Parallel, sampler: Sampler, image_shape: tuple[int, int, int]) -> tuple[str, int]:
    """See `imgclf_jax.training.placed.placement`."""
    pixels = sampler.examples * math.prod(image_shape)
    parts = strategy.devices if strategy.sharded_data else 1
    return "training data, as uint8", (pixels + 4 * sampler.examples) // parts
