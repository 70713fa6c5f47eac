"""The data sources 'tfds' and 'sample': prepared TFDS data sets, see `imgclf_jax.data.loading.Source`."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from imgclf_jax.data import splits
from imgclf_jax.data.tfds import catalog, decoded, prepared
from imgclf_jax.data.tfds.lazy import RecordImages
from imgclf_jax.data.tfds.locate import Location, locate
from imgclf_jax.data.types import Dataset, Info, Progress, Ranges, Split
from imgclf_jax.errors import UserError


def describe(config_data: Any, split: str | None = None) -> Info:
    """See `imgclf_jax.data.describe` and `imgclf_jax.data.describe_split`."""
    if split is None:
        return _describe(config_data)
    info = _describe(*_configure_alone(config_data, split))
    return dataclasses.replace(info, split_sizes={split: info.split_sizes["train"]})


def load(config_data: Any, progress: Progress, stream: bool, split: str | None = None) -> Dataset:
    """See `imgclf_jax.data.load` and `imgclf_jax.data.load_split`."""
    if split is None:
        return _load(config_data, progress, stream)
    alone, setting_names = _configure_alone(config_data, split)
    _describe(alone, setting_names)
    dataset = _load(alone, progress, stream, setting_names)
    return dataclasses.replace(dataset, splits={split: dataset.splits["train"]})


def _describe(config_data: Any, setting_names: Mapping[str, str] | None = None) -> Info:
    location, ranges = locate(config_data, None, setting_names)
    base = prepared.split_name(config_data.name)[0]
    known = location.stored or catalog.KNOWN[base]
    return Info(
        name=location.name,
        class_names=known.class_names,
        image_shape=_image_shape(config_data, known.image_shape),
        split_sizes={role: splits.size(parts) for role, parts in ranges.items()},
        split_ranges=ranges,
        overlaps=splits.overlaps(ranges),
        is_sample=location.is_sample,
        is_prepared=location.stored is not None,
        location=str(location.folder),
        notice=location.notice,
        stored=_stored(location),
    )


def _load(
    config_data: Any, progress: Progress, stream: bool, setting_names: Mapping[str, str] | None = None
) -> Dataset:
    location, ranges = locate(config_data, progress, setting_names)
    stored = location.stored
    assert stored is not None  # Given `progress`, `locate` has prepared the set or raised an error.
    image_shape, resize = _image_shape(config_data, stored.image_shape), config_data.resize
    names = sorted({name for parts in ranges.values() for name, _, _ in parts})
    root = None if location.is_sample else location.root
    if stream:
        labels = {n: decoded.read_labels(stored, stored.splits[n], root, progress) for n in names}
        cut = {role: _cut_lazy(parts, stored, image_shape, resize, labels) for role, parts in ranges.items()}
        # Nothing has been decoded, so the digest is that of the records. The prefix keeps it from being compared with
        # a digest of pixels.
        prefix, content = "records:", [[n, labels[n].digest, image_shape, resize] for n in names]
    else:
        whole = {n: decoded.read_split(stored, stored.splits[n], image_shape, root, progress, resize) for n in names}
        cut = {role: _cut(parts, whole) for role, parts in ranges.items()}
        prefix, content = "", [[n, whole[n].digest] for n in names]
    return Dataset(
        name=location.name,
        class_names=stored.class_names,
        image_shape=image_shape,
        splits=cut,
        fingerprint=prefix + hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        is_sample=location.is_sample,
        location=str(stored.folder),
        notice=location.notice,
        stored=_stored(location),
    )


def _stored(location: Location) -> dict[str, int]:
    """Returns the sizes of the stored splits; of those of the full data set for the sample, which keeps its ids."""
    if location.stored is None or location.is_sample:
        return dict(catalog.KNOWN[prepared.split_name(location.name.split()[0])[0]].sizes)
    return {name: len(split) for name, split in location.stored.splits.items()}


def _configure_alone(config_data: Any, split: str) -> tuple[Any, dict[str, str]]:
    """Returns the configuration of one split alone, and the name of its setting in messages, by role.

    The split gets the role "train", because a data set must have a training split.
    """
    setting = f"data.{split}_split" if split in splits.ROLES else ""
    expression = getattr(config_data, f"{split}_split") if setting else split
    if not expression:
        reason = f"{setting} of this run is empty" if setting else "must not be empty"
        raise UserError(f"--split={split!r}: {reason}; name another split, such as train")
    alone = config_data.copy_and_resolve_references()
    alone.update(train_split=expression, valid_split="", test_split="")
    return alone, {"train": setting or "--split"}


def _image_shape(config_data: Any, native: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns (H, W, C) of the decoded images, whose own shape is `native`, with -1 for sizes that differ."""
    size = tuple(config_data.image_size or ())
    if size:
        if len(size) != 2 or any(not isinstance(s, int) or s < 1 for s in size):
            raise UserError(
                f"data.image_size={size}: must be () or two positive numbers, (height, width), e.g. "
                "--config.data.image_size='(64, 64)'"
            )
        return int(size[0]), int(size[1]), native[2]
    if min(native) < 1:
        raise UserError(
            f"data.name={config_data.name!r}: its images differ in size; give their size, e.g. "
            "--config.data.image_size='(64, 64)'"
        )
    return native


def _cut(parts: Ranges, whole: Mapping[str, decoded.Decoded]) -> Split:
    """Returns the examples of `parts`: a view of one range, but a copy of several."""
    cuts = []
    for name, first, last in parts:
        split = whole[name].split
        cuts.append(Split(split.images[first:last], split.labels[first:last], split.ids[first:last]))
    if len(cuts) == 1:
        return cuts[0]
    return Split(
        np.concatenate([c.images for c in cuts]),
        np.concatenate([c.labels for c in cuts]),
        np.concatenate([c.ids for c in cuts]),
    )


def _cut_lazy(
    parts: Ranges,
    stored: prepared.Stored,
    image_shape: tuple[int, int, int],
    resize: str,
    labeled: Mapping[str, decoded.Labeled],
) -> Split:
    """Returns the examples of `parts` with images that stay on disk."""
    return Split(
        RecordImages(stored, parts, image_shape, resize),
        np.concatenate([labeled[name].labels[first:last] for name, first, last in parts]),
        np.concatenate([labeled[name].ids[first:last] for name, first, last in parts]),
    )
