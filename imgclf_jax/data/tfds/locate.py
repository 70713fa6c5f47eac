"""Finds a data set on disk, prepares it or replaces it with the bundled sample, and resolves its splits."""

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgclf_jax.data import caches, splits
from imgclf_jax.data.tfds import catalog, prepared, sample
from imgclf_jax.data.types import Progress, Ranges
from imgclf_jax.errors import UserError
from imgclf_jax.storage import seals


@dataclasses.dataclass(frozen=True)
class Location:
    """The folder of a data set; `stored` is None while the set still has to be prepared into `folder`."""

    name: str
    root: Path
    folder: Path
    stored: prepared.Stored | None
    is_sample: bool = False
    notice: str = ""


def locate(
    config_data: Any, progress: Progress | None, setting_names: Mapping[str, str] | None = None
) -> tuple[Location, dict[str, Ranges]]:
    """Finds the configured data set and resolves its splits.

    Args:
        config_data: the `data` part of the configuration.
        progress: called while a set is downloaded and prepared, see `imgclf_jax.data.load`. None prepares nothing:
            `stored` is then None for a set that is not prepared yet.
        setting_names: see `splits.resolve`.

    Returns:
        The location, and the ranges of examples of each split, by role.

    Raises:
        UserError: see `imgclf_jax.data.load`.
    """
    location = _find(config_data)
    # Resolve the splits before downloading: a misspelled split should not cost minutes.
    ranges = _resolve(config_data, location, setting_names)
    if location.stored is not None or progress is None:
        return location, ranges
    from imgclf_jax.data.tfds import prepare

    try:
        folder = prepare.prepare(config_data, location.root, progress)
        location = dataclasses.replace(location, stored=prepared.read(folder), folder=folder)
    except prepare.Unavailable as e:
        location = _fall_back(config_data, location.root, e)
    return location, _resolve(config_data, location, setting_names)


def _find(config_data: Any) -> Location:
    root, name = prepared.data_dir(config_data), config_data.name
    base, _, version = prepared.split_name(name)
    if config_data.source == "sample":
        sample.check_name(base)
        return _sample(root, "")
    folder = prepared.find(root, name)
    if folder is not None:
        return Location(name, root, folder, prepared.read(folder))
    known = catalog.KNOWN.get(base)
    if known is None or name not in (base, f"{base}:{known.version}", f"{base}/{known.version}"):
        raise UserError(_why_not(name, base, version, root))
    from imgclf_jax.data.tfds import prepare

    try:
        prepare.check_obtainable(config_data, root)
    except prepare.Unavailable as e:
        return _fall_back(config_data, root, e)
    return Location(name, root, root / base / known.version, None)


def _fall_back(config_data: Any, root: Path, error: UserError) -> Location:
    base = prepared.split_name(config_data.name)[0]
    if not config_data.allow_sample or base != catalog.SAMPLED:
        raise UserError(str(error)) from error
    return _sample(root, sample.notice(str(error), root))


def _sample(root: Path, notice: str) -> Location:
    folder = prepared.find(sample.FOLDER, catalog.SAMPLED)
    if folder is None:
        raise UserError(f"{sample.FOLDER}: the bundled sample is missing; install the package again")
    if reason := seals.damage(folder):
        raise UserError(f"{folder}: the bundled sample is damaged ({reason}); install the package again")
    return Location(sample.NAME, root, folder, prepared.read(folder), is_sample=True, notice=notice)


def _resolve(config_data: Any, location: Location, setting_names: Mapping[str, str] | None) -> dict[str, Ranges]:
    expressions = splits.configured(config_data)
    # Checking a configuration must not create the data directory.
    memo_dir = caches.folders(location.root if location.stored and not location.is_sample else None)[0]
    if location.stored is None:
        base = prepared.split_name(config_data.name)[0]
        whole = {name: (size,) for name, size in catalog.KNOWN[base].sizes.items()}
        return splits.resolve(expressions, whole, memo_dir, setting_names=setting_names)
    if location.is_sample:
        sizes = {name: len(split) for name, split in location.stored.splits.items()}
        full = sample.full_lengths()
        return splits.resolve(expressions, full, memo_dir, scaled_to=sizes, setting_names=setting_names)
    lengths = {name: split.shard_lengths for name, split in location.stored.splits.items()}
    return splits.resolve(expressions, lengths, memo_dir, setting_names=setting_names)


def _why_not(name: str, base: str, version: str, root: Path) -> str:
    """Returns the message for a set that is not prepared and that cannot be prepared here."""
    if (other := prepared.find(root, base)) is not None:
        return f"data.name={name!r}: not prepared under {root}; only {other.relative_to(root)} is"
    if base in catalog.KNOWN:
        return f"data.name={name!r}: only version {catalog.KNOWN[base].version} of {base} can be prepared"
    import tensorflow_datasets as tfds

    names = tfds.list_builders(with_community_datasets=False)
    if base in names:
        return (
            f"data.name={name!r}: not prepared under {root}, and it cannot be prepared without TensorFlow; on a "
            f"machine with TensorFlow, run `tfds build {name} --file_format=array_record` and copy the folder {base}/ "
            f"that it makes into {root}"
        )
    close = difflib.get_close_matches(base, names, n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "use the name of a TFDS data set"
    return f"data.name={name!r}: there is no such data set under {root} or in TFDS; {hint}"
