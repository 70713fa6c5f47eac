"""A process that takes the runs of a sweep, one after another: `python -m imgclf_jax.sweep.worker --workdir=DIR`.

Several workers, on one machine or many, share the runs through the files in DIR alone. A worker's standard output has a
JSON object per line for the process that started it; the output of a run goes to its log.
"""

if __name__ == "__main__":  # Must come before the imports that swallow Ctrl-C.
    from imgclf_jax.terminal import interrupt

    interrupt.install()

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from imgclf_jax.errors import UserError, format_error
from imgclf_jax.sweep import folder as sweep_folder
from imgclf_jax.sweep import halving, locks, states
from imgclf_jax.sweep.folder import Run
from imgclf_jax.terminal import cli, interrupt
from imgclf_jax.workdir.rows import read_rows

FLAGS = flags.FLAGS
POLL_SECONDS = 2.0
Report = Callable[[dict[str, Any]], None]


def define_flags() -> None:
    """Defines the flags of this tool."""
    flags.DEFINE_string("workdir", None, "Folder of the sweep.")
    flags.DEFINE_string("invocation", "", "Name of the command that this worker serves. It tries no run twice.")
    flags.DEFINE_integer("runs", 0, "How many runs to take at most; 0: all.", lower_bound=0)
    flags.DEFINE_string("halving", "", "See `imgclf_jax.sweep.halving.parse`.")
    flags.DEFINE_integer("at_once", 1, "How many runs train in one program, if they can.", lower_bound=1)
    flags.DEFINE_bool("wait", True, "Wait for the runs of other workers, in case that those die.")


def main(argv: list[str]) -> int:
    """Parses the command line and works. Returns the exit status."""
    define_flags()
    cli.parse_flags(argv)
    if not FLAGS.workdir:
        raise UserError("--workdir is missing, the folder of the sweep")
    from imgclf_jax.devices import xla  # JAX is slow to import: report the mistakes above first.

    xla.configure_xla()
    cli.begin_work()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    order = Order(Path(FLAGS.workdir), FLAGS.invocation, halving.parse(FLAGS.halving), FLAGS.at_once)
    return work(order, FLAGS.runs, FLAGS.wait)


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


def work(order: Order, most: int = 0, wait: bool = True, report: Report | None = None) -> int:
    """Takes runs that nobody else has until all are done.

    Args:
        order: what to do.
        most: how many runs to take; 0: no limit.
        wait: whether to wait for the runs of others to end, and to take over those whose process died.
        report: called with {"run", "state"} when a run begins ("running") and ends; by default it writes that to
            standard output.

    Returns:
        0, or 128 + the number of the signal that asked to stop.
    """
    from imgclf_jax.sweep.programs import Programs  # imports JAX

    programs, taken, report = Programs(), 0, report or _reporter()
    while True:
        others = False
        for run in sweep_folder.runs(order.folder):
            if most and taken >= most:
                return 0
            state = states.read(run.folder)
            others |= state.name == "running"
            if state.name == "running" or not _is_left(run, state, order):
                continue
            with contextlib.ExitStack() as held:
                mine, left = _take(run, order, held)
                others |= not mine
                if not left:
                    continue
                batch = [run, *_companions(run, order, held, (most or order.at_once + taken) - taken)]
                taken += len(batch)
                for one in batch:
                    report({"run": str(one.folder), "state": "running"})
                code = _run_all(batch, order, programs)
            for one in batch:
                report({"run": str(one.folder), "state": states.read(one.folder).name})
            if code >= 128:
                return code
        if not (others and wait):
            return 0
        time.sleep(POLL_SECONDS)


