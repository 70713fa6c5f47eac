"""Batches of images that stay on disk, decoded ahead by worker processes or threads, in an order that is told.

Grain runs the workers and keeps the order; what a step sees is decided elsewhere, a while ahead. Nothing here imports
JAX, and Grain is imported when something streams.
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

NOTHING = -1  # as an index: no example; its image is black
POLL_SECONDS = 0.01  # between two looks for what another process or thread has to write
STOP_SECONDS = 10
ROOM = 2  # of the memory that processes can share, the part that batches may take: one half
_WORKER = "grain-process"  # how the names of Grain's processes begin


class Closed(Exception):
    """Nothing more is to be read."""


class Rows:
    """Which examples the steps ahead see: a small file that one process writes and all that decode map into memory.

    A ring: the row of step s is s modulo its length. It holds the step, a checksum and the indices, and counts when the
    first two are right, so that one from an earlier round, or half written, is taken for what it is: not there yet.
    """

    def __init__(self, length: int, size: int):
        """Makes the file.

        Args:
            length: how many steps it holds.
            size: indices a step.

        Raises:
            UserError: there is no room for temporary files.
        """
        self._shape = (length + 1, size + 2)  # The last row says whether all is over.
        try:
            descriptor, name = tempfile.mkstemp(prefix="imgclf_jax-rows-")
            with os.fdopen(descriptor, "wb") as file:
                # Written, not mapped: where the disk is full a memory map would end the process with a bus error.
                file.write(np.full(self._shape, NOTHING, np.int32).tobytes())
        except OSError as error:
            raise UserError(
                f"cannot write to {tempfile.gettempdir()}: {error.strerror}; make room or set TMPDIR"
            ) from error
        self.path = Path(name)
        self._table: np.memmap | None = np.memmap(name, np.int32, "r+", shape=self._shape)

    @property
    def length(self) -> int:
        """How many steps it holds."""
        return self._shape[0] - 1

    def write(self, step: int, indices: np.ndarray) -> None:
        """The indices int32 [size] of a step; those of `length` steps before are gone."""
        table = self._map()
        row = np.empty(self._shape[1], np.int32)
        row[0], row[2:] = step, indices
        row[1] = _checksum(row)
        table[step % self.length] = row

    def __call__(self, step: int) -> np.ndarray:
        """The indices int32 [size] of a step, as soon as they are there. Raises `Closed` when they never will be."""
        table = self._map()
        while True:
            row = np.array(table[step % self.length])
            if row[0] == step and row[1] == _checksum(row):
                return row[2:]
            self.check_open()
            time.sleep(POLL_SECONDS)

    def check_open(self) -> None:
        """Raises `Closed` after `close`, in any process."""
        if self._map()[-1, 0] != NOTHING:
            raise Closed

    def close(self) -> None:
        """Whoever waits or decodes stops, in all processes."""
        self._map()[-1, 0] = 0
        self.unlink()

    def unlink(self) -> None:
        """The file has no name any more, for all who need it have mapped it: nothing is left over after a crash."""
        self.path.unlink(missing_ok=True)

    def _map(self):
        if self._table is None:
            try:
                self._table = np.memmap(self.path, np.int32, "r", shape=self._shape)
            except FileNotFoundError:
                raise Closed from None
        return self._table

    def __getstate__(self) -> dict[str, Any]:
        """Its name; every process maps the file itself."""
        return vars(self) | {"_table": None}


def _checksum(row):
    return np.uint32(zlib.crc32(row[2:], int(row[0]))).view(np.int32)


class Reader:
    """Step -> its images, uint8 [n, H, W, C]; called in the processes and threads that decode."""

    def __init__(self, images: Images, rows: Callable[[int], np.ndarray]):
        """Args: the images, and step -> int [n]: which of them it sees, `NOTHING` for none."""
        self.images = images
        self.rows = rows

    def __call__(self, step: int) -> np.ndarray:
        """Raises `UserError` for an image that cannot be read."""
        indices = self.rows(step)
        batch = np.zeros((len(indices), *self.images.shape[1:]), np.uint8)
        for place, index in enumerate(indices):
            if index != NOTHING:
                batch[place] = self.images[int(index)]
            if isinstance(self.rows, Rows):
                self.rows.check_open()
        return batch

    def bytes(self, batch_size: int) -> int:
        """Bytes of a batch."""
        return batch_size * int(np.prod(self.images.shape[1:]))


def threads() -> int:
    """How many threads decode in one process."""
    return min(8, os.cpu_count() or 1)


def batches(read: Reader, first: int, last: int, workers: int, batch_size: int) -> Any:
    """An iterator, to be closed, over what `read` gives for the steps `first` to `last` - 1, in order.

    Args:
        read: what a step sees.
        first: step.
        last: step.
        workers: processes; 0: threads of this one.
        batch_size: examples a step.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain looks at flags of its own, also where there is no command line.
        flags.FLAGS.mark_as_parsed()
    steps = grain.MapDataset.range(first, last).map(read)
    if not workers:
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads(), prefetch_buffer_size=threads())))
    pipeline: Any = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    pipeline = pipeline.mp_prefetch(grain.MultiprocessingOptions(workers), _begin)
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free < ROOM * in_flight(workers) * read.bytes(batch_size):
        # Containers often have very little of it, and who writes past its end is killed: through pipes instead.
        options = grain.experimental.DatasetOptions(min_shm_size=2**62)
        pipeline = grain.experimental.WithOptionsIterDataset(pipeline, options)
    return iter(pipeline)


