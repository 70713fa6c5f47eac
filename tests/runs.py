"""Runs the command-line tools for the tests, each in its own process, and reads the files that they leave."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from imgclf_jax.workdir import checkpoint_folder
from imgclf_jax.workdir.checkpoint import Checkpoints
from imgclf_jax.workdir.rows import read_rows

ROOT = Path(__file__).parent.parent
# Compiled in seconds, but with everything that must survive an interruption of a run: augmentation,
# dropout, batch norm, averaged parameters, epochs that wrap around, and rows, evaluations and checkpoints whose
# intervals (4, 7 and 3 steps) do not divide each other. 14 steps: of 64 images, 400 in an epoch.
TINY = (
    "--config=configs/cnn.py",
    "--config.data.source=sample",
    "--config.data.train_split=train[:5000]",
    "--config.model.widths=(4,)",
    "--config.model.hidden=(16,)",
    "--config.model.dropout=0.2",
    "--config.optim.ema_decay=0.9",
    "--config.train.batch_size=64",
    "--config.train.last_batch=wrap",
    "--config.train.epochs=2",
    "--config.train.steps_per_dispatch=2",
    "--config.log.every_steps=4",
    "--config.log.line_seconds=0",
    "--config.checkpoint.every_steps=3",
)
STEPS = 14
# The cheapest run.
SOFTMAX = (
    "--config=configs/softmax.py",
    "--config.data.source=sample",
    "--config.data.train_split=train[:5000]",
    "--config.train.batch_size=50",
    "--config.train.steps=4",
    "--config.log.tensorboard=False",
)


@dataclasses.dataclass(frozen=True)
class Done:
    """A run that has ended. `code` is negative for the signal that killed it."""

    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    """Returns the environment of the tests, but with one device, as is most common."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", "")).strip()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "XLA_FLAGS": flags, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


class Runner:
    """Starts `python -m imgclf_jax.main`, or another tool, by forking a process that has everything imported."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._count = 0
        self._server: subprocess.Popen[str] | None = None

    def __call__(
        self,
        *arguments: Any,
        hooks: Any = (),
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
        module: str = "imgclf_jax.main",
    ) -> Done:
        """Runs to the end.

        Args:
            arguments: the command line.
            hooks: (name of a function in `hooks`, its arguments ...), called before the run.
            cwd: the working directory.
            env: environment variables to set.
            module: the tool.
        """
        return self._finish(self._start(arguments, hooks, cwd, env, module))

    def together(
        self, *arguments: Any, processes: int, hooks: dict[int, Any] | None = None, cwd: Path = ROOT
    ) -> list[Done]:
        """Runs several processes of one job, with `hooks` in those that are named, until all of them have ended."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job = [*arguments, f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
        started = [
            self._start([*job, f"--process_id={process}"], (hooks or {}).get(process, ()), cwd, None)
            for process in range(processes)
        ]
        return [self._finish(run) for run in started]

    def _start(self, arguments, hooks, cwd, env, module="imgclf_jax.main"):
        self._count += 1
        out, err, stuck = (self._folder / f"{self._count}.{name}" for name in ("out", "err", "stuck"))
        pid = self._ask(
            argv=[str(argument) for argument in arguments],
            cwd=str(cwd),
            env=env or {},
            out=str(out),
            err=str(err),
            stuck=str(stuck),
            hooks=list(hooks),
            module=module,
        )["pid"]
        return pid, arguments, out, err, stuck

    def _finish(self, started):
        pid, arguments, out, err, stuck = started
        code = self._ask(wait=pid)["code"]
        done = Done(code, out.read_text(), err.read_text())
        if stuck.exists() and stuck.read_text():  # written by the watchdog of the server
            pytest.fail(f"the run {arguments} did not end:\n{done.out}\n{done.err}\n{stuck.read_text()}")
        return done

    def _ask(self, **request: Any) -> Any:
        if self._server is None:
            command = [sys.executable, str(ROOT / "tests" / "fork_server.py")]
            pipe = subprocess.PIPE
            self._server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment())
        assert self._server.stdin and self._server.stdout
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        if self._server is not None:
            self._server.communicate()


def rows(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of the metrics files, without the column that depends on the clock."""
    without_rates = read_rows(folder)
    for row in without_rates:
        del row["images_per_second"]
    return without_rates


def record(folder: Path, name: str = "run.json") -> dict[str, Any]:
    """Returns the content of a JSON file of a workdir without its digest, so that a test can change it and write it."""
    content = json.loads((folder / name).read_text())
    content.pop("sha256", None)
    return content


def steps(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints in a workdir."""
    return checkpoint_folder.steps(folder)


def bits(folder: Path, step: int = STEPS) -> list[tuple[Any, bytes]]:
    """Every array of a checkpoint, as (path in the tree, bytes)."""
    checkpoints = Checkpoints(folder, read_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = checkpoints.restore(step)
    checkpoints.close()
    return [(path, np.asarray(leaf).tobytes()) for path, leaf in jax.tree.leaves_with_path(tree)]
