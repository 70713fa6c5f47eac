"""Cache folders for results that are slow to compute. Each holds digests of its files, which are checked on opening."""

import errno
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from imgclf_jax.errors import UserError
from imgclf_jax.storage import atomic, seals
from imgclf_jax.storage.files import read_sealed, reason_of, write_sealed_if_possible

FOLDER = ".imgclf_jax"  # hidden, because data set tools list its neighbors as data sets
# Errors that another folder may not have.
_ELSEWHERE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)

Content = TypeVar("Content")


def folders(root: Path | None) -> list[Path]:
    """Returns the folders that may hold caches: one in `root` if it is writable, then the user's cache folder.

    Args:
        root: the data directory; None leaves it out.

    Raises:
        UserError: neither is available.
    """
    in_root = [root / FOLDER] if root is not None and atomic.is_writable(root / FOLDER) else []
    try:
        user = user_folder()
    except UserError:
        if in_root:
            return in_root
        raise
    for folder in in_root:
        _note(folder, user)
    return [*in_root, user / "data"]


def user_folder() -> Path:
    """Returns the user's cache folder of this package; it may not exist.

    Raises:
        UserError: the account has no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgclf_jax"
    except RuntimeError as e:  # The account has no entry in the list of users, as in some containers.
        raise UserError("this account has no home folder; set XDG_CACHE_HOME to a folder that you can write to") from e


def noted(user: Path) -> list[Path]:
    """Returns the folders next to data where caches were looked for before, for `imgclf_jax.cache`."""
    found = [Path(read_sealed(path, report=False) or "") for path in sorted((user / "places").glob("*.json"))]
    return [folder for folder in found if folder.name == FOLDER]


def _note(folder, user):
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    note = user / "places" / f"{name}.json"
    if folder.is_dir() and not note.exists():
        write_sealed_if_possible(note, str(folder.resolve()))


def open_or_make(
    name: str,
    root: Path | None,
    title: str,
    open_cache: Callable[[Path], Content | None],
    write: Callable[[Path], None],
) -> Content:
    """Opens a cache, after making it if necessary. A new cache appears whole or not at all.

    A damaged cache is rebuilt, and a `UserWarning` reports the damage.

    Args:
        name: the name of the cache folder, which identifies everything that the content depends on.
        root: the data directory; None keeps the cache out of it.
        title: what is cached, for messages.
        open_cache: returns the content of a folder, or None if it is missing or incomplete.
        write: writes the content into a new folder.

    Returns:
        What `open_cache` returns.

    Raises:
        UserError: no cache can be written. Errors of `write` are passed on.
    """
    candidates = [folder / name for folder in folders(root)]
    for folder in candidates:
        atomic.sweep(folder.parent)
        if not os.path.lexists(folder):
            continue
        content, damage = _open(folder, open_cache)
        if content is not None:
            return content
        warnings.warn(f"the cache {folder} {damage}: the data are read again", UserWarning, stacklevel=2)
    reasons = []
    for folder in candidates:
        try:
            return _make(folder, open_cache, write)
        except OSError as e:
            reasons.append(f"{folder.parent}: {reason_of(e)}")
            if e.errno not in _ELSEWHERE:
                break  # The user should hear about a full disk, so do not work around it.
    raise UserError(
        f"cannot cache {title} ({'; '.join(reasons)}); free up space there, or set "
        "XDG_CACHE_HOME to a folder with space that you can write to"
    )


def add_files(digest: Any, root: Path, names: Iterable[str]) -> None:
    """Updates a hashlib digest with the names, sizes and times of files in `root`.

    These identify a cache of the files' content, which is too long to read at every start.
    """
    for name in names:
        try:
            stat = (root / name).stat()
            digest.update(json.dumps([name, stat.st_size, stat.st_mtime_ns]).encode())
        except OSError:
            digest.update(json.dumps([name, "missing"]).encode())


def write_header(f: BinaryIO, shape: tuple[int, ...]) -> None:
    """Writes the header of an .npy file of uint8, whose values are then written as to any other file.

    A memory map would end the process with a bus error on a full disk. The length of the header depends on the rank
    alone, so it can be overwritten once the number of images is known.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(f, header)


def _open(folder: Path, open_cache: Callable[[Path], Content | None]) -> tuple[Content | None, str]:
    """Returns (the content, "") or (None, why the cache cannot be used)."""
    if folder.is_dir() and not seals.is_sealed(folder):
        return None, "has no checksums, like the caches of earlier versions"
    atomic.hold(folder)  # before it is read, so that `imgclf_jax.cache` does not remove it meanwhile
    damage = seals.damage(folder)
    content = None if damage else open_cache(folder)
    return content, "" if content is not None else f"is damaged ({damage or 'its files do not fit together'})"


def _make(folder: Path, open_cache: Callable[[Path], Content | None], write: Callable[[Path], None]) -> Content:
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
            theirs, _damage = _open(folder, open_cache)
            if theirs is not None:
                return theirs  # Another process was faster, and its content is the same.
            atomic.discard(folder)
    for _ in range(5):
        content, damage = _open(folder, open_cache)
        if content is not None:
            return content
        time.sleep(0.1)  # Another process may be about to rename its own folder to this name.
    raise OSError(errno.EIO, f"what was written {damage}")
