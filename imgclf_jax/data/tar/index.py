"""Indexes .tar files in the layout of WebDataset: where each photo is, and its label. Photos are not read.

A sample is the members whose paths are the same up to the first dot of the name: `0001.jpg`, `0001.cls`. Its label is
the text in `.cls`, or the field `label` or `cls` of the object in `.json`. Other members are ignored.
"""

import json
import posixpath
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imgclf_jax.data.folder.layout import shown
from imgclf_jax.storage.files import reason_of

_LABELS = ("cls", "json")
_MOST_BYTES = 2**20  # of a label
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, Zstandard


class Sample(NamedTuple):
    """A photo in a .tar file.

    Attributes:
        name: of its member.
        offset: of its first byte in the file.
        size: the number of its bytes.
        label: its label, as text.
    """

    name: str
    offset: int
    size: int
    label: str


def read(path: Path, name: str, problems: list[str]) -> list[Sample]:
    """Returns the samples in a .tar file, in its order. Describes what is wrong in `problems`, a line for each.

    Args:
        path: the file.
        name: what messages call it.
        problems: gets the lines.
    """
    from imgclf_jax.data import formats  # It imports Pillow.

    photos: dict[str, list[Sample]] = {}
    labels: dict[str, dict[str, bytes]] = {}
    others: dict[str, list[str]] = {}
    endings = formats.endings()
    try:
        with path.open("rb") as file:
            if file.read(4).startswith(_COMPRESSED):
                problems.append(
                    f"{name}: is compressed, so no single photo can be read; unpack it to a plain .tar file"
                )
                return []
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # There may be millions.
                    path_inside = posixpath.normpath(member.name)
                    folder, _, last = path_inside.rpartition("/")
                    if not member.isreg() or any(map(_is_clutter, path_inside.split("/"))):
                        continue
                    stem, _, ending = last.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    if last.lower().endswith(endings):
                        photos.setdefault(key, []).append(Sample(path_inside, member.offset_data, member.size, ""))
                    elif ending.lower() in _LABELS and member.size <= _MOST_BYTES:
                        opened = archive.extractfile(member)
                        labels.setdefault(key, {})[ending.lower()] = opened.read() if opened else b""
                    else:
                        others.setdefault(key, []).append(ending or last)
                file.seek(archive.offset)  # type: ignore[attr-defined]
                # To `tarfile`, a damaged header is the end of the file.
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("there is no end")
    except (OSError, tarfile.TarError, EOFError) as error:
        problems.append(f"{name}: cannot be read as a .tar file ({reason_of(error)}); it may be damaged or cut off")
        return []
    samples = []
    for key, members in photos.items():
        try:
            if len(members) > 1:
                raise ValueError(f"has {len(members)} photos, {members[0].name} and {members[1].name}; keep one")
            samples.append(members[0]._replace(label=_label(key, labels.get(key, {}))))
        except ValueError as error:
            problems.append(f"{name}: sample {shown(key)} {error}")
    for key in [*labels, *(key for key in others if key not in labels)]:
        if key not in photos:
            kinds = ", ".join(f".{ending}" for ending in [*labels.get(key, ()), *others.get(key, ())])
            problems.append(
                f"{name}: sample {shown(key)} has no photo, only {kinds}; photos end in .jpg, .png, .webp and so on"
            )
    if not samples and not problems:
        problems.append(f"{name}: holds no photos; photos end in .jpg, .png, .webp and so on")
    return samples


def _is_clutter(part: str) -> bool:
    """Returns whether a part of a path is that of a hidden file or folder, or of one that macOS adds."""
    return part == "__MACOSX" or (part.startswith(".") and part != "..")


def _label(key: str, members: dict[str, bytes]) -> str:
    """Returns the label of a sample. Raises `ValueError` if it has none."""
    if not members:
        raise ValueError(f"has no label; add {shown(key)}.cls, or {shown(key)}.json with a field label")
    try:
        if "cls" in members:
            found: Any = members["cls"].decode("utf-8").strip()
        else:
            content = json.loads(members["json"].decode("utf-8"))
            found = content.get("label", content.get("cls")) if isinstance(content, dict) else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, str | int) or isinstance(found, bool) or not str(found) or not str(found).isprintable():
        place = "cls" if "cls" in members else "json (its field label)"
        raise ValueError(f"has no label in its .{place}; put the name or the number of its class there")
    return str(found)


def columns(shards: Sequence[Sequence[Sample]]) -> dict[str, list[list[Any]]]:
    """Returns the samples of .tar files as lists of JSON values, one for each field and file."""
    return {field: [[getattr(one, field) for one in samples] for samples in shards] for field in Sample._fields}
