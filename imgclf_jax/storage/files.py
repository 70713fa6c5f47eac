"""Small files of a workdir: errors in reading are explained, and writing is durable and all or nothing.

JSON files carry the SHA-256 of their values, so that even a changed digit is noticed. Files without it are not checked.
"""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imgclf_jax.errors import UserError
from imgclf_jax.storage.atomic import sync_names

# Errors of a disk or quota that is full, and of a disk that fails or has become read-only.
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
DIGEST = "sha256"


def read_bytes(path: Path, advice: str = "") -> bytes | None:
    """The content of a file, or `None` if there is no such file.

    Raises:
        UserError: something of that name exists but cannot be read. `advice` is appended to the message.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}{advice}") from error


def read_json(path: Path, advice: str = "") -> dict[str, Any] | None:
    """The object in a JSON file, without its digest, or `None` if there is no such file.

    Raises:
        UserError: the file cannot be read, does not hold a JSON object, or does not match its digest. `advice` is
            appended to the message.
    """
    raw = read_bytes(path, advice)
    if raw is None:
        return None
    try:
        content = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, or not JSON.
        reason = "it is empty" if not raw.strip() else " ".join(str(error).split())
        raise UserError(f"cannot read {path}: {reason}{advice}") from error
    if not isinstance(content, dict):
        raise UserError(f"cannot read {path}: it does not hold a JSON object{advice}")
    digest = content.pop(DIGEST, None)
    if digest not in (None, _digest(content)):
        raise UserError(
            f"cannot read {path}: it differs from what was written. If you have edited it, delete its line "
            f'"{DIGEST}" at the top; otherwise it is damaged{advice}'
        )
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces a JSON file in one move, so that no reader ever sees half of it, even after a power cut.

    Args:
        path: the file.
        content: an object. The digest is added as its first member.
    """
    write_text(path, json.dumps({DIGEST: _digest(content), **content}, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replaces a text file (UTF-8) durably and in one move."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_names(path.parent)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextlib.contextmanager
def explain_errors(folder: Path) -> Iterator[None]:
    """Turns the `ERRORS` of a disk within the block into `UserError`s that name `folder` and say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in ERRORS:
            raise
        raise UserError(
            f"cannot write to workdir {folder}: {error.strerror}; what was saved before is kept. Make room there and "
            "run the same command again with this --workdir"
        ) from error
