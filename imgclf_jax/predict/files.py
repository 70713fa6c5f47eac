"""From what a user names (files, folders, globs) to files, and to the classes that their folders are named after."""

import glob
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class File(NamedTuple):
    """A file to predict.

    Attributes:
        path: as it was given, or under the folder that was given.
        root: the folder that was given, or that it was given in: the outermost whose name may be that of its class.
    """

    path: Path
    root: Path


class Found(NamedTuple):
    """What there is under some names.

    Attributes:
        files: in the order of the names, sorted within each, every file once.
        problems: what matched nothing or could not be searched, a line each.
        has_subfolders: whether a folder was given whose files lie in folders of their own.
    """

    files: list[File]
    problems: list[str]
    has_subfolders: bool


def find(names: Sequence[str]) -> Found:
    """Finds files.

    Args:
        names: files, folders (searched recursively; what is hidden in them is left out) and globs (`**` is recursive).
            What exists is taken as it is, whatever characters its name is made of.
    """
    files: dict[Path, File] = {}
    problems: list[str] = []
    has_subfolders = False
    for name in names:
        unreadable: list[str] = []
        found = list(_matches(name, unreadable)) if name else []  # Path("") is the folder we are in.
        problems += unreadable
        if not found and not unreadable:
            problems.append(_why_nothing(name))
        for file in found:
            files.setdefault(_absolute(file.path), file)
            has_subfolders |= _absolute(file.path).parent != _absolute(file.root)
    return Found(list(files.values()), problems, has_subfolders)


def label(file: File, labels: dict[str, int]) -> int | None:
    """The label that the file's folder is named after: the nearest of those up to the root, its own name included.

    Args:
        file: the file.
        labels: by class name.
    """
    root = _absolute(file.root)
    for folder in _absolute(file.path).parents:
        if (found := labels.get(folder.name)) is not None:
            return found
        if folder == root:
            break
    return None


def _why_nothing(name: str) -> str:
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
    return f"{name!r} is a link to nothing" if stat.S_ISLNK(mode) else f"{name!r} is not a regular file"


def _shortened(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}...")


def _matches(name: str, problems: list[str]) -> Iterator[File]:
    path = Path(name)
    if os.path.exists(name) or not glob.has_magic(name):  # noqa: PTH110 (Path.exists raises for long names)
        yield from _given(path, path.parent, problems)
        return
    start = Path(re.split(r"[*?[]", name, maxsplit=1)[0] + "_").parent  # the part before the first wildcard
    # Unlike Path.glob it takes absolute names, leaves out what is hidden, and finds files with ** in any Python.
    for match in sorted(glob.glob(name, recursive=True)):  # noqa: PTH207
        yield from _given(Path(match), start, problems)


def _given(path: Path, root: Path, problems: list[str]) -> Iterator[File]:
    if os.path.isdir(path):  # noqa: PTH112
        yield from _walk(path, path, (), problems)
    elif os.path.isfile(path):  # noqa: PTH113 (not a pipe, which would be waited for)
        yield File(path, root)


def _walk(folder: Path, root: Path, above: tuple[Path, ...], problems: list[str]) -> Iterator[File]:
    """Follows links to folders, but not in circles."""
    try:
        real = folder.resolve()
        if real in above:
            return
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        problems.append(f"folder {str(folder)!r} cannot be read: {error.strerror}")
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry):  # noqa: PTH112
            yield from _walk(entry, root, (*above, real), problems)
        elif entry.is_file() or entry.is_symlink():  # A link to nothing or to a pipe gets a row that says so.
            yield File(entry, root)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow links: two names are two files)
