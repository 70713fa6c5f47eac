"""Lists the photos in a folder, with their classes and splits, from the names of its folders alone."""

import dataclasses
import functools
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from imgclf_jax import config as configs
from imgclf_jax.data import splits
from imgclf_jax.data.folder.contents import Contents, OwnFiles
from imgclf_jax.errors import UserError
from imgclf_jax.storage.names import HIDDEN, class_name, clutter, summary

ROLES = {"train": "train", "validation": "valid", "valid": "valid", "val": "valid", "test": "test"}
DEFAULT_SIZE = (32, 32)  # of photos: that of the images which most configs are made for
_LAYOUTS = "DIR/train/CLASS/*, DIR/validation/CLASS/* and DIR/test/CLASS/*, or DIR/CLASS/*"


class _Notes(NamedTuple):
    """What is found on the way: lines about problems, and the kinds of the entries that are ignored, by path."""

    problems: list[str]
    ignored: dict[str, str]


class File(NamedTuple):
    """A file that should be a photo.

    Attributes:
        role: "train", "valid" or "test"; "" if the folders do not define splits.
        label: the label of its class.
        path: relative to the folder, with forward slashes.
    """

    role: str
    label: int
    path: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """The photos of a folder, by role, class and path.

    Attributes:
        root: the absolute path of the folder.
        class_names: by label; sorted.
        image_size: (height, width).
        fractions: the fractions for training, validation and test; None if the folders define the splits.
        files: the files, ordered by role ('train', 'valid', 'test'), label and path.
        file: the file that lists the photos, or holds the images; None if the folder itself does.
        noun: what the files are called in messages, in the singular.
        folds: the number of folds for cross-validation; 0 for none.
        parts: the contents of the photos if they are not files of their own.
        remarks: what should be said about the folder and the settings, one line each.
    """

    root: Path
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    fractions: tuple[float, float, float] | None
    files: tuple[File, ...]
    file: Path | None = None
    noun: str = "photo"
    folds: int = 0
    parts: Contents | None = None
    remarks: tuple[str, ...] = ()

    @functools.cached_property
    def contents(self) -> Contents:
        """The contents of the files, in their order."""
        return self.parts or OwnFiles(self.root, (file.path for file in self.files))

    @property
    def place(self) -> Path:
        """The folder, or the file that stands for it."""
        return self.file or self.root

    @property
    def name(self) -> str:
        """The name of the folder or file."""
        return self.place.name or str(self.place)


def scan(config_data: Any) -> Listing:
    """Lists the photos in the folder `config_data.dir`, without opening any.

    Raises:
        UserError: all problems with the folder and the settings, one line each.
    """
    problems = size_problems(config_data) + split_problems(config_data)
    notes = _Notes([], {})
    files: tuple[File, ...] = ()
    class_names: tuple[str, ...] = ()
    has_splits = False
    root = Path(config_data.dir).expanduser().absolute()
    if not config_data.dir:
        problems.append("data.dir is empty; give the folder that holds the photos, e.g. --config.data.dir=photos")
    elif not root.is_dir():
        is_file = root.exists()
        problems.append(f"data.dir={config_data.dir!r}: {'is a file' if is_file else 'there is no such folder'}")
    else:
        has_splits, class_names, files = _list(root, notes)
        problems += [f"data.dir={config_data.dir!r}: {problem}" for problem in notes.problems]
    if has_splits:
        problems += unused_fractions(config_data, "data.dir has a folder train/ and folders define the splits")
    if problems:
        raise UserError("\n".join(problems))
    remarks = size_remarks(config_data) + split_remarks(
        config_data, "photos in folders", "folders train/, validation/ and test/ or data.split"
    )
    if notes.ignored:
        remarks.append(f"{root}: ignored, being no photos or classes: {summary(notes.ignored.values())}")
    fractions = None if has_splits else fractions_of(config_data)
    size = size_of(config_data)
    return Listing(root, class_names, size, fractions, files, folds=config_data.folds, remarks=tuple(remarks))


def shown(name: str) -> str:
    """Returns a file name that can be printed: names may hold line breaks and bytes that are not text."""
    return name if name.isprintable() else ascii(name)


def size_of(config_data: Any) -> tuple[int, int]:
    """Returns the (height, width) that photos get: `data.image_size`, if it is set."""
    height, width = config_data.image_size or DEFAULT_SIZE
    return int(height), int(width)


