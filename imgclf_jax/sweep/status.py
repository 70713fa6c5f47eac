"""The table of a sweep: how many runs of each group are in which state, and what is wrong with those that failed."""

import collections
from collections.abc import Sequence
from pathlib import Path

from imgclf_jax.sweep import folder as sweep_folder
from imgclf_jax.sweep import states
from imgclf_jax.terminal.console import Console, duration
from imgclf_jax.workdir.record import own_seconds

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
    if line := times(list(by_run.values())):
        console.print(line)
    for run, state in by_run.items():
        if state.name in PROBLEMS:
            detail = f": {state.detail.splitlines()[0][:MOST_CHARACTERS]}" if state.detail else ""
            console.print(f"{state.name}: {run.name}{detail}  ({states.log_path(run.folder)})")


def times(found: Sequence[states.State]) -> str:
    """How long the complete runs took, and what that means for those that are left; empty if none is complete."""
    seconds = [own_seconds(state.record) for state in found if state.name == "complete"]
    known = [value for value in seconds if value is not None]
    if not known:
        return ""
    mean = sum(known) / len(known)
    spread = f" ({duration(min(known))} to {duration(max(known))})" if len(known) > 1 else ""
    left = sum(state.name not in (*states.FINAL, "pruned", "failed") for state in found)
    work = f"; {left} left: about {duration(left * mean)}, if they run one after another" if left else ""
    return f"a complete run took {duration(mean)} on average{spread}{work}"
