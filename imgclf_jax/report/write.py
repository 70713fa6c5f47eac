"""A report as a folder, which is there whole or not at all."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

from imgclf_jax.data.types import Progress
from imgclf_jax.errors import UserError
from imgclf_jax.report import drawing, page, predictions, runs
from imgclf_jax.report.runs import Run
from imgclf_jax.storage import atomic
from imgclf_jax.terminal import output

MARKER = ".imgclf_jax_report.json"  # the list of a report's files, by which it is known as one
INDEX = "index.html"


def report(folders: list[Path], target: Path | None, progress: Progress, warn: Callable[[str], None]) -> Path:
    """Writes a report on one run, or on several side by side; an earlier one in the same place is replaced.

    Args:
        folders: the workdirs.
        target: the folder to write; `None`: `report` in the first workdir.
        progress: told how far the work is.
        warn: told what the reader of the report must know.

    Returns:
        The page, `index.html`.

    Raises:
        UserError: no run, or a folder that is not an earlier report, or one that cannot be written.
    """
    runs.check(folders)
    folder = (folders[0] / "report" if target is None else target).resolve()
    check(folder)
    found = runs.read(folders, progress)
    for run in found:
        for note in run.notes:
            warn(f"{run.name}: {note}" if len(found) > 1 else note)
    try:
        with atomic.temporary_folder(folder.parent) as temporary:
            new = temporary / "new"
            _write(new, found, progress)
            old = temporary / "old"
            if folder.exists():
                check(folder)  # Again: something may have come into it meanwhile.
                folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:  # Also on Ctrl-C: the old report stays until the new one is in its place.
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; choose another --output") from error
    return folder / INDEX


def check(folder: Path) -> None:
    """Raises `UserError` if a folder cannot be written, or holds anything that an earlier report did not put there."""
    if problems := output.folder_problems(folder.parent, "--output", missing=True):
        raise UserError(problems[0])
    advice = "move it away, or choose another --output"
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise UserError(f"{folder} is not a folder; {advice}")
        own = _own(folder)
        if not own and (names := sorted(os.listdir(folder))):  # noqa: PTH208 (of names, not of paths)
            raise UserError(f"{folder} is not an earlier report but holds {names[0]}; {advice}")
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}; choose another --output") from error
    if foreign := sorted(there - own):
        raise UserError(f"{folder} holds {foreign[0]}, which is not of an earlier report; {advice}")


def _own(folder: Path) -> set[str]:
    """Returns the names of the files of the report in `folder`; an empty set if there is no report."""
    try:
        files = json.loads((folder / MARKER).read_text())["files"]
        return {str(name) for name in files} | {MARKER}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _write(folder: Path, found: list[Run], progress: Progress) -> None:
    progress("drawing", 0, 1)
    built = page.build(found)
    for index, pictures in built.pictures.items():
        place = folder if index is None or len(found) == 1 else folder / f"run{index + 1}"
        for picture in pictures:
            drawing.save(picture, place / "pictures")
        if index is not None and (predicted := found[index].found) is not None:
            place.mkdir(parents=True, exist_ok=True)
            predictions.write_csv(place / "predictions.csv", predicted)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).write_text(built.html, encoding="utf-8")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    (folder / MARKER).write_text(json.dumps({"files": files}, indent=1) + "\n")
    progress("drawing", 1, 1)
