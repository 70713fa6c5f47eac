"""What the training loop's dispatches work on: data that lies on the devices, or chunks of steps streamed to them."""

import collections
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from imgclf_jax.data.stream import NOTHING, Chunks, Reader, Rows, in_flight
from imgclf_jax.data.types import Info, Split
from imgclf_jax.devices import parallel, processes
from imgclf_jax.devices.parallel import Parallel
from imgclf_jax.terminal.console import count
from imgclf_jax.training.validate import Plan

CHUNK_BYTES = 2**26  # of images that go to the devices at once: enough that the cost of sending them vanishes
CHUNK_STEPS = 64

Arguments = tuple[Any, Any, Any]  # images, labels, order: arrays, or their descriptions


def is_streamed(config: ConfigDict, info: Info) -> bool:
    """Whether a data set is too large for the devices; the same in all processes, whose machines may differ."""
    return "True" in processes.gather(str(parallel.streams(config, _image_bytes(info))))


def notice(config: ConfigDict, info: Info) -> str:
    """What is printed of a data set that is streamed."""
    workers = config.data.workers
    who = f"{workers} worker process{'es' if workers > 1 else ''}" if workers else "threads"
    return (
        f"the images ({count(_image_bytes(info))}B as uint8) are more than a device may hold: they stay on disk and "
        f"are streamed, decoded by {who}"
    )


def _image_bytes(info):
    return sum(info.split_sizes.values()) * math.prod(info.image_shape)


