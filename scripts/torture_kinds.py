"""The interruptions that `torture.py` tries: signals, frozen processes, dying workers and peers."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence

import torture_judge as judge
from torture_processes import members
from torture_try import SINGLE, Try

REAL_SECONDS = 4.0  # about the time that a new process needs to import everything
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MOST_SECONDS = 60  # how long to wait for something to appear


def control(a: Try) -> None:
    """Disturbs nothing: the same command run twice must give the same bits."""
    a.complete(a.random.choice([*SINGLE, "job"]), real=a.random.random() < 0.5)


def kill(a: Try) -> None:
    """Sends SIGKILL, SIGTERM, SIGINT and SIGHUP at random moments, to several runs in a row."""
    recipe, real = a.random.choice(SINGLE), a.random.random() < 0.25
    for _ in range(a.random.randint(1, 4)):
        interrupted(a, recipe, real, (signal.SIGKILL, *STOPPING), a.random.choice((1, 1, 1, 2)))
    a.complete(recipe)


def interrupted(a: Try, recipe: str, real: bool, signals: Sequence[signal.Signals], count: int) -> None:
    """Starts a run, sends it `count` of `signals` at random moments, and checks how it ends."""
    sent = early = False
    (run,) = a.world.train(a.logs, recipe, a.workdir, real=real)
    for _ in range(count):
        _wait_for_moment(a, run, recipe, real)
        number, group = a.random.choice(signals), a.random.random() < 0.3
        a.note(f"{recipe}{', real' * real}: {number.name} to {'the group' if group else 'the process'}")
        trained = judge.FIRST_STEP.search(run.text("out"))
        sent = a.world.processes.signal(run, number, group)
        early = sent and trained is None
    a.finish(run)
    judge.stopping(run, a.findings)
    if count == 1 and early and run.code == 0:
        a.findings.add("wrong", f"{number.name} after {run.sent[0][1]} s was swallowed: the run continued to its end")


def start(a: Try) -> None:
    """Sends a signal within the first 1.5 seconds of new processes, while they import what they need."""
    recipe = a.random.choice(SINGLE)
    for _ in range(a.random.randint(2, 4)):
        number, moment = a.random.choice(STOPPING), a.random.uniform(0.05, 1.5)
        (run,) = a.world.train(a.logs, recipe, a.workdir, real=True)
        a.world.processes.wait(run, moment)
        a.note(f"{number.name} after {moment:.2f} s")
        a.world.processes.signal(run, number)
        a.finish(run)
        if run.sent and run.code == 0:
            a.findings.add("wrong", f"{number.name} after {moment:.2f} s was swallowed: the run continued to its end")
    a.complete(recipe)


def freeze(a: Try) -> None:
    """Sends SIGSTOP and, a while later, SIGCONT to a process, one of its workers or all of them."""
    recipe, real = a.random.choice(SINGLE), a.random.random() < 0.15
    (run,) = a.world.train(a.logs, recipe, a.workdir, real=real)
    for _ in range(a.random.randint(1, 4)):
        _wait_for_moment(a, run, recipe, real)
        target, seconds = a.random.choice(("process", "group", "worker")), a.random.uniform(0.1, 3)
        pick = a.random.random()
        workers = members(run.pid)
        a.note(f"SIGSTOP to {target} for {seconds:.1f} s")
        if target == "worker" and workers:
            worker = workers[int(pick * len(workers))]
            for number in (signal.SIGSTOP, signal.SIGCONT):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, number)
                a.world.processes.wait(run, seconds if number == signal.SIGSTOP else 0)
        else:
            a.world.processes.signal(run, signal.SIGSTOP, target == "group")
            a.world.processes.wait(run, seconds)
            a.world.processes.signal(run, signal.SIGCONT, target == "group")
    if a.finish(run).code == 0:
        judge.compare(a.workdir, a.world.reference(recipe)[1], a.findings)
    elif not run.hung:
        a.findings.add("wrong", f"frozen for a while, it ended with {run.code}: {run.text()[-200:]}")


def worker(a: Try) -> None:
    """Sends SIGKILL to one of the processes that decode, then runs the same command again."""
    recipe, pick = a.random.choice(("streamed", "photos-streamed")), a.random.random()
    (run,) = a.world.train(a.logs, recipe, a.workdir, real=a.random.random() < 0.15)
    until = time.monotonic() + MOST_SECONDS
    while not (workers := members(run.pid)) and not a.world.processes.wait(run, 0.02) and time.monotonic() < until:
        pass
    a.world.processes.wait(run, a.random.uniform(0, 1.5))
    if workers := members(run.pid) or workers:
        a.note(f"SIGKILL to a worker, one of {len(workers)}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(workers[int(pick * len(workers))], signal.SIGKILL)
    a.finish(run)
    a.complete(recipe)


def job(a: Try) -> None:
    """Kills one of two processes of a job, or freezes it for a while or for good."""
    seconds = a.world.reference("job")[2]
    runs = a.world.train(a.logs, "job", a.workdir, real=a.random.random() < 0.15)
    victim, moment = a.random.choice(runs), a.random.uniform(0, 1.1) * seconds
    what = a.random.choice(("SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "frozen", "frozen", "frozen for good"))
    length = a.random.uniform(0.2, 5)
    a.note(f"process {runs.index(victim)}: {what} after {moment:.2f} s" + f" for {length:.1f} s" * (what == "frozen"))
    a.world.processes.wait(victim, moment)
    a.world.processes.signal(victim, getattr(signal, what, signal.SIGSTOP))
    if what == "frozen":
        a.world.processes.wait(victim, length)
        a.world.processes.signal(victim, signal.SIGCONT)
    for run in sorted(runs, key=lambda run: run is victim):
        if what == "frozen for good" and run is victim:
            a.world.processes.signal(run, signal.SIGKILL)
        a.finish(run, native=True)
    if what == "frozen" and any(run.code for run in runs):
        a.findings.add("wrong", f"frozen for {length:.1f} s, the job ended with {[run.code for run in runs]}")
    a.complete("job")


def _wait_for_moment(a, run, recipe, real):
    """Waits until a random time, or until a little after a checkpoint appears."""
    seconds = a.world.reference(recipe)[2] + (REAL_SECONDS if real else 0)
    fraction, step, delay = a.random.random(), a.random.choice((3, 6, 9, 12, 14)), a.random.uniform(0, 0.2)
    if a.random.random() < 0.5:
        a.world.processes.wait(run, fraction * seconds)
        return
    there = a.workdir / "checkpoints" / str(step)
    if there.exists():  # It was left by an earlier run.
        a.world.processes.wait(run, fraction * seconds)
    until = time.monotonic() + MOST_SECONDS
    while not there.exists() and not a.world.processes.wait(run, 0.005) and time.monotonic() < until:
        pass
    a.world.processes.wait(run, delay)
