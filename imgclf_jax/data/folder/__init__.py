"""The data source 'folder': photos in one folder per class, see `imgclf_jax.data.loading.Source`."""

import collections
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imgclf_jax.data import splits
from imgclf_jax.data.folder import assignment, cut, layout
from imgclf_jax.data.folder.layout import Listing, shown
from imgclf_jax.data.types import Dataset, Images, Info, LazyImages, Progress, Split
from imgclf_jax.errors import UserError

if TYPE_CHECKING:
    from imgclf_jax.data.folder.cache import Seen
    from imgclf_jax.data.folder.contents import Contents

MOST_DECODED = 100_000  # streamed photos that data.examine="auto" decodes before training


class Photos(LazyImages):
    """Photos that are decoded on access.

    Args:
        contents: the contents of their files.
        hashes: SHA-256 (hex) of each content.
        image_size: (height, width) of the images.
        resize: how the photos get that size, see `imgclf_jax.data.decode.fit`.
    """

    def __init__(self, contents: "Contents", hashes: Sequence[str], image_size: tuple[int, int], resize: str):
        super().__init__((len(hashes), *image_size, 3))
        self._contents = contents
        # A single object, because every decoding process gets a copy.
        self._hashes = b"".join(map(bytes.fromhex, hashes))
        self._resize = resize

    def read(self, index: int) -> np.ndarray:
        """Returns one image, uint8 [H, W, 3].

        Raises:
            UserError: the file has changed since the data set was examined, or it was not decoded then and is damaged.
        """
        from imgclf_jax.data import decode

        try:
            content = self._contents.read(index)
            # Hashing takes 1 % of the time of decoding, or 5 % on CPUs without SHA instructions.
            if hashlib.sha256(content).digest() != self._hashes[32 * index : 32 * index + 32]:
                raise UserError(
                    f"{shown(self._contents.name(index))}: its content has changed since the data set was examined; "
                    "restore the file, or start a run on the changed data in another --workdir"
                )
            return decode.read(content, (self.shape[1], self.shape[2]), self._resize)
        except decode.BadPhoto as e:
            raise UserError(
                f"{shown(self._contents.name(index))}: {e}; restore it if it was a photo when the data set was "
                "examined; --config.data.examine=decode finds all such files before a run"
            ) from e


def describe(config_data: Any, split: str | None = None) -> Info:
    """See `imgclf_jax.data.describe` and `imgclf_jax.data.describe_split`.

    Opens no file. Sizes count all files, because only `load` finds bad files and duplicates.

    Raises:
        UserError: all problems with the folder and the settings, one line each.
    """
    info = describe_listing(layout.scan(config_data))
    return info if split is None else info.only(split)


def load(config_data: Any, progress: Progress, stream: bool, split: str | None = None) -> Dataset:
    """See `imgclf_jax.data.load` and `imgclf_jax.data.load_split`.

    Raises:
        UserError: as `describe`; also if there are bad files or photos in two splits or classes, unless `on_bad` is
            "skip"; if a class or a split has no photos left; or if no cache can be written.
    """
    return load_listing(layout.scan(config_data), config_data, progress, stream, split)


def load_listing(
    listing: Listing, config_data: Any, progress: Progress, stream: bool, split: str | None = None
) -> Dataset:
    """Loads the photos of a listing, as `load` does.

    Raises:
        UserError: as `load`.
    """
    dataset = _load(listing, config_data, progress, stream)
    return dataset if split is None else dataset.only(split)


def _load(listing: Listing, config_data: Any, progress: Progress, stream: bool) -> Dataset:
    from imgclf_jax.data.folder import cache

    resize, on_bad = config_data.resize, config_data.on_bad

    describe_listing(listing)  # Checks the sizes of the splits before any file is read.
    images: np.ndarray | None = None
    if stream:
        seen = cache.examine(listing, resize, progress, decoding=is_decoded(config_data.examine, len(listing.files)))
    else:
        seen, images = cache.decode_all(listing, resize, progress)
    chosen, problems = assignment.choose(listing, seen)
    if problems and on_bad != "skip":
        raise UserError("\n".join(problem.error for problem in problems))
    assignment.check_left(listing, chosen)
    notices = [problem.notice for problem in problems] + assignment.notices(listing, seen, chosen)
    rows = np.cumsum([not reason for reason in seen.reasons]) - 1  # of the decoded images, by number of the file

    def images_of(indices: list[int]) -> Images:
        if images is not None:
            return take(images, rows[indices])
        hashes = [seen.hashes[index] for index in indices]
        return Photos(listing.contents.take(indices), hashes, listing.image_size, resize)

    shape = (*listing.image_size, 3)
    return assemble(listing, seen, chosen, images_of, [listing.class_names, *shape, resize], shape, notices)


