"""Stored splits that are decoded once and cached as .npy files, which later runs map into memory.

A cache folder is named after everything its content depends on, so it never goes out of date.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from imgclf_jax.data import caches
from imgclf_jax.data.tfds import records
from imgclf_jax.data.tfds.prepared import Stored, StoredSplit
from imgclf_jax.data.types import Progress, Split

_FORMAT = 1  # of the files below; increase it when decoding or their layout changes


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A whole stored split, with the SHA-256 (hex) of its image shape, images and labels."""

    split: Split
    digest: str


@dataclasses.dataclass(frozen=True)
class Labeled:
    """The labels int32 [N] and ids str [N] of a whole stored split, with the SHA-256 (hex) of its records."""

    labels: np.ndarray
    ids: np.ndarray
    digest: str


def read_split(
    stored: Stored,
    split: StoredSplit,
    image_shape: tuple[int, int, int],
    root: Path | None,
    progress: Progress,
    resize: str = "stretch",
) -> Decoded:
    """Returns a decoded split from its cache, which is made first if necessary.

    Args:
        stored: the data set.
        split: one of its splits.
        image_shape: (H, W, C) of the arrays.
        root: the data directory of `stored`; None keeps the cache out of it.
        progress: called while records are decoded.
        resize: how images get that size, see `records.decoder`.

    Raises:
        UserError: a record file is damaged, or no cache can be written.
    """
    name = f"{stored.name}-{stored.version}-{split.name}-{_key(stored, split, image_shape)}"
    name += f"-{resize}" * (resize != "stretch")
    return caches.open_or_make(
        name,
        root,
        f"the decoded images of {stored.name}",
        lambda folder: _open(folder, image_shape),
        lambda folder: decode_into(folder, stored, split, image_shape, progress, resize),
    )


def read_labels(stored: Stored, split: StoredSplit, root: Path | None, progress: Progress) -> Labeled:
    """Returns the labels and ids of a split, as `read_split` does, without decoding its images."""
    return caches.open_or_make(
        f"{stored.name}-{stored.version}-{split.name}-labels-{_key(stored, split, ())}",
        root,
        f"the labels of {stored.name}",
        lambda folder: _open_labels(folder, len(split)),
        lambda folder: _write_labels(folder, stored, split, progress),
    )


def _key(stored: Stored, split: StoredSplit, image_shape: tuple[int, ...]) -> str:
    """Returns the part of a cache's name that changes with the record files or the shape of the images."""
    digest = hashlib.sha256(stored.metadata)
    digest.update(json.dumps([_FORMAT, image_shape, split.name]).encode())
    caches.add_files(digest, stored.folder, split.files)
    return digest.hexdigest()[:16]


def _open(folder: Path, image_shape: tuple[int, int, int]) -> Decoded | None:
    """Maps a cache into memory; returns None if it is missing or incomplete."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        images = np.load(folder / "images.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy")
        ids = np.load(folder / "ids.npy")
        count, digest = int(meta["count"]), str(meta["digest"])
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    if images.shape != (count, *image_shape) or len(labels) != count or len(ids) != count:
        return None
    return Decoded(Split(images, labels, ids), digest)


def _open_labels(folder: Path, count: int) -> Labeled | None:
    try:
        digest = str(json.loads((folder / "meta.json").read_text())["digest"])
        labels, ids = np.load(folder / "labels.npy"), np.load(folder / "ids.npy")
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return Labeled(labels, ids, digest) if len(labels) == len(ids) == count else None


def decode_into(
    folder: Path,
    stored: Stored,
    split: StoredSplit,
    image_shape: tuple[int, int, int],
    progress: Progress,
    resize: str,
) -> None:
    """Decodes a split to the files of a cache in `folder`, which exists and is empty."""
    count, done = len(split), 0
    digest = hashlib.sha256(json.dumps([count, *image_shape]).encode())
    all_labels, all_ids = [], []
    description = f"decoding {stored.name} {split.name}"
    with (folder / "images.npy").open("wb") as f:
        caches.write_header(f, (count, *image_shape))
        for images, labels, ids in records.read_split(stored, split, image_shape, resize):
            pixels = images.tobytes()
            f.write(pixels)
            digest.update(pixels)
            all_labels.append(labels)
            all_ids.extend(ids)
            done += len(labels)
            progress(description, done, count)
    labels = np.concatenate(all_labels)
    digest.update(labels.astype("<i4").tobytes())
    _save(folder, labels, all_ids, count=count, digest=digest.hexdigest(), image_shape=image_shape)


def _write_labels(folder: Path, stored: Stored, split: StoredSplit, progress: Progress) -> None:
    done, all_labels, all_ids = 0, [], []
    digest = hashlib.sha256()
    for encoded, labels, ids in records.read_labels(stored, split):
        for record in encoded:
            digest.update(record)
        all_labels.append(labels)
        all_ids.extend(ids)
        done += len(labels)
        progress(f"reading the labels of {stored.name} {split.name}", done, len(split))
    _save(folder, np.concatenate(all_labels), all_ids, count=done, digest=digest.hexdigest())


def _save(folder: Path, labels: np.ndarray, ids: list[str], **meta: Any) -> None:
    np.save(folder / "labels.npy", labels)
    np.save(folder / "ids.npy", np.array(ids))
    (folder / "meta.json").write_text(json.dumps({"format": _FORMAT, **meta}))
