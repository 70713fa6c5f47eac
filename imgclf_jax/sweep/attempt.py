"""Trains the runs that a worker has taken, together or one after another, with all output in their logs."""

import os
import sys
import traceback
from pathlib import Path

from imgclf_jax.errors import UserError, format_error
from imgclf_jax.sweep import folder as sweep_folder
from imgclf_jax.sweep import halving, states, together
from imgclf_jax.sweep.folder import Run
from imgclf_jax.sweep.programs import Programs
from imgclf_jax.sweep.taking import Order
from imgclf_jax.terminal import interrupt
from imgclf_jax.train import train
from imgclf_jax.training.run import Calls
from imgclf_jax.workdir.rows import read_rows


def attempt(runs: list[Run], order: Order, programs: Programs) -> int:
    """Trains runs together if that is possible, and otherwise one after another. Returns the exit status."""
    if len(runs) > 1:
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


def _run(run: Run, order: Order, programs: Programs) -> int:
    """Trains, with all output in the log of the run. Returns the exit status as `imgclf_jax.main` would."""
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