def is_decoded(examine: str, count: int) -> bool:
    """Returns whether so many photos, which stay on disk, are decoded before training; see `data.examine`."""
    return examine == "decode" or (examine == "auto" and count <= MOST_DECODED)


def assemble(
    listing: Listing,
    seen: "Seen",
    chosen: Sequence[assignment.Chosen],
    images_of: Callable[[list[int]], Images],
    header: list[Any],
    image_shape: tuple[int, int, int],
    notices: Sequence[str],
) -> Dataset:
    """Returns the data set of the chosen files of a listing.

    Args:
        listing: the files.
        seen: the results of reading them.
        chosen: the files of the data set, in order.
        images_of: indices of files -> their images.
        header: what the fingerprint covers besides the contents of the files and their labels.
        image_shape: (H, W, C).
        notices: lines that must be shown.
    """
    parts: dict[str, Split] = {}
    digest = hashlib.sha256(json.dumps(header).encode())
    for role in splits.ROLES:
        indices = [photo.file for photo in chosen if photo.role == role]
        if not indices:
            continue
        files = [listing.files[index] for index in indices]
        digest.update(json.dumps([role, len(files)]).encode())
        labels = np.array([file.label for file in files], np.int32)
        digest.update(np.hstack([_bytes(seen.hashes, indices), labels.astype("<i4")[:, None].view(np.uint8)]).data)
        ids = np.array([path.encode("utf-8", "backslashreplace").decode() for _, _, path in files])
        contents = _bytes(seen.pixels, indices)[:, :8].copy().view(">u8")[:, 0].astype(np.uint64)
        parts[role] = Split(images_of(indices), labels, ids, contents)
    return Dataset(
        name=listing.name,
        class_names=listing.class_names,
        image_shape=image_shape,
        splits=parts,
        fingerprint=digest.hexdigest(),
        is_sample=False,
        location=str(listing.place),
        notice="\n".join(notices),
    )


def _bytes(digests, indices):
    """Returns some of the digests as uint8 [N, bytes of a digest]."""
    joined = bytes.fromhex("".join([digests[index] for index in indices]))
    return np.frombuffer(joined, np.uint8).reshape(len(indices), -1)


def describe_listing(listing: Listing, channels: int = 3) -> Info:
    """Describes the data set of a listing, without opening its files.

    Raises:
        UserError: a split gets none of the files.
    """
    if listing.fractions is None:
        counts = collections.Counter(file.role for file in listing.files)
        sizes = {role: counts[role] for role in splits.ROLES if counts[role]}
    else:
        parts = cut.all_different([file.label for file in listing.files], listing.fractions)
        sizes = {role: sum(count for (_, its), count in parts.items() if its == role) for role in splits.ROLES}
        assignment.check_sizes(listing, sizes)
        sizes = {role: size for role, size in sizes.items() if size}
    return Info(
        name=listing.name,
        class_names=listing.class_names,
        image_shape=(*listing.image_size, channels),
        split_sizes=sizes,
        split_ranges={role: ((role, 0, size),) for role, size in sizes.items()},
        overlaps=listing.remarks + assignment.sparse_files(listing),
        is_sample=False,
        is_prepared=True,
        location=str(listing.place),
        notice="",
    )


def take(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the images in `rows`: a view if the rows are consecutive, else a copy.

    They are consecutive if the splits are folders and no photo is left out.
    """
    first, count = rows[0], len(rows)
    return images[first : first + count] if np.array_equal(rows, first + np.arange(count)) else images[rows]
