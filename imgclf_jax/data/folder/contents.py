"""Where the content of photos is: in files of their own, or in parts of larger files."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from imgclf_jax.data import caches
from imgclf_jax.storage.files import reason_of


class Contents(Protocol):
    """The contents of photos, by number. Can be pickled for the processes that decode."""

    def read(self, index: int) -> bytes:
        """Returns the content of a photo; several threads may call it at once.

        Raises:
            BadPhoto: it cannot be read.
        """

    def name(self, index: int) -> str:
        """Returns the name of a photo, for messages."""

    def take(self, indices: Sequence[int]) -> "Contents":
        """Returns the contents of some of the photos, in the given order."""

    def identify(self, digest: Any) -> None:
        """Updates a hashlib digest with what changes when a photo changes: sizes and times of files."""

    def may_exist(self, index: int) -> bool:
        """Returns whether a photo that could not be read may be readable now."""


class OwnFiles:
    """Photos in files of their own.

    Args:
        root: the folder.
        paths: the paths of the files, relative to `root`.
    """

    def __init__(self, root: Path, paths: Iterable[str]):
        self._root = root
        self._paths = tuple(paths)

    def read(self, index: int) -> bytes:
        """See `Contents.read`."""
        from imgclf_jax.data import decode  # It imports Pillow.

        return decode.content(self.name(index))

    def name(self, index: int) -> str:
        """See `Contents.name`."""
        return os.path.join(self._root, self._paths[index])  # noqa: PTH118 (a path would take longer than reading)

    def take(self, indices: Sequence[int]) -> "OwnFiles":
        """See `Contents.take`."""
        return OwnFiles(self._root, (self._paths[index] for index in indices))

    def identify(self, digest: Any) -> None:
        """See `Contents.identify`. Like `caches.add_files`, but there may be millions of files."""
        for index, path in enumerate(self._paths):
            try:
                stat = os.stat(self.name(index))  # noqa: PTH116 (making a path takes as long as the call)
                state = f"{path}\0{stat.st_size} {stat.st_mtime_ns}\n"
            except OSError:
                state = f"{path}\0missing\n"
            digest.update(state.encode("utf-8", "surrogateescape"))

    def may_exist(self, index: int) -> bool:
        """See `Contents.may_exist`."""
        path = Path(self.name(index))
        return path.is_file() and os.access(path, os.R_OK)


class Parts:
    """Photos in parts of larger files, which are read without anything before them.

    Args:
        root: the folder of the files.
        files: their paths, relative to `root`.
        numbers: int32 [N], the number of the file that each photo is in.
        offsets: int64 [N], the first byte of each photo in its file.
        sizes: int64 [N], the number of its bytes.
        names: the names of the photos, for messages.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        numbers: np.ndarray,
        offsets: np.ndarray,
        sizes: np.ndarray,
        names: Sequence[str],
    ):
        self._root, self._files = root, tuple(files)
        self._numbers, self._offsets, self._sizes = numbers, offsets, sizes
        self._names = tuple(names)

    def read(self, index: int) -> bytes:
        """See `Contents.read`."""
        from imgclf_jax.data import decode  # It imports Pillow.

        size = int(self._sizes[index])
        try:
            # Opening takes microseconds, and a file that stays open would be one too many of thousands.
            with (self._root / self._files[self._numbers[index]]).open("rb", buffering=0) as file:
                content = os.pread(file.fileno(), size, int(self._offsets[index]))
        except OSError as e:
            raise decode.BadPhoto(f"cannot be read: {reason_of(e)}") from e
        if len(content) < size:
            raise decode.BadPhoto("cannot be read: the file that it is in has been cut off")
        return content

    def name(self, index: int) -> str:
        """See `Contents.name`."""
        return str(self._root / self._names[index])

    def take(self, indices: Sequence[int]) -> "Parts":
        """See `Contents.take`."""
        rows, names = np.asarray(indices, int), [self._names[index] for index in indices]
        return Parts(self._root, self._files, self._numbers[rows], self._offsets[rows], self._sizes[rows], names)

    def identify(self, digest: Any) -> None:
        """See `Contents.identify`."""
        caches.add_files(digest, self._root, self._files)
        digest.update(json.dumps([len(self._names)]).encode())

    def may_exist(self, index: int) -> bool:
        """See `Contents.may_exist`."""
        return True
