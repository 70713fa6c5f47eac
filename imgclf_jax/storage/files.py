"""Reads and writes small files, including all JSON files with a SHA-256 digest, and explains errors.

The digest reveals even a single changed digit. There are two layouts:

- An object whose first member is the digest of the others, see `write_json`. Workdirs hold such files. People may edit
  them if they delete the digest.
- `{"sha256": DIGEST, "content": CONTENT}`, see `sealed`. Caches hold such files. A damaged one counts as missing.
"""

import contextlib
import errno
import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imgclf_jax.errors import UserError
from imgclf_jax.storage import atomic
from imgclf_jax.storage.atomic import write_text

__all__ = [
    "DIGEST",
    "ERRORS",
    "explain_errors",
    "open_sealed",
    "read_bytes",
    "read_json",
    "read_sealed",
    "reason_of",
    "sealed",
    "write_json",
    "write_sealed_if_possible",
    "write_text",
]

DIGEST = "sha256"
_ELSEWHERE = "or copy the workdir to another disk, and run the same command again with its --workdir"
# Disk error -> what to do about it.
_ADVICE = {
    errno.ENOSPC: "Make room there and run the same command again with this --workdir",
    errno.EDQUOT: "Make room within your quota there and run the same command again with this --workdir",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f) and run the same command again with this --workdir",
    errno.EIO: f"The disk may be failing: check it, {_ELSEWHERE}",
    errno.EROFS: f"The file system is read-only, perhaps after an error: make it writable again, {_ELSEWHERE}",
}
ERRORS = tuple(_ADVICE)


def read_bytes(path: Path, advice: str = "") -> bytes | None:
    """Returns the content of a file, or None if the file does not exist.

    Raises:
        UserError: the file exists but cannot be read. `advice` is appended to the message.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}{advice}") from error


def natural_key(name: str) -> list[tuple[int, str]]:
    """A sort key that puts seed2 before seed10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def read_json(path: Path, advice: str = "") -> dict[str, Any] | None:
    """Returns the object in a JSON file, without its digest, or None if the file does not exist.

    A file without a digest is not checked.

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
    if digest not in (None, _digest(json.dumps(content))):
        raise UserError(
            f"cannot read {path}: it differs from what was written. If you have edited it, delete its line "
            f'"{DIGEST}" at the top; otherwise it is damaged{advice}'
        )
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces a JSON file as `atomic.write_text` does.

    Args:
        path: the file.
        content: a JSON object. The digest is added as its first member.

    Raises:
        OSError: the file cannot be written. The previous one is kept.
    """
    write_text(path, json.dumps({DIGEST: _digest(json.dumps(content)), **content}, indent=2) + "\n")


def sealed(content: Any) -> str:
    """Returns the text of a JSON file that holds `content` and its digest."""
    text = json.dumps(content)
    return f'{{"{DIGEST}": "{_digest(text)}", "content": {text}}}'


def open_sealed(encoded: bytes) -> Any:
    """Returns the content of a text from `sealed`; None if the text is JSON of another kind.

    Raises:
        ValueError: the text is not JSON, or it has been changed.
    """
    try:
        seal = json.loads(encoded.decode())
    except ValueError:
        raise ValueError("not a JSON file") from None
    if not isinstance(seal, dict) or seal.keys() != {DIGEST, "content"}:
        return None
    if sealed(seal["content"]).encode() != encoded:
        raise ValueError("not what was written")
    return seal["content"]


def read_sealed(path: Path, report: bool = True) -> Any:
    """Returns the content of a file whose text is `sealed`; None if the file does not exist or has no digest.

    A damaged file counts as missing. If `report` is set, a `UserWarning` reports the damage.
    """
    try:
        return open_sealed(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        if report:
            message = f"{path} cannot be used ({reason_of(error)}); it is rebuilt"
            warnings.warn(message, UserWarning, stacklevel=2)
        return None


def write_sealed_if_possible(path: Path, content: Any) -> None:
    """Writes a file for `read_sealed` as `atomic.write_text_if_possible` does: errors are ignored."""
    atomic.write_text_if_possible(path, sealed(content))


def reason_of(error: BaseException | str) -> str:
    """Returns the reason for an error: one short line, without the path that the text of an `OSError` repeats."""
    lines = str(error).splitlines()
    return getattr(error, "strerror", None) or (lines[0] if lines else repr(error))


@contextlib.contextmanager
def explain_errors(workdir: Path) -> Iterator[None]:
    """Turns disk errors in `ERRORS` within the block into a `UserError` that names `workdir` and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in ERRORS:
            raise
        raise UserError(
            f"cannot write to workdir {workdir}: {error.strerror}; what was saved before is kept. "
            f"{_ADVICE[error.errno]}"
        ) from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