def in_flight(workers: int) -> int:
    """The most batches that are decoded, or being decoded, before anybody has asked for them."""
    # Each process has one in hand, one in its queue, and one that this process has taken out of it.
    return 4 * workers if workers else 2 * threads()


def _start_tracker() -> None:
    """Python's own helper, which removes shared memory that is left over. Starting it later would unmask signals."""
    # After processes that were killed it would say at length what it has removed.
    filters = [os.environ.get("PYTHONWARNINGS", ""), "ignore:resource_tracker"]
    os.environ["PYTHONWARNINGS"] = ",".join(dict.fromkeys(filter(None, ",".join(filters).split(","))))
    resource_tracker.ensure_running()


def _begin(worker: int, workers: int) -> None:
    """In a worker process, before anything else: it ends when its parent does, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow():
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class Chunks:
    """Chunks of `length` steps, put together by a thread while the one before is used; a context manager."""

    def __init__(self, read: Reader, first: int, last: int, length: int, workers: int, batch_size: int):
        """Starts reading.

        Args:
            read: what a step sees.
            first: step, where the first chunk begins.
            last: step; whole chunks after `first`.
            length: steps a chunk.
            workers: processes that decode; 0: threads of this one.
            batch_size: examples a step.
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
        """The next chunk, uint8 [length, n, H, W, C]. Raises `UserError` for an image that cannot be read."""
        found = self._ready.get()
        if isinstance(found, np.ndarray):
            return found
        reason, known = str(found), isinstance(found, UserError)
        if killed := re.search(r"terminated .*exit code -?\d+", reason):
            known = True
            reason = (
                f"a process that decodes images was {killed[0]}, perhaps for want of memory; what was saved is kept. "
                "Set fewer data.workers, or run the same command again with this --workdir"
            )
        if not known:
            raise found
        del found  # Its traceback holds on to images in memory that processes share.
        raise UserError(reason)

    def stop(self) -> None:
        """Nothing more is needed. The thread and all processes that decode end, but are not waited for."""
        self._stopping.set()
        self._close_rows()

    def close(self) -> None:
        """`stop`, and waits for them."""
        self.stop()
        self._thread.join(STOP_SECONDS)
        for process in multiprocessing.active_children():
            if process.name.startswith(_WORKER):
                process.kill()  # It keeps nothing that would be lost.

    def __enter__(self) -> "Chunks":
        """Nothing more."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()

    def _run(self):
        if self._workers:
            _start_tracker()
        # Processes and threads have the mask of the thread that starts them: Ctrl-C and SIGTERM, which reach a whole
        # process group, are for the main thread to answer, and workers go on until it has closed this.
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
            # Images in shared memory are in cycles of references; they must be gone before the interpreter is.
            iterator = None
            gc.collect()

    def _close_rows(self):
        if isinstance(self._read.rows, Rows):
            self._read.rows.close()

    def _chunks(self, iterator) -> Iterator[np.ndarray]:
        chunk, filled = np.empty(self._shape, np.uint8), 0
        for number, batch in enumerate(iterator):
            if number == self._workers and isinstance(self._read.rows, Rows):
                self._read.rows.unlink()  # Each of them has read one.
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
