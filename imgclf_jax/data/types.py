"""The results of the data package: plain arrays with names, and descriptions of them without the arrays."""

import abc
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from imgclf_jax.errors import UserError

Progress = Callable[[str, int, int], None]  # (description, units done, total units), called now and then
Ranges = tuple[tuple[str, int, int], ...]  # (stored split, first index, one past the last), read in this order


def silent(description: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


class LazyImages(abc.ABC):
    """Images that stay on disk and are decoded on access; behaves like an array uint8 [N, H, W, C].

    Can be pickled for the processes that decode.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, shape: tuple[int, int, int, int]):
        self.shape = shape

    @abc.abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Returns one image, uint8 [H, W, C]; several threads may call it at once."""

    @property
    def nbytes(self) -> int:
        """Bytes of all images, decoded."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        """Number of images."""
        return self.shape[0]

    def __getitem__(self, which: Any) -> np.ndarray:
        """Indexes along the first axis, as NumPy does, with a number, a slice or an array of numbers."""
        indices = np.arange(len(self))[which]
        if not indices.ndim:
            return self.read(int(indices))
        images = [self.read(int(index)) for index in indices.ravel()]
        return np.stack(images) if images else np.zeros((0, *self.shape[1:]), np.uint8)


Images = np.ndarray | LazyImages


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One configured split.

    Attributes:
        images: uint8 [N, H, W, C]. A view of a memory-mapped file if the split is one contiguous range; `LazyImages`
            if the images stay on disk.
        labels: int32 [N].
        ids: str [N], the 'id' feature of the data set or '<stored split>/<index>'.
        contents: uint64 [N], a digest of the original pixels: equal for copies, which must not be on both sides of a
            validation. `None` if it is not known.
    """

    images: Images
    labels: np.ndarray
    ids: np.ndarray
    contents: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)


class Relabeled(NamedTuple):
    """Where the labels of a training split come from, if not from its data set.

    Attributes:
        file: as configured.
        sha256: SHA-256 (hex) of its content.
        changed: the number of training examples whose label differs.
    """

    file: str
    sha256: str
    changed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """The configured splits of one data set.

    Attributes:
        name: as configured, 'cifar10', or 'cifar10 (bundled sample)'.
        class_names: by label.
        image_shape: (H, W, C).
        splits: the configured splits, with keys among 'train', 'valid' and 'test'.
        fingerprint: SHA-256 (hex) of the decoded images and labels of every stored split that is read. It is the same
            on every machine, and does not depend on which part of those stored splits is configured.
        is_sample: whether this is the sample that comes with the package.
        location: the folder of the records.
        notice: '' or a warning of several lines that must be shown.
        stored: the number of examples in each stored split that ids refer to by number; empty if they do not.
        relabeled: what has replaced the labels of the training split, if anything.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    splits: dict[str, Split]
    fingerprint: str
    is_sample: bool
    location: str
    notice: str
    stored: dict[str, int] = dataclasses.field(default_factory=dict)
    relabeled: Relabeled | None = None

    @property
    def counts(self) -> dict[str, int]:
        """The number of examples in each split."""
        return {name: len(split) for name, split in self.splits.items()}

    def only(self, split: str) -> "Dataset":
        """Returns this data set with one of its splits alone.

        Raises:
            UserError: there is no such split.
        """
        _check_has(split, self.splits, self.location)
        return dataclasses.replace(self, splits={split: self.splits[split]})

    def facts(self) -> dict[str, Any]:
        """The recorded facts of the data set, a JSON object for `run.json` and for every checkpoint.

        Returns:
            name, location, fingerprint, class_names (a list), image_shape ([H, W, C]), and counts: split -> number of
            examples. Also labels if the labels of the training split are replaced: {file, sha256, changed}.
        """
        facts: dict[str, Any] = {
            "name": self.name,
            "location": self.location,
            "fingerprint": self.fingerprint,
            "class_names": list(self.class_names),
            "image_shape": list(self.image_shape),
            "counts": self.counts,
        }
        return facts | ({"labels": self.relabeled._asdict()} if self.relabeled else {})


@dataclasses.dataclass(frozen=True)
class Info:
    """A `Dataset` without its arrays: what is known without reading a record.

    Attributes:
        split_sizes: number of examples by configured split ('train', 'valid', 'test').
        split_ranges: the stored ranges of each split. With cross-validation, those of 'train' and 'valid' are left out:
            their examples are scattered.
        overlaps: sentences that deserve a warning: one per overlap that is allowed (between validation and test), and
            remarks about the data.
        is_prepared: False if `load` would first have to download or unpack the set.
        name, class_names, image_shape, is_sample, location, notice, stored: as in `Dataset`.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    split_sizes: dict[str, int]
    split_ranges: dict[str, Ranges]
    overlaps: tuple[str, ...]
    is_sample: bool
    is_prepared: bool
    location: str
    notice: str
    stored: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def image_bytes(self) -> int:
        """The size of the images of all splits, decoded to uint8."""
        return sum(self.split_sizes.values()) * math.prod(self.image_shape)

    def only(self, split: str) -> "Info":
        """Returns this description with the size of one split alone.

        Raises:
            UserError: there is no such split.
        """
        _check_has(split, self.split_sizes, self.location)
        return dataclasses.replace(self, split_sizes={split: self.split_sizes[split]})


def _check_has(split: str, available: Iterable[str], location: str) -> None:
    if split not in available:
        raise UserError(f"--split={split!r}: there is no such split in {location}; there are {', '.join(available)}")
