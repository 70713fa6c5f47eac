"""Config files of the package by name: `cnn` is `configs/cnn.py`, `ablations/flip` is `configs/ablations/flip.py`.

A wheel has them in the package; in a clone they are beside it.
"""

import difflib
import functools
import os
import re
from pathlib import Path

from imgclf_jax.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent
_NAME = re.compile(r"[\w-]+(/[\w-]+)*")


@functools.cache
def folder() -> Path:
    """Returns the folder of the configs that come with the package."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def names() -> list[str]:
    """Returns the names of these configs, those in subfolders last."""
    found = (path.relative_to(folder()).with_suffix("").as_posix() for path in folder().rglob("*.py"))
    return sorted(found, key=lambda name: ("/" in name, name))


def file(value: str) -> str:
    """Returns the path of the config file that `--config=value` or the base of a sweep names.

    A name goes before files and folders of that name in the current folder. What is not a name (it has a dot, for
    example) is a path, and is returned as it is.

    Raises:
        UserError: there is no config of that name, and no file or folder either.
    """
    if not _NAME.fullmatch(value):
        return value
    path = folder() / f"{value}.py"
    if path.is_file():
        return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    if Path(value).exists():
        return value
    if Path(f"{value}.py").is_file():
        raise UserError(f"--config={value} names no config of imgclf_jax; for the file, write --config={value}.py")
    close = difflib.get_close_matches(value, names(), 1)
    hint = f"did you mean {close[0]}? There are" if close else "there are"
    raise UserError(
        f"no config is named {value}; {hint} {', '.join(names())}. A file of your own is given by its path, which ends "
        "in .py"
    )


def hint(path: str) -> str:
    """Returns the end of a message about a missing file: the config of the package that may be meant, or ""."""
    name = Path(path).with_suffix("").as_posix().removeprefix("./").removeprefix("configs/")
    return f"; for the config of imgclf_jax, write --config={name}" if name in names() else ""


def label(path: str | None) -> str | None:
    """Returns how messages name a config file: an installed one by its name, because nobody typed its path."""
    inside = PACKAGE / "configs"
    is_inside = path is not None and Path(path).is_relative_to(inside)
    return Path(path).relative_to(inside).with_suffix("").as_posix() if path and is_inside else path
