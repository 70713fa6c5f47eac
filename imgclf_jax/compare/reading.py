"""Finds runs and sweeps by name, and reads them: config.json, run.json and sweep.json, without any arrays."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from imgclf_jax import config as configs
from imgclf_jax.errors import UserError
from imgclf_jax.storage.files import natural_key, read_json
from imgclf_jax.workdir import failure as failures
from imgclf_jax.workdir import record as records
from imgclf_jax.workdir import saved_config
from imgclf_jax.workdir.record import is_natural

SWEEP = "sweep.json"
DEPTH = 4  # levels of folders that are searched: SWEEPS/SWEEP/GROUP/RUN
NOT_ENTERED = ("checkpoints", "tensorboard", "report", "logs", "__pycache__")
ENDED = ("complete", "diverged", "pruned", "interrupted")  # The note on an earlier failure does not count any more.
Key = tuple[int, int]


class Run(NamedTuple):
    """A run, without its network.

    Attributes:
        folder: its workdir, as given or below the given folder.
        config: its config.
        record: its `run.json`; empty if there is none.
        identity: of its config; see `imgclf_jax.config.identity`.
        key: (seed, fold); fold 0 without cross-validation.
        folds: the number of folds; 0 without cross-validation.
        failure: why the last attempt at a run of a sweep failed, noted beside the run; empty if it did not.
    """

    folder: Path
    config: ConfigDict
    record: dict[str, Any]
    identity: str
    key: Key
    folds: int
    failure: str = ""

    @property
    def status(self) -> str:
        """The status in `run.json`; "waiting" if there is none; "failed" if `failure` says so."""
        return "failed" if self.failure else self.record.get("status", "waiting")


class Planned(NamedTuple):
    """A group of runs that a sweep plans.

    Attributes:
        name: of the variant.
        identity: of its config.
        folder: of its runs, relative to the sweep's folder.
    """

    name: str
    identity: str
    folder: str


class Sweep(NamedTuple):
    """What `sweep.json` plans.

    Attributes:
        folder: of the sweep.
        groups: in order; the first is the baseline.
        seeds: of every group.
        folds: the number of folds; 0 without cross-validation.
    """

    folder: Path
    groups: tuple[Planned, ...]
    seeds: tuple[int, ...]
    folds: int

    @property
    def keys(self) -> list[Key]:
        """(seed, fold) of the planned runs of each group."""
        return [(seed, fold) for seed in self.seeds for fold in range(max(self.folds, 1))]


class Found(NamedTuple):
    """The runs and sweeps under some names.

    Attributes:
        runs: in the order of the names, sorted within each name, without duplicates.
        sweeps: those whose folder was given or found.
        names: identity -> name of a variant, in the order of the sweeps, including the sweeps that single runs are in.
    """

    runs: list[Run]
    sweeps: list[Sweep]
    names: dict[str, str]


def read(names: Sequence[str]) -> Found:
    """Finds and reads runs.

    Args:
        names: folders of runs, folders that hold such folders up to `DEPTH` levels below, and globs. An existing folder
            is never interpreted as a glob.

    Raises:
        UserError: a name matches nothing, no run is found, or a file is damaged; one line for each.
    """
    folders: dict[Path, Path] = {}  # by resolved path
    sweeps: dict[Path, Path] = {}
    problems: list[str] = [] if names else ["no runs are given; add folders of runs, the folder of a sweep, or globs"]
    for name in names:
        matches = _matches(name)
        found_any = False
        for match in matches:
            for folder in _walk(match, DEPTH, problems):
                found_any = True
                if (folder / SWEEP).exists():
                    sweeps.setdefault(folder.resolve(), folder)
                if _is_run(folder):
                    folders.setdefault(folder.resolve(), folder)
        if not found_any:
            problems.append(_no_match(name, matches))
    plans = _read_all(_read_sweep, sweeps.values(), problems)
    runs = _read_all(_read_run, folders.values(), problems)
    above = {place: place for path in folders for place in path.parents[:2] if place not in sweeps}
    around = _read_all(_read_sweep, [place for place in above if (place / SWEEP).is_file()], problems)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return Found(runs, plans, _names([*plans, *around]))


def _matches(name: str) -> list[Path]:
    if os.path.lexists(name) or not glob.has_magic(name):
        return [Path(name)] if name and os.path.isdir(name) else []  # noqa: PTH112 (raises for long names)
    matches = sorted(glob.glob(name, recursive=True), key=natural_key)  # noqa: PTH207 (the pattern may be absolute)
    return [Path(match) for match in matches if Path(match).is_dir()]


def _no_match(name: str, matches: list[Path]) -> str:
    advice = "give the folder of a run, a folder of runs, the folder of a sweep, or a quoted glob"
    if not name:
        return f"an empty name matches no run; {advice}"
    if len(matches) > 1:
        return f"{name!r} matches {len(matches)} folders, but none of them holds a run (no config.json); {advice}"
    if matches:
        return f"{matches[0]} holds no run (no config.json, {DEPTH} levels deep); {advice}"
    if os.path.lexists(name):
        return f"{name} is not a folder; {advice}"
    return f"no folder matches {name!r}; {advice}" if glob.has_magic(name) else f"{name} does not exist; {advice}"


def _walk(folder: Path, depth: int, problems: list[str]) -> Iterator[Path]:
    """Yields the folders of runs and sweeps, at most `depth` levels below `folder`. Nothing is searched in a run."""
    if _is_run(folder):
        yield folder
        return
    if (folder / SWEEP).exists():
        yield folder
    if not depth:
        return
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: natural_key(entry.name))
    except OSError as error:
        problems.append(f"folder {folder} cannot be read: {error.strerror}")
        return
    for entry in entries:
        if not entry.name.startswith(".") and entry.name not in NOT_ENTERED and entry.is_dir():
            yield from _walk(entry, depth - 1, problems)


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (saved_config.NAME, records.NAME))


def _read_all(reader: Any, places: Any, problems: list[str]) -> list[Any]:
    results = []
    for place in places:
        try:
            results.append(reader(place))
        except UserError as error:
            problems += str(error).splitlines()
    return results


def _read_run(folder: Path) -> Run:
    config = saved_config.load_config(folder)
    fold, folds = (config.data.get(name) or 0 for name in ("fold", "folds"))
    key = config.seed, fold if folds else 0
    record = records.read(folder) or {}
    failure = "" if record.get("status") in ENDED else failure_of(folder)
    return Run(folder, config, record, configs.identity(config), key, folds, failure)


def failure_of(folder: Path) -> str:
    """Why the last attempt at a run of a sweep failed, as noted beside the run; empty if nothing is noted."""
    note = failures.read(folder.resolve())
    return note.error if note else ""


def _read_sweep(folder: Path) -> Sweep:
    path = folder / SWEEP
    advice = "; run the sweep again, which writes it again, or give the folders of its runs instead"
    content = read_json(path, advice) or {}
    if content.get("version") != 1:
        raise UserError(f"cannot read {path}: its version is {content.get('version')!r}, not 1{advice}")
    groups, seeds, folds = (content.get(name) for name in ("groups", "seeds", "folds"))
    if not isinstance(groups, list) or not all(map(_is_group, groups)):
        raise UserError(f"cannot read {path}: groups is not a list of objects with name, identity and folder{advice}")
    if not isinstance(seeds, list) or not all(map(is_natural, seeds)) or not isinstance(folds, int):
        raise UserError(f"cannot read {path}: seeds is not a list of numbers, or folds is not a number{advice}")
    planned = tuple(Planned(group["name"], group["identity"], group["folder"]) for group in groups)
    return Sweep(folder, planned, tuple(seeds), folds)


def _is_group(value: Any) -> bool:
    fields = ("name", "identity", "folder")
    return isinstance(value, dict) and all(isinstance(value.get(field), str) for field in fields)


def _names(sweeps: list[Sweep]) -> dict[str, str]:
    """identity -> name. A name that several sweeps use for different configs gets the sweep's folder in front."""
    named: dict[str, tuple[str, Sweep]] = {}
    for sweep in sweeps:
        for group in sweep.groups:
            named.setdefault(group.identity, (group.name, sweep))
    plain = [name for name, _ in named.values()]
    return {
        identity: name if plain.count(name) == 1 else f"{sweep.folder.resolve().name}/{name}"
        for identity, (name, sweep) in named.items()
    }
