"""Reads batches of images that stay on disk, decoded ahead by worker processes or threads, in a given order.

Grain runs the workers and keeps the order. The examples of each step are decided elsewhere, in advance. This module
does not import JAX, and it imports Grain only when something streams.
"""

import contextlib
import gc
import multiprocessing
import os
import queue
import re
import shutil
import signal
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np

from imgclf_jax.data.types import Images
from imgclf_jax.errors import UserError

NOTHING = -1  # stands for no example; its image is black
POLL_SECONDS = 0.01  # between two checks for data from another process or thread
STOP_SECONDS = 10  # how long `Chunks.close` waits for its thread
ROOM = 2  # shared memory must have room for this many times the batches in flight
_WORKER = "grain-process"  # the names of Grain's processes start with this


class Closed(Exception):
    """Reading has been stopped."""


class Rows:
    """The examples of the next steps: a small file that one process writes and all decoding processes map into memory.

    The file is a ring buffer: step s is in row s modulo its length. A row holds the step, a checksum and the indices.
    It is valid only if the step and the checksum match, so rows of earlier rounds and half-written rows are ignored.
    """

    def __init__(self, length: int, size: int):
        """Creates the file.

        Args:
            length: the number of steps that it holds.
            size: the number of indices per step.

        Raises:
            UserError: temporary files cannot be written.
        """
        self._shape = (length + 1, size + 2)  # The last row says whether reading has been stopped.
        try:
            descriptor, name = tempfile.mkstemp(prefix="imgclf_jax-rows-")
            with os.fdopen(descriptor, "wb") as file:
                # Do not map the file here: on a full disk, a memory map would end the process with a bus error.
                file.write(np.full(self._shape, NOTHING, np.int32).tobytes())
        except OSError as error:
            raise UserError(
                f"cannot write to {tempfile.gettempdir()}: {error.strerror}; make room or set TMPDIR"
            ) from error
        self.path = Path(name)
        self._table: np.memmap | None = np.memmap(name, np.int32, "r+", shape=self._shape)

    @property
    def length(self) -> int:
        """The number of steps that the file holds."""
        return self._shape[0] - 1

    def write(self, step: int, indices: np.ndarray) -> None:
        """Writes the indices int32 [size] of a step over those of the step `length` steps earlier."""
        table = self._map()
        row = np.empty(self._shape[1], np.int32)
        row[0], row[2:] = step, indices
        row[1] = _checksum(row)
        table[step % self.length] = row

    def __call__(self, step: int) -> np.ndarray:
        """Waits for the indices int32 [size] of a step and returns them.

        Raises:
            Closed: `close` was called, in any process.
        """
        table = self._map()
        while True:
            row = np.array(table[step % self.length])
            if row[0] == step and row[1] == _checksum(row):
                return row[2:]
            self.check_open()
            time.sleep(POLL_SECONDS)

    def check_open(self) -> None:
        """Checks whether `close` was called.

        Raises:
            Closed: it was, in any process.
        """
        if self._map()[-1, 0] != NOTHING:
            raise Closed

    def close(self) -> None:
        """Stops waiting and decoding in all processes."""
        self._map()[-1, 0] = 0
        self.unlink()

    def unlink(self) -> None:
        """Deletes the name of the file once all processes have mapped it, so a crash leaves nothing behind."""
        self.path.unlink(missing_ok=True)

    def _map(self):
        if self._table is None:
            try:
                self._table = np.memmap(self.path, np.int32, "r", shape=self._shape)
            except FileNotFoundError:
                raise Closed from None
        return self._table

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the memory map, because every process maps the file itself."""
        return vars(self) | {"_table": None}


def _checksum(row):
    return np.uint32(zlib.crc32(row[2:], int(row[0]))).view(np.int32)


class Reader:
    """Maps a step to its images, uint8 [n, H, W, C]. Called in the processes and threads that decode."""

    def __init__(self, images: Images, rows: Callable[[int], np.ndarray]):
        """Creates a reader.

        Args:
            images: the images.
            rows: maps a step to the indices int [n] of its images, with `NOTHING` for none.
        """
        self.images = images
        self.rows = rows

    def __call__(self, step: int) -> np.ndarray:
        """Returns the images of a step.

        Raises:
            UserError: an image cannot be read.
        """
        indices = self.rows(step)
        batch = np.zeros((len(indices), *self.images.shape[1:]), np.uint8)
        for position, index in enumerate(indices):
            if index != NOTHING:
                batch[position] = self.images[int(index)]
            if isinstance(self.rows, Rows):
                self.rows.check_open()
        return batch

    def bytes(self, batch_size: int) -> int:
        """Returns the number of bytes in a batch."""
        return batch_size * int(np.prod(self.images.shape[1:]))


def threads() -> int:
    """Returns the number of threads that decode in one process."""
    return min(8, os.cpu_count() or 1)


def batches(read: Reader, first: int, last: int, workers: int, batch_size: int) -> Any:
    """Returns an iterator over the batches of the steps `first` to `last` - 1, in order. The caller must close it.

    Args:
        read: returns the batch of a step.
        first: the first step.
        last: one past the last step.
        workers: the number of processes that decode; 0 uses threads of this process.
        batch_size: the number of examples per step.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, even without a command line.
        flags.FLAGS.mark_as_parsed()
    steps = grain.MapDataset.range(first, last).map(read)
    if not workers:
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads(), prefetch_buffer_size=threads())))
    pipeline: Any = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    pipeline = pipeline.mp_prefetch(grain.MultiprocessingOptions(workers), _begin)
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free < ROOM * in_flight(workers) * read.bytes(batch_size):
        # Containers often have little shared memory, and exceeding it kills a process. Use pipes instead.
        options = grain.experimental.DatasetOptions(min_shm_size=2**62)
        pipeline = grain.experimental.WithOptionsIterDataset(pipeline, options)
    return iter(pipeline)


