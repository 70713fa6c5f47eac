"""A split on disk. Its batches are sent to the devices in chunks, and the next chunk is read in the meantime."""

import collections
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from imgclf_jax.data.stream import NOTHING as NO_EXAMPLE
from imgclf_jax.data.stream import Chunks, Reader, Rows, in_flight
from imgclf_jax.data.types import Info, Split
from imgclf_jax.devices.parallel import Parallel
from imgclf_jax.terminal.console import count
from imgclf_jax.training import exact_evaluation
from imgclf_jax.training.batches import Chunk
from imgclf_jax.training.metrics import Sums
from imgclf_jax.training.sampling import Sampler

CHUNK_BYTES = 2**26  # of images per chunk: enough to make the overhead of sending negligible
CHUNK_STEPS = 64
PIECE = 64  # largest number of examples that a thread decodes at a time for evaluation


class Streamed:
    """A split on disk."""

    def __init__(self, split: Split, strategy: Parallel):
        """Reads nothing yet."""
        self._split, self._strategy = split, strategy

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._split)

    def feed(self, sampler: Sampler, steps: int, key: jax.Array, workers: int) -> "Feed":
        """Returns the data source of the training loop.

        Args:
            sampler: selects the examples of each step.
            steps: the length of the run.
            key: the key of the experiment, on the devices.
            workers: the number of processes that decode streamed images; 0: threads of this process.
        """
        return Feed(self._split, self._strategy, sampler, steps, key, workers)

    def sums(
        self, evaluate: Any, batch_size: int, progress: Callable[[int, int], None], start: Sums | None = None
    ) -> Sums:
        """Returns the sums of exact evaluation over the split. On one device, they equal those of a single dispatch.

        Args:
            evaluate: (data, total, sums) -> sums; see `imgclf_jax.training.exact_evaluation.make_evaluate`.
            batch_size: examples per batch.
            progress: called between chunks with (examples done, total examples).
            start: the sums over no examples; by default those of our metrics.

        Raises:
            UserError: an image cannot be read.
        """
        split, strategy = self._split, self._strategy
        batch_size = exact_evaluation.shared(batch_size, strategy)
        total, columns = len(split), strategy.columns(batch_size)
        length = min(chunk_steps(batch_size, split.images.shape[1:]), -(-total // batch_size))
        chunks = -(-total // (length * batch_size))
        rows = np.arange(chunks * length)[:, None] * batch_size + columns
        rows = np.where(rows < total, rows, NO_EXAMPLE).reshape(chunks, length, 1, -1)
        # Threads decode pieces of a batch, because a whole batch may take seconds and much memory.
        piece = math.gcd(len(columns), PIECE)
        pieces = rows.reshape(-1, piece)
        sums = strategy.put(start or exact_evaluation.nothing())
        with Chunks(Reader(split.images, pieces.__getitem__), 0, len(pieces), len(pieces) // chunks, 0, piece) as read:
            for index, places in enumerate(rows):
                images = read.get().reshape(*places.shape, *split.images.shape[1:])
                data = _chunk(strategy, split, images, places, batch_size)
                done = index * length * batch_size
                here = strategy.put(np.int32(min(total - done, length * batch_size)))
                before, sums = sums, evaluate(data=data, total=here, sums=sums)
                jax.block_until_ready(before)  # At most two chunks are on the devices.
                if done:
                    progress(done, total)
        return sums


class Feed:
    """Gives the training loop the data of its next steps.

    A step sees the same examples as if the split were on the devices: both use the same functions of (seed, step), here
    one epoch ahead. If a run resumes in the middle of a chunk, the places of the earlier steps are left empty.
    """

    def __init__(self, split: Split, strategy: Parallel, sampler: Sampler, steps: int, key: jax.Array, workers: int):
        """Reads nothing yet."""
        self._split = split
        self._strategy, self._sampler = strategy, sampler
        self._steps, self._workers = steps, workers
        batch_size, self._parts = sampler.batch_size, sampler.parts
        self._part = batch_size // self._parts
        self._columns = strategy.columns(self._part)
        self._length = chunk_steps(batch_size, split.images.shape[1:])
        epoch = strategy.put(np.int32(0))
        self._key = key
        self._batches_of = strategy.jit(sampler.epoch).lower(key, epoch).compile()
        self._epoch: tuple[int, Any, Any] = (-1, None, None)  # number, its batches, batches of the next epoch
        self._chunks: Chunks | None = None
        self._chunk = -1
        self._data: Chunk | None = None
        self._ahead: collections.deque[np.ndarray] = collections.deque()  # rows written but not used yet
        self._unwritten: Iterator[None] = iter(())

    def begin(self, step: int, wanted: int) -> int:
        """Waits for the first chunk. Returns the number of its steps, whose data is read before training."""
        return self(step, wanted)[1] if wanted else 0

    def __call__(self, step: int, wanted: int) -> tuple[Chunk, int]:
        """Returns the data for the next steps, up to the end of the chunk, and the number of steps that it covers.

        Args:
            step: the number of the next step. Steps must be requested in order.
            wanted: the largest number of steps to cover.

        Raises:
            UserError: an image cannot be read.
        """
        number, within = divmod(step, self._length)
        if self._chunks is None:
            self._chunks = self._open(step)
        if number != self._chunk:
            self._chunk, self._data = number, self._next(self._chunks.get())
        assert self._data is not None
        return self._data, min(wanted, self._length - within)

    def stop(self) -> None:
        """Stops reading, because no more steps will be requested. Does not wait for the processes to end."""
        if self._chunks is not None:
            self._chunks.stop()

    def close(self) -> None:
        """Stops reading and waits for the processes to end."""
        if self._chunks is not None:
            self._chunks.close()

    def _open(self, step) -> Chunks:
        first = step - step % self._length
        last = self._steps + -self._steps % self._length
        rows = Rows(3 * self._length + in_flight(self._workers), self._parts * len(self._columns))
        self._unwritten = self._written(rows, first, step, last)
        self._write(rows.length)
        read = Reader(self._split.images, rows)
        return Chunks(read, first, last, self._length, self._workers, self._parts * len(self._columns))

    def _written(self, rows, first, step, last) -> Iterator[None]:
        """Writes the rows of one step each time the iterator is advanced."""
        nothing = np.full(self._parts * len(self._columns), NO_EXAMPLE, np.int32)
        for ahead in range(first, last):
            row = self._row(ahead) if step <= ahead < self._steps else nothing
            rows.write(ahead, row)
            self._ahead.append(row)
            yield

    def _row(self, step):
        epoch, within = divmod(step, self._sampler.steps_per_epoch)
        number, batches, following = self._epoch  # Epochs are requested in order.
        if epoch != number:
            batches = jax.device_get(self._batches(epoch) if following is None else following)
            # Dispatched now, while the devices are busy with other steps, and read one epoch later.
            self._epoch = epoch, batches, self._batches(epoch + 1)
        return batches[within].reshape(self._parts, -1)[:, self._columns].ravel()

    def _batches(self, epoch):
        return self._batches_of(self._key, self._strategy.put(np.int32(epoch)))

    def _write(self, steps):
        collections.deque(itertools.islice(self._unwritten, steps), maxlen=0)

    def _next(self, images) -> Chunk:
        rows = np.stack([self._ahead.popleft() for _ in range(self._length)])
        rows = rows.reshape(self._length, self._parts, len(self._columns))
        self._write(self._length)  # replaces the rows that have just been read
        images = images.reshape(*rows.shape, *images.shape[2:])
        return _chunk(self._strategy, self._split, images, rows, self._part)


place = Streamed


def _chunk(strategy, split, images, rows, part) -> Chunk:
    """Sends images [K, parts, n, H, W, C] to the devices, with the labels of the examples in `rows` [K, parts, n]."""
    labels = np.where(rows == NO_EXAMPLE, 0, split.labels[rows]).astype(np.int32)
    return Chunk(*strategy.put_batches((images, labels, rows.astype(np.int32)), part))


def chunk_steps(batch_size: int, image_shape: tuple[int, ...]) -> int:
    """Returns the number of batches in a chunk."""
    return int(np.clip(CHUNK_BYTES // (batch_size * math.prod(image_shape)), 1, CHUNK_STEPS))


def stand_ins(strategy: Parallel, sampler: Sampler, image_shape: tuple[int, int, int]) -> Chunk:
    """See `imgclf_jax.training.placed.placement`."""
    sharding = strategy.batches
    steps = chunk_steps(sampler.batch_size, image_shape)
    shape = (steps, sampler.parts, sampler.batch_size // sampler.parts)
    images = jax.ShapeDtypeStruct((*shape, *image_shape), np.uint8, sharding=sharding)
    numbers = jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding)
    return Chunk(images, numbers, numbers)  # type: ignore[arg-type]


def training_shardings(strategy: Parallel) -> Chunk:
    """Returns the shardings of the data of `run_steps`."""
    return Chunk(*[strategy.batches] * 3)  # type: ignore[arg-type]


evaluation_shardings = training_shardings


def notice(config: ConfigDict, info: Info) -> str:
    """See `imgclf_jax.training.placed.placement`."""
    workers = config.data.workers
    readers = f"{workers} worker process{'es' if workers > 1 else ''}" if workers else "threads"
    return (
        f"the images ({count(info.image_bytes)}B as uint8) exceed what a device may hold: they stay on disk and are "
        f"streamed, decoded by {readers}"
    )


def memory(strategy: Parallel, sampler: Sampler, image_shape: tuple[int, int, int]) -> tuple[str, int]:
    """See `imgclf_jax.training.placed.placement`."""
    leaves = jax.tree.leaves(stand_ins(strategy, sampler, image_shape))
    size = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    return "two chunks of streamed data, as uint8", 2 * size
