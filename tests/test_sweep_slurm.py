"""slurm.py: jobs of submitit work on a sweep, save when they are interrupted, and start again."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from runs import SOFTMAX, environment, record

from imgclf_jax.errors import UserError
from imgclf_jax.sweep import folder as sweep_folder
from imgclf_jax.sweep import locks, slurm, states

pytest.importorskip("submitit")
pytest_plugins = ["run_fixtures"]

BASE = (*SOFTMAX, "--config.train.steps=3000", "--config.checkpoint.every_steps=1000")
MODULE = {"module": "imgclf_jax.sweep.__main__"}


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_an_interrupted_job_saves_and_continues(run, tmp_path, monkeypatch):
    for name in ("PYTHONPATH", "XLA_FLAGS"):
        monkeypatch.setenv(name, environment()[name])
    folder = tmp_path / "study"
    # Without SLURM nothing is written.
    done = run(*BASE, "--launcher=slurm", f"--workdir={folder}", env={"PATH": "/nowhere"}, **MODULE)
    assert done.code == 2 and "there is no sbatch here" in done.err and not folder.exists(), done
    # Here SLURM refuses the job: the sweep is written, and the error says why.
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\necho invalid partition >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = run(*BASE, "--launcher=slurm", f"--workdir={folder}", env={"PATH": path}, **MODULE)
    assert done.code == 2, done
    # The first line is what sbatch itself says.
    assert done.err.splitlines() == ["invalid partition", "error: cannot submit to slurm: invalid partition"]
    (one,) = sweep_folder.runs(folder)
    assert states.read(one.folder).name == "waiting"

    assert len(slurm.submit(folder, slurm.Task(folder, "test", 1), 1, 0, {}, cluster="local")) == 1
    wait_for(lambda: (one.folder / "run.json").exists())
    worker = locks.read(states.lock_path(one.folder)).pid
    job = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    for process in (worker, job):  # All of them hear it when SLURM takes the machine away.
        os.kill(process, signal.SIGUSR2)
    wait_for(lambda: states.read(one.folder).name in ("complete", "failed"))
    assert states.read(one.folder).name == "complete"
    assert record(one.folder)["sessions"] == 2 and record(one.folder)["step"] == 3000


def test_parameters_of_sbatch():
    options = slurm.parse_options("partition=gpu,gres=gpu:1,time=600,--mem=8G")
    assert options == {"partition": "gpu", "gres": "gpu:1", "time": 600, "mem": "8G"}
    assert slurm.as_parameters(options) == {
        "slurm_partition": "gpu",
        "slurm_gres": "gpu:1",
        "timeout_min": 600,
        "slurm_mem": "8G",
    }
    assert slurm.parse_options("") == {}
    with pytest.raises(UserError, match="'gpu' is not NAME=VALUE"):
        slurm.parse_options("gpu")