def size_problems(config_data: Any) -> list[str]:
    """Returns what is wrong with `data.image_size`, a line or none."""
    size = tuple(config_data.image_size or DEFAULT_SIZE)
    if len(size) != 2 or any(not isinstance(side, int) or side < 1 for side in size):
        return [
            f"data.image_size={size}: must be two positive integers, (height, width), e.g. "
            "--config.data.image_size='(64, 64)'"
        ]
    return []


def size_remarks(config_data: Any) -> list[str]:
    """Returns a line if `data.image_size` is not set. Photos differ in size, so they get one."""
    if config_data.image_size:
        return []
    height, width = DEFAULT_SIZE
    return [
        f"photos are resized to {height}×{width} pixels, because data.image_size is not set; for another size, e.g. "
        "--config.data.image_size='(64, 64)'"
    ]


def split_problems(config_data: Any) -> list[str]:
    """Returns what is wrong with `data.split`, a line or none."""
    split = tuple(config_data.split)
    numbers = all(isinstance(part, int | float) and math.isfinite(part) for part in split)
    if len(split) != 3 or not numbers or min(split) < 0 or split[0] <= 0 or abs(sum(split) - 1) > 1e-6:
        return [
            f"data.split={split}: must be the fractions for training (above 0), validation and test, with a sum of 1, "
            "e.g. --config.data.split='(0.7, 0.15, 0.15)'"
        ]
    return []


def split_remarks(config_data: Any, what: str, instead: str) -> list[str]:
    """Returns a line if splits are named that only other sources have, as configs for these do.

    Args:
        config_data: the `data` part of the configuration.
        what: what the settings of other sources do not apply to, for messages.
        instead: what defines the splits instead.
    """
    defaults = configs.default().data
    names = [f"{role}_split" for role in splits.ROLES]
    changed = [f"data.{name}={config_data[name]!r}" for name in names if config_data[name] != defaults[name]]
    if not changed:
        return []
    apply = f"do{'es' * (len(changed) == 1)} not apply"
    return [f"{' and '.join(changed)} {apply} to {what}, whose splits are defined by {instead}"]


def unused_fractions(config_data: Any, reason: str) -> list[str]:
    """Returns a line if `data.split` was changed although it does not apply for a reason."""
    split = tuple(config_data.split)
    if split == tuple(configs.default().data.split):
        return []
    return [f"data.split={split} does not apply, because {reason}; leave --config.data.split out"]


def fractions_of(config_data: Any) -> tuple[float, float, float]:
    """Returns `data.split` as floats."""
    train, valid, test = (float(fraction) for fraction in config_data.split)
    return train, valid, test


def _list(root, notes):
    """Returns (whether folders define the splits, class names, files)."""
    problems = notes.problems
    folders, photos = _entries(root, "", notes)
    parts = [name for name in folders if name.lower() in ROLES and _entries(root / name, name, notes)[0]]
    if not parts:
        problems += _not_classes(root, folders)
        class_names, files = _classes(root, "", "", folders, photos, notes)
        if not problems and len(class_names) == 1:
            problems.append(f"only one class, {shown(class_names[0])}; there must be two or more")
        return False, class_names, files
    by_role: dict[str, str] = {}
    for name in parts:
        other = by_role.setdefault(ROLES[name.lower()], name)
        if other != name:
            problems.append(f"there are both {other}/ and {name}/; keep one")
    if others := [name for name in folders if name not in parts]:
        problems.append(
            f"{_slashes(parts)} hold{'s' * (len(parts) == 1)} class folders, but {_slashes(others)} next to "
            f"{'it' if len(parts) == 1 else 'them'} cannot be a split; put the photos in {_LAYOUTS}"
        )
    if "train" not in by_role:
        problems.append(f"there is {_slashes(parts)}, but no train/ with class folders in it")
        return True, (), ()
    all_files: list[File] = []
    class_names = ()
    for role in splits.ROLES:
        if role not in by_role:
            continue
        part = by_role[role]
        folders, photos = _entries(root / part, part, notes, known=True)
        classes, files = _classes(root, part, role, folders, photos, notes)
        if role == "train":
            class_names = classes
            if len(classes) == 1:
                problems.append(f"only one class in {part}/, {shown(classes[0])}; there must be two or more")
        for verb, names in (
            ("lacks the classes", sorted(set(class_names) - set(classes))),
            ("has classes that are not for training:", sorted(set(classes) - set(class_names))),
        ):
            if names:
                problems.append(f"{part}/ {verb} {_names(names)}; all splits must have the same classes")
        labels = {name: label for label, name in enumerate(class_names)}
        all_files += [file._replace(label=labels.get(classes[file.label], 0)) for file in files]
    return True, class_names, tuple(all_files)


