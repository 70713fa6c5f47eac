"""Which runs a worker takes, and with which others in one program."""

import contextlib
from pathlib import Path
from typing import NamedTuple

from imgclf_jax.sweep import folder as sweep_folder
from imgclf_jax.sweep import halving, locks, states, together
from imgclf_jax.sweep.folder import Run


class Order(NamedTuple):
    """What a worker is asked to do.

    Attributes:
        folder: the folder of the sweep.
        invocation: the command that this worker serves; runs that failed during it are not tried again.
        rule: stops runs early; `None` continues the runs that were stopped early as well.
        at_once: how many runs train in one program, if they can.
    """

    folder: Path
    invocation: str
    rule: halving.Halving | None = None
    at_once: int = 1


def is_left(run: Run, state: states.State, order: Order) -> bool:
    """Whether a worker should take a run."""
    if state.name in states.FINAL:
        return False
    if state.name == "pruned":
        return order.rule is None
    return not (state.name == "failed" and order.invocation and states.failed_in(run.folder) == order.invocation)


def take(run: Run, order: Order, held: contextlib.ExitStack) -> tuple[bool, bool]:
    """Tries to hold the lock of a run. Returns whether it is held, and whether the run is left to do."""
    mine = held.enter_context(locks.hold(states.lock_path(run.folder)))
    # Another worker may have finished it in the meantime.
    return mine, mine and is_left(run, states.unlocked(run.folder), order)


def companions(run: Run, order: Order, held: contextlib.ExitStack, most: int) -> list[Run]:
    """Returns other runs that can train in one program with a run, and holds their locks.

    Args:
        run: a run whose lock is held.
        order: what the worker is asked to do.
        held: where the locks go.
        most: how many runs the worker may take, with this one.
    """
    found: list[Run] = []
    if min(order.at_once, most) < 2 or not together.pays(config := run.config()):
        return found
    kind = together.kind(config, run.folder)
    for other in sweep_folder.runs(order.folder):
        if len(found) + 1 == min(order.at_once, most):
            break
        state = states.read(other.folder)
        if other.folder == run.folder or state.name == "running" or not is_left(other, state, order):
            continue
        # The state may be older than the lock, so the steps are compared again under it.
        if together.kind(other.config(), other.folder) == kind:
            _, left = take(other, order, held)
            if left and together.kind(other.config(), other.folder) == kind:
                found.append(other)
    return found
