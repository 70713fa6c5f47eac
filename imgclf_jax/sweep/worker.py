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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from imgclf_jax import components
from imgclf_jax.errors import UserError
from imgclf_jax.sweep import folder as sweep_folder
from imgclf_jax.sweep import halving, plan_file, states
from imgclf_jax.terminal import cli, interrupt

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
    from imgclf_jax.sweep.taking import Order

    xla.configure_xla()
    cli.begin_work()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    order = Order(Path(FLAGS.workdir), FLAGS.invocation, halving.parse(FLAGS.halving), FLAGS.at_once)
    return work(order, FLAGS.runs, FLAGS.wait)


def work(order: Any, most: int = 0, wait: bool = True, report: Report | None = None) -> int:
    """Takes runs that nobody else has until all are done.

    Args:
        order: what to do; see `imgclf_jax.sweep.taking.Order`.
        most: how many runs to take; 0: no limit.
        wait: whether to wait for the runs of others to end, and to take over those whose process died.
        report: called with {"run", "state"} when a run begins ("running") and ends; by default it writes that to
            standard output.

    Returns:
        0, or 128 + the number of the signal that asked to stop.
    """
    from imgclf_jax.sweep import taking  # imports JAX
    from imgclf_jax.sweep.attempt import attempt
    from imgclf_jax.sweep.programs import Programs

    programs, taken, report = Programs(), 0, report or _reporter()
    if folders := (plan_file.read(order.folder) or {}).get("parts"):
        components.look_in(folders)
    while True:
        others = False
        for run in sweep_folder.runs(order.folder):
            if most and taken >= most:
                return 0
            state = states.read(run.folder)
            others |= state.name == "running"
            if state.name == "running" or not taking.is_left(run, state, order):
                continue
            with contextlib.ExitStack() as held:
                mine, left = taking.take(run, order, held)
                others |= not mine
                if not left:
                    continue
                batch = [run, *taking.companions(run, order, held, (most or order.at_once + taken) - taken)]
                taken += len(batch)
                for one in batch:
                    report({"run": str(one.folder), "state": "running"})
                code = attempt(batch, order, programs)
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


def _reporter():
    """Reports to standard output, which is never redirected for it. A lost reader does not stop the work."""
    descriptor = os.dup(1)

    def report(event):
        with contextlib.suppress(OSError):
            os.write(descriptor, (json.dumps(event) + "\n").encode())

    return report


if __name__ == "__main__":
    status = cli.run_tool(main, takes_config=False)
    if status >= 128:
        # A program that the signal interrupted may still be running, in threads that would crash with the interpreter.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
