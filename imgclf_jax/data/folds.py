"""Cross-validation: deals the training and validation examples of any data source to folds.

One fold is the validation split, and the others are the training split. The test split stays as it is configured.
"""

import bisect
import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imgclf_jax.data import splits
from imgclf_jax.data.types import Dataset, Images, Info, LazyImages, Progress, Split
from imgclf_jax.errors import UserError

if TYPE_CHECKING:
    from imgclf_jax.data.loading import Source

_POOL = ("train", "valid")  # the configured splits that are dealt, in the order of their examples


class Chosen(LazyImages):
    """Some images of one or several `LazyImages`.

    Args:
        parts: the images to choose from, numbered one part after the other.
        rows: int [N], the numbers of the chosen images.
    """

    def __init__(self, parts: Sequence[LazyImages], rows: np.ndarray):
        super().__init__((len(rows), *parts[0].shape[1:]))  # type: ignore[arg-type]
        self._parts = tuple(parts)
        self._starts = [0, *itertools.accumulate(map(len, parts))]
        self._rows = rows

    def read(self, index: int) -> np.ndarray:
        """Returns one image, uint8 [H, W, C].

        Raises:
            UserError: it cannot be read.
        """
        row = int(self._rows[index])
        part = bisect.bisect_right(self._starts, row) - 1
        return self._parts[part].read(row - self._starts[part])


def deal(labels: np.ndarray, ids: np.ndarray, folds: int, contents: np.ndarray | None = None) -> np.ndarray:
    """Deals examples to folds as one deals cards, class by class: example n of the sequence goes to fold n modulo k.

    The sequence is sorted by label and, within a class, by the SHA-256 of the id. So it depends neither on a seed nor
    on the order of the examples, and both the folds and the examples of each class in them are equal in number to
    within one. This is stratified k-fold cross-validation (Kohavi, "A study of cross-validation and bootstrap for
    accuracy estimation and model selection", IJCAI 1995).

    Args:
        labels: int [N].
        ids: [N], the names of the examples.
        folds: k, the number of folds.
        contents: [N], see `imgclf_jax.data.types.Split`. If given, it replaces the ids, and copies go to the fold of
            the first of them. The folds may then differ in size by the copies.

    Returns:
        The fold of each example, int32 [N], from 0 to k - 1.
    """
    names = ids if contents is None else contents
    # File names may hold bytes that are not valid UTF-8.
    digests = [hashlib.sha256(str(name).encode("utf-8", "surrogatepass")).digest() for name in names]
    keys = list(zip(labels.tolist(), digests, strict=True))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    if contents is None:
        dealt = np.empty(len(labels), np.int32)
        dealt[order] = np.arange(len(labels)) % folds
        return dealt
    number: dict[Any, int] = {}
    for index in order:
        number.setdefault(contents[index], len(number))
    return np.array([number[content] % folds for content in contents], np.int32)


def describe(source: "Source", config_data: Any, split: str | None = None) -> Info:
    """Describes what `load` returns; see `imgclf_jax.data.loading.Source.describe`.

    Raises:
        UserError: as the source; also if the folds are wrong, or if the test split shares examples with the pool.
    """
    _check(config_data)
    if split is not None and split not in _POOL:
        return source.describe(config_data, split)
    info = source.describe(_without_test(config_data) if split else config_data)
    ranges = info.split_ranges
    if shared := splits.common(ranges.get("valid", ()), ranges.get("test", ())):
        raise UserError(
            f"data.valid_split={config_data.valid_split!r} shares {shared} examples with data.test_split="
            f"{config_data.test_split!r}: with data.folds={config_data.folds} the network would be trained on them; "
            "make the splits disjoint"
        )
    sizes = dict(info.split_sizes)
    pool = sum(sizes.pop(role, 0) for role in _POOL)
    _check_pool(pool, config_data)
    held_out = len(range(config_data.fold, pool, config_data.folds))
    info = dataclasses.replace(
        info,
        split_sizes={"train": pool - held_out, "valid": held_out, **sizes},
        split_ranges={role: parts for role, parts in ranges.items() if role not in _POOL},
    )
    return info if split is None else info.only(split)


def load(source: "Source", config_data: Any, progress: Progress, stream: bool, split: str | None = None) -> Dataset:
    """Loads the splits of a fold; see `imgclf_jax.data.loading.Source.load`.

    Raises:
        UserError: as `describe`, and as the source.
    """
    if split is not None and split not in _POOL:
        _check(config_data)
        return source.load(config_data, progress, stream, split)
    describe(source, config_data, split)
    dataset = source.load(_without_test(config_data) if split else config_data, progress, stream)
    parts = [dataset.splits[role] for role in _POOL if role in dataset.splits]
    labels, ids = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "ids"))
    contents = None
    if all(part.contents is not None for part in parts):
        contents = np.concatenate([part.contents for part in parts])
    _check_pool(len(labels), config_data)
    is_valid = deal(labels, ids, config_data.folds, contents) == config_data.fold
    chosen = {"train": np.flatnonzero(~is_valid), "valid": np.flatnonzero(is_valid)}
    cut = {
        role: Split(
            _take([part.images for part in parts], rows),
            labels[rows],
            ids[rows],
            None if contents is None else contents[rows],
        )
        for role, rows in chosen.items()
        if split in (None, role)
    }
    others = {} if split else {role: kept for role, kept in dataset.splits.items() if role not in _POOL}
    return dataclasses.replace(dataset, splits=cut | others)


def _take(parts: Sequence[Images], rows: np.ndarray) -> Images:
    """Returns the images in `rows` (ascending) of the concatenated parts.

    Images in memory are copied once, straight from the mapped files: a fold is scattered over them, so it cannot be a
    view. The splits of a fold thus take as much memory as the pool. Images on disk stay there.
    """
    if lazy := [part for part in parts if isinstance(part, LazyImages)]:
        return Chosen(lazy, rows.astype(np.int32))
    taken = np.empty((len(rows), *parts[0].shape[1:]), np.uint8)
    start = first = 0
    for part in parts:
        assert isinstance(part, np.ndarray)
        last = int(np.searchsorted(rows, start + len(part)))
        # Unlike the default mode, "clip" writes to `out` without a buffer. All indices are valid.
        np.take(part, rows[first:last] - start, axis=0, out=taken[first:last], mode="clip")
        start, first = start + len(part), last
    return taken


def _check(config_data):
    """Raises `UserError` if the fields of the folds do not fit together."""
    folds, fold = config_data.folds, config_data.fold
    if not folds:
        raise UserError(
            f"data.fold={fold} has no effect without data.folds; give the number of folds too, for example "
            f"--config.data.folds={max(5, fold + 1)}, or --config.data.fold=0 for no cross-validation"
        )
    if folds < 2:
        raise UserError(
            f"data.folds={folds}: there must be at least two folds; for example --config.data.folds=5, or "
            "--config.data.folds=0 for no cross-validation"
        )
    if not 0 <= fold < folds:
        raise UserError(
            f"data.fold={fold} must be below data.folds={folds}, because the first fold is 0; for example "
            f"--config.data.fold={folds - 1}"
        )


def _check_pool(count, config_data):
    if count < config_data.folds:
        raise UserError(
            f"data.folds={config_data.folds}: there are only {count} training and validation examples; for example "
            f"--config.data.folds={max(2, min(5, count))}"
        )


def _without_test(config_data):
    """Returns the configuration without its test split, which need not be read. Other sources read all together."""
    if not splits.are_expressions(config_data):
        return config_data
    pool = config_data.copy_and_resolve_references()
    pool.update(test_split="")
    return pool
