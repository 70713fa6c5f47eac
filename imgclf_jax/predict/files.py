"""Expands the files, folders and globs given by the user, and derives true classes from folder names."""

import glob
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from imgclf_jax.storage.names import class_name, clutter


class File(NamedTuple):
    """A file to predict.

    Attributes:
        path: as given, or below the given folder.
        root: the given folder, or the folder of the given file: the outermost folder that may be named like its class.
    """

    path: Path
    root: Path


class Found(NamedTuple):
    """The files found under some names.

    Attributes:
        files: in the order of the names, sorted within each name, without duplicates.
        problems: one line per name that matched nothing or could not be searched.
        has_subfolders: whether files were found in subfolders of a given folder.
    """

    files: list[File]
    problems: list[str]
    has_subfolders: bool


def find(names: Sequence[str]) -> Found:
    """Finds files.

    Args:
        names: files, folders (searched recursively, except for hidden entries and other clutter) and globs (`**` is
            recursive). An existing file or folder is never interpreted as a glob.
    """
    files: dict[Path, File] = {}
    problems: list[str] = []
    has_subfolders = False
    for name in names:
        unreadable: list[str] = []
        matches = list(_matches(name, unreadable)) if name else []  # Path("") would be the current folder.
        problems += unreadable
        if not matches and not unreadable:
            problems.append(_no_match(name))
        for file in matches:
            files.setdefault(_absolute(file.path), file)
            has_subfolders |= _absolute(file.path).parent != _absolute(file.root)
    return Found(list(files.values()), problems, has_subfolders)


def label(file: File, labels: dict[str, int]) -> int | None:
    """The label of the class that a folder of the file is named like: the nearest one, up to and including the root.

    Args:
        file: the file.
        labels: by class name in normal form C.

    Returns:
        The label; `None` if no folder is named like a class.
    """
    root = _absolute(file.root)
    for folder in _absolute(file.path).parents:
        if (match := labels.get(class_name(folder.name))) is not None:
            return match
        if folder == root:
            break
    return None


def _no_match(name: str) -> str:
    if not name:
        return "an empty name matches no file"
    if os.path.isdir(name):  # noqa: PTH112
        return f"folder {name!r} holds no files"
    try:
        mode = os.lstat(name).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return f"no file matches {name!r}"
    except OSError as error:
        return f"{_shortened(name)} cannot be read: {error.strerror}"
    return f"{name!r} is a broken link" if stat.S_ISLNK(mode) else f"{name!r} is not a regular file"


def _shortened(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}...")


def _matches(name: str, problems: list[str]) -> Iterator[File]:
    path = Path(name)
    if os.path.exists(name) or not glob.has_magic(name):  # noqa: PTH110 (Path.exists raises for long names)
        yield from _given(path, path.parent, problems)
        return
    start = Path(re.split(r"[*?[]", name, maxsplit=1)[0] + "_").parent  # the part before the first wildcard
    # Unlike Path.glob, glob.glob accepts absolute names, skips hidden entries, and matches files with ** in any Python.
    for match in sorted(glob.glob(name, recursive=True)):  # noqa: PTH207
        yield from _given(Path(match), start, problems)


def _given(path: Path, root: Path, problems: list[str]) -> Iterator[File]:
    if os.path.isdir(path):  # noqa: PTH112
        yield from _walk(path, path, (), problems)
    elif os.path.isfile(path):  # noqa: PTH113 (not a pipe, which would block)
        yield File(path, root)


def _walk(folder: Path, root: Path, above: tuple[Path, ...], problems: list[str]) -> Iterator[File]:
    """Yields the files below a folder. Follows links to folders, except in cycles."""
    try:
        real = folder.resolve()
        if real in above:
            return
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        problems.append(f"folder {str(folder)!r} cannot be read: {error.strerror}")
        return
    for entry in entries:
        if clutter(entry.name):
            continue
        if os.path.isdir(entry):  # noqa: PTH112
            yield from _walk(entry, root, (*above, real), problems)
        elif entry.is_file() or entry.is_symlink():  # A broken link, or a link to a pipe, gets a row with the reason.
            yield File(entry, root)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow links, but two names count as two files)
