"""Sums over the pixels of a split, exact because they are whole numbers, whatever the order they are added in."""

import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from imgclf_jax.data import kept, seals, stream
from imgclf_jax.data.types import Progress, Split
from imgclf_jax.storage import atomic

_BATCH = 64  # images that one thread decodes at a time


class Sums(NamedTuple):
    """Of a split's pixels.

    Attributes:
        total: uint64 [H, W, C], over the images.
        squares: uint64 [C], of all pixels squared; zeros where nobody asked for them.
    """

    total: np.ndarray
    squares: np.ndarray


def add_up(batches: Iterable[np.ndarray], shape: tuple[int, ...], squares: bool = True) -> Sums:
    """The sums of images uint8 [n, H, W, C], which may be black.

    Args:
        batches: the images.
        shape: (H, W, C).
        squares: whether the squares are needed, which take longer.
    """
    total, squared = np.zeros(shape, np.uint64), np.zeros(shape[-1], np.uint64)
    table = np.arange(256, dtype=np.uint64) ** 2
    for batch in batches:
        total += batch.sum(axis=0, dtype=np.uint64)
        if squares:
            squared += table[batch].sum(axis=(0, 1, 2))
    return Sums(total, squared)


def of_stream(split: Split, fingerprint: str, progress: Progress) -> Sums:
    """The sums of a split whose images stay on disk: one pass over them, remembered in the user's cache.

    Args:
        split: the images.
        fingerprint: of its data set.
        progress: told of the pass.

    Raises:
        UserError: an image cannot be read.
    """
    name = hashlib.sha256(json.dumps([fingerprint, split.images.shape]).encode())
    for example in split.ids:
        name.update(f"{example}\n".encode())
    memo = kept.places(None)[0] / f"sums-{name.hexdigest()[:32]}.json"
    if remembered := seals.read_json(memo):
        return Sums(*(np.array(values, np.uint64) for values in remembered))
    found = add_up(_batches(split, progress), split.images.shape[1:])
    atomic.write_text_if_possible(memo, seals.sealed([values.tolist() for values in found]))
    return found


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
