"""Finds the arrays of a data set, and checks everything but the values of the images."""

import collections
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imgclf_jax.data import splits
from imgclf_jax.data.arrays.members import Member, header, keys, read, reading, texts
from imgclf_jax.data.folder import layout
from imgclf_jax.data.folder.layout import File, Listing, shown
from imgclf_jax.errors import UserError
from imgclf_jax.storage.files import reason_of

_WHOLE = "all"  # the name of examples without splits
_PARTS = ("images", "labels", "ids", "class_names")
_LAYOUTS = (
    "a .npz file, train.npz, valid.npz and test.npz, images.npy and labels.npy, or train_images.npy, train_labels.npy "
    "and so on"
)


class Part(NamedTuple):
    """The arrays of one set of examples.

    Attributes:
        name: "train", "valid" or "test", or "all" if there are no splits.
        images: where the images are.
        shape: (N, H, W, C) of the images.
        labels: int64 [N].
        ids: str [N].
        roles: the split of each example; "" if `data.split` decides.
    """

    name: str
    images: Member
    shape: tuple[int, int, int, int]
    labels: np.ndarray
    ids: np.ndarray
    roles: tuple[str, ...]


class Found(NamedTuple):
    """The arrays in `data.dir`.

    Attributes:
        listing: the examples as a listing; the paths of its files are the ids.
        parts: the sets of examples.
        places: int [N, 2], for each file of the listing the number of its part, and of its example in the part.
        image_shape: (H, W, C).
        files: the names of all files, relative to the listing's folder.
    """

    listing: Listing
    parts: tuple[Part, ...]
    places: np.ndarray
    image_shape: tuple[int, int, int]
    files: tuple[str, ...]


def scan(config_data: Any) -> Found:
    """Finds the arrays in `config_data.dir` and reads all of them but the images.

    Raises:
        UserError: all problems with the files and the settings, one line each.
    """
    setting = f"data.dir={config_data.dir!r}"
    problems = layout.split_problems(config_data)
    if tuple(config_data.image_size or ()):
        problems.append(
            f"data.image_size={tuple(config_data.image_size)} does not apply to arrays, which have a size; give "
            "--config.data.image_size='()'"
        )
    if not config_data.dir:
        raise UserError("\n".join([*problems, "data.dir is empty; give the arrays, e.g. --config.data.dir=arrays.npz"]))
    place = Path(config_data.dir).expanduser().absolute()
    found_problems: list[str] = []
    parts, names = _parts(place, found_problems)
    problems += [f"{setting}: {problem}" for problem in found_problems]
    has_splits = bool(parts) and parts[0].roles[:1] != ("",)
    if has_splits:
        problems += layout.unused_fractions(config_data, "the arrays are already split")
    if problems:
        raise UserError("\n".join(problems))
    files, places = [], []
    for role in splits.ROLES if has_splits else ("",):
        for number, part in enumerate(parts):
            rows = [row for row, its in enumerate(part.roles) if its == role]
            files += [File(role, int(part.labels[row]), str(part.ids[row])) for row in rows]
            places += [(number, row) for row in rows]
    shape = parts[0].shape[1:]
    is_file = place.is_file()
    listing = Listing(
        root=place.parent if is_file else place,
        class_names=names,
        image_size=(shape[0], shape[1]),
        fractions=None if has_splits else layout.fractions_of(config_data),
        files=tuple(files),
        file=place if is_file else None,
        noun="image",
        folds=config_data.folds,
        remarks=tuple(layout.split_remarks(config_data, "arrays", "arrays for each split or data.split")),
    )
    paths = [place] if is_file else sorted({part.images.path for part in parts})
    return Found(listing, parts, np.array(places), shape, tuple(path.name for path in paths))


def _parts(place, problems):
    """Returns the sets of examples and the class names; describes what is wrong in `problems`."""
    members = _members(place, problems)
    if problems:
        return (), ()
    if "images" in members and any(f"{role}_images" in members for role in splits.ROLES):
        problems.append("there are both images and images of splits, such as train_images; keep one kind")
        return (), ()
    names = {_WHOLE: ""} if "images" in members or "labels" in members else {}
    names = names or {role: f"{role}_" for role in splits.ROLES if {f"{role}_images", f"{role}_labels"} & set(members)}
    if _WHOLE not in names and "train" not in names:
        others = f"; there are {', '.join(map(shown, sorted(members)))}" if members else ""
        problems.append(f"there are no images and labels for training{others}; give it {_LAYOUTS}")
        return (), ()
    parts = [_part(name, prefix, members, problems) for name, prefix in names.items()]
    if problems:
        return (), ()
    if len({part.shape[1:] for part in parts}) > 1:
        sizes = ", ".join(f"{part.name} {'×'.join(map(str, part.shape[1:]))}" for part in parts)
        problems.append(f"the images of the splits differ in shape: {sizes}")
    elif parts[0].shape[3] not in (1, 3, 4):
        shape = list(parts[0].shape)
        first = "; move the channels to the end, e.g. images.transpose(0, 2, 3, 1)" if shape[1] in (1, 3, 4) else ""
        problems.append(
            f"{parts[0].images}: images of shape {shape} have {shape[3]} channels; there must be 1 (gray), 3 (RGB) or "
            f"4 (RGBA){first}"
        )
    if twice := [
        name for name, count in collections.Counter(str(i) for p in parts for i in p.ids).items() if count > 1
    ]:
        problems.append(f"the id {twice[0]!a} is given to several examples; ids must differ")
    return tuple(parts), _class_names(parts, members, problems)


