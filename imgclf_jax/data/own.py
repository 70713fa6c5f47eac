"""The data source "module:name": a function of your own, see `imgclf_jax.data.loading.Source`.

It is called as `load(config_data, **options)`, with the `data` section and `data.options`. It returns a dict of splits:
"train" and, if you like, "valid" and "test", each `(images, labels)` or `(images, labels, ids)`. Images are uint8
[N, H, W, C] or, if gray, [N, H, W]; labels are integers [N] from 0. "class_names", a list, names the classes; without
it, they are called "0", "1" and so on. Without ids, examples are called "train/0", "train/1" and so on.

The arrays stay in memory. The fingerprint covers all of them, so a run is not continued on other data.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from imgclf_jax import components
from imgclf_jax.data.types import Dataset, Info, Progress, Split
from imgclf_jax.errors import UserError

SLOT = "data.source"
ROLES = ("train", "valid", "test")
_last: dict[str, Dataset] = {}  # of the last settings: describing the data needs all of them


def describe(config_data: Any, split: str | None = None) -> Info:
    """See `imgclf_jax.data.describe` and `imgclf_jax.data.describe_split`. Calls the function.

    Raises:
        UserError: the function is missing, fails, or returns something else.
    """
    dataset = _loaded(config_data)
    info = Info(
        name=dataset.name,
        class_names=dataset.class_names,
        image_shape=dataset.image_shape,
        split_sizes=dataset.counts,
        split_ranges={},
        overlaps=(),
        is_sample=False,
        is_prepared=True,
        location=dataset.location,
        notice="",
        stored=dataset.stored,
    )
    return info if split is None else info.only(split)


def load(config_data: Any, progress: Progress, stream: bool, split: str | None = None) -> Dataset:
    """See `imgclf_jax.data.load` and `imgclf_jax.data.load_split`. Raises `UserError` as `describe`."""
    dataset = _loaded(config_data)
    return dataset if split is None else dataset.only(split)


def _loaded(config_data) -> Dataset:
    key = json.dumps([config_data.to_json_best_effort(), components.folders()])
    if key not in _last:
        dataset = _load(config_data)
        _last.clear()
        _last[key] = dataset
    return _last[key]


def _load(config_data):
    name = config_data.source
    if lines := components.problems(name, {}, SLOT, config_data.options, components.Call(positional=1)):
        raise UserError("\n".join(lines))
    function = components.find(name, {}, SLOT)
    try:
        found = function(config_data, **config_data.options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{SLOT}={name!r} fails: {components.explain(error)}") from error
    where = f"{SLOT}={name!r}"
    if not isinstance(found, Mapping):
        raise UserError(f'{where} returns {type(found).__name__}, not a dict {{"train": (images, labels), ...}}')
    if unknown := [str(key) for key in found if key not in (*ROLES, "class_names")]:
        raise UserError(f"{where} returns {', '.join(unknown)}; it may return {', '.join(ROLES)} and class_names")
    splits = {role: _split(where, role, found[role]) for role in ROLES if role in found}
    if "train" not in splits:
        raise UserError(f'{where} returns no "train" split')
    shape = splits["train"].images.shape[1:]
    for role, split in splits.items():
        if split.images.shape[1:] != shape:
            raise UserError(f"{where}: images of {role} are {split.images.shape[1:]}, those of train {shape}")
    highest = max(int(split.labels.max()) for split in splits.values())
    names = tuple(map(str, found.get("class_names") or range(highest + 1)))
    if highest >= len(names):
        raise UserError(f"{where}: there is a label {highest}, but class_names has {len(names)} names")
    plain = [number for number, split in splits.items() if str(split.ids[0]) == f"{number}/0"]
    dataset = Dataset(
        name=name,
        class_names=names,
        image_shape=tuple(map(int, shape)),  # type: ignore[arg-type]
        splits=splits,
        fingerprint=_fingerprint(splits, names),
        is_sample=False,
        location=name,
        notice="",
    )
    return dataclasses.replace(dataset, stored={role: len(splits[role]) for role in plain})


def _split(where, role, value) -> Split:
    if not isinstance(value, tuple | list) or len(value) not in (2, 3):
        raise UserError(f"{where}: {role} is {type(value).__name__}, not (images, labels) or (images, labels, ids)")
    images, labels = np.asarray(value[0]), np.asarray(value[1])
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4:
        raise UserError(f"{where}: images of {role} are {images.dtype} {list(images.shape)}, not uint8 [N, H, W, C]")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer) or not len(labels):
        raise UserError(
            f"{where}: labels of {role} are {labels.dtype} {list(labels.shape)}, not integers [{len(images)}], at "
            "least one"
        )
    if labels.min() < 0:
        raise UserError(f"{where}: {role} has the label {labels.min()}; labels begin at 0")
    ids = np.asarray(value[2] if len(value) == 3 else [f"{role}/{number}" for number in range(len(labels))], str)
    if ids.shape != labels.shape:
        raise UserError(f"{where}: {role} has {len(labels)} labels and {ids.size} ids")
    return Split(images, labels.astype(np.int32), ids)


def _fingerprint(splits, names):
    digest = hashlib.sha256(json.dumps(names).encode())
    for role, split in splits.items():
        digest.update(json.dumps([role, split.images.shape]).encode())
        digest.update(np.ascontiguousarray(split.images).data)
        digest.update(split.labels.tobytes())
    return digest.hexdigest()
