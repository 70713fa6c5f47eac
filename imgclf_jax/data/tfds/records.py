"""Reads record files into decoded arrays, shard by shard, so that errors can name the damaged file."""

import concurrent.futures
import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from imgclf_jax.data.tfds.prepared import Stored, StoredSplit
from imgclf_jax.errors import UserError
from imgclf_jax.storage.files import reason_of

_BATCH = 512  # records in memory at once
_THREADING_PAYS = 16 * 1024  # bytes per image; for smaller ones PIL holds the interpreter lock most of the time
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

Batch = tuple[np.ndarray, np.ndarray, list[str]]


def check_files(stored: Stored, split: StoredSplit) -> None:
    """Checks the record files of a split.

    Raises:
        UserError: files are missing or empty. The message names them all.
    """
    bad = [f for f in split.files if not _size(stored.folder / f)]
    if bad:
        raise UserError(
            f"{stored.folder}: {', '.join(bad)} missing or empty ({len(bad)} of {len(split.files)} files of split "
            f"{split.name!r}); {_mend(stored.folder)}"
        )


def read_split(
    stored: Stored, split: StoredSplit, image_shape: tuple[int, int, int], resize: str = "stretch"
) -> Iterator[Batch]:
    """Yields (images uint8 [n, H, W, C], labels int32 [n], ids) in stored order, with n at most 512.

    Images of other sizes are resized to `image_shape`, see `decoder`.

    Raises:
        UserError: a record file is damaged. The message names it.
    """
    decode = decoder(stored, image_shape, resize)
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for file, first, records in _read_files(stored, split):
            with naming_damage(stored.folder, file):
                examples = [parse(record) for record in records]
                encoded = [encoded_image(example) for example in examples]
                run: Callable[..., Any] = map
                if sum(map(len, encoded)) > _THREADING_PAYS * len(encoded):
                    run = pool.map
                images = np.stack(list(run(decode, encoded)))
                labels, ids = _labels_and_ids(stored, split, first, examples)
            yield images, labels, ids


def read_labels(stored: Stored, split: StoredSplit) -> Iterator[tuple[list[bytes], np.ndarray, list[str]]]:
    """Yields (records, labels int32 [n], ids) as `read_split` does, without decoding images."""
    for file, first, records in _read_files(stored, split):
        with naming_damage(stored.folder, file):
            labels, ids = _labels_and_ids(stored, split, first, [parse(record) for record in records])
        yield records, labels, ids


@contextlib.contextmanager
def naming_damage(folder: Path, file: str) -> Iterator[None]:
    """Turns any exception in the block into a `UserError` that names the record file.

    The kind of exception depends on what notices the damage first: the reader, the parser or the PNG decoder.
    """
    try:
        yield
    except Exception as e:
        reason = reason_of(e).replace(str(folder / file), "it")  # Some readers name the file themselves.
        raise UserError(f"{folder / file}: damaged ({reason}); {_mend(folder)}") from e


def _read_files(stored: Stored, split: StoredSplit) -> Iterator[tuple[str, int, list[bytes]]]:
    """Yields (file, index of the first record in the split, records)."""
    check_files(stored, split)
    first = 0
    for file, length in zip(split.files, split.shard_lengths, strict=True):
        shard = _read_shard(stored.folder / file, length)
        while True:
            with naming_damage(stored.folder, file):
                records = next(shard, None)
            if records is None:
                break
            yield file, first, records
            first += len(records)


def _labels_and_ids(stored, split, first, examples):
    """Returns (labels int32 [n], ids) of parsed records; `first` is the number of the first one in the split."""
    labels = np.array([e["label"].int64_list.value[0] for e in examples], np.int32)
    if labels.min() < 0 or labels.max() >= len(stored.class_names):
        raise ValueError(f"a label outside 0 to {len(stored.class_names) - 1}")
    if stored.has_ids:
        return labels, [e["id"].bytes_list.value[0].decode() for e in examples]
    return labels, [f"{split.name}/{first + i}" for i in range(len(examples))]


def _read_shard(path: Path, length: int) -> Iterator[list[bytes]]:
    """Yields lists of records.

    Raises:
        ValueError: the file does not hold `length` records.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(os.fspath(path))
    try:
        if not reader.ok() or reader.num_records() != length:
            raise ValueError(f"{reader.num_records()} readable records, {length} expected: truncated or overwritten")
        for start in range(0, length, _BATCH):
            yield reader.read(start, min(start + _BATCH, length))
    finally:
        reader.close()


def parse(record: bytes) -> Any:
    """Returns the parsed features of a record, by name."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature


def encoded_image(features: Any) -> bytes:
    """Returns the encoded image of a parsed record."""
    return features["image"].bytes_list.value[0]


def decoder(stored: Stored, image_shape: tuple[int, int, int], resize: str) -> Callable[[bytes], np.ndarray]:
    """Returns a function from an encoded image to uint8 [H, W, C].

    It resizes images of other sizes as `imgclf_jax.data.decode.fit` does. If the data set says that all its images have
    the size `image_shape`, it raises a ValueError for any other size instead.
    """
    from PIL import Image

    from imgclf_jax.data.decode import fit

    height, width, channels = image_shape

    def decode(encoded: bytes) -> np.ndarray:
        image: Image.Image = Image.open(io.BytesIO(encoded))
        if image.mode != _MODES[channels]:
            image = image.convert(_MODES[channels])
        if stored.image_shape != image_shape:
            image = fit(image, (height, width), resize)
        array = np.asarray(image).reshape(image.size[1], image.size[0], channels)
        if array.shape != image_shape:
            raise ValueError(f"an image of shape {array.shape}, {image_shape} expected")
        return array

    return decode


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _mend(folder: Path) -> str:
    return f"delete the folder {folder} and run again"
