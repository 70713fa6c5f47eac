"""Output files of the tools, written completely or not at all and never over an existing file; and lines of text."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from imgclf_jax.errors import UserError

# Spreadsheets may evaluate a cell that begins with one of the first seven, and names of files and classes may come from
# anywhere. An apostrophe is escaped too, so that removing a leading one always restores the name.
# See https://owasp.org/www-community/attacks/CSV_Injection.
_ESCAPED = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
_QUOTED = frozenset(',;"\t\r\n')  # Spreadsheets separate cells with semicolons in locales with a decimal comma.


def csv_line(cells: Iterable[object]) -> str:
    """Returns a line of a CSV file (RFC 4180, except for the line end) without cells that spreadsheets evaluate.

    Text that begins with `=`, `+`, `-`, `@`, a tab, a line end or `'` is prefixed with `'`; to read it back, remove one
    leading `'` from each text cell. Numbers are not changed.

    Args:
        cells: text, or numbers, which are formatted with `str`.
    """
    return ",".join(_cell(value) if isinstance(value, str) else str(value) for value in cells) + "\n"


def printable(text: str) -> str:
    """The text with escapes for characters that would move the cursor or cannot be encoded."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cell(text):
    if text.startswith(_ESCAPED):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"' if _QUOTED & set(text) else text


def problems(path: Path, flag: str = "--output") -> list[str]:
    """Returns a line that says why `new_file` would reject `path`, or an empty list. Call it before long work."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return folder_problems(path.parent, flag)
    except OSError as error:
        return [f"cannot write {path}: {error.strerror}; choose another {flag}"]
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        return [f"{path} exists; choose another {flag} or delete it"]
    reason = "is a folder" if stat.S_ISDIR(mode) else "exists and is not a regular file"
    return [f"{path} {reason}; choose another {flag}"]


def folder_problems(folder: Path, flag: str, missing: bool = False) -> list[str]:
    """Returns a line that says why no file can be created in `folder`, or an empty list.

    Args:
        folder: the folder.
        flag: the flag that gave the folder.
        missing: whether the folder and its parents may be missing, because they will be created.
    """
    for place in (folder, *folder.absolute().parents):
        try:
            os.lstat(place)
            break
        except (FileNotFoundError, NotADirectoryError):
            if not missing:
                return [f"folder {folder} does not exist; create it or choose another {flag}"]
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
    """Opens a new file for writing. It appears under its name only when the block ends without an exception.

    Args:
        path: the name of the file.
        mode: "w" for text (UTF-8; the bytes of file names in other encodings are preserved) or "wb".
        flag: the flag that gave the name.

    Yields:
        The open file.

    Raises:
        UserError: the file exists, its folder does not exist, or it cannot be written.
    """
    if reasons := problems(path, flag):
        raise UserError(reasons[0])
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
    """Puts the file in place by a link, which, unlike a rename, fails if a file of that name has appeared meanwhile."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        temporary.replace(path)
