"""Runs a sweep on this machine: starts workers, shows their progress as one line, and reports failures at once."""

import collections
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from imgclf_jax.sweep import folder as sweep_folder
from imgclf_jax.sweep import gpus, states
from imgclf_jax.terminal import interrupt
from imgclf_jax.terminal.console import Console, duration

LINE_SECONDS = 30.0  # between progress lines
POLL_SECONDS = 0.2
TAIL_LINES, MOST_CHARACTERS = 12, 200  # of the log of a failed run
MOST_DEATHS = 10  # of a worker, which is then not started again


def run(folder: Path, workers: int, fail_fast: bool, console: Console, halving: str = "", at_once: int = 1) -> int:
    """Runs all that is left of a sweep.

    Args:
        folder: the folder of the sweep; see `imgclf_jax.sweep.folder.write`.
        workers: how many processes take runs.
        fail_fast: whether the first failure stops the rest.
        console: where to print.
        halving: see `imgclf_jax.sweep.halving.parse`.
        at_once: how many runs train in one program, if they can.

    Returns:
        0 if all runs are complete, 1 if some are not, 128 + the number of the signal that asked to stop.
    """
    with interrupt.catch() as asked:
        asked.defer()
        return _Command(folder, workers, fail_fast, console, asked, halving, at_once).run()


class _Command:
    """One invocation of the launcher. Its attributes are keyed by the number of a worker or the folder of a run."""

    def __init__(self, folder, workers, fail_fast, console, asked, halving, at_once):
        self._folder, self._fail_fast, self._console, self._asked = folder, fail_fast, console, asked
        self._invocation, self._options = uuid.uuid4().hex, [f"--halving={halving}", f"--at_once={at_once}"]
        self._runs = {str(run.folder): run for run in sweep_folder.runs(folder)}
        self._waiting = list(range(1, workers))  # workers that have not been started
        self._count = workers
        self._workers: dict[int, subprocess.Popen] = {}  # those that are running
        self._events: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self._holds: dict[int, set[str]] = {}  # the runs that a worker has
        self._deaths: collections.Counter[int] = collections.Counter()  # of workers
        self._crashed: set[str] = set()  # runs whose process died
        self._stopping = False
        self._began = time.monotonic()
        self._done = 0  # runs that ended in this invocation
        self._line = -float("inf")

    def run(self):
        self._start(0)
        self._show()
        while self._workers:
            self._handle_event()
            if self._asked.number and not self._stopping:
                self._stop(self._asked.number)
            # The first worker decodes the data; the others find it in the cache.
            while self._waiting and self._has_begun() and not self._stopping:
                self._start(self._waiting.pop(0))
            self._show()
        self._show(last=True)
        return 128 + self._asked.number if self._asked.number else self._status()

    def _has_begun(self):
        """Whether a run of this invocation has ended or is training."""
        return bool(self._done) or any(
            (Path(run) / "run.json").exists() for held in self._holds.values() for run in held
        )

    def _start(self, number):
        command = [sys.executable, "-m", "imgclf_jax.sweep.worker", f"--workdir={self._folder}"]
        process = subprocess.Popen(
            [*command, f"--invocation={self._invocation}", *self._options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | gpus.environment(number, self._count),
            start_new_session=True,  # Ctrl-C reaches this process, which passes it on.
        )
        self._workers[number] = process
        threading.Thread(target=self._listen, args=(number, process), daemon=True).start()

    def _listen(self, number, process):
        for line in process.stdout:
            try:
                self._events.put((number, json.loads(line)))
            except ValueError:
                continue
        process.wait()
        self._events.put((number, None))

    def _handle_event(self):
        try:
            number, event = self._events.get(timeout=POLL_SECONDS)
        except queue.Empty:
            return
        if event is None:
            self._ended(number)
        elif event["state"] == "running":
            self._holds.setdefault(number, set()).add(event["run"])
        else:
            self._holds.get(number, set()).discard(event["run"])
            self._done += 1
            self._report(event["run"])

    def _ended(self, number):
        """A worker has ended: because nothing is left, because it was asked to, or by a crash."""
        code, held = self._workers.pop(number).returncode, self._holds.pop(number, set())
        if not code or self._stopping:
            return
        self._deaths[number] += 1
        for run in sorted(held):
            # Once is bad luck; a run whose process dies again has failed.
            if run in self._crashed:
                states.fail(Path(run), self._invocation, f"its process died twice (exit status {code})")
                self._report(run)
            else:
                self._crashed.add(run)
                self._console.warn(f"{self._name(run)}: its process died; it is resumed from its last checkpoint")
        if self._deaths[number] < MOST_DEATHS:
            self._start(number)

    def _report(self, path):
        """Prints what went wrong with a run, if anything did."""
        state = states.read(Path(path))
        if state.name not in ("failed", "diverged"):
            return
        log = states.log_path(Path(path))
        self._console.warn(f"{state.name}: {self._name(path)}")
        for line in tail(log, TAIL_LINES):
            self._console.print(f"    {line[:MOST_CHARACTERS]}")
        self._console.print(f"    its whole output: {log}")
        if self._fail_fast and state.name == "failed":
            self._stop(signal.SIGTERM)

    def _stop(self, number):
        self._stopping = True
        for process in self._workers.values():
            process.send_signal(number)

    def _show(self, last=False):
        if not last and time.monotonic() - self._line < LINE_SECONDS:
            return
        self._line = time.monotonic()
        self._console.print(self._progress())

    def _progress(self):
        counts = collections.Counter(states.read(Path(path)).name for path in self._runs)
        done = sum(counts[name] for name in (*states.FINAL, "pruned"))
        parts = [f"{counts[name]} {name}" for name in states.STATES if counts[name] and name != "waiting"]
        text = f"{done}/{len(self._runs)} runs  {', '.join(parts)}"
        left = len(self._runs) - done - counts["failed"]
        if left and self._done:
            text += f"  ETA {duration((time.monotonic() - self._began) / self._done * left)}"
        return text

    def _name(self, path):
        return self._runs[path].name

    def _status(self):
        found = [states.read(Path(path)).name for path in self._runs]
        return 0 if all(name in ("complete", "pruned") for name in found) else 1


def tail(path: Path, lines: int) -> list[str]:
    """Returns the last lines of a text file that are not empty."""
    try:
        text = path.read_bytes()[-20_000:].decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]
