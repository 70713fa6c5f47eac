"""Sums over the pixels of a split. They are integers and therefore exact, in any order of addition."""

import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from imgclf_jax.data import caches, stream
from imgclf_jax.data.types import Progress, Split
from imgclf_jax.storage.files import read_sealed, write_sealed_if_possible

_BATCH = 64  # images that one thread decodes at a time


class Sums(NamedTuple):
    """Sums over the pixels of a split.

    Attributes:
        total: uint64 [H, W, C], the sum over the images.
        squares: uint64 [C], the sum of the squares of all pixels; zeros if not requested.
    """

    total: np.ndarray
    squares: np.ndarray


def add_up(batches: Iterable[np.ndarray], shape: tuple[int, ...], squares: bool = True) -> Sums:
    """Returns the sums over batches of images. Black images, such as padding, do not change them.

    Args:
        batches: the images, each batch uint8 [n, H, W, C].
        shape: (H, W, C).
        squares: whether to sum the squares too, which takes longer.
    """
    total, squared = np.zeros(shape, np.uint64), np.zeros(shape[-1], np.uint64)
    table = np.arange(256, dtype=np.uint64) ** 2
    for batch in batches:
        total += batch.sum(axis=0, dtype=np.uint64)
        if squares:
            squared += table[batch].sum(axis=(0, 1, 2))
    return Sums(total, squared)


def of_stream(split: Split, fingerprint: str, progress: Progress) -> Sums:
    """Returns the sums of a split whose images stay on disk. Reads them once, and caches the result for the user.

    Args:
        split: the split.
        fingerprint: the fingerprint of its data set.
        progress: called while the images are read.

    Raises:
        UserError: an image cannot be read.
    """
    name = hashlib.sha256(json.dumps([fingerprint, split.images.shape]).encode())
    for example in split.ids:
        name.update(f"{example}\n".encode())
    memo = caches.folders(None)[0] / f"sums-{name.hexdigest()[:32]}.json"
    if remembered := read_sealed(memo):
        return Sums(*(np.array(values, np.uint64) for values in remembered))
    sums = add_up(_batches(split, progress), split.images.shape[1:])
    write_sealed_if_possible(memo, [values.tolist() for values in sums])
    return sums


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
