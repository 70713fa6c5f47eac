"""What the data package hands out: plain arrays with names, and the description of them without the arrays."""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

Progress = Callable[[str, int, int], None]  # (what is being done, units done, units in all), called now and then
Ranges = tuple[tuple[str, int, int], ...]  # stored split, first index, one past the last: read in this order


def silent(description: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


class LazyImages(abc.ABC):
    """Images that stay on disk and are decoded when they are asked for; looks like an array uint8 [N, H, W, C].

    Can be pickled, for the processes that decode.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, shape: tuple[int, int, int, int]):
        self.shape = shape

    @abc.abstractmethod
    def read(self, index: int) -> np.ndarray:
        """One image, uint8 [H, W, C]; safe to be called by several threads at once."""

    @property
    def nbytes(self) -> int:
        """Bytes of all images, decoded."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        """Number of images."""
        return self.shape[0]

    def __getitem__(self, which: Any) -> np.ndarray:
        """What numpy's indexing by a number, a slice or an array of numbers along the first axis would give."""
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
        images: uint8 [N, H, W, C]. A view of a memory-mapped file when the split is one contiguous range;
            `LazyImages` where they are to stay on disk.
        labels: int32 [N].
        ids: str [N], the data set's own 'id' feature or '<stored split>/<index>'.
    """

    images: Images
    labels: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """The configured splits of one data set.

    Attributes:
        name: as configured, 'cifar10', or 'cifar10 (bundled sample)'.
        class_names: by label.
        image_shape: (H, W, C).
        splits: keys among 'train', 'valid', 'test': those that are configured.
        fingerprint: SHA-256 (hex) of the decoded images and labels of every stored split that is read; the same on
            every machine, and whatever part of those stored splits is configured.
        is_sample: whether this is the sample that comes with the package.
        location: the folder the records came from.
        notice: '' or a warning of several lines that nobody should be able to miss.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    splits: dict[str, Split]
    fingerprint: str
    is_sample: bool
    location: str
    notice: str

    def facts(self) -> dict[str, Any]:
        """The recorded facts of the data set, a JSON object for `run.json` and for every checkpoint.

        Returns:
            name, location, fingerprint, class_names (a list), image_shape ([H, W, C]), and counts: split -> number of
            examples.
        """
        return {
            "name": self.name,
            "location": self.location,
            "fingerprint": self.fingerprint,
            "class_names": list(self.class_names),
            "image_shape": list(self.image_shape),
            "counts": {name: len(split) for name, split in self.splits.items()},
        }


@dataclasses.dataclass(frozen=True)
class Info:
    """A `Dataset` without its arrays: what can be known without reading a record.

    Attributes:
        split_sizes: number of examples by configured split ('train', 'valid', 'test').
        split_ranges: the stored ranges behind each of them.
        overlaps: overlaps that are allowed but worth a warning, a sentence each (validation and test images shared).
        is_prepared: False when `load` would first have to download or unpack the set.
        name, class_names, image_shape, is_sample, location, notice: as in `Dataset`.
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
