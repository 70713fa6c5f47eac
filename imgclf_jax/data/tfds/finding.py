"""Finds a data set, prepares it or replaces it with the bundled sample, and resolves its splits."""

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgclf_jax.data import kept, seals, splits
from imgclf_jax.data.tfds import catalog, prepared, sample
from imgclf_jax.data.types import Progress, Ranges
from imgclf_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the data comes from; `stored` is None while it still has to be prepared into `folder`."""

    name: str
    root: Path
    folder: Path
    stored: prepared.Stored | None
    is_sample: bool = False
    notice: str = ""


def find(
    config_data: Any, progress: Progress | None, called: Mapping[str, str] | None = None
) -> tuple[Source, dict[str, Ranges]]:
    """Decides where the data comes from and resolves the splits there.

    Args:
        config_data: the `data` part of the configuration.
        progress: called while a set is downloaded and prepared, see `loading.load`. `None`: a set that is not prepared
            yet is only described, and its `stored` is None.
        called: what messages call the split expressions, see `splits.resolve`.

    Returns:
        The source, and the ranges of examples of each split, by role.

    Raises:
        UserError: see `loading.load`.
    """
    source = _locate(config_data)
    # Before anything is downloaded: a misspelt split should not cost minutes.
    ranges = _resolve(config_data, source, called)
    if source.stored is not None or progress is None:
        return source, ranges
    from imgclf_jax.data.tfds import prepare

    try:
        folder = prepare.prepare(config_data, source.root, progress)
        source = dataclasses.replace(source, stored=prepared.read(folder), folder=folder)
    except prepare.Unavailable as e:
        source = _fall_back(config_data, source.root, e)
    return source, _resolve(config_data, source, called)


def _locate(config_data: Any) -> Source:
    root, name = prepared.data_dir(config_data), config_data.name
    base, _, version = prepared.split_name(name)
    if config_data.source == "sample":
        sample.check_name(base)
        return _sample(root, "")
    if config_data.source != "tfds":
        raise UserError(f"data.source={config_data.source!r}: must be 'tfds', 'sample' or 'folder'")
    folder = prepared.find(root, name)
    if folder is not None:
        return Source(name, root, folder, prepared.read(folder))
    known = catalog.KNOWN.get(base)
    if known is None or name not in (base, f"{base}:{known.version}", f"{base}/{known.version}"):
        raise UserError(_why_not(name, base, version, root))
    from imgclf_jax.data.tfds import prepare

    try:
        prepare.check_obtainable(config_data, root)
    except prepare.Unavailable as e:
        return _fall_back(config_data, root, e)
    return Source(name, root, root / base / known.version, None)


def _fall_back(config_data: Any, root: Path, error: UserError) -> Source:
    base = prepared.split_name(config_data.name)[0]
    if not config_data.allow_sample or base != catalog.SAMPLED:
        raise UserError(str(error)) from error
    return _sample(root, sample.notice(str(error), root))


def _sample(root: Path, notice: str) -> Source:
    folder = prepared.find(sample.FOLDER, catalog.SAMPLED)
    if folder is None:
        raise UserError(f"{sample.FOLDER}: the bundled sample is missing; install the package again")
    if reason := seals.damage(folder):
        raise UserError(f"{folder}: the bundled sample is damaged ({reason}); install the package again")
    return Source(sample.NAME, root, folder, prepared.read(folder), is_sample=True, notice=notice)


def _resolve(config_data: Any, source: Source, called: Mapping[str, str] | None) -> dict[str, Ranges]:
    wanted = splits.configured(config_data)
    # Not beside data that does not exist yet: looking at a configuration must not make folders.
    memo_dir = kept.places(source.root if source.stored and not source.is_sample else None)[0]
    if source.stored is None:
        base = prepared.split_name(config_data.name)[0]
        whole = {name: (size,) for name, size in catalog.KNOWN[base].sizes.items()}
        return splits.resolve(wanted, whole, memo_dir, called=called)
    if source.is_sample:
        sizes = {name: len(split) for name, split in source.stored.splits.items()}
        return splits.resolve(wanted, sample.full_lengths(), memo_dir, scaled_to=sizes, called=called)
    lengths = {name: split.shard_lengths for name, split in source.stored.splits.items()}
    return splits.resolve(wanted, lengths, memo_dir, called=called)


def _why_not(name: str, base: str, version: str, root: Path) -> str:
    """Returns the message for a set that is neither prepared nor can be prepared here."""
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
    return f"data.name={name!r}: no data set of that name under {root} or in TFDS; {hint}"
