"""The data that compiled functions take batches from: a split on the devices, or a chunk of batches sent there."""

from typing import NamedTuple

import jax

from imgclf_jax.devices.parallel import Parallel
from imgclf_jax.training.sampling import Sampler


class Examples(NamedTuple):
    """A split on the devices.

    Attributes:
        images: uint8 [N, H, W, C], from `Parallel.put_examples`.
        labels: int32 [N], from `Parallel.put_examples`.
    """

    images: jax.Array
    labels: jax.Array

    def select(self, strategy: Parallel, number: jax.Array, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (images [..., B, H, W, C], labels [..., B]) of this device's share of `indices`, int32 [..., B]."""
        return strategy.select(self.images, indices), strategy.select(self.labels, indices)


class Epoch(NamedTuple):
    """A split on the devices, and the order of the epoch in which all steps of a dispatch lie.

    Attributes:
        examples: the training split.
        order: int32 [N].
    """

    examples: Examples
    order: jax.Array

    def batch(
        self, strategy: Parallel, sampler: Sampler, step: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns this device's share of a step: images [parts, B, H, W, C], labels and indices [parts, B].

        Args:
            strategy: where the arrays are.
            sampler: which examples a step sees.
            step: int32 scalar.
            key: the key of the experiment.
        """
        indices = sampler.indices(key, self.order, step).reshape(sampler.parts, -1)
        return *self.examples.select(strategy, step, indices), strategy.share(indices)


class Chunk(NamedTuple):
    """Consecutive batches of a split that is streamed. Batch `i` is at `i` modulo their number.

    Attributes:
        images: uint8 [K, parts, B, H, W, C], from `Parallel.put_batches`.
        labels: int32 [K, parts, B], from `Parallel.put_batches`.
        indices: int32 [K, parts, B], the numbers of the images in the split, from `Parallel.put_batches`.
    """

    images: jax.Array
    labels: jax.Array
    indices: jax.Array

    def select(self, strategy: Parallel, number: jax.Array, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (images [B, H, W, C], labels [B]) of this device's share of a batch, which must be in one part."""
        images, labels, _ = self._take(strategy, number)
        return images.reshape(-1, *images.shape[2:]), labels.reshape(-1)

    def batch(
        self, strategy: Parallel, sampler: Sampler, step: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """See `Epoch.batch`."""
        return self._take(strategy, step)

    def _take(self, strategy, number):
        which = number % len(self.images)
        return tuple(strategy.take(leaf, which) for leaf in self)


Data = Epoch | Chunk