def _end_with(parent):
    """Saves and ends when the process that started this one has ended, even if it was killed."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_left(run, state, order):
    """Whether a worker should take a run."""
    if state.name in states.FINAL:
        return False
    if state.name == "pruned":
        return order.rule is None
    return not (state.name == "failed" and order.invocation and states.failed_in(run.folder) == order.invocation)


def _take(run, order, held):
    """Tries to hold the lock of a run. Returns whether it is held, and whether the run is left to do."""
    mine = held.enter_context(locks.hold(states.lock_path(run.folder)))
    # Another worker may have finished it in the meantime.
    return mine, mine and _is_left(run, states.unlocked(run.folder), order)


def _companions(run, order, held, most):
    """Returns other runs that can train in one program with a run, and holds their locks."""
    if min(order.at_once, most) < 2:
        return []
    from imgclf_jax.sweep import together

    found: list[Run] = []
    kind = together.kind(run.config(), run.folder)
    for other in sweep_folder.runs(order.folder):
        if len(found) + 1 == min(order.at_once, most):
            break
        state = states.read(other.folder)
        if other.folder == run.folder or state.name == "running" or not _is_left(other, state, order):
            continue
        # The state may be older than the lock, so the steps are compared again under it.
        if together.kind(other.config(), other.folder) == kind:
            _, left = _take(other, order, held)
            if left and together.kind(other.config(), other.folder) == kind:
                found.append(other)
    return found


def _run_all(runs: list[Run], order: Order, programs: Any) -> int:
    """Trains runs together if that is possible, and otherwise one after another. Returns the exit status."""
    from imgclf_jax.sweep import together

    if len(runs) > 1:
        from imgclf_jax.training.run import Calls

        for run in runs:
            states.note_path(run.folder).unlink(missing_ok=True)
        names = ", ".join(run.name for run in runs)
        for run in runs[1:]:
            with _output_to(states.log_path(run.folder)):
                print(f"training together with {names}; the output is in {states.log_path(runs[0].folder)}")
        calls = [Calls(_resume, programs.build_for_several, prune=_pruning(run, order)) for run in runs]
        with _output_to(states.log_path(runs[0].folder)):
            try:
                return together.train([run.config() for run in runs], [run.folder for run in runs], calls)
            except KeyboardInterrupt as error:
                code, line = interrupt.ending(error)
                print(line, file=sys.stderr)
                return code
            except together.Apart:
                pass
            except Exception:  # The cause will show when each of them continues alone.
                traceback.print_exc()
    code = 0
    for run in runs:
        if code < 128 and states.unlocked(run.folder).name not in states.FINAL:
            code = _run(run, order, programs)
    return code


def _resume(folder):
    return "the command of the sweep"


def _run(run: Run, order: Order, programs: Any) -> int:
    """Trains, with all output in the log of the run. Returns the exit status as `imgclf_jax.main` would."""
    from imgclf_jax.train import train
    from imgclf_jax.training.run import Calls

    states.note_path(run.folder).unlink(missing_ok=True)
    with _output_to(states.log_path(run.folder)):
        try:
            calls = Calls(_resume, programs.build, prune=_pruning(run, order))
            return train(run.config(), run.folder, calls=calls)
        except KeyboardInterrupt as error:
            code, line = interrupt.ending(error)
            print(line, file=sys.stderr)
            return code
        except Exception as error:
            if isinstance(error, UserError):
                print(format_error(error), file=sys.stderr)
            else:
                traceback.print_exc()
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            states.fail(run.folder, order.invocation, f"{kind}{error}")
            return 1


def _pruning(run, order):
    """Returns the argument `prune` of `imgclf_jax.train.train`."""
    rule = order.rule
    if rule is None:
        return lambda step, steps, accuracy: False
    others = [other.folder for other in sweep_folder.runs(order.folder) if other.folder != run.folder]

    def prune(step, steps, accuracy):
        earlier = [row["step"] for row in read_rows(run.folder) if row["split"] == "valid" and row["step"] < step]
        return halving.stops(rule, steps, max(earlier, default=0), step, accuracy, others)

    return prune


class _output_to:
    """Sends standard output and standard error of the whole process to the end of a file within the block."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def __enter__(self):
        self._flush()
        self._kept = [os.dup(1), os.dup(2)]
        with self._path.open("ab") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)

    def __exit__(self, *error):
        self._flush()
        for descriptor, kept in zip((1, 2), self._kept, strict=True):
            os.dup2(kept, descriptor)
            os.close(kept)

    def _flush(self):
        sys.stdout.flush()
        sys.stderr.flush()


def _reporter():
    """Reports to standard output, which is never redirected for it. A lost reader does not stop the work."""
    descriptor = os.dup(1)

    def report(event):
        with contextlib.suppress(OSError):
            os.write(descriptor, (json.dumps(event) + "\n").encode())

    return report


if __name__ == "__main__":
    sys.exit(cli.run_tool(main, takes_config=False))
