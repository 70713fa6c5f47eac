"""Describes a prepared data set in TFDS's folder layout from its JSON files alone.

Importing TFDS takes longer than the rest of a warm start, and `dataset_info.json` and `features.json` hold everything
that is needed here.
"""

import dataclasses
import fnmatch
import json
import os
import re
from pathlib import Path
from typing import Any

from imgclf_jax.errors import UserError
from imgclf_jax.storage import seals

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_INFO, _FEATURES, _LABELS = "dataset_info.json", "features.json", "label.labels.txt"
_STRINGS = (("name", ""), ("version", ""), ("fileFormat", "tfrecord"))  # in dataset_info.json, with their defaults


def data_dir(config_data: Any) -> Path:
    """Returns the folder of data sets: the configured one, else TFDS_DATA_DIR, else the default of TFDS.

    Raises:
        UserError: the folder is a URL.
    """
    folder = config_data.dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if "://" in folder:
        raise UserError(f"data.dir or TFDS_DATA_DIR={folder!r}: must be a local folder; copy the data there first")
    return Path(folder).expanduser().absolute()


def split_name(name: str) -> tuple[str, str, str]:
    """Splits 'set', 'set/config', 'set:1.2.3' or 'set/config:1.2.*' into (set, config, version)."""
    path, _, version = name.partition(":")
    base, _, config = path.partition("/")
    if _VERSION.fullmatch(config):  # TFDS writes 'cifar10/3.0.2' as the full name of a set without configs
        base, config, version = base, "", config
    return base, config, version


def find(root: Path, name: str) -> Path | None:
    """Returns the folder of the newest prepared version under `root` that matches `name`, or None."""
    base, config, version = split_name(name)
    folder = root / base
    if not config and not _versions(folder, version):
        config = _default_config(folder)
    folder = folder / config if config else folder
    versions = _versions(folder, version)
    return versions[-1] if versions else None


def read(folder: Path) -> "Stored":
    """Describes the prepared set in `folder`.

    Raises:
        UserError: its JSON files are damaged, it is not in array_record format, or it has no images or no labels.
    """
    try:
        texts = [(folder / _INFO).read_bytes(), (folder / _FEATURES).read_bytes()]
        info, features = (json.loads(text) for text in texts)
        features = dict(features["featuresDict"]["features"])
        name, version, kind = (str(info.get(key, default)) for key, default in _STRINGS)
        splits = {s["name"]: _read_split(name, s) for s in info["splits"]}
        kinds = {key: set(feature) for key, feature in features.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        raise _damaged(folder, f"{_INFO} or {_FEATURES} is missing or damaged ({e!r})") from e
    if kind != "array_record":
        raise UserError(
            f"{folder}: prepared as {kind}, which cannot be read without TensorFlow; "
            f"delete it and prepare it again with `tfds build {name} --file_format=array_record`"
        )
    for key, wanted in (("image", "image"), ("label", "classLabel")):
        if wanted not in kinds.get(key, ()):
            raise UserError(f"{folder}: no feature {key!r} of kind {wanted}; it has {', '.join(sorted(features))}")
    if seals.is_sealed(folder) and (reason := seals.damage(folder, (_INFO, _FEATURES, _LABELS))):
        raise UserError(
            f"{folder}: {reason}; delete the folder {folder} and run again, or delete {seals.NAME} in it if the "
            "change was intended"
        )
    try:
        image = features["image"]["image"]
        dtype = image.get("dtype", "uint8")
        dims = [int(d) for d in image["shape"]["dimensions"]]
        classes = int(features["label"]["classLabel"]["numClasses"])
        class_names = _class_names(folder, classes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        raise _damaged(folder, f"{_FEATURES} or {_LABELS} is damaged ({e!r})") from e
    if dtype != "uint8":
        raise UserError(f"{folder}: images are {dtype}; only uint8 images can be used for training")
    if len(dims) != 3 or dims[2] not in (1, 3, 4):
        raise UserError(f"{folder}: images have the shape {dims}; it must be height, width and 1, 3 or 4 channels")
    return Stored(
        folder=folder,
        name=name,
        version=version,
        image_shape=(dims[0], dims[1], dims[2]),
        class_names=class_names,
        has_ids="text" in kinds.get("id", ()),
        splits=splits,
        metadata=b"".join(texts),
    )


def _damaged(folder: Path, reason: str) -> UserError:
    return UserError(f"{folder}: {reason}; delete the folder {folder} and run again")


def _versions(folder: Path, wanted: str) -> list[Path]:
    """Returns the folders of the prepared versions that match, oldest first."""
    try:
        names = [p.name for p in folder.iterdir() if _VERSION.fullmatch(p.name) and (p / _INFO).is_file()]
    except OSError:
        return []
    names = [n for n in names if not wanted or fnmatch.fnmatchcase(n, wanted)]
    return [folder / n for n in sorted(names, key=lambda n: tuple(map(int, n.split("."))))]


def _default_config(folder: Path) -> str:
    try:
        name = json.loads((folder / ".config" / "metadata.json").read_bytes())["default_config_name"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return name if isinstance(name, str) else ""


def _read_split(dataset: str, split: dict[str, Any]) -> "StoredSplit":
    lengths = tuple(int(n) for n in split.get("shardLengths", ()))
    if any(length < 0 for length in lengths):
        raise ValueError(f"shards of {lengths} examples")
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    known = {"DATASET": dataset, "SPLIT": split["name"], "FILEFORMAT": "array_record"}
    files = [
        template.format(
            **known,
            SHARD_INDEX=f"{i:05d}",
            NUM_SHARDS=f"{len(lengths):05d}",
            SHARD_X_OF_Y=f"{i:05d}-of-{len(lengths):05d}",
        )
        for i in range(len(lengths))
    ]
    return StoredSplit(split["name"], tuple(files), lengths)


def _class_names(folder: Path, count: int) -> tuple[str, ...]:
    """Returns the class names that TFDS stores with the records; classes without names are named by their numbers."""
    try:
        names = (folder / _LABELS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return tuple(str(i) for i in range(count))
    names = [n for n in names if n]
    if len(names) != count:
        raise ValueError(f"{len(names)} names for {count} classes")
    return tuple(names)


@dataclasses.dataclass(frozen=True)
class StoredSplit:
    """One split on disk: its record files in order, and the number of examples in each."""

    name: str
    files: tuple[str, ...]
    shard_lengths: tuple[int, ...]

    def __len__(self) -> int:
        """Number of examples."""
        return sum(self.shard_lengths)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A prepared data set.

    Attributes:
        folder: the folder of this version.
        name: the name of the set in TFDS.
        version: e.g. "3.0.2".
        image_shape: (H, W, C); -1 for a size that differs between images.
        class_names: by label.
        has_ids: whether the records have a text feature 'id'.
        splits: by name.
        metadata: the bytes of its JSON files, for the names of caches.
    """

    folder: Path
    name: str
    version: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    has_ids: bool
    splits: dict[str, StoredSplit]
    metadata: bytes
