"""Loads or describes the data set that a configuration names."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from imgclf_jax.data import folder, splits
from imgclf_jax.data.tfds import catalog, finding, prepared
from imgclf_jax.data.tfds import decoded as cache
from imgclf_jax.data.tfds.lazy import RecordImages
from imgclf_jax.data.types import Dataset, Info, Progress, Ranges, Split, silent
from imgclf_jax.errors import UserError


def load(config_data: Any, *, progress: Progress | None = None, stream: bool = False) -> Dataset:
    """Loads the configured splits, after downloading, preparing and decoding the set where that was not done yet.

    When CIFAR-10 is neither prepared nor obtainable and `allow_sample` is set, the bundled sample is returned with a
    `notice`. On the sample (also with source='sample') the boundaries of splits are resolved on the full set's sizes
    and scaled down in proportion, so that every configuration runs on it.

    Args:
        config_data: the `data` part of the configuration.
        progress: called now and then as `progress(description, done, total)`; bytes for downloads, else examples.
        stream: leave the images on disk; the splits' `images` then decode what is asked of them.

    Raises:
        UserError: see `describe`; also a damaged record file or archive, a failed download, a full disk.
    """
    return _load(config_data, progress or silent, stream)


def _load(config_data: Any, progress: Progress, stream: bool, called: Mapping[str, str] | None = None) -> Dataset:
    if config_data.source == "folder":
        return folder.load(config_data, progress, stream)
    source, ranges = finding.find(config_data, progress, called)
    assert source.stored is not None  # with a progress, `find` prepares it or raises
    image_shape = _image_shape(config_data, source.stored.image_shape)
    names = sorted({name for parts in ranges.values() for name, _, _ in parts})
    root = None if source.is_sample else source.root
    found: Any
    if stream:
        found = {n: cache.load_labels(source.stored, source.stored.splits[n], root, progress) for n in names}
        cut = {
            role: _cut_labels(source.stored, parts, image_shape, config_data.resize, found)
            for role, parts in ranges.items()
        }
        # Of the records, for nothing has been decoded; an own kind, never to be compared with the digest of pixels.
        kind, content = "records:", [[n, found[n].digest, image_shape, config_data.resize] for n in names]
    else:
        found = {
            n: cache.load(source.stored, source.stored.splits[n], image_shape, root, progress, config_data.resize)
            for n in names
        }
        cut = {role: _cut(parts, found) for role, parts in ranges.items()}
        kind, content = "", [[n, found[n].digest] for n in names]
    return Dataset(
        name=source.name,
        class_names=source.stored.class_names,
        image_shape=image_shape,
        splits=cut,
        fingerprint=kind + hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        is_sample=source.is_sample,
        location=str(source.stored.folder),
        notice=source.notice,
    )


def describe(config_data: Any) -> Info:
    """Describes what `load` would return from metadata alone: no record is read, nothing decoded or downloaded.

    A set that is not prepared yet but can be (`is_prepared` is False) is described from what is known of it. Whether
    its download will succeed is not known: `load` may still fall back to the sample, whose splits are smaller.

    Raises:
        UserError: unknown data set, one that cannot be obtained, one in a format that cannot be read, images of
            different sizes without `image_size`; or a line for each split that is malformed, unknown, out of range,
            empty, or overlaps the training split.
    """
    return _describe(config_data)


def _describe(config_data: Any, called: Mapping[str, str] | None = None) -> Info:
    if config_data.source == "folder":
        return folder.describe(config_data)
    source, ranges = finding.find(config_data, None, called)
    base = prepared.split_name(config_data.name)[0]
    known = source.stored or catalog.KNOWN[base]
    return Info(
        name=source.name,
        class_names=known.class_names,
        image_shape=_image_shape(config_data, known.image_shape),
        split_sizes={role: splits.size(parts) for role, parts in ranges.items()},
        split_ranges=ranges,
        overlaps=splits.overlaps(ranges),
        is_sample=source.is_sample,
        is_prepared=source.stored is not None,
        location=str(source.folder),
        notice=source.notice,
    )


def load_split(config_data: Any, split: str, *, progress: Progress | None = None, stream: bool = False) -> Dataset:
    """Loads one split alone, as `load` does, under the name that is given.

    Args:
        config_data: the `data` part of the configuration.
        split: "train", "valid" or "test" for those of the configuration, or any split in TFDS syntax.
        progress: see `load`.
        stream: see `load`.

    Raises:
        UserError: as `load`; also when the configuration has no such split.
    """
    if config_data.source == "folder":
        dataset = _load(config_data, progress or silent, stream)
        _check_there(split, dataset.splits, dataset.location)
        return dataclasses.replace(dataset, splits={split: dataset.splits[split]})
    alone, called = _alone(config_data, split)
    _describe(alone, called)
    dataset = _load(alone, progress or silent, stream, called)
    return dataclasses.replace(dataset, splits={split: dataset.splits["train"]})


def describe_split(config_data: Any, split: str) -> Info:
    """Describes what `load_split` would return, as `describe` does. Raises `UserError` as they do."""
    if config_data.source == "folder":
        info = _describe(config_data)
        _check_there(split, info.split_sizes, info.location)
        return dataclasses.replace(info, split_sizes={split: info.split_sizes[split]})
    info = _describe(*_alone(config_data, split))
    return dataclasses.replace(info, split_sizes={split: info.split_sizes["train"]})


def _check_there(split: str, there: Iterable[str], location: str) -> None:
    if split not in there:
        raise UserError(f"--split={split!r}: there is no such split in {location}; there are {', '.join(there)}")


def _alone(config_data: Any, split: str) -> tuple[Any, dict[str, str]]:
    """Returns the configuration of one split, and what messages call its expression, by role.

    The split is named "train", because a data set must have a training split.
    """
    configured = f"data.{split}_split" if split in splits.ROLES else ""
    expression = getattr(config_data, f"{split}_split") if configured else split
    if not expression:
        reason = f"{configured} of this run is empty" if configured else "must not be empty"
        raise UserError(f"--split={split!r}: {reason}; name another split, such as train")
    alone = config_data.copy_and_resolve_references()
    alone.update(train_split=expression, valid_split="", test_split="")
    return alone, {"train": configured or "--split"}


def _image_shape(config_data: Any, native: tuple[int, int, int]) -> tuple[int, int, int]:
    size = tuple(config_data.image_size or ())
    if size:
        if len(size) != 2 or any(not isinstance(s, int) or s < 1 for s in size):
            raise UserError(f"data.image_size={size}: must be () or two positive numbers, (height, width)")
        return int(size[0]), int(size[1]), native[2]
    if min(native) < 1:
        raise UserError(
            f"data.name={config_data.name!r}: its images differ in size; set data.image_size, e.g. "
            "--config.data.image_size='(64, 64)'"
        )
    return native


def _cut(parts: Ranges, decoded: dict[str, cache.Decoded]) -> Split:
    """A view for one range; only sums of ranges are copied."""
    cuts = []
    for name, first, last in parts:
        whole = decoded[name].split
        cuts.append(Split(whole.images[first:last], whole.labels[first:last], whole.ids[first:last]))
    if len(cuts) == 1:
        return cuts[0]
    return Split(
        np.concatenate([c.images for c in cuts]),
        np.concatenate([c.labels for c in cuts]),
        np.concatenate([c.ids for c in cuts]),
    )


def _cut_labels(
    found_in: prepared.Stored,
    parts: Ranges,
    image_shape: tuple[int, int, int],
    resize: str,
    found: dict[str, cache.Labelled],
) -> Split:
    """The same, with images that stay on disk."""
    return Split(
        RecordImages(found_in, parts, image_shape, resize),
        np.concatenate([found[name].labels[first:last] for name, first, last in parts]),
        np.concatenate([found[name].ids[first:last] for name, first, last in parts]),
    )
