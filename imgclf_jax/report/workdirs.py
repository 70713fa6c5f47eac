"""The workdirs of a report: expands globs, and chooses the folder of the report. Needs no JAX."""

import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path

from imgclf_jax.errors import UserError
from imgclf_jax.storage.files import natural_key
from imgclf_jax.workdir import record, saved_config

NAME = "report"
MARKER = ".imgclf_jax_report.json"  # lists the files of a report and its runs, and identifies the folder as a report
PREDICTIONS = "predictions.csv"
_ABOVE = 4  # levels of folders above a run in which a report on several runs is looked for


def expand(names: Sequence[str]) -> list[Path]:
    """The folders that `--workdir` names, with seed2 before seed10.

    An existing folder is not interpreted as a glob. Of what a glob matches, only folders of runs are taken, and those
    that are given already are left out.

    Raises:
        UserError: a glob matches no run; one line for each.
    """
    patterns = [name for name in names if glob.has_magic(name) and not Path(name).is_dir()]
    seen = {Path(name).resolve() for name in names if name not in patterns}
    folders: list[Path] = []
    problems: list[str] = []
    for name in names:
        if name not in patterns:
            folders.append(Path(name))
            continue
        matches = map(Path, glob.glob(name, recursive=True))  # noqa: PTH207 (the pattern may be absolute)
        found = sorted(filter(_is_run, matches), key=lambda path: [natural_key(part) for part in path.parts])
        if not found:
            problems.append(f"--workdir={name} matches no run; give folders that training printed, or another glob")
        for folder in found:
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                folders.append(folder)
    if problems:
        raise UserError("\n".join(problems))
    return folders


def default_output(folders: Sequence[Path]) -> Path:
    """The folder of a report: in the run; of several runs, in the nearest folder around all of them that is no run."""
    if len(folders) == 1:
        return folders[0] / NAME
    around = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    while _is_run(around) and around != around.parent:
        around = around.parent
    return around / NAME


def part_of(index: int, count: int) -> str:
    """The folder of the files on a single run, relative to the report on `count` runs."""
    return "." if count == 1 else f"run{index + 1}"


def describe_runs(folders: Sequence[Path], target: Path) -> dict[str, str]:
    """The member "runs" of `MARKER`, by which the part of a run is found in a report on several runs.

    Args:
        folders: the workdirs.
        target: the folder of the report.

    Returns:
        `part_of` a run -> its workdir, relative to `target`, so that both may be moved together. It is empty for a
        single run.
    """
    if len(folders) == 1:
        return {}
    return {
        part_of(index, len(folders)): Path(os.path.relpath(folder.resolve(), target.resolve())).as_posix()
        for index, folder in enumerate(folders)
    }


def prediction_files(folder: Path) -> list[Path]:
    """Where reports have left the predictions of a run: its own report first, then those on several runs around it.

    Args:
        folder: the workdir of the run.

    Returns:
        Files that need not exist.
    """
    folder = folder.resolve()
    found = [folder / NAME / PREDICTIONS]
    for above in folder.parents[:_ABOVE]:
        place = above / NAME
        try:
            runs = json.loads((place / MARKER).read_text(encoding="utf-8"))["runs"].items()
            found += [place / part / PREDICTIONS for part, run in runs if (place / run).resolve() == folder]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or an edited one
            continue
    return found


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (saved_config.NAME, record.NAME))
