"""The data source 'csv': photos that a .csv file lists with their labels, see `imgclf_jax.data.loading.Source`.

The file has the columns `path` (relative to the file), `label` (text) and perhaps `split` (train, valid or test); other
columns are ignored. Without `split`, `data.split` divides the photos by their content. Everything else is as for photos
in folders.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from imgclf_jax.data import folder, splits, tables
from imgclf_jax.data.folder import layout
from imgclf_jax.data.folder.layout import File, Listing, shown
from imgclf_jax.data.types import Dataset, Info, Progress
from imgclf_jax.errors import UserError
from imgclf_jax.storage.names import class_name


def describe(config_data: Any, split: str | None = None) -> Info:
    """See `imgclf_jax.data.describe` and `imgclf_jax.data.describe_split`. Opens no photo.

    Raises:
        UserError: all problems with the file and the settings, one line each.
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
    """Lists the photos in the file `config_data.dir`, without opening any.

    The classes are the labels in order: in that of numbers if all of them are whole numbers, otherwise as text.

    Raises:
        UserError: all problems with the file and the settings, one line each.
    """
    problems = layout.size_problems(config_data) + layout.split_problems(config_data)
    setting = f"data.dir={config_data.dir!r}"
    file = Path(config_data.dir).expanduser().absolute()
    rows: list[tables.Row] = []
    try:
        if not config_data.dir:
            raise UserError("data.dir is empty; give the .csv file, e.g. --config.data.dir=photos.csv")
        rows = tables.read(setting, tables.content_of(setting, file), ("path", "label"), ("split",))
        rows = [tables.Row(line, (path, class_name(str(label)), role)) for line, (path, label, role) in rows]
        if not rows:
            raise UserError(f"{setting}: lists no photos")
    except UserError as e:
        problems += str(e).splitlines()
    has_splits = bool(rows) and rows[0].values[2] is not None
    if has_splits:
        problems += layout.unused_fractions(config_data, "the .csv file has a column split")
    class_names = tuple(sorted({str(row.values[1]) for row in rows if row.values[1]}, key=_order(rows)))
    problems += [f"{setting}: {line}" for line in _problems(rows, file.parent, config_data.on_bad != "skip")]
    if rows and len(class_names) == 1:
        problems.append(f"{setting}: only one class, {shown(class_names[0])}; there must be two or more")
    if problems:
        raise UserError(tables.shorten(problems))
    labels = {name: label for label, name in enumerate(class_names)}
    files = [
        File(layout.ROLES[str(role).lower()] if has_splits else "", labels[str(label)], _normal(path))
        for path, label, role in (row.values for row in rows)
    ]
    order = ("", *splits.ROLES)
    files.sort(key=lambda one: (order.index(one.role), one.label, one.path))
    remarks = layout.size_remarks(config_data)
    remarks += layout.split_remarks(config_data, "a .csv file", "its column split or data.split")
    return Listing(
        root=file.parent,
        class_names=class_names,
        image_size=layout.size_of(config_data),
        fractions=None if has_splits else layout.fractions_of(config_data),
        files=tuple(files),
        file=file,
        folds=config_data.folds,
        remarks=tuple(remarks),
    )


def _problems(rows, root, must_exist):
    """Returns one line for each line of the file that is wrong, with its number."""
    problems = []
    lines: dict[str, int] = {}
    for line, (path, label, role) in rows:
        if not path:
            problems.append(f"line {line}: the path is empty")
        elif (first := lines.setdefault(_normal(path), line)) != line:
            problems.append(f"line {line}: {shown(path)} is also in line {first}; keep one")
        elif must_exist and not os.path.isfile(root / path):  # noqa: PTH113 (Path.is_file may raise an error)
            problems.append(
                f"line {line}: there is no file {shown(path)} in {root}; correct the path, or leave out all such "
                "lines with --config.data.on_bad=skip"
            )
        if not label:
            problems.append(f"line {line}: the label is empty")
        elif not label.isprintable():
            problems.append(f"line {line}: the label {label!a} cannot be printed")
        if role is not None and role.lower() not in layout.ROLES:
            problems.append(f"line {line}: the split is {role!a}; it must be train, valid or test")
    if problems or not rows or rows[0].values[2] is None:
        return problems
    trained = {row.values[1] for row in rows if layout.ROLES[row.values[2].lower()] == "train"}
    if not trained:
        return ["no line has the split train"]
    return [
        f"line {line}: there is no training photo with the label {label}"
        for line, (_, label, _) in rows
        if label not in trained
    ]


def _order(rows):
    """Returns the key that sorts labels."""
    if all(re.fullmatch(r"-?\d+", row.values[1] or "0") for row in rows):
        return lambda label: (int(label), label)
    return str


def _normal(path):
    return posixpath.normpath(path)
