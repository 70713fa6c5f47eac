"""From the configuration to a data set: finds it, prepares it, or falls back to the bundled sample."""

import dataclasses
import difflib
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from imgclf_jax.data import cache, catalog, folder, sample, splits, stored
from imgclf_jax.data.record_images import RecordImages
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
    progress = progress or silent
    if config_data.source == "folder":
        return folder.load(config_data, progress, stream)
    source, ranges = _find(config_data, progress)
    assert source.stored is not None  # with a progress, `_find` prepares it or raises
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
    if config_data.source == "folder":
        return folder.describe(config_data)
    source, ranges = _find(config_data, None)
    base = stored.split_name(config_data.name)[0]
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
        dataset = folder.load(config_data, progress or silent, stream)
        if split not in dataset.splits:
            raise UserError(f"there is no split {split!r} of {dataset.location}; there are {', '.join(dataset.splits)}")
        return dataclasses.replace(dataset, splits={split: dataset.splits[split]})
    alone = _alone(config_data, split)
    describe(alone)
    dataset = load(alone, progress=progress, stream=stream)
    return dataclasses.replace(dataset, splits={split: dataset.splits["train"]})


def describe_split(config_data: Any, split: str) -> Info:
    """Describes what `load_split` would return, as `describe` does. Raises `UserError` as they do."""
    folder_of_photos = config_data.source == "folder"
    info = describe(config_data if folder_of_photos else _alone(config_data, split))
    name = split if folder_of_photos else "train"
    if name not in info.split_sizes:
        raise UserError(f"there is no split {split!r} of {info.location}; there are {', '.join(info.split_sizes)}")
    return dataclasses.replace(info, split_sizes={split: info.split_sizes[name]})


def _alone(config_data: Any, split: str) -> Any:
    """The configuration of one split, by the name of "train", because that is the split that a data set must have."""
    expression = getattr(config_data, f"{split}_split") if split in splits.ROLES else split
    if not expression:
        raise UserError(f"data.{split}_split of this run is empty; name another split, such as train")
    alone = config_data.copy_and_resolve_references()
    alone.update(train_split=expression, valid_split="", test_split="")
    return alone


def _find(config_data: Any, progress: Progress | None) -> tuple["_Source", dict[str, Ranges]]:
    """Decides where the data comes from and resolves the splits there.

    With a `progress` a set that has to be prepared is; without one it is only looked at (`stored` is then None).
    """
    source = _locate(config_data)
    ranges = _resolve(config_data, source)  # before anything is downloaded: a misspelt split should not cost minutes
    if source.stored is not None or progress is None:
        return source, ranges
    from imgclf_jax.data import prepare

    try:
        folder = prepare.prepare(config_data, source.root, progress)
        source = dataclasses.replace(source, stored=stored.read(folder), folder=folder)
    except prepare.Unavailable as e:
        source = _fall_back(config_data, source.root, e)
    return source, _resolve(config_data, source)


def _locate(config_data: Any) -> "_Source":
    root, name = stored.data_dir(config_data), config_data.name
    base, _, version = stored.split_name(name)
    if config_data.source == "sample":
        sample.check_name(base)
        return _sample(root, "")
    if config_data.source != "tfds":
        raise UserError(f"data.source={config_data.source!r}: must be 'tfds', 'sample' or 'folder'")
    folder = stored.find(root, name)
    if folder is not None:
        return _Source(name, root, folder, stored.read(folder))
    known = catalog.KNOWN.get(base)
    if known is None or name not in (base, f"{base}:{known.version}", f"{base}/{known.version}"):
        raise UserError(_why_not(name, base, version, root))
    from imgclf_jax.data import prepare

    try:
        prepare.check_obtainable(config_data, root)
    except prepare.Unavailable as e:
        return _fall_back(config_data, root, e)
    return _Source(name, root, root / base / known.version, None)


def _fall_back(config_data: Any, root: Path, error: UserError) -> "_Source":
    base = stored.split_name(config_data.name)[0]
    if not config_data.allow_sample or base != catalog.SAMPLED:
        raise UserError(str(error)) from error
    return _sample(root, sample.notice(str(error), root))


def _sample(root: Path, notice: str) -> "_Source":
    folder = stored.find(sample.FOLDER, catalog.SAMPLED)
    if folder is None:
        raise UserError(f"{sample.FOLDER}: the bundled sample is missing; install the package again")
    return _Source(sample.NAME, root, folder, stored.read(folder), is_sample=True, notice=notice)


def _resolve(config_data: Any, source: "_Source") -> dict[str, Ranges]:
    wanted = splits.configured(config_data)
    # Not beside the data while there is none: looking at a configuration must not make folders.
    memo_dir = cache.places(source.root if source.stored and not source.is_sample else None)[0]
    if source.stored is None:
        base = stored.split_name(config_data.name)[0]
        lengths = {name: (size,) for name, size in catalog.KNOWN[base].sizes.items()}
        return splits.resolve(wanted, lengths, memo_dir)
    if source.is_sample:
        sizes = {name: len(split) for name, split in source.stored.splits.items()}
        return splits.resolve(wanted, sample.full_lengths(), memo_dir, scaled_to=sizes)
    return splits.resolve(wanted, {n: s.shard_lengths for n, s in source.stored.splits.items()}, memo_dir)


def _image_shape(config_data: Any, native: tuple[int, int, int]) -> tuple[int, int, int]:
    size = tuple(config_data.image_size or ())
    if size:
        if len(size) != 2 or any(int(s) != s or s < 1 for s in size):
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
    found_in: stored.Stored,
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


def _why_not(name: str, base: str, version: str, root: Path) -> str:
    """The message for a set that is neither prepared nor among those that can be prepared here."""
    if (other := stored.find(root, base)) is not None:
        return f"data.name={name!r}: not prepared under {root}; prepared is {other.relative_to(root)}"
    if base in catalog.KNOWN:
        return f"data.name={name!r}: only version {catalog.KNOWN[base].version} of {base} can be prepared"
    import tensorflow_datasets as tfds

    names = tfds.list_builders(with_community_datasets=False)
    if base in names:
        return (
            f"data.name={name!r}: not prepared under {root}, and it cannot be prepared without TensorFlow; where "
            f"TensorFlow is installed run `tfds build {name} --file_format=array_record` and copy the folder "
            f"{base}/ it makes into {root}"
        )
    close = difflib.get_close_matches(base, names, n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "use the name of a TFDS data set"
    return f"data.name={name!r}: no data set of that name under {root} or in TFDS; {hint}"


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where the data comes from; `stored` is None while it still has to be prepared into `folder`."""

    name: str
    root: Path
    folder: Path
    stored: stored.Stored | None
    is_sample: bool = False
    notice: str = ""
