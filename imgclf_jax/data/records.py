"""Record files in, decoded arrays out, shard by shard, so that a damaged file can be named."""

import concurrent.futures
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from imgclf_jax.data.stored import Stored, StoredSplit
from imgclf_jax.errors import UserError

_BATCH = 512  # records held at once
_THREADING_PAYS = 16 * 1024  # bytes an image: PIL spends less than this outside the interpreter lock
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

Batch = tuple[np.ndarray, np.ndarray, list[str]]


def check_files(stored: Stored, split: StoredSplit) -> None:
    """Raises UserError naming every record file of `split` that is missing or empty."""
    bad = [f for f in split.files if not _size(stored.folder / f)]
    if bad:
        raise UserError(
            f"{stored.folder}: {', '.join(bad)} missing or empty ({len(bad)} of {len(split.files)} files of split "
            f"{split.name!r}); {_mend(stored)}"
        )


def read_split(stored: Stored, split: StoredSplit, image_shape: tuple[int, int, int]) -> Iterator[Batch]:
    """Yields (images uint8 [n, H, W, C], labels int32 [n], ids) in stored order, n at most 512.

    Images whose size is not `image_shape` are resized (bilinear, antialiased).

    Raises:
        UserError: a record file is damaged; names it.
    """
    check_files(stored, split)
    decode = _decoder(image_shape, resize=stored.image_shape != image_shape)
    first = 0
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for file, length in zip(split.files, split.shard_lengths, strict=True):
            try:
                for examples in _read_shard(stored.folder / file, length):
                    encoded = [e["image"].bytes_list.value[0] for e in examples]
                    run: Callable[..., Any] = map
                    if sum(map(len, encoded)) > _THREADING_PAYS * len(encoded):
                        run = pool.map
                    images = np.stack(list(run(decode, encoded)))
                    labels = np.array([e["label"].int64_list.value[0] for e in examples], np.int32)
                    if labels.min() < 0 or labels.max() >= len(stored.class_names):
                        raise ValueError(f"a label outside 0 to {len(stored.class_names) - 1}")
                    if stored.has_ids:
                        ids = [e["id"].bytes_list.value[0].decode() for e in examples]
                    else:
                        ids = [f"{split.name}/{first + i}" for i in range(len(examples))]
                    yield images, labels, ids
                    first += len(examples)
            # What a damaged record raises depends on where the damage is: the reader, the parser or the PNG decoder.
            except Exception as e:
                reason = str(e).splitlines()[0] if str(e) else repr(e)
                raise UserError(f"{stored.folder / file}: damaged ({reason}); {_mend(stored)}") from e


def _read_shard(path: Path, length: int) -> Iterator[list[Any]]:
    """Yields lists of parsed features (by name); raises ValueError when the file does not hold `length` records."""
    from array_record.python.array_record_module import ArrayRecordReader
    from tensorflow_datasets.proto import tf_example_pb2

    reader = ArrayRecordReader(os.fspath(path))
    try:
        if not reader.ok() or reader.num_records() != length:
            raise ValueError(f"{reader.num_records()} readable records, {length} expected: truncated or overwritten")
        for start in range(0, length, _BATCH):
            records = reader.read(start, min(start + _BATCH, length))
            yield [tf_example_pb2.Example.FromString(r).features.feature for r in records]
    finally:
        reader.close()


def _decoder(image_shape: tuple[int, int, int], resize: bool) -> Callable[[bytes], np.ndarray]:
    from PIL import Image

    from imgclf_jax.data import photos

    height, width, channels = image_shape

    def decode(encoded: bytes) -> np.ndarray:
        image: Image.Image = Image.open(io.BytesIO(encoded))
        if image.mode != _MODES[channels]:
            image = image.convert(_MODES[channels])
        if resize:
            image = photos.fit(image, (height, width), "stretch")
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


def _mend(stored: Stored) -> str:
    return f"to mend it delete the folder {stored.folder} and run again"
