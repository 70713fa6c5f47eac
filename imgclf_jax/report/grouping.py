"""Groups the runs of a report: repetitions of one experiment are compared as one."""

from typing import NamedTuple

from imgclf_jax import config as configs
from imgclf_jax.report.runs import Run


class Group(NamedTuple):
    """Runs whose configs differ in the seed and the fold alone.

    Attributes:
        name: unique among the groups.
        runs: at least one.
    """

    name: str
    runs: list[Run]


def group(runs: list[Run]) -> list[Group]:
    """Groups runs by `imgclf_jax.config.identity`, in the order of their first runs.

    Runs with the same seed and fold are not repetitions but the same experiment twice, so they stay alone, as do the
    other runs of their config. A group of several runs has the name of the folder that holds them; if they are in
    several folders, or two groups in the same one, the name of its first run.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(configs.identity(run.config), []).append(run)
    parts: list[list[Run]] = []
    for same in found.values():
        keys = {(run.config.seed, run.config.data.get("fold")) for run in same}
        parts += [same] if len(keys) == len(same) else [[run] for run in same]
    parts.sort(key=lambda part: runs.index(part[0]))
    folders = [_folder(part) for part in parts]
    return [
        Group(folder if folder and folders.count(folder) == 1 else _first(part), part)
        for folder, part in zip(folders, parts, strict=True)
    ]


def _folder(part):
    parents = {run.folder.resolve().parent for run in part}
    return parents.pop().name if len(part) > 1 and len(parents) == 1 else ""


def _first(part):
    return part[0].name + (f" and {len(part) - 1} more" if len(part) > 1 else "")
