"""Folders that keep what took long to work out; every one carries digests that are compared when it is opened."""

import errno
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from imgclf_jax.data import atomic, seals
from imgclf_jax.errors import UserError

_FOLDER = ".imgclf_jax"  # hidden: data set tools list the folders beside it as data sets
_ELSEWHERE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)  # what another folder may not have

Kept = TypeVar("Kept")


def places(root: Path | None) -> list[Path]:
    """Folders that may hold caches, best first: beside the data in `root` if that can be written, then the user's.

    Raises:
        UserError: there is neither.
    """
    beside = [root / _FOLDER] if root is not None and atomic.is_writable(root / _FOLDER) else []
    try:
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as e:  # An account without an entry in the list of users, as containers have them.
        if beside:
            return beside
        raise UserError("this account has no home folder; set XDG_CACHE_HOME to a folder that you can write to") from e
    return [*beside, user / "imgclf_jax" / "data"]


def keep(
    name: str,
    root: Path | None,
    what: str,
    open_cache: Callable[[Path], Kept | None],
    write: Callable[[Path], None],
) -> Kept:
    """Opens a cache, after making it if need be; it appears whole or not at all.

    What is damaged is made again, and reported by a `UserWarning`.

    Args:
        name: of its folder, which stands for everything that its content depends on.
        root: the data directory; None keeps the cache out of it.
        what: is kept, for messages.
        open_cache: the content of a folder, or None when it is not there or not whole.
        write: writes the content into a new folder.

    Raises:
        UserError: no cache can be written; and what `write` raises.
    """
    folders = [place / name for place in places(root)]
    for folder in folders:
        atomic.sweep(folder.parent)
        if not os.path.lexists(folder):
            continue
        found, reason = _open(folder, open_cache)
        if found is not None:
            return found
        warnings.warn(f"the cache {folder} {reason}: the data are read again", UserWarning, stacklevel=2)
    reasons = []
    for folder in folders:
        try:
            return _build(folder, open_cache, write)
        except OSError as e:
            reasons.append(f"{folder.parent}: {e.strerror or e}")
            if e.errno not in _ELSEWHERE:
                break  # a full disk is for the user to know about, not to be worked around
    raise UserError(
        f"cannot keep {what} ({'; '.join(reasons)}); free space there, or set "
        "XDG_CACHE_HOME to a folder with space that you can write to"
    )


def write_header(f: BinaryIO, shape: tuple[int, ...]) -> None:
    """Begins an .npy file of uint8 in a plain file: on a full disk a memory map would end the process with a bus error.

    Its length depends on none but the rank, so that it can be written again once the number of images is known.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(f, header)


def _open(folder: Path, open_cache: Callable[[Path], Kept | None]) -> tuple[Kept | None, str]:
    """Returns (the content, "") or (None, why there is none)."""
    if folder.is_dir() and not seals.is_sealed(folder):
        return None, "has no checksums, as those of earlier versions"
    reason = seals.damage(folder)
    found = None if reason else open_cache(folder)
    return found, "" if found is not None else f"is damaged ({reason or 'its files do not fit together'})"


def _build(folder: Path, open_cache: Callable[[Path], Kept | None], write: Callable[[Path], None]) -> Kept:
    with atomic.temporary_folder(folder.parent) as temporary:
        write(temporary)
        seals.seal(temporary)
        atomic.sync(temporary)
        for _ in range(3):
            try:
                temporary.rename(folder)
                atomic.sync_names(folder.parent)
                break
            except OSError as e:
                if e.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            theirs, _reason = _open(folder, open_cache)
            if theirs is not None:
                return theirs  # another process was quicker, with the same content
            atomic.discard(folder)
    for _ in range(5):
        kept, reason = _open(folder, open_cache)
        if kept is not None:
            return kept
        time.sleep(0.1)  # Another process may be about to put its own in this place.
    raise OSError(errno.EIO, f"what was written {reason}")
