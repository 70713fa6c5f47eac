"""Loads or describes the data set that a configuration names.

`data.source` names a data source: a module with the functions of `Source`. `SOURCES` lists ours; `imgclf_jax.data.own`
calls functions of your own. With cross-validation, `imgclf_jax.data.folds` divides what the source returns.
`imgclf_jax.data.relabel` then replaces the labels of the training split if `data.labels` asks for it.
"""

from typing import Any, Protocol

from imgclf_jax import components
from imgclf_jax.data import arrays, csv, folder, folds, own, relabel, tar
from imgclf_jax.data.tfds import source
from imgclf_jax.data.types import Dataset, Info, Progress, silent
from imgclf_jax.errors import UserError, unknown


class Source(Protocol):
    """The functions of a data source. Both take the `data` part of the configuration.

    If `split` is given, they return that split alone and under that name: "train", "valid" or "test" for a configured
    split, or any other name that the source knows. `Dataset.only` and `Info.only` select one of the configured splits.
    """

    def describe(self, config_data: Any, split: str | None = None) -> Info:
        """Describes what `load` returns, as `imgclf_jax.data.describe` does.

        Raises:
            UserError: the configuration or the data set is wrong. The message has one line per problem.
        """

    def load(self, config_data: Any, progress: Progress, stream: bool, split: str | None = None) -> Dataset:
        """Loads the configured splits, as `imgclf_jax.data.load` does.

        Args:
            config_data: the `data` part of the configuration.
            progress: called now and then, see `Progress`.
            stream: return the images as `LazyImages`, which stay on disk.
            split: the split to load alone.

        Raises:
            UserError: as `describe`; also if the data cannot be read.
        """


# By `data.source`.
SOURCES: dict[str, Source] = {
    "tfds": source,
    "sample": source,
    "folder": folder,
    "csv": csv,
    "tar": tar,
    "arrays": arrays,
}


def load(config_data: Any, *, progress: Progress | None = None, stream: bool = False) -> Dataset:
    """Loads the configured splits. Downloads, prepares and decodes the data set first if necessary.

    If CIFAR-10 is neither prepared nor obtainable and `allow_sample` is set, returns the bundled sample with a
    `notice`. On the sample (also with source='sample'), split boundaries are resolved on the sizes of the full data set
    and scaled down in proportion. Every configuration therefore runs on it.

    Args:
        config_data: the `data` part of the configuration.
        progress: called now and then as `progress(description, done, total)`, in bytes for downloads, else in examples.
        stream: leave the images on disk; the `images` of the splits then decode each image on access.

    Raises:
        UserError: see `describe`; also if a record file or archive is damaged, a download fails, or the disk is full.
    """
    return _load(config_data, progress or silent, stream)


def describe(config_data: Any) -> Info:
    """Describes what `load` would return from metadata alone. Reads no record, and decodes or downloads nothing.

    A set that is not prepared yet but can be (`is_prepared` is False) is described from what is known about it. Its
    download may still fail, and `load` may then fall back to the sample, whose splits are smaller.

    Raises:
        UserError: the data set is unknown, cannot be obtained, is in a format that cannot be read, or has images of
            different sizes and no `image_size` is set. Or splits are wrong, with one line for each split that is
            malformed, unknown, out of range or empty, or that overlaps the training split.
    """
    return _describe(config_data)


def load_split(config_data: Any, split: str, *, progress: Progress | None = None, stream: bool = False) -> Dataset:
    """Loads one split alone, as `load` does, under the given name.

    Args:
        config_data: the `data` part of the configuration.
        split: "train", "valid" or "test" for the split of the configuration, or any split in TFDS syntax.
        progress: see `load`.
        stream: see `load`.

    Raises:
        UserError: as `load`; also if the configuration has no such split.
    """
    return _load(config_data, progress or silent, stream, split)


def describe_split(config_data: Any, split: str) -> Info:
    """Describes what `load_split` would return, as `describe` does.

    Raises:
        UserError: as `describe`; also if the configuration has no such split.
    """
    return _describe(config_data, split)


def _load(config_data: Any, progress: Progress, stream: bool, split: str | None = None) -> Dataset:
    source = _source(config_data)
    if config_data.folds or config_data.fold:
        dataset = folds.load(source, config_data, progress, stream, split)
    else:
        dataset = source.load(config_data, progress, stream, split)
    return relabel.apply(dataset, config_data, split) if _is_relabeled(config_data, split) else dataset


def _describe(config_data: Any, split: str | None = None) -> Info:
    source = _source(config_data)
    if config_data.folds or config_data.fold:
        info = folds.describe(source, config_data, split)
    else:
        info = source.describe(config_data, split)
    if _is_relabeled(config_data, split):
        relabel.read(config_data.labels, info.class_names, info.stored)
    return info


def _is_relabeled(config_data, split):
    """Returns whether `data.labels` takes part. Splits under any name but "train" keep their own labels."""
    return bool(config_data.labels) and split in (None, "train")


def _source(config_data: Any) -> Source:
    name = config_data.source
    if components.is_own(name):
        return own
    if name not in SOURCES:
        raise UserError(unknown("data.source", name, SOURCES, components.OWN))
    if config_data.options:
        raise UserError(f"data.options: the source {name} takes none; its settings are fields of data")
    return SOURCES[name]
