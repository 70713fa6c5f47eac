"""Traces a few steps of a run with `jax.profiler` while it trains."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax

from imgclf_jax.devices import processes
from imgclf_jax.profile import table
from imgclf_jax.profile.hlo import Program
from imgclf_jax.storage.files import write_text
from imgclf_jax.terminal.console import Console

SKIPPED = 2  # dispatches: GPUs may record command buffers in the first ones
STEPS = 10  # most steps that are traced


def watch(folder: Path) -> Callable[[Any, Console], AbstractContextManager[Callable[..., Any]]]:
    """Returns what makes a run trace a few of its steps; see `imgclf_jax.training.run.Calls.watch`.

    The steps compute the same bits as without it. A failure of the profiler is a warning, and training goes on.

    Args:
        folder: the folder of the trace, which need not exist.
    """

    @contextlib.contextmanager
    def watched(session: Any, console: Console) -> Iterator[Callable[..., Any]]:
        recorder = Recorder(folder, session.run_steps, session.program, console)
        try:
            yield recorder
        finally:
            recorder.finish()

    return watched


class Recorder:
    """Takes training steps like `imgclf_jax.training.session.Session.run_steps`, and traces those after the warm-up.

    All processes of a job divide their steps alike; the first one traces.
    """

    def __init__(self, folder: Path, run_steps: Callable[..., Any], program: Callable[[int], Any], console: Console):
        """Prepares the trace.

        Args:
            folder: of the trace.
            run_steps: what takes the steps.
            program: step -> the compiled program that takes it.
            console: where to print the table.
        """
        self._folder, self._run_steps, self._program, self._console = folder, run_steps, program, console
        self._first = processes.is_first()
        self._dispatches = self._steps = 0
        self._traced: Any = None
        self._seconds = 0.0
        self._tracing = self._over = False

    def __call__(self, state: Any, meter: Any, data: Any, count: int, step: int) -> tuple[Any, Any]:
        """Takes `count` steps; see `imgclf_jax.training.loop.Work.run_steps`."""
        self._dispatches += 1
        traced = 0
        if self._steps and self._program(step) is not self._traced:
            self.finish()  # The table is that of one program.
        if self._dispatches > SKIPPED and not self._over:
            traced = min(count, STEPS - self._steps)
            state, meter = self._trace(state, meter, data, traced, step)
        left = count - traced
        return self._run_steps(state, meter, data, left, step + traced) if left else (state, meter)

    def _trace(self, state, meter, data, count, step):
        jax.block_until_ready((state, meter))
        if not self._steps:
            self._begin()
        began = time.perf_counter()
        state, meter = jax.block_until_ready(self._run_steps(state, meter, data, count, step))
        self._seconds += time.perf_counter() - began
        self._steps, self._traced = self._steps + count, self._program(step)
        if self._steps == STEPS:
            self.finish()
        return state, meter

    def _begin(self):
        if not self._first:
            return
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # Python's calls would fill most of the trace.
        with self._warn("no profile"):
            jax.profiler.start_trace(str(self._folder), profiler_options=options)
            self._tracing = True

    def finish(self) -> None:
        """Ends the trace and prints the table, unless this was done before."""
        over, self._over = self._over, True
        if over or not self._first:
            return
        if not self._steps:
            self._console.print(f"no profile: the run ended within its first {SKIPPED} dispatches")
        if not self._tracing:
            return
        before = set(_traces(self._folder))
        with self._warn("no profile"):
            jax.profiler.stop_trace()
            self._show(next(path for path in _traces(self._folder) if path not in before))

    def _show(self, path):
        program = Program(self._traced.as_text())
        found = table.rows(program, path, self._steps)
        if not found:
            self._console.print(f"profile {path}: it has no events of the operations of {program.module}")
            return
        write_text(path.with_name("operations.csv"), table.csv(found))
        busy, whole = sum(row.seconds for row in found), self._seconds / self._steps
        self._console.print(
            f"profile of {self._steps} steps, per step and device: {1e3 * whole:.1f} ms, operations run for "
            f"{1e3 * busy:.1f} ms"
        )
        for line in table.lines(found):
            self._console.print(line)
        self._console.print(f"profile {path.parent}")

    @contextlib.contextmanager
    def _warn(self, what):
        """A run does not end because of its profile."""
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            self._console.warn(f"{what}: {type(error).__name__}: {reason}")


def _traces(folder):
    return sorted(folder.glob("plugins/profile/*/*.xplane.pb"))
