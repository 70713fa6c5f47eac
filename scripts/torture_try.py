"""One try of `torture.py`: its state, and how its processes are judged."""

import dataclasses
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torture_judge as judge
from torture_processes import Run
from torture_runs import World

SINGLE = ("resident", "streamed", "photos", "photos-streamed")  # the recipes of one process
RETRIES = 3  # how often a command that is no longer disturbed is run


@dataclasses.dataclass
class Try:
    """One try.

    Attributes:
        world: the folders and runs that all tries share.
        folder: the folder of this try.
        random: the source of everything that is drawn.
        findings: the problems so far.
        plan: descriptions of what was done, in order.
        log: called with each line of `plan`.
    """

    world: World
    folder: Path
    random: random.Random
    log: Callable[[str], None]
    findings: judge.Findings = dataclasses.field(default_factory=judge.Findings)
    plan: list[str] = dataclasses.field(default_factory=list)

    @property
    def logs(self) -> Path:
        """The folder for what its processes print."""
        return self.folder / "logs"

    @property
    def workdir(self) -> Path:
        """The folder of its run."""
        return self.folder / "run"

    def note(self, text: str) -> None:
        """Records a step of the try."""
        self.plan.append(text)
        self.log(text)

    def finish(self, run: Run, **options: bool) -> Run:
        """Waits for a process and judges how it has ended. `options` are those of `torture_judge.ending`."""
        self.world.processes.finish(run)
        sent = "".join(f", {signal.Signals(number).name} at {moment:.2f} s" for number, moment in run.sent)
        self.note(f"exit status {run.code} after {time.monotonic() - run.began:.1f} s{sent}")
        judge.ending(run, self.findings, **options)
        return run

    def complete(self, recipe: str, cache: Path | None = None, workdir: Path | None = None, **options: Any) -> None:
        """Runs the command undisturbed and compares the result. Records a failure, and then runs it again."""
        workdir = workdir or self.workdir
        for _ in range(RETRIES):
            runs = [self.finish(run) for run in self.world.train(self.logs, recipe, workdir, cache, **options)]
            if all(run.code == 0 for run in runs):
                judge.compare(workdir, self.world.reference(recipe)[1], self.findings)
                return
            self.findings.add("wrong", f"an undisturbed run ended with {runs[0].code}: {runs[0].text()[-200:]}")
            if any(run.hung for run in runs):
                return
