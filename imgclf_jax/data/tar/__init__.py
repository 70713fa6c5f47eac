"""The data source 'tar': photos in .tar files in the layout of WebDataset, see `imgclf_jax.data.loading.Source`.

`data.dir` is a folder of .tar files (shards), or one such file. The words `train`, `validation` (or `val`, `valid`) and
`test` in the path of a shard say what split it belongs to: `train-000000.tar`, `val/0001.tar`. If no path has one of
them, `data.split` divides the photos by their content. Labels are text or numbers; the lines of a file
`class_names.txt` in the folder name the numbers from 0.

The index of the shards is cached; photos are read from where they are, in any order. Everything else is as for photos
in folders: the same photos have the same fingerprint if they are divided by content.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from imgclf_jax.data import caches, folder, splits, tables
from imgclf_jax.data.folder import layout
from imgclf_jax.data.folder.contents import Parts
from imgclf_jax.data.folder.layout import File, Listing, shown
from imgclf_jax.data.tar import index
from imgclf_jax.data.types import Dataset, Info, Progress
from imgclf_jax.errors import UserError
from imgclf_jax.storage.files import read_sealed, write_sealed_if_possible

_FORMAT = 1  # of cached indices
_NAMES = "class_names.txt"


def describe(config_data: Any, split: str | None = None) -> Info:
    """See `imgclf_jax.data.describe` and `imgclf_jax.data.describe_split`. Reads no photo.

    Raises:
        UserError: all problems with the files and the settings, one line each.
    """
    info = folder.describe_listing(scan(config_data))
    return info if split is None else info.only(split)


def load(config_data: Any, progress: Progress, stream: bool, split: str | None = None) -> Dataset:
    """See `imgclf_jax.data.load` and `imgclf_jax.data.load_split`.

    Raises:
        UserError: as `describe` and `imgclf_jax.data.folder.load`.
    """
    return folder.load_listing(scan(config_data), config_data, progress, stream, split)


def scan(config_data: Any) -> Listing:
    """Lists the photos in the .tar files in `config_data.dir`.

    Raises:
        UserError: all problems with the files and the settings, one line each.
    """
    problems = layout.size_problems(config_data) + layout.split_problems(config_data)
    setting = f"data.dir={config_data.dir!r}"
    place = Path(config_data.dir).expanduser().absolute()
    root = place if place.is_dir() else place.parent
    shards = _shards(place)
    found: list[str] = []
    roles = _roles(shards, found)
    if not config_data.dir:
        problems.append("data.dir is empty; give the folder of .tar files, e.g. --config.data.dir=shards")
    elif not place.exists():
        problems.append(f"{setting}: there is no such folder or file")
    elif not shards:
        found.append("there are no .tar files in it")
    columns = _index(root, shards, found) if shards and not found else {}
    labels = _labels(columns.get("label", []))
    class_names, numbers = _classes(root, labels, found) if columns and not found else ((), {})
    if not found and roles and roles[0]:
        problems += layout.unused_fractions(config_data, "the names of the .tar files define the splits")
        found += _untrained(roles, labels)
    problems += [f"{setting}: {problem}" for problem in found]
    if problems:
        raise UserError(tables.shorten(problems))
    rows = []
    for number, (shard, role) in enumerate(zip(shards, roles, strict=True)):
        for row, (name, label) in enumerate(zip(columns["name"][number], labels[number], strict=True)):
            rows.append((File(role, numbers[label], f"{shard}/{name}"), number, row))
    order = ("", *splits.ROLES)
    rows.sort(key=lambda row: (order.index(row[0].role), row[0].label, row[0].path))
    remarks = layout.size_remarks(config_data)
    remarks += layout.split_remarks(config_data, ".tar files", "the names of the files or data.split")
    return Listing(
        root=root,
        class_names=class_names,
        image_size=layout.size_of(config_data),
        fractions=None if roles[0] else layout.fractions_of(config_data),
        files=tuple(file for file, _, _ in rows),
        file=None if place.is_dir() else place,
        folds=config_data.folds,
        remarks=tuple(remarks),
        parts=Parts(
            root,
            shards,
            np.array([number for _, number, _ in rows], np.int32),
            np.array([columns["offset"][number][row] for _, number, row in rows], np.int64),
            np.array([columns["size"][number][row] for _, number, row in rows], np.int64),
            [file.path for file, _, _ in rows],
        ),
    )


def _shards(place: Path) -> list[str]:
    """Returns the paths of the .tar files, relative to the folder, sorted and without hidden ones."""
    if place.is_file():
        return [place.name]
    paths = (path.relative_to(place) for path in place.rglob("*.tar"))
    return sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))


def _roles(shards: list[str], problems: list[str]) -> list[str]:
    """Returns the split of each .tar file, by the words in its path; "" if no path has such a word."""
    found = [
        {layout.ROLES[word] for word in re.split("[^a-z]+", name.lower()) if word in layout.ROLES} for name in shards
    ]
    for name, roles in zip(shards, found, strict=True):
        if len(roles) > 1:
            problems.append(f"{shown(name)}: its path names several splits, {' and '.join(sorted(roles))}; rename it")
    if any(found) and not all(found):
        first = shards[[bool(roles) for roles in found].index(False)]
        problems.append(f"{shown(first)}: its path names no split, but others do; put train, val or test into its name")
    if any(found) and not any("train" in roles for roles in found):
        problems.append("no .tar file is for training; put train into the names of those that are")
    return [min(roles, default="") for roles in found]


def _index(root: Path, shards: list[str], problems: list[str]) -> dict[str, list[list[Any]]]:
    """Returns the fields of the samples of each .tar file, from a cache if there is one."""
    digest = hashlib.sha256(json.dumps(_FORMAT).encode())
    caches.add_files(digest, root, shards)
    name = f"tar-{digest.hexdigest()[:16]}.json"
    folders = caches.folders(root)
    for place in folders:
        if (known := read_sealed(place / name)) is not None:
            return known
    columns = index.columns([index.read(root / shard, shown(shard), problems) for shard in shards])
    if not problems:
        write_sealed_if_possible(folders[0] / name, columns)
    return columns


def _labels(labels: list[list[str]]) -> list[list[str]]:
    """Returns the labels of each .tar file; if all are numbers, written in one way."""
    if all(re.fullmatch(r"\d+", label) for some in labels for label in some):
        return [[str(int(label)) for label in some] for some in labels]
    return labels


def _classes(root: Path, labels: list[list[str]], problems: list[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Returns the names of the classes, and the number of each label."""
    found = sorted({label for some in labels for label in some})
    numeric = all(label.isdecimal() for label in found)
    if (root / _NAMES).is_file():
        names = tuple(
            line.strip() for line in (root / _NAMES).read_text("utf-8", "replace").splitlines() if line.strip()
        )
        if wrong := [label for label in found if not (numeric and int(label) < len(names)) and label not in names]:
            problems.append(f"{_NAMES} names {len(names)} classes, but there is a label {shown(wrong[0])}")
        return names, {label: int(label) if numeric else names.index(label) for label in found if label not in wrong}
    if len(found) == 1:
        problems.append(f"only one class, {shown(found[0])}; there must be two or more")
    names = tuple(sorted(found, key=int) if numeric else found)
    return names, {label: number for number, label in enumerate(names)}


def _untrained(roles: list[str], labels: list[list[str]]) -> list[str]:
    """Returns a line for each label that no training photo has."""
    trained = {label for role, some in zip(roles, labels, strict=True) for label in some if role == "train"}
    others = {label for some in labels for label in some} - trained
    return [f"there is no training photo with the label {shown(label)}" for label in sorted(others)]