def _members(place, problems):
    """Returns {name: Member} of all arrays, such as "images", "train_labels" and "class_names"."""
    found: dict[str, Member] = {}

    def add(name, member):
        prefix, _, kind = name.partition("_")
        if prefix in layout.ROLES and kind in _PARTS:
            name = f"{layout.ROLES[prefix]}_{kind}"
        if name in found:
            problems.append(f"{found[name]} and {member} are the same; keep one")
        found[name] = member

    if place.is_file():
        if place.suffix.lower() != ".npz":
            problems.append(f"is a file that does not end in .npz; give it {_LAYOUTS}")
            return {}
        for key in keys(place, problems):
            add(key, Member(place, key))
        return found
    if not place.is_dir():
        problems.append("there is no such file or folder")
        return {}
    try:
        paths = sorted(place.iterdir())
    except OSError as e:
        problems.append(f"cannot be read ({reason_of(e)})")
        return {}
    archives = [path for path in paths if path.suffix == ".npz" and path.stem in layout.ROLES]
    kinds = (*_PARTS, *(f"{role}_{kind}" for role in layout.ROLES for kind in _PARTS), "split")
    arrays = [path for path in paths if path.suffix == ".npy" and path.stem in kinds]
    if archives and any(not path.stem.endswith("class_names") for path in arrays):
        problems.append(f"there are both {archives[0].name} and {arrays[0].name}; keep .npz or .npy files")
        return {}
    for path in archives:
        for key in keys(path, problems):
            if key in _PARTS:
                add(f"{path.stem}_{key}", Member(path, key))
    for path in arrays:
        add(path.stem, Member(path, None))
    return found


def _part(name, prefix, members, problems):
    """Returns a `Part`, or None if something is wrong."""
    if lacking := [kind for kind in ("images", "labels") if f"{prefix}{kind}" not in members]:
        names = ", ".join(map(shown, sorted(members)))
        problems.append(f"lacks {' and '.join(f'{prefix}{kind}' for kind in lacking)}; there are {names}")
        return None
    member = members[f"{prefix}images"]
    before = len(problems)
    with reading(member, problems):
        shape, dtype = header(member)
        if dtype != np.uint8 or len(shape) not in (3, 4) or min(shape) < 1:
            problems.append(
                f"{member}: holds {dtype} {list(shape)}; images must be uint8 [N, H, W, C] or [N, H, W], with values "
                "from 0 to 255"
            )
        shape = (*shape, 1) if len(shape) == 3 else shape
    labels = read(members[f"{prefix}labels"], problems)
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        problems.append(
            f"{members[f'{prefix}labels']}: holds {labels.dtype} {list(labels.shape)}; labels must be whole numbers "
            "[N], from 0"
        )
    if len(problems) > before:
        return None
    count = shape[0]
    if len(labels) != count:
        problems.append(f"{member} has {count} images, but {members[f'{prefix}labels']} has {len(labels)} labels")
        return None
    ids = np.array([f"{name}/{number}" for number in range(count)])
    if f"{prefix}ids" in members:
        ids = texts(members[f"{prefix}ids"], problems)
        if ids is not None and len(ids) != count:
            problems.append(f"{members[f'{prefix}ids']}: has {len(ids)} ids for {count} images")
    roles = ("" if name == _WHOLE else name,) * count
    if name == _WHOLE and "split" in members:
        roles = _roles(members["split"], count, problems)
    if len(problems) > before:
        return None
    count, height, width, channels = shape
    return Part(name, member, (count, height, width, channels), labels.astype(np.int64), ids, roles)


def _roles(member, count, problems):
    """Returns the split of each example, as named by an array."""
    given = texts(member, problems)
    if given is None:
        return ()
    if len(given) != count:
        problems.append(f"{member}: has {len(given)} names for {count} images")
        return ()
    roles = tuple(layout.ROLES.get(str(one), "") for one in given)
    if unknown := sorted({str(one) for one in given} - set(layout.ROLES)):
        problems.append(f"{member}: holds {unknown[0]!a}; it must hold train, valid and test")
    elif "train" not in roles:
        problems.append(f"{member}: no example is for training")
    return roles


def _class_names(parts, members, problems):
    """Returns the class names, after checking the labels."""
    labels = np.unique(np.concatenate([part.labels for part in parts]))
    sources = [member for name, member in members.items() if name.endswith("class_names")]
    if not sources:
        expected = np.arange(len(labels))
        if labels[0] < 0:
            problems.append(f"the least label is {labels[0]}; labels must be from 0 to the number of classes - 1")
        elif not np.array_equal(labels, expected):
            gap = int(np.flatnonzero(labels != expected)[0])
            problems.append(
                f"no example has the label {gap}, but there are labels up to {labels[-1]}; number the classes without "
                "gaps, or add class_names"
            )
        elif len(labels) < 2:
            problems.append("only one class; there must be two or more")
        return tuple(str(label) for label in labels)
    listed = [texts(member, problems) for member in sources]
    if any(one is None for one in listed):
        return ()
    names = tuple(str(name) for name in listed[0])
    for other, member in zip(listed[1:], sources[1:], strict=True):
        if tuple(map(str, other)) != names:
            problems.append(f"{sources[0]} and {member} differ; all splits must have the same classes")
    if bad := [name for name in names if not name or not name.isprintable()]:
        problems.append(f"{sources[0]}: holds the name {bad[0]!a}, which cannot be printed")
    if len(set(names)) < len(names):
        problems.append(f"{sources[0]}: holds the same name twice")
    if len(names) < 2:
        problems.append(f"{sources[0]}: holds {len(names)} names; there must be two classes or more")
    if labels[0] < 0 or labels[-1] >= len(names):
        problems.append(f"there are labels from {labels[0]} to {labels[-1]}, but {len(names)} class_names")
    return names
