"""Writes a report as a folder, completely or not at all."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

from imgclf_jax.data.types import Progress
from imgclf_jax.errors import UserError
from imgclf_jax.report import drawing, page, predictions, runs, workdirs
from imgclf_jax.report.runs import Run
from imgclf_jax.report.workdirs import MARKER
from imgclf_jax.storage import atomic
from imgclf_jax.terminal import output
from imgclf_jax.workdir import tensorboard

INDEX = "index.html"
IN_TENSORBOARD = ("confusion", "mistakes")


def report(
    folders: list[Path],
    target: Path | None,
    progress: Progress,
    warn: Callable[[str], None],
    details: bool | None = None,
) -> Path:
    """Writes a report on one run, or a comparison of several. An earlier report in the same place is replaced.

    A report in the workdir of its run also adds the confusion matrix and the mistakes to its TensorBoard files, if any.

    Args:
        folders: the workdirs.
        target: the folder to write; `None`: see `workdirs.default_output`.
        progress: called with the progress of the work.
        warn: called with each note on a run.
        details: whether a comparison has all sections of each run; see `page.build`.

    Returns:
        The path of the page, `index.html`.

    Raises:
        UserError: a workdir has no run, or the target is not an earlier report or cannot be written.
    """
    runs.check(folders)
    folder = (workdirs.default_output(folders) if target is None else target).resolve()
    check(folder)
    loaded = runs.read(folders, progress, images=len(folders) == 1 or page.has_details(len(folders), details))
    for run in loaded:
        for note in run.notes:
            warn(f"{run.name}: {note}" if len(loaded) > 1 else note)
    try:
        with atomic.temporary_folder(folder.parent) as temporary:
            new = temporary / "new"
            built = write_files(new, folder, loaded, progress, details)
            old = temporary / "old"
            if folder.exists():
                check(folder)  # Again: files may have been added meanwhile.
                folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:  # Also on Ctrl-C: put the old report back.
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; choose another --output") from error
    for index, run in enumerate(loaded):
        shown = {
            picture.name: picture.png for picture in built.pictures.get(index, ()) if picture.name in IN_TENSORBOARD
        }
        if shown and run.network is not None and folder.is_relative_to(run.folder.resolve()):
            try:
                tensorboard.add_pictures(run.folder, run.network.step, shown)
            except OSError as error:
                warn(f"TensorBoard gets no pictures: cannot write {run.folder}: {error.strerror or error}")
    return folder / INDEX


def check(folder: Path) -> None:
    """Checks that a report can be written to a folder.

    Raises:
        UserError: the folder cannot be written, or has files that are not from an earlier report.
    """
    if problems := output.folder_problems(folder.parent, "--output", missing=True):
        raise UserError(problems[0])
    advice = "move it, or choose another --output"
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise UserError(f"{folder} is not a folder; {advice}")
        own = _own(folder)
        if not own and (names := sorted(os.listdir(folder))):  # noqa: PTH208 (names, not paths)
            raise UserError(f"{folder} is not an earlier report: it contains {names[0]}; {advice}")
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}; choose another --output") from error
    if foreign := sorted(files - own):
        raise UserError(f"{folder} contains {foreign[0]}, which is not from an earlier report; {advice}")


def _own(folder: Path) -> set[str]:
    """The names of the files of the report in `folder`; an empty set if it has no report."""
    try:
        files = json.loads((folder / MARKER).read_text())["files"]
        return {str(name) for name in files} | {MARKER}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def write_files(
    folder: Path, target: Path, loaded: list[Run], progress: Progress, details: bool | None = None
) -> page.Page:
    """Writes the page, its pictures and tables, and the list of these files to `folder`, which becomes `target`.

    Returns:
        The page.
    """
    progress("drawing", 0, 1)
    built = page.build(loaded, details)
    for index, pictures in built.pictures.items():
        place = folder if index is None else folder / workdirs.part_of(index, len(loaded))
        for picture in pictures:
            drawing.save(picture, place / "pictures")
        if index is not None and (predicted := loaded[index].predictions) is not None:
            place.mkdir(parents=True, exist_ok=True)
            predictions.write_csv(place / workdirs.PREDICTIONS, predicted)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).write_text(built.html, encoding="utf-8")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    described = workdirs.describe_runs([run.folder for run in loaded], target)
    (folder / MARKER).write_text(json.dumps({"files": files, "runs": described}, indent=1) + "\n")
    progress("drawing", 1, 1)
    return built
