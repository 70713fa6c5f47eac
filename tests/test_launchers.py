"""slurm.sbatch: what it starts, and when it asks SLURM to requeue it; with fake SLURM commands."""

import os
import shutil
import subprocess

import pytest
from runs import ROOT

SCRIPT = ROOT / "imgclf_jax" / "slurm.sbatch"
# Each notes its arguments; `srun` ends like the processes it would start, `squeue` says the state of the job.
COMMANDS = {
    "srun": 'echo "cpus=$SRUN_CPUS_PER_TASK" >> "$NOTES"; exit "$PLAYED_STATUS"',
    "squeue": 'echo "$PLAYED_STATE"',
    "scontrol": ":",
}
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def play(tmp_path):
    for name, body in COMMANDS.items():
        command = tmp_path / name
        command.write_text(f'#!/bin/bash\necho "{name} $*" >> "$NOTES"\n{body}\n')
        command.chmod(0o755)

    def run(status, state="RUNNING", **variables):
        """The exit status of the script, what it printed, and the commands that it ran."""
        notes = tmp_path / "notes"
        notes.write_text("")
        environment = {name: value for name, value in os.environ.items() if "SLURM" not in name}
        environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(notes), "SLURM_JOB_ID": "17"}
        environment |= {"PLAYED_STATUS": str(status), "PLAYED_STATE": state, **variables}
        command = ["bash", str(SCRIPT), "--config=configs/cnn.py", "--config.augment.crop=(24, 24)"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        return done.returncode, done.stdout, notes.read_text().splitlines()

    return run


def requeued(notes):
    return "scontrol requeue 17" in notes


def test_the_run_is_found_again_by_the_number_of_the_job(play):
    code, out, notes = play(0, SLURM_CPUS_PER_TASK="3")
    assert code == 0 and "ended with status 0" in out
    (started, *_) = notes
    assert "python -m imgclf_jax.main --workdir=runs/slurm-17 --config=configs/cnn.py" in started
    assert started.endswith("--config.augment.crop=(24, 24)")
    assert "cpus=3" in notes  # srun does not inherit sbatch's value.


@pytest.mark.parametrize("status", [143, 137, 134, 139])  # interrupted, killed, aborted, crashed
def test_what_was_interrupted_or_died_is_requeued(play, status):
    code, out, notes = play(status, SLURM_RESTART_COUNT="2")
    assert code == status and requeued(notes) and "start 3" in out


@pytest.mark.parametrize("status", [0, 1, 2, 3, 130])  # complete, diverged, a mistake, another's mistake, Ctrl-C
def test_what_would_end_in_the_same_way_is_not_requeued(play, status):
    code, _, notes = play(status)
    assert code == status and not requeued(notes)


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING", ""])
def test_what_was_cancelled_stays_cancelled(play, state):
    code, out, notes = play(143, state)
    assert code == 143 and not requeued(notes) and "cancelled or requeued" in out


def test_restarts_are_limited(play):
    assert requeued(play(137, SLURM_RESTART_COUNT="19")[2])
    code, out, notes = play(137, SLURM_RESTART_COUNT="20")
    assert code == 137 and not requeued(notes) and "MAX_RESTARTS" in out
    assert requeued(play(137, SLURM_RESTART_COUNT="20", MAX_RESTARTS="21")[2])
