"""SHA-256 digests of the files that are kept on disk, checked when the files are read.

Power cuts, copying and failing disks can change files without an error, and a run on black images ends like any other.

The digest is SHA-256, as in the fingerprints of data sets, because it is fast enough: 150 MB take 0.14 s, or 0.48 s
on a CPU without SHA instructions. `zlib.crc32` would take 0.06 s, and no run would notice the difference.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NAME = "imgclf_jax.sums.json"  # the file in a folder that holds the digests of the others


def seal(folder: Path) -> None:
    """Writes the digests of all files in a folder, but not in its subfolders. Raises `OSError`."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != NAME)
    (folder / NAME).write_text(sealed({path.name: _digest(path) for path in files}), encoding="utf-8")


def is_sealed(folder: Path) -> bool:
    """Returns whether the digests of a folder's files were written."""
    return (folder / NAME).exists()


def damage(folder: Path, names: Iterable[str] | None = None) -> str:
    """Returns what is wrong with the files of a sealed folder, in a few words; "" if they are as they were written.

    Args:
        folder: a folder after `seal`.
        names: the files to check; those that were not sealed are left out. None: all that were sealed.
    """
    try:
        sums = _opened((folder / NAME).read_bytes())
        wanted = sums if names is None else [name for name in names if name in sums]
        wrong = [name for name in wanted if _digest(folder / name) != sums[name]]
    except OSError as e:
        return f"{Path(e.filename or NAME).name} cannot be read: {e.strerror or e}"
    except (ValueError, TypeError):
        return f"{NAME} is not what was written"
    return f"{', '.join(wrong)} differ{'s' * (len(wrong) == 1)} from what was written" if wrong else ""


def sealed(content: Any) -> str:
    """Returns the text of a JSON file that holds `content` and its digest."""
    text = json.dumps(content)
    return f'{{"sha256": "{hashlib.sha256(text.encode()).hexdigest()}", "content": {text}}}'


def read_json(path: Path, report: bool = True) -> Any:
    """Returns the content of a file whose text is `sealed`; None if there is no such file, or it has no digest.

    A damaged file counts as missing, and is reported by a `UserWarning` if `report` is set.
    """
    try:
        return _opened(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        if report:
            warnings.warn(f"{path} cannot be used ({reason}): it is made again", UserWarning, stacklevel=2)
        return None


def _opened(encoded: bytes) -> Any:
    """Returns the content of a sealed text; None if it has no digest.

    Raises:
        ValueError: the text is not JSON, or it differs from what was sealed.
    """
    try:
        found = json.loads(encoded.decode())
    except ValueError:
        raise ValueError("not a JSON file") from None
    if not isinstance(found, dict) or found.keys() != {"sha256", "content"}:
        return None
    if sealed(found["content"]).encode() != encoded:
        raise ValueError("not what was written")
    return found["content"]


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
