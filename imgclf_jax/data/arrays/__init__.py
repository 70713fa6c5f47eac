"""The data source 'arrays': images and labels in .npz or .npy files, see `imgclf_jax.data.loading.Source`.

`data.dir` is one of:

- a .npz file with `images`, `labels` and, if you like, `split` (the name of the split of each example); or with
  `train_images`, `train_labels`, `valid_images`, `valid_labels`, `test_images` and `test_labels`;
- a folder with `train.npz`, `valid.npz` and `test.npz`, each with `images` and `labels`;
- a folder with the same arrays in files of their own: `images.npy` and `labels.npy`, or `train_images.npy` and so on.

Images are uint8 [N, H, W, C] or, if gray, [N, H, W]; labels are integers [N] from 0. `class_names` names the classes,
and `ids` (`train_ids`, ...) the examples, which are otherwise called 'train/0', 'train/1' and so on, or 'all/0' without
splits. Examples without splits are divided by `data.split`, class by class and by the content of the images.

Nothing that is loaded can run code: arrays of Python objects are refused.
"""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np

from imgclf_jax.data import folder
from imgclf_jax.data.arrays.layout import scan
from imgclf_jax.data.folder import assignment
from imgclf_jax.data.types import Dataset, Images, Info, LazyImages, Progress
from imgclf_jax.errors import UserError
from imgclf_jax.storage.files import reason_of


class ArrayImages(LazyImages):
    """Some images of a .npy file, each read on access.

    Args:
        path: the file.
        shape: (H, W, C) of an image.
        rows: int [N], the numbers of the images in the file.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], rows: np.ndarray):
        super().__init__((len(rows), *shape))
        self._path = path
        self._rows = rows
        self._state = _state(path)
        self._mapped: np.ndarray | None = None
        self._lock = threading.Lock()

    def read(self, index: int) -> np.ndarray:
        """Returns one image, uint8 [H, W, C].

        Raises:
            UserError: the file has changed since the data set was examined.
        """
        with self._lock:
            if self._mapped is None:
                self._mapped = self._open()
        return np.array(self._mapped[int(self._rows[index])]).reshape(self.shape[1:])

    def _open(self):
        try:
            if _state(self._path) == self._state:
                return np.load(self._path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as e:
            raise UserError(f"{self._path}: cannot be read ({reason_of(e)})") from e
        raise UserError(
            f"{self._path}: has changed since the data set was examined; restore the file, or start a run on the "
            "changed data in another --workdir"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the memory map, because every process maps the file itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_mapped")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Sets up the process that reads."""
        vars(self).update(state, _lock=threading.Lock(), _mapped=None)


def describe(config_data: Any, split: str | None = None) -> Info:
    """See `imgclf_jax.data.describe` and `imgclf_jax.data.describe_split`. Reads labels, but no images.

    Raises:
        UserError: all problems with the files and the settings, one line each.
    """
    found = scan(config_data)
    info = folder.describe_listing(found.listing, found.image_shape[2])
    info = dataclasses.replace(info, stored={part.name: len(part.labels) for part in found.parts})
    return info if split is None else info.only(split)


def load(config_data: Any, progress: Progress, stream: bool, split: str | None = None) -> Dataset:
    """See `imgclf_jax.data.load` and `imgclf_jax.data.load_split`.

    Images that `data.split` divides and that are under two classes are an error, as for photos, unless `on_bad` is
    "skip". Copies in splits that are given are reported by a notice, because they may belong to a published data set.

    Raises:
        UserError: as `describe`; also if a file is damaged, or no cache can be written.
    """
    found = scan(config_data)
    listing = found.listing
    folder.describe_listing(listing)  # Checks the sizes of the splits before any image is read.
    from imgclf_jax.data.arrays import cache
    from imgclf_jax.data.folder.cache import Seen

    opened = cache.examine(found, progress)
    digests = [opened[part][1][row].tobytes().hex() for part, row in found.places.tolist()]
    none = ("",) * len(digests)
    seen = Seen(tuple(digests), none, tuple(digests), none)
    chosen, problems = assignment.choose(listing, seen)
    notices = [problem.notice for problem in problems]
    if problems and config_data.on_bad != "skip":
        if listing.fractions is not None:
            raise UserError("\n".join(problem.error for problem in problems))
        chosen = [assignment.Chosen(index, file.role) for index, file in enumerate(listing.files)]
        notices = ["\n".join(problem.error.splitlines()[:2]) for problem in problems]
    assignment.check_left(listing, chosen)
    notices += assignment.notices(listing, seen, chosen)

    def images_of(indices: list[int]) -> Images:
        part = int(found.places[indices[0], 0])  # A split is in one part.
        path, rows = opened[part][0], found.places[indices, 1]
        if stream:
            return ArrayImages(path, found.image_shape, rows)
        whole = np.load(path, mmap_mode="r", allow_pickle=False).reshape(found.parts[part].shape)
        return folder.take(whole, rows)

    header = [listing.class_names, *found.image_shape]
    dataset = folder.assemble(listing, seen, chosen, images_of, header, found.image_shape, notices)
    dataset = dataclasses.replace(dataset, stored={part.name: len(part.labels) for part in found.parts})
    return dataset if split is None else dataset.only(split)


def _state(path):
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
