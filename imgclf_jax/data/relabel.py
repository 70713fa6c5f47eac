"""Replaces the labels of the training split by those in a file, `data.labels`.

Noisy labels are an example: those of Wei et al., "Learning with noisy labels revisited", ICLR 2022 (CIFAR-10N), are
numbered like the original training examples. Labels belong to the original examples, so the order, the splits and the
folds of a data set make no difference. Validation and test keep their own labels, also if they are cut from the same
examples.
"""

import dataclasses
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imgclf_jax.data import splits, tables
from imgclf_jax.data.types import Dataset, Relabeled
from imgclf_jax.errors import UserError
from imgclf_jax.storage.files import reason_of
from imgclf_jax.storage.names import class_name

_NUMBERED = re.compile(r"(.+)[_/](\d+)")  # 'train_16399', 'train/16399': the stored split, and the number in it


class Labels(NamedTuple):
    """The content of a file of labels.

    Attributes:
        sha256: SHA-256 (hex) of the file's content.
        by_number: int32 [N], by number of the example; None if the file is a table.
        by_id: label by id; empty if the file is an array.
        lines: the line of the file by id.
    """

    sha256: str
    by_number: np.ndarray | None
    by_id: dict[str, int]
    lines: dict[str, int]


def read(file: str, class_names: Sequence[str], stored: Mapping[str, int]) -> Labels:
    """Reads a file of labels.

    Args:
        file: the path of a .npy file, int [N], or of a .csv file with columns `id` and `label` (the name of a class, or
            else its number).
        class_names: the classes, by label.
        stored: see `imgclf_jax.data.types.Dataset`.

    Raises:
        UserError: the file cannot be read, or what it holds cannot be labels of the data set. One line each.
    """
    setting = f"data.labels={file!r}"
    path = Path(file).expanduser()
    if path.suffix.lower() not in (".npy", ".csv"):
        raise UserError(f"{setting}: must be a .npy file, or a .csv file with columns id and label")
    content = tables.content_of(setting, path)
    sha256 = hashlib.sha256(content).hexdigest()
    if path.suffix.lower() == ".csv":
        return Labels(sha256, None, *_table(setting, content, class_names))
    return Labels(sha256, _array(setting, content, len(class_names), stored), {}, {})


def apply(dataset: Dataset, config_data: Any, split: str | None = None) -> Dataset:
    """Returns a data set with the labels of `config_data.labels` in its training split.

    Args:
        dataset: the data set.
        config_data: the `data` part of the configuration.
        split: the only split that was loaded, if not all of them.

    Raises:
        UserError: as `read`; also if the file is of other examples.
    """
    if "train" not in dataset.splits:
        return dataset
    file, train = config_data.labels, dataset.splits["train"]
    setting = f"data.labels={file!r}"
    found = read(file, dataset.class_names, dataset.stored)
    labels = np.array(train.labels, np.int32)
    listed = ""
    if found.by_number is not None:
        labels = found.by_number[_numbers(setting, dataset, len(found.by_number))]
    else:
        if split is None:
            _check_ids(setting, dataset, found, splits.are_expressions(config_data))
        which = [index for index, name in enumerate(train.ids) if str(name) in found.by_id]
        if not which:
            raise UserError(
                f"{setting}: none of its ids is a training example; they are as {str(train.ids[0])!a}, for example"
            )
        labels[which] = [found.by_id[str(train.ids[index])] for index in which]
        listed = f"; it lists {len(which):,} of them" if len(which) < len(labels) else ""
    changed = int((labels != train.labels).sum())
    notice = f"{setting}: {changed:,} of {len(labels):,} training labels differ from those of the data set{listed}"
    return dataclasses.replace(
        dataset,
        splits=dataset.splits | {"train": dataclasses.replace(train, labels=labels)},
        notice="\n".join(filter(None, [dataset.notice, notice])),
        relabeled=Relabeled(file, found.sha256, changed),
    )


def _array(setting, content, classes, stored):
    try:
        labels = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as e:
        raise UserError(f"{setting}: cannot be read as an array of numbers ({reason_of(e)})") from e
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        kind = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, np.ndarray) else "several arrays"
        raise UserError(f"{setting}: holds {kind}; it must hold int [N], one label for each original example")
    if not stored:
        raise UserError(
            f"{setting}: the examples of this data source have no numbers; use a .csv file with columns id and label"
        )
    if len(labels) not in stored.values():
        sizes = " or ".join(f"{size} ({name})" for name, size in stored.items())
        raise UserError(f"{setting}: holds {len(labels)} labels, but there are {sizes} original examples")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise UserError(
            f"{setting}: {len(wrong)} labels are not from 0 to {classes - 1}, e.g. {labels[wrong[0]]}, that of example "
            f"{wrong[0]}"
        )
    return labels.astype(np.int32)


def _numbers(setting, dataset, length):
    """Returns int64 [N], the numbers of the training examples in their stored split."""
    matches = [_NUMBERED.fullmatch(str(name)) for name in dataset.splits["train"].ids]
    advice = "use a .csv file with columns id and label"
    for match, name in zip(matches, dataset.splits["train"].ids, strict=True):
        if match is None or match[1] not in dataset.stored:
            raise UserError(f"{setting}: the id {str(name)!a} does not end with an original number; {advice}")
    stored = sorted({match[1] for match in matches if match})
    if len(stored) > 1:
        raise UserError(f"{setting}: the training examples are from {' and '.join(stored)}; {advice}")
    size = dataset.stored[stored[0]]
    numbers = np.array([int(match[2]) for match in matches if match], np.int64)
    if length != size or numbers.max() >= size:
        raise UserError(f"{setting}: holds {length} labels, but there are {size} original examples in {stored[0]}")
    return numbers


def _table(setting, content, class_names):
    """Returns (label by id, line by id)."""
    known = {str(label): label for label in range(len(class_names))}
    known |= {class_name(name): label for label, name in enumerate(class_names)}
    labels: dict[str, int] = {}
    lines: dict[str, int] = {}
    problems = []
    for line, (name, label) in tables.read(setting, content, ("id", "label")):
        if not name:
            problems.append(f"{setting}: line {line}: the id is empty")
        elif name in labels:
            problems.append(f"{setting}: line {line}: {name!a} is also in line {lines[name]}; keep one")
        elif class_name(str(label)) not in known:
            problems.append(
                f"{setting}: line {line}: the label {label!a} is neither a class nor a number from 0 to "
                f"{len(class_names) - 1}"
            )
        else:
            labels[name], lines[name] = known[class_name(str(label))], line
    if not labels and not problems:
        problems.append(f"{setting}: lists no labels")
    if problems:
        raise UserError(tables.shorten(problems))
    return labels, lines


def _check_ids(setting, dataset, found, may_be_partial):
    """Checks that all listed examples exist. A configured split may leave out some of those that are stored."""
    loaded = {str(name) for split in dataset.splits.values() for name in split.ids}
    unknown = [name for name in found.by_id if name not in loaded]
    if may_be_partial:
        if not all(_is_stored(str(split.ids[0]), dataset.stored) for split in dataset.splits.values()):
            return  # Which other ids exist is not known.
        unknown = [name for name in unknown if not _is_stored(name, dataset.stored)]
    if unknown:
        raise UserError(
            tables.shorten([f"{setting}: line {found.lines[name]}: there is no example {name!a}" for name in unknown])
        )


def _is_stored(name, stored):
    match = _NUMBERED.fullmatch(name)
    return match is not None and int(match[2]) < stored.get(match[1], 0)
