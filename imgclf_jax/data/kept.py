"""What is in the folders of `caches`: which entries are caches of ours, and how they are removed."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from imgclf_jax.data import caches
from imgclf_jax.storage import atomic, files, seals

KINDS = ("data", "photos")


class Entry(NamedTuple):
    """A cache.

    Attributes:
        path: a folder, or a file of a few facts about data.
        kind: "photos" if it holds decoded photos or facts about them, else "data".
        size: of its files, in bytes.
        used: when it was last written or, if it is a folder, read, in seconds since the epoch. Many file systems update
            the latter once a day.
    """

    path: Path
    kind: str
    size: int
    used: float


def places(roots: list[Path]) -> list[Path]:
    """Returns the folders that exist and may hold caches.

    Args:
        roots: data directories, besides those that are noted.

    Raises:
        UserError: the account has no home folder.
    """
    user = caches.user_folder()
    found = [user / "data", *caches.noted(user), *(root / caches.FOLDER for root in roots)]
    return [folder for folder in dict.fromkeys(folder.resolve() for folder in found) if folder.is_dir()]


def entries(place: Path) -> tuple[list[Entry], list[Path]]:
    """Returns the caches in a folder, the largest first, and everything else in it.

    A cache is a folder with the digests of its files, or a file that begins with its digest. Their names do not matter.
    """
    ours, others = [], []
    with contextlib.suppress(OSError):
        for path in sorted(place.iterdir()):
            if not _is_ours(path):
                others.append(path)
                continue
            inside = list(path.rglob("*")) if path.is_dir() else [path]
            stats = [each.lstat() for each in inside if not each.is_dir()]
            times = [stat.st_mtime for stat in stats] + [stat.st_atime for stat in stats if path.is_dir()]
            used = max(times, default=path.lstat().st_mtime)
            kind = "photos" if path.name.startswith("photos-") else "data"
            ours.append(Entry(path, kind, sum(stat.st_size for stat in stats), used))
    return sorted(ours, key=lambda entry: -entry.size), others


def remove(entry: Entry) -> bool:
    """Removes a cache at once; returns False if a running process uses it.

    Raises:
        OSError: it cannot be removed.
    """
    if entry.path.is_dir():
        return atomic.discard_unused(entry.path)
    entry.path.unlink(missing_ok=True)  # Whoever reads such a file has read all of it.
    return True


def tidy(place: Path) -> None:
    """Removes what processes that died left behind in a folder, and the folder itself if it is empty."""
    atomic.sweep(place)
    with contextlib.suppress(OSError):
        os.rmdir(place)  # noqa: PTH106


def _is_ours(path: Path) -> bool:
    if path.is_symlink():
        return False
    if path.is_dir():
        return seals.is_sealed(path)
    return path.suffix == ".json" and files.read_sealed(path, report=False) is not None
