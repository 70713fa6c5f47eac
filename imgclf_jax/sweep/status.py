"""The table of a sweep: how many runs of each group are in which state, and what is wrong with those that failed."""

import collections
from pathlib import Path

from imgclf_jax.sweep import folder as sweep_folder
from imgclf_jax.sweep import states
from imgclf_jax.terminal.console import Console

PROBLEMS = ("failed", "diverged", "stale")
MOST_CHARACTERS = 200


def show(folder: Path, console: Console) -> None:
    """Prints the states of all runs of a sweep, from their files alone.

    Raises:
        UserError: the folder holds no sweep.
    """
    runs = sweep_folder.runs(folder)
    by_run = {run: states.read(run.folder) for run in runs}
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for run, state in by_run.items():
        counts[run.group][state.name] += 1
    total = collections.Counter(state.name for state in by_run.values())
    shown = [name for name in states.STATES if total[name]]
    rows = [[group, *(count[name] or "" for name in shown)] for group, count in counts.items()]
    console.table(["group", *shown], rows, ["all", *(str(total[name]) for name in shown)])
    for run, state in by_run.items():
        if state.name in PROBLEMS:
            detail = f": {state.detail.splitlines()[0][:MOST_CHARACTERS]}" if state.detail else ""
            console.print(f"{state.name}: {run.name}{detail}  ({states.log_path(run.folder)})")
