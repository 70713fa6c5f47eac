"""Runs a sweep on a SLURM cluster: submits an array of jobs, each of which works on the runs that are left.

Uses submitit (https://github.com/facebookincubator/submitit), the extra `slurm`. The jobs find their runs through the
files of the sweep, as all workers do, so a job that starts late or twice does no harm.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from imgclf_jax.errors import UserError

MOST_TIMEOUTS = 1000
SAVE_SECONDS = 90  # A worker that has not saved by then is left to SLURM, which will kill it.


class Task:
    """One job: a worker, which saves and is submitted again if SLURM takes the machine away."""

    def __init__(self, folder: Path, invocation: str, runs: int, halving: str = "", at_once: int = 1):
        """Prepares the job.

        Args:
            folder: the folder of the sweep.
            invocation: the name of the command that submitted it.
            runs: how many runs it takes at most.
            halving: see `imgclf_jax.sweep.halving.parse`.
            at_once: how many runs train in one program, if they can.
        """
        self._command = [
            *(sys.executable, "-m", "imgclf_jax.sweep.worker", f"--workdir={folder}"),
            *(f"--invocation={invocation}", f"--runs={runs}", f"--halving={halving}"),
            *(f"--at_once={at_once}", "--nowait"),
        ]
        self._process: subprocess.Popen | None = None
        self._arguments = (folder, invocation, runs, halving, at_once)

    def __call__(self) -> int:
        """Works. Returns the exit status of the worker."""
        self._process = subprocess.Popen(self._command, start_new_session=True, preexec_fn=_ignore_notice)
        return self._process.wait()

    def checkpoint(self) -> Any:
        """Lets the run save its state, and returns what submitit submits again."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None and not _has_ended(self._process.pid):
            os.kill(self._process.pid, signal.SIGTERM)
            until = time.monotonic() + SAVE_SECONDS
            while time.monotonic() < until and not _has_ended(self._process.pid):
                time.sleep(0.1)
        return DelayedSubmission(Task(*self._arguments))


def _ignore_notice():
    """SLURM sends its notice to all processes of a job. It would kill the worker, for which this process handles it."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _has_ended(pid):
    """Whether a child has ended. `Popen.wait` and `poll` would lock up in a signal handler that interrupts `wait`."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # It was waited for already.
        return True


def check() -> None:
    """Raises `UserError` if no job can be submitted from here."""
    if importlib.util.find_spec("submitit") is None:
        raise UserError("--launcher=slurm needs submitit; install it with pip install 'imgclf_jax[slurm]'")
    if shutil.which("sbatch") is None:
        raise UserError("--launcher=slurm: there is no sbatch here; run the command where jobs can be submitted")


def submit(
    folder: Path,
    task: Task,
    jobs: int,
    parallel: int,
    options: dict[str, Any],
    cluster: str = "slurm",
) -> list[str]:
    """Submits an array of jobs and returns their ids at once.

    Args:
        folder: the folder of the sweep. It must be on a file system that the jobs see too.
        task: what each job does.
        jobs: how many jobs.
        parallel: how many jobs run at once; 0: as many as the cluster allows.
        options: parameters of `sbatch`, such as {"partition": "gpu", "gres": "gpu:1", "time": 600}.
        cluster: "slurm", or "local" for processes of this machine.

    Raises:
        UserError: SLURM refuses the jobs.
    """
    import submitit

    try:
        # A job that runs out of time has saved, so it may be submitted again as often as it takes.
        again = {"slurm_max_num_timeout": MOST_TIMEOUTS}
        executor = submitit.AutoExecutor(folder=folder.resolve() / "slurm" / "%j", cluster=cluster, **again)
        if cluster == "slurm":
            array = {"slurm_array_parallelism": parallel} if parallel else {}
            executor.update_parameters(name=folder.resolve().name, **array, **as_parameters(options))
        with executor.batch():
            submitted = [executor.submit(task) for _ in range(jobs)]
    except (RuntimeError, ValueError, TypeError, NameError, OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"cannot submit to {cluster}: {' '.join(str(error).split())[:500]}") from error
    return [job.job_id for job in submitted]


def as_parameters(options: dict[str, Any]) -> dict[str, Any]:
    """Returns parameters of `sbatch` as submitit takes them."""
    own = {"time": "timeout_min"}
    return {own.get(name, f"slurm_{name.replace('-', '_')}"): value for name, value in options.items()}


def parse_options(text: str) -> dict[str, Any]:
    """Parses "partition=gpu,gres=gpu:1,time=600".

    Raises:
        UserError: a part is not NAME=VALUE.
    """
    options: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise UserError(f"--slurm={text}: {part!r} is not NAME=VALUE; for example --slurm=partition=gpu,gres=gpu:1")
        options[name.strip("-")] = int(value) if value.isdigit() else value
    return options