def chunk_steps(batch_size: int, image_shape: tuple[int, ...]) -> int:
    """How many batches go to the devices at once."""
    return int(np.clip(CHUNK_BYTES // (batch_size * np.prod(image_shape)), 1, CHUNK_STEPS))


def chunk(strategy: Parallel, steps: int, batch_size: int, accumulate: int, image_shape: tuple[int, ...]) -> Arguments:
    """Shapes, dtypes and places of a chunk of `steps` batches, each in `accumulate` parts."""
    shape = (steps, accumulate, batch_size // accumulate)
    images = jax.ShapeDtypeStruct((*shape, *image_shape), np.uint8, sharding=strategy.batches)
    return images, jax.ShapeDtypeStruct(shape, np.int32, sharding=strategy.batches), ()


class Resident:
    """A data set on the devices."""

    def __init__(
        self, images: jax.Array, labels: jax.Array, epoch_order: Callable[[int], jax.Array], steps_per_epoch: int
    ):
        """Takes (images, labels) from `put_examples`, epoch -> int32 [N], and how many steps an epoch has."""
        self._images, self._labels = images, labels
        self._epoch_order = epoch_order
        self._steps_per_epoch = steps_per_epoch
        self._epoch = -1
        self._order: Any = None

    def describe(self) -> Arguments:
        """Something of the shapes, dtypes and places that `__call__` returns, for compiling."""
        return self._images, self._labels, self._epoch_order(0)

    def __call__(self, step: int, wanted: int) -> tuple[Arguments, int]:
        """What `imgclf_jax.training.multistep` takes for the next steps, which end with the epoch at the latest.

        Args:
            step: where they begin.
            wanted: how many.

        Returns:
            (images, labels, order), and how many of the steps they serve.
        """
        epoch, within = divmod(step, self._steps_per_epoch)
        if epoch != self._epoch:
            self._order, self._epoch = self._epoch_order(epoch), epoch
        return (self._images, self._labels, self._order), min(wanted, self._steps_per_epoch - within)

    def stop(self) -> None:
        """There is nothing to stop."""

    def close(self) -> None:
        """There is nothing to close."""


class Streamed:
    """A data set on disk. Its batches go to the devices in chunks, the next of which is read in the meantime.

    A step sees the same examples as with `Resident`, for both ask the same functions of (seed, step), here an epoch
    ahead. That a run goes on in the middle of a chunk makes no difference: the steps before are left empty.
    """

    def __init__(
        self,
        split: Split,
        epoch_batches: Callable[[int], jax.Array],
        plan: Plan,
        strategy: Parallel,
        *,
        batch_size: int,
        accumulate: int,
        workers: int,
    ):
        """Reads nothing yet.

        Args:
            split: the training split, its images on disk.
            epoch_batches: epoch -> int32 [steps an epoch, B], which examples its steps see.
            plan: durations in steps.
            strategy: where the batches go.
            batch_size: B, examples a step on all devices together.
            accumulate: into how many parts a batch is split.
            workers: processes that decode; 0: threads of this one.
        """
        self._split = split
        self._epoch_batches = epoch_batches
        self._plan = plan
        self._strategy = strategy
        self._accumulate, self._part = accumulate, batch_size // accumulate
        self._columns = strategy.columns(self._part)
        self._workers = workers
        self._length = chunk_steps(batch_size, split.images.shape[1:])
        self._epoch: tuple[int, Any, Any] = (-1, None, None)  # number, its batches, those of the next
        self._chunks: Chunks | None = None
        self._chunk = -1
        self._arguments: Arguments | None = None
        self._ahead: collections.deque[np.ndarray] = collections.deque()  # what is written down but not used yet
        self._unwritten: Iterator[None] = iter(())

    def describe(self) -> Arguments:
        """Likewise."""
        size = self._accumulate * self._part
        return chunk(self._strategy, self._length, size, self._accumulate, self._split.images.shape[1:])

    def __call__(self, step: int, wanted: int) -> tuple[Arguments, int]:
        """Likewise, up to the end of a chunk. Steps must be asked for in order.

        Raises:
            UserError: an image cannot be read.
        """
        number, within = divmod(step, self._length)
        if self._chunks is None:
            self._chunks = self._open(step)
        if number != self._chunk:
            self._chunk, self._arguments = number, self._next(self._chunks.get())
        assert self._arguments is not None
        return self._arguments, min(wanted, self._length - within)

    def stop(self) -> None:
        """No more steps will be asked for; does not wait until all processes have ended."""
        if self._chunks is not None:
            self._chunks.stop()

    def close(self) -> None:
        """`stop`, and waits."""
        if self._chunks is not None:
            self._chunks.close()

    def _open(self, step) -> Chunks:
        first = step - step % self._length
        last = self._plan.steps + -self._plan.steps % self._length
        rows = Rows(3 * self._length + in_flight(self._workers), self._accumulate * len(self._columns))
        self._unwritten = self._written(rows, first, step, last)
        self._write(rows.length)
        read = Reader(self._split.images, rows)
        return Chunks(read, first, last, self._length, self._workers, self._accumulate * len(self._columns))

    def _written(self, rows, first, step, last) -> Iterator[None]:
        """Writes down what one step after the other sees."""
        nothing = np.full(self._accumulate * len(self._columns), NOTHING, np.int32)
        for ahead in range(first, last):
            row = self._row(ahead) if step <= ahead < self._plan.steps else nothing
            rows.write(ahead, row)
            self._ahead.append(row)
            yield

    def _row(self, step):
        epoch, within = divmod(step, self._plan.steps_per_epoch)
        number, batches, following = self._epoch  # One comes after the other.
        if epoch != number:
            batches = np.asarray(self._epoch_batches(epoch) if following is None else following)
            # Asked for now, on devices that have other things to do, and looked at in an epoch.
            self._epoch = epoch, batches, self._epoch_batches(epoch + 1)
        return batches[within].reshape(self._accumulate, -1)[:, self._columns].ravel()

    def _write(self, count):
        collections.deque(itertools.islice(self._unwritten, count), maxlen=0)

    def _next(self, images) -> Arguments:
        rows = np.stack([self._ahead.popleft() for _ in range(self._length)])
        labels = np.where(rows == NOTHING, 0, self._split.labels[rows])
        self._write(self._length)  # in the place of those that have just been read
        shape = (self._length, self._accumulate, len(self._columns))
        arrays = images.reshape(*shape, *images.shape[2:]), labels.astype(np.int32).reshape(shape)
        return (*self._strategy.put_batches(arrays, self._part), ())
