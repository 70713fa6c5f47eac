"""Files that a tool writes for its user, whole or not at all and never over an existing one; and lines of CSV."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from imgclf_jax.errors import UserError

# A spreadsheet evaluates a cell that begins with one of the first seven, and names of files and classes may come from
# anywhere. An apostrophe is escaped as well, so that removing one from the front always gives the name back.
# See https://owasp.org/www-community/attacks/CSV_Injection.
_ESCAPED = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
_QUOTED = frozenset(',;"\t\r\n')  # If the comma is the decimal sign, spreadsheets separate cells with semicolons.


def csv_line(cells: Iterable[object]) -> str:
    """Returns a line of a CSV file (RFC 4180, except for its line end) in which no spreadsheet sees a formula.

    Text that begins with `=`, `+`, `-`, `@`, a tab, a line end or `'` gets a `'` in front: whoever reads the file
    removes one leading `'` from a cell of text. Numbers stay as they are.

    Args:
        cells: text, or numbers, which are written as `str` writes them.
    """
    return ",".join(_cell(value) if isinstance(value, str) else str(value) for value in cells) + "\n"


def _cell(text):
    if text.startswith(_ESCAPED):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"' if _QUOTED & set(text) else text


def problems(path: Path, flag: str = "--output") -> list[str]:
    """Why `new_file` would refuse `path`, as a line; to be asked before long work."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return folder_problems(path.parent, flag)
    except OSError as error:
        return [f"cannot write {path}: {error.strerror}; choose another {flag}"]
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        return [f"{path} exists; choose another {flag} or delete it"]
    what = "is a folder" if stat.S_ISDIR(mode) else "exists and is not a regular file"
    return [f"{path} {what}; choose another {flag}"]


def folder_problems(folder: Path, flag: str, missing: bool = False) -> list[str]:
    """Returns a line that says why no file can be made in `folder`; an empty list if one can be made.

    Args:
        folder: the folder.
        flag: the flag that the user gave it with.
        missing: whether the folder and those above it may be missing, because they will be made.
    """
    for place in (folder, *folder.absolute().parents):
        try:
            os.lstat(place)
            break
        except (FileNotFoundError, NotADirectoryError):
            if not missing:
                return [f"there is no folder {folder}; make it or choose another {flag}"]
        except OSError as error:
            return [f"cannot write {folder}: {error.strerror}; choose another {flag}"]
    folder = place
    if not folder.is_dir():
        return [f"{folder} is not a folder; choose another {flag}"]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [f"cannot write in {folder}: {os.strerror(errno.EACCES)}; choose another {flag}"]
    return []


@contextlib.contextmanager
def new_file(path: Path, mode: str = "w", flag: str = "--output") -> Iterator[Any]:
    """A file to write to, which appears under its name when the block has ended well.

    Args:
        path: its name.
        mode: "w" for text (UTF-8; names of files that are not, come out as they were) or "wb".
        flag: that the user gave the name with.

    Raises:
        UserError: there is a file of that name, the folder does not exist, or it cannot be written.
    """
    if found := problems(path, flag):
        raise UserError(found[0])
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    try:
        try:
            with temporary.open(mode.replace("w", "x"), **text) as file:
                yield file
            _publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError as error:
        raise UserError(f"{path} exists; choose another {flag} or delete it") from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another {flag}") from error


def _publish(temporary, path):
    """Unlike a rename, a link is refused where there has come to be a file of that name."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        temporary.replace(path)
