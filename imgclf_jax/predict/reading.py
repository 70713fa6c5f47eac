"""Classifies photos, which threads decode ahead of the network."""

import collections
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imgclf_jax.data import decode
from imgclf_jax.errors import UserError

NOT_FINITE = "the network gives it NaN instead of probabilities"


class Row(NamedTuple):
    """The result for a file.

    Attributes:
        file: its name.
        probabilities: float32 [classes]; `None` if the file could not be read or they are NaN.
        reason: why there are no probabilities, `NOT_FINITE` if they are NaN; otherwise empty.
        label: the true class, if it is known.
    """

    file: str
    probabilities: np.ndarray | None
    reason: str
    label: int | None


def check_channels(image_shape: tuple[int, int, int], run: str) -> None:
    """Raises `UserError` if a network that takes images of `image_shape`, (H, W, C), does not take photos."""
    if image_shape[2] not in (1, 3, 4):
        raise UserError(f"the network in {run} takes images with {image_shape[2]} channels, but photos have 1, 3 or 4")


def predict_files(
    files: Iterable[tuple[str, int | None]],
    predict: Callable[[np.ndarray], np.ndarray],
    image_shape: tuple[int, int, int],
    resize: str,
    batch_size: int,
) -> Iterator[list[Row]]:
    """Classifies files, one batch at a time, in their order.

    Odd photos, see `imgclf_jax.data.decode.Photo`, are reported by one `UserWarning` after the last row.

    At most two batches of decoded photos are in memory, plus one photo per decoding thread.

    Args:
        files: (name, label if it is known).
        predict: images uint8 [N, H, W, C] -> probabilities float32 [N, classes].
        image_shape: (H, W, C) of the images that `predict` takes.
        resize: how photos are resized, see `imgclf_jax.data.decode.fit`.
        batch_size: most files in a batch.

    Yields:
        The rows of one batch.
    """

    notes: list[tuple[str, str]] = []
    total = 0

    def pixels(name: str) -> np.ndarray | str:
        try:
            photo = decode.decode(Path(name), image_shape[2])
        except decode.BadPhoto as error:
            return str(error)
        if photo.note:
            notes.append((name, photo.note))
        return decode.pixels(photo.image, image_shape[:2], resize)

    decoded = _ahead(pixels, files, batch_size)
    while batch := list(itertools.islice(decoded, batch_size)):
        total += len(batch)
        images = [photo for _, photo in batch if not isinstance(photo, str)]
        scores = iter(predict(np.stack(images)) if images else ())
        yield [
            Row(name, None, photo, label) if isinstance(photo, str) else _row(name, next(scores), label)
            for (name, label), photo in batch
        ]
    if notes:
        warnings.warn(decode.odd(sorted(notes), total), UserWarning, stacklevel=2)


def _row(name: str, probabilities: np.ndarray, label: int | None) -> Row:
    if np.isnan(probabilities).any():
        return Row(name, None, NOT_FINITE, label)
    return Row(name, probabilities, "", label)


def _ahead(
    pixels: Callable[[str], np.ndarray | str], files: Iterable[tuple[str, int | None]], count: int
) -> Iterator[tuple[tuple[str, int | None], np.ndarray | str]]:
    """Yields (file, `pixels` of it) in order, with up to `count` files, plus one per thread, decoded ahead."""
    threads = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    waiting: collections.deque[tuple[tuple[str, int | None], Future[np.ndarray | str]]] = collections.deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for file in files:
            waiting.append((file, pool.submit(pixels, file[0])))
            if len(waiting) >= count + threads:
                first, photo = waiting.popleft()
                yield first, photo.result()
        while waiting:
            first, photo = waiting.popleft()
            yield first, photo.result()
    finally:  # Stop decoding if the user stops the tool.
        pool.shutdown(cancel_futures=True)


def best(probabilities: np.ndarray, count: int) -> Sequence[int]:
    """The labels of the `count` highest probabilities [classes], highest first."""
    return [int(label) for label in np.argsort(-probabilities, kind="stable")[:count]]