def _classes(root, part, role, folders, photos, notes):
    """Returns the class names and the files of the class folders in `root`/`part`."""
    prefix, problems = f"{part}/" if part else "", notes.problems
    if photos:
        problems.append(
            f"photos in {prefix or 'the folder itself'} do not belong to a class: {len(photos)}, e.g. "
            f"{shown(photos[0])}; move them into class folders"
        )
    if not folders and not part:
        problems.append(f"there are no class folders in it; put the photos in {_LAYOUTS}")
    if unprintable := [name for name in folders if not name.isprintable()]:
        problems.append(f"the class folders {_names(unprintable)} have names that cannot be printed; rename them")
    class_names = tuple(sorted({class_name(name) for name in folders}))
    labels = {name: label for label, name in enumerate(class_names)}
    files = [
        File(role, labels[class_name(name)], path)
        for name in folders
        for path in _files(root / part / name, f"{prefix}{name}", notes)
    ]
    full = {file.label for file in files}
    if empty := [f"{prefix}{name}" for name, label in labels.items() if label not in full]:
        places = _slashes(empty) if full else prefix or "it"
        problems.append(f"there are no photos in {places}; fill the class folders, or delete them")
    return class_names, tuple(sorted(files))


def _not_classes(root, folders):
    """Returns why the folders of `root` cannot be classes, as a list with at most one problem."""
    if folders and all(name.lower() in ROLES for name in folders):
        return [f"there are no class folders in {_slashes(folders)}; put the photos in {_LAYOUTS}"]
    first = _entries(root / folders[0], folders[0], _Notes([], {}))[0] if len(folders) > 1 else []
    if len(first) > 1 and all(_entries(root / name, name, _Notes([], {})) == (first, []) for name in folders):
        return [
            f"{_slashes(folders)} hold the same folders, {_slashes(first)}, which is typical of splits, not of "
            "classes; if they are splits, rename them to train, validation and test"
        ]
    return []


def _entries(folder, name, notes, known=False):
    """Returns the names of the folders and of the photos in a folder, sorted and without clutter.

    Args:
        folder: its path.
        name: its path relative to the root.
        notes: gets what is found on the way.
        known: whether notes were taken before.
    """
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not _ignored(entry, name, notes)]
    except OSError as e:
        if not known:
            notes.problems.append(f"{shown(name) or 'it'} cannot be read: {e.strerror or e}")
        return [], []
    files = [entry.name for entry in visible if not _is_folder(entry)]
    if files:
        from imgclf_jax.data import formats

        files = [file for file in files if file.lower().endswith(formats.endings())]
    return sorted(entry.name for entry in visible if _is_folder(entry)), sorted(files)


def _files(folder, name, notes):
    """Returns the sorted paths of the files in a folder and its subfolders. They begin with `name`."""
    paths = []
    # Each with its parent folders, because following a link to one of them would never end.
    waiting: list[tuple[Any, str, tuple[str, ...]]] = [(folder, name, (os.path.realpath(folder),))]
    while waiting:
        folder, name, above = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = f"{name}/{entry.name}"
                    if _ignored(entry, name, notes):
                        continue
                    if not _is_folder(entry):
                        paths.append(path)
                    elif (real := os.path.realpath(entry.path)) not in above:
                        waiting.append((entry.path, path, (*above, real)))
        except OSError as e:
            notes.problems.append(f"{shown(name)}/ cannot be read: {e.strerror or e}")
    return sorted(paths)


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # A link to itself: opening it reports the error.
        return False


def _ignored(entry, folder, notes):
    """Returns whether an entry of a folder is clutter, and notes it, unless it is hidden anyway."""
    kind = clutter(entry.name)
    if kind and kind != HIDDEN:
        notes.ignored[f"{folder}/{entry.name}"] = kind
    return bool(kind)


def _slashes(names: Iterable[str]) -> str:
    return _names([f"{name}/" for name in names])


def _names(names, most=8):
    listed = ", ".join(shown(name) for name in names[:most])
    return listed + (f" and {len(names) - most} more" if len(names) > most else "")
