"""Folders that keep what took long to compute. Each holds digests of its files, which are checked on opening."""

import errno
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from imgclf_jax.data import seals
from imgclf_jax.errors import UserError
from imgclf_jax.storage import atomic

_FOLDER = ".imgclf_jax"  # hidden, because data set tools list its neighbours as data sets
# Errors that another folder may not have.
_ELSEWHERE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)

Kept = TypeVar("Kept")


def places(root: Path | None) -> list[Path]:
    """Returns the folders that may hold caches: one beside the data in `root`, if it can be written, then the user's.

    Raises:
        UserError: there is neither of the two.
    """
    beside = [root / _FOLDER] if root is not None and atomic.is_writable(root / _FOLDER) else []
    try:
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as e:  # The account has no entry in the list of users, as in some containers.
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
    """Opens a cache, after making it if need be. It appears whole or not at all.

    A damaged cache is made again, and reported by a `UserWarning`.

    Args:
        name: the name of its folder, which stands for everything that its content depends on.
        root: the data directory; None keeps the cache out of it.
        what: what is kept, for messages.
        open_cache: returns the content of a folder, or None if it is missing or not whole.
        write: writes the content into a new folder.

    Returns:
        What `open_cache` returns.

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
                break  # the user should know about a full disk: it is not worked around
    raise UserError(
        f"cannot keep {what} ({'; '.join(reasons)}); free space there, or set "
        "XDG_CACHE_HOME to a folder with space that you can write to"
    )


def write_header(f: BinaryIO, shape: tuple[int, ...]) -> None:
    """Writes the header of an .npy file of uint8.

    The file is a plain one, because a memory map would end the process with a bus error on a full disk. The length of
    the header depends on the rank alone, so that it can be written again once the number of images is known.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(f, header)


def _open(folder: Path, open_cache: Callable[[Path], Kept | None]) -> tuple[Kept | None, str]:
    """Returns (the content, "") or (None, why there is none)."""
    if folder.is_dir() and not seals.is_sealed(folder):
        return None, "has no checksums, like the caches of earlier versions"
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
                return theirs  # another process was quicker, and its content is the same
            atomic.discard(folder)
    for _ in range(5):
        kept, reason = _open(folder, open_cache)
        if kept is not None:
            return kept
        time.sleep(0.1)  # Another process may be about to put its own folder here.
    raise OSError(errno.EIO, f"what was written {reason}")