def in_flight(workers: int) -> int:
    """Returns the largest number of batches that are decoded, or being decoded, before they are requested."""
    # Each process works on one, has one in its queue, and has handed one over to this process.
    return 4 * workers if workers else 2 * threads()


def _start_tracker() -> None:
    """Starts Python's process that removes leftover shared memory. Starting it later would unmask signals."""
    # Suppress its long warnings about what killed processes left behind.
    filters = [os.environ.get("PYTHONWARNINGS", ""), "ignore:resource_tracker"]
    os.environ["PYTHONWARNINGS"] = ",".join(dict.fromkeys(filter(None, ",".join(filters).split(","))))
    resource_tracker.ensure_running()


def _begin(worker: int, workers: int) -> None:
    """Makes a worker process end when its parent ends, for any reason. Grain calls this first in each worker."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow():
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class Chunks:
    """Reads chunks of `length` steps. A thread assembles the next chunk while one is used. A context manager."""

    def __init__(self, read: Reader, first: int, last: int, length: int, workers: int, batch_size: int):
        """Starts reading.

        Args:
            read: returns the batch of a step.
            first: the first step.
            last: one past the last step; a whole number of chunks after `first`.
            length: the number of steps per chunk.
            workers: the number of processes that decode; 0 uses threads of this process.
            batch_size: the number of examples per step.
        """
        self._read = read
        self._length = length
        self._workers = workers
        self._open = lambda: batches(read, first, last, workers, batch_size)
        self._shape = (length, batch_size, *read.images.shape[1:])
        self._ready: queue.Queue[np.ndarray | BaseException] = queue.Queue(1)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def get(self) -> np.ndarray:
        """Returns the next chunk, uint8 [length, n, H, W, C].

        Raises:
            UserError: an image cannot be read, or a worker process was killed.
        """
        result = self._ready.get()
        if isinstance(result, np.ndarray):
            return result
        reason, is_explained = str(result), isinstance(result, UserError)
        if killed := re.search(r"terminated .*exit code -?\d+", reason):
            is_explained = True
            reason = (
                f"a process that decodes images was {killed[0]}, perhaps for lack of memory; what was saved is kept. "
                "Reduce data.workers, or run the same command again with this --workdir"
            )
        if not is_explained:
            raise result
        del result  # Its traceback refers to images in shared memory.
        raise UserError(reason)

    def stop(self) -> None:
        """Tells the thread and all decoding processes to end, without waiting for them."""
        self._stopping.set()
        self._close_rows()

    def close(self) -> None:
        """Ends the thread and all decoding processes, and waits for the thread."""
        self.stop()
        self._thread.join(STOP_SECONDS)
        for process in multiprocessing.active_children():
            if process.name.startswith(_WORKER):
                process.kill()  # It holds nothing that could be lost.

    def __enter__(self) -> "Chunks":
        """Returns the chunks, which are already being read."""
        return self

    def __exit__(self, *_: object) -> None:
        """Calls `close`."""
        self.close()

    def _run(self):
        if self._workers:
            _start_tracker()
        # Processes and threads inherit the signal mask of the thread that starts them. Only the main thread handles
        # Ctrl-C and SIGTERM, which reach the whole process group; workers continue until it has called `close`.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        iterator = None
        try:
            iterator = self._open()
            for chunk in self._chunks(iterator):
                self._hand_over(chunk)
        except Closed:
            pass
        except BaseException as error:
            with contextlib.suppress(Closed):
                self._hand_over(error)
        finally:
            if iterator is not None:
                iterator.close()
            self._close_rows()
            # Reference cycles hold images in shared memory, which must be freed before the interpreter ends.
            iterator = None
            gc.collect()

    def _close_rows(self):
        if isinstance(self._read.rows, Rows):
            self._read.rows.close()

    def _chunks(self, iterator) -> Iterator[np.ndarray]:
        chunk, filled = np.empty(self._shape, np.uint8), 0
        for number, batch in enumerate(iterator):
            if number == self._workers and isinstance(self._read.rows, Rows):
                self._read.rows.unlink()  # Each worker has read one.
            chunk[filled] = batch
            filled += 1
            if filled == self._length:
                yield chunk
                chunk, filled = np.empty(self._shape, np.uint8), 0

    def _hand_over(self, chunk):
        while not self._stopping.is_set():
            try:
                return self._ready.put(chunk, timeout=POLL_SECONDS)
            except queue.Full:
                pass
        raise Closed
