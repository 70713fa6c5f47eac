"""Reads arrays from .npz and .npy files, whole or in part. Nothing that is read can run code."""

import contextlib
import errno
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from imgclf_jax.data.folder.layout import shown
from imgclf_jax.storage.files import reason_of

_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


class Member(NamedTuple):
    """An array in a file: in the .npz file `path` under the name `key`, or in the .npy file `path` if `key` is None."""

    path: Path
    key: str | None

    def __str__(self) -> str:
        """Returns its name in messages."""
        return shown(self.path.name) + (f"[{self.key!r}]" if self.key else "")


def keys(path: Path, problems: list[str]) -> list[str]:
    """Returns the names of the arrays in a .npz file. If it cannot be read, adds a line to `problems`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except _UNREADABLE as e:
        problems.append(f"{shown(path.name)}: cannot be read as a .npz file ({reason_of(e)})")
        return []


@contextlib.contextmanager
def reading(member: Member, problems: list[str]) -> Iterator[None]:
    """Turns an error in the block into a line in `problems`."""
    try:
        yield
    except _UNREADABLE as e:
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # What is full is the disk of the cache.
        reason = str(e)
        if "Python objects" in reason or "Object arrays" in reason:
            problems.append(
                f"{member}: holds Python objects, which could run code when they are loaded; save numbers or text, "
                "e.g. np.array(names, str)"
            )
        else:
            # What has no header is a pickle to NumPy.
            reason = "it is not in the .npy format" if "pickled" in reason else reason_of(e)
            problems.append(f"{member}: cannot be read ({reason})")


def header(member: Member) -> tuple[tuple[int, ...], np.dtype]:
    """Returns (shape, dtype) without reading the array."""
    if member.key is None:
        mapped = np.load(member.path, mmap_mode="r", allow_pickle=False)
        return mapped.shape, mapped.dtype
    with stream(member) as file:
        shape, _, dtype = read_header(file)
        return shape, dtype


@contextlib.contextmanager
def stream(member: Member) -> Iterator[IO[bytes]]:
    """Opens an array in a .npz file, in the .npy format."""
    with zipfile.ZipFile(member.path) as archive:
        name = f"{member.key}.npy"
        with archive.open(name if name in archive.namelist() else str(member.key)) as file:
            yield file


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns (shape, whether in Fortran order, dtype) of an array in the .npy format."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def read(member: Member, problems: list[str]) -> Any:
    """Returns an array. If it cannot be read, returns None and adds a line to `problems`."""
    with reading(member, problems):
        if member.key is None:
            return np.load(member.path, allow_pickle=False)
        with stream(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    return None


def texts(member: Member, problems: list[str]) -> Any:
    """Returns an array of text, str [N], as `read` does. Whole numbers and bytes are turned into text."""
    values = read(member, problems)
    if values is None:
        return None
    if values.ndim != 1 or values.dtype.kind not in "USiu":
        problems.append(f"{member}: holds {values.dtype} {list(values.shape)}; it must hold text [N]")
        return None
    if values.dtype.kind == "S":
        return np.array([value.decode("utf-8", "backslashreplace") for value in values.tolist()], str)
    return values.astype(str)
