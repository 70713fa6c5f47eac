"""Images that stay in their record files; each is read and decoded on access."""

import bisect
import contextlib
import itertools
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imgclf_jax.data.tfds import records
from imgclf_jax.data.tfds.prepared import Stored
from imgclf_jax.data.types import LazyImages, Ranges


class Piece(NamedTuple):
    """Consecutive records of a file.

    Attributes:
        file: the name of the file.
        first: the number of the first record in the file.
        length: the number of records.
    """

    file: str
    first: int
    length: int


class RecordImages(LazyImages):
    """The images of ranges of stored splits, the same as `records.read_split` decodes."""

    def __init__(self, stored: Stored, ranges: Ranges, image_shape: tuple[int, int, int], resize: str = "stretch"):
        """Opens no file yet.

        Args:
            stored: the prepared data set.
            ranges: the ranges of its splits to take.
            image_shape: (H, W, C) of the resized images.
            resize: how to resize them, see `records.decoder`.
        """
        pieces = [piece for part in ranges for piece in _pieces(stored, *part)]
        self._stored = stored
        self._resize = resize
        self._pieces = pieces
        self._ends = list(itertools.accumulate(piece.length for piece in pieces))
        super().__init__((self._ends[-1] if pieces else 0, *image_shape))
        self._prepare()

    def read(self, index: int) -> np.ndarray:
        """Returns one image, uint8 [H, W, C].

        Raises:
            UserError: its file is missing or damaged. The message names the file.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        piece = self._pieces[number]
        position = piece.first + index - (self._ends[number] - piece.length)
        with records.naming_damage(self._stored.folder, piece.file):
            (record,) = self._reader(piece.file).read([position])
            return self._decode(records.encoded_image(records.parse(record)))

    def _reader(self, file):
        with self._lock:
            if file not in self._readers:
                self._readers[file] = _open(self._stored.folder / file)
            return self._readers[file]

    def _prepare(self):
        """Sets up the state of one process: the open files, which all its threads share."""
        # Import these here, because imports can deadlock when several threads start them.
        from array_record.python import array_record_module  # noqa: F401
        from tensorflow_datasets.proto import tf_example_pb2  # noqa: F401

        self._lock = threading.Lock()
        self._readers: dict[str, Any] = {}
        self._decode = records.decoder(self._stored, self.shape[1:], self._resize)
        _allow_open_files(len({piece.file for piece in self._pieces}))

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the state of one process."""
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_readers", "_decode")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Sets up the process that decodes."""
        vars(self).update(state)
        self._prepare()


def _pieces(stored, name, first, last):
    """Yields the pieces of files that hold the records `first` to `last` - 1 of a stored split."""
    split = stored.splits[name]
    start = 0
    for file, length in zip(split.files, split.shard_lengths, strict=True):
        low, high = max(first - start, 0), min(last - start, length)
        if low < high:
            yield Piece(file, low, high - low)
        start += length


def _open(path: Path) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.is_file():
        raise FileNotFoundError("the file is missing")
    # Records are read in random order, so reading ahead is useless.
    return ArrayRecordReader(str(path), options="readahead_buffer_size:0", file_reader_buffer_size=32768)


def _allow_open_files(count):
    """Raises the limit on open files, often 1024, for large data sets with that many shards."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = count + 1000
        if soft != resource.RLIM_INFINITY and soft < wanted:
            highest = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, highest), hard))
