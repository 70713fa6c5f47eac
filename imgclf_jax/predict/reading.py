"""Photos through the network, decoded by threads ahead of it."""

import collections
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imgclf_jax.data import decode as photos

NOT_FINITE = "the network gives it NaN instead of probabilities"


class Row(NamedTuple):
    """What became of a file.

    Attributes:
        file: its name.
        probabilities: float32 [classes]; `None` if the file could not be read or they are NaN.
        reason: why there are none, `NOT_FINITE` if they are NaN; "" if there are some.
        label: the class that it should be, where that is known.
    """

    file: str
    probabilities: np.ndarray | None
    reason: str
    label: int | None


def predict_files(
    files: Iterable[tuple[str, int | None]],
    predict: Callable[[np.ndarray], np.ndarray],
    image_shape: tuple[int, int, int],
    resize: str,
    batch_size: int,
) -> Iterator[list[Row]]:
    """Rows in the order of the files, a batch at a time.

    Odd photos, see `imgclf_jax.data.decode.Photo`, are reported by one `UserWarning` after the last row.

    At most two batches of decoded photos are in memory, and some more for the threads that decode.

    Args:
        files: (name, label where it is known).
        predict: images uint8 [N, H, W, C] -> probabilities float32 [N, classes].
        image_shape: (H, W, C) that it takes.
        resize: how photos get that size, see `imgclf_jax.data.decode.fit`.
        batch_size: most files in a batch.
    """

    noted: list[tuple[str, str]] = []
    total = 0

    def decode(name: str) -> np.ndarray | str:
        try:
            photo = photos.decode(Path(name), image_shape[2])
        except photos.BadPhoto as error:
            return str(error)
        if photo.note:
            noted.append((name, photo.note))
        return photos.pixels(photo.image, image_shape[:2], resize)

    decoded = _ahead(decode, files, batch_size)
    while batch := list(itertools.islice(decoded, batch_size)):
        total += len(batch)
        images = [photo for _, photo in batch if not isinstance(photo, str)]
        scores = iter(predict(np.stack(images)) if images else ())
        yield [
            Row(name, None, photo, label) if isinstance(photo, str) else _row(name, next(scores), label)
            for (name, label), photo in batch
        ]
    if noted:
        warnings.warn(photos.odd(sorted(noted), total), UserWarning, stacklevel=2)


def _row(name: str, probabilities: np.ndarray, label: int | None) -> Row:
    if np.isnan(probabilities).any():
        return Row(name, None, NOT_FINITE, label)
    return Row(name, probabilities, "", label)


def _ahead(
    decode: Callable[[str], np.ndarray | str], files: Iterable[tuple[str, int | None]], count: int
) -> Iterator[tuple[tuple[str, int | None], np.ndarray | str]]:
    """(file, what was decoded) in order; threads work on as many as `count` that have not been asked for yet."""
    threads = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    waiting: collections.deque[tuple[tuple[str, int | None], Future[np.ndarray | str]]] = collections.deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for file in files:
            waiting.append((file, pool.submit(decode, file[0])))
            if len(waiting) >= count + threads:
                first, photo = waiting.popleft()
                yield first, photo.result()
        while waiting:
            first, photo = waiting.popleft()
            yield first, photo.result()
    finally:  # Nothing more is decoded for a user who has stopped the tool.
        pool.shutdown(cancel_futures=True)


def best(probabilities: np.ndarray, count: int) -> Sequence[int]:
    """The labels of the `count` highest of [classes] probabilities, highest first."""
    return [int(label) for label in np.argsort(-probabilities, kind="stable")[:count]]
