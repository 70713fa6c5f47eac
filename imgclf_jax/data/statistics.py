"""Sums over the pixels of a split. They are integers, so they are exact in any order of addition."""

import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from imgclf_jax.data import caches, stream
from imgclf_jax.data.types import LazyImages, Progress, Split
from imgclf_jax.storage.files import read_sealed, write_sealed_if_possible

_BATCH = 64  # images that one thread decodes at a time
_CHUNK = 2048  # images in memory that are summed at a time


class Sums(NamedTuple):
    """Sums over the pixels of a split.

    Attributes:
        images: the number of images.
        total: uint64 [H, W, C], the sum of the images.
        squares: uint64 [C], the sum of all squared pixels; zeros if they were not requested.
    """

    images: int
    total: np.ndarray
    squares: np.ndarray


def add_up(batches: Iterable[np.ndarray], shape: tuple[int, ...], squares: bool = True) -> Sums:
    """Returns the sums over batches of images. Black images, such as padding, add only to the count.

    Args:
        batches: the images, each batch uint8 [n, H, W, C].
        shape: (H, W, C).
        squares: whether to sum the squares too, which takes longer.
    """
    count, total, squared = 0, np.zeros(shape, np.uint64), np.zeros(shape[-1], np.uint64)
    table = np.arange(256, dtype=np.uint64) ** 2
    for batch in batches:
        count += len(batch)
        total += batch.sum(axis=0, dtype=np.uint64)
        if squares:
            squared += table[batch].sum(axis=(0, 1, 2))
    return Sums(count, total, squared)


def of_split(split: Split, fingerprint: str, progress: Progress, squares: bool = True) -> Sums:
    """Returns the sums of a split: one pass over its images. If they stay on disk, the result is kept in the cache.

    Args:
        split: the images.
        fingerprint: the fingerprint of its data set.
        progress: called during the pass.
        squares: see `add_up`.

    Raises:
        UserError: an image cannot be read.
    """
    if not isinstance(split.images, LazyImages):
        return of_images(split.images, squares)
    name = hashlib.sha256(json.dumps([fingerprint, split.images.shape]).encode())
    for example in split.ids:
        name.update(f"{example}\n".encode())
    memo = caches.folders(None)[0] / f"sums-{name.hexdigest()[:32]}.json"
    if remembered := read_sealed(memo):
        return Sums(len(split), *(np.array(values, np.uint64) for values in remembered))
    sums = add_up(_batches(split, progress), split.images.shape[1:])
    write_sealed_if_possible(memo, [sums.total.tolist(), sums.squares.tolist()])
    return sums._replace(images=len(split))  # without the padding of the last batch


def of_images(images: np.ndarray, squares: bool = True) -> Sums:
    """Returns the sums of images in memory, uint8 [N, H, W, C]."""
    chunks = (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))
    return add_up(chunks, images.shape[1:], squares)


def _batches(split, progress):
    count = len(split)

    def rows(batch):
        return np.arange(batch * _BATCH, min((batch + 1) * _BATCH, count))

    batches = stream.batches(stream.Reader(split.images, rows), 0, -(-count // _BATCH), 0, _BATCH)
    try:
        done = 0
        for batch in batches:
            done += len(batch)
            yield batch
            progress("statistics of the training split", done, count)
    finally:
        batches.close()
