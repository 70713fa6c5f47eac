"""A sweep by its command: every run once, through crashes and by several commands at once."""

import signal
import time

import pytest
from runs import ROOT, SOFTMAX, bits, record, rows

from imgclf_jax.sweep import folder as sweep_folder
from imgclf_jax.sweep import states
from imgclf_jax.workdir.saved_config import load_config

pytest_plugins = ["run_fixtures"]

STEPS = 12
BASE = (*SOFTMAX, f"--config.train.steps={STEPS}", "--config.checkpoint.every_steps=4")
VARIED = "--vary=optim.learning_rate=1e-3,1e38"  # the second one diverges
MODULE = {"module": "imgclf_jax.sweep.__main__"}


@pytest.fixture(scope="module")
def swept(run, tmp_path_factory):
    """The folder of a sweep with two seeds of a good variant and of one that diverges, and what was printed."""
    folder = tmp_path_factory.mktemp("sweep") / "study"
    done = run(*BASE, VARIED, "--seeds=2", f"--workdir={folder}", **MODULE)
    return folder, done


def by_name(folder):
    return {run.name: run for run in sweep_folder.runs(folder)}


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and "seed" in str(path)}


def test_every_run_is_an_ordinary_run(run, swept, tmp_path):
    folder, _ = swept
    (ours,) = (each for name, each in by_name(folder).items() if name == "learning_rate=0.001 seed 1")
    alone = tmp_path / "alone"
    done = run(*BASE, "--config.optim.learning_rate=1e-3", "--config.seed=1", f"--workdir={alone}")
    assert done.code == 0, done
    assert rows(ours.folder) == rows(alone) and bits(ours.folder, STEPS) == bits(alone, STEPS)
    assert record(ours.folder)["results"] == record(alone)["results"]
    saved, expected = (load_config(place) for place in (ours.folder, alone))
    saved.log.progress = expected.log.progress
    assert saved == expected
    assert "test accuracy" in states.log_path(ours.folder).read_text()


def test_a_run_that_diverges_is_named_and_does_not_stop_the_rest(swept):
    folder, done = swept
    assert done.code == 1, done
    assert "diverged: learning_rate=1e+38 seed 0" in done.err and "not finite at step" in done.out
    assert "4/4 runs  2 complete, 2 diverged" in done.out
    assert f"python -m imgclf_jax.compare {folder}" in done.out
    assert [states.read(each.folder).name for each in by_name(folder).values()] == ["complete", "diverged"] * 2


def test_the_same_command_does_what_is_missing(run, swept):
    folder, _ = swept
    before = snapshot(folder)
    done = run(*BASE, VARIED, "--seeds=2", "--dry_run", f"--workdir={folder}", **MODULE)
    assert done.code == 0 and "4 runs (2 variants x 2 seeds), 4 of them done" in done.out
    assert snapshot(folder) == before
    done = run(*BASE, VARIED, "--seeds=3", f"--workdir={folder}", **MODULE)
    assert "changed: seeds added: 2" in done.out and "6/6 runs" in done.out
    after = snapshot(folder)
    assert {path: time for path, time in after.items() if path in before} == before
    assert {path.parent.name for path in after.keys() - before.keys() if path.name == "run.json"} == {"seed2"}
    done = run("--status", f"--workdir={folder}", **MODULE)
    assert done.code == 0
    assert [line.split() for line in done.out.splitlines()[:4]] == [
        ["group", "complete", "diverged"],
        ["learning_rate=0.001", "3"],
        ["learning_rate=1e+38", "3"],
        ["all", "3", "3"],
    ]


def test_a_dry_run_and_an_ancestor_that_is_missing_write_nothing(run, tmp_path):
    done = run(*BASE, VARIED, "--dry_run", f"--workdir={tmp_path / 'study'}", **MODULE)
    assert done.code == 0 and "waiting" in done.out
    done = run(*BASE, "--vary=init.run=gone", f"--workdir={tmp_path / 'study'}", **MODULE)
    assert done.code == 2 and "init.run=gone: there is no folder gone" in done.err and "failed" not in done.out
    assert list(tmp_path.iterdir()) == []


def test_a_killed_command_is_continued_by_the_next(run, swept, tmp_path):
    folder = tmp_path / "study"
    command = [*BASE, "--vary=optim.learning_rate=1e-3", "--seeds=2", f"--workdir={folder}"]
    done = run(*command, hooks=[["kill_all_when_there", str(folder), "*/seed0/checkpoints/4"]], **MODULE)
    assert done.code == -signal.SIGKILL, done
    first = by_name(folder)["learning_rate=0.001 seed 0"].folder
    assert states.read(first).name in ("stale", "running", "complete")
    done = run(*command, **MODULE)
    assert done.code == 0, done
    for name, ours in by_name(folder).items():
        theirs = by_name(swept[0])[name]
        assert rows(ours.folder) == rows(theirs.folder) and bits(ours.folder, STEPS) == bits(theirs.folder, STEPS)


def test_halving_stops_a_run_that_falls_behind_and_a_command_without_it_continues(run, tmp_path):
    folder = tmp_path / "study"
    command = [*BASE, "--config.eval.every_steps=4", "--vary=optim.learning_rate=1e-8,1e-3", f"--workdir={folder}"]
    done = run(*command, "--halving=2,0.3", **MODULE)
    assert done.code == 0, done
    good, behind = (each.folder for each in by_name(folder).values())
    assert [states.read(place).name for place in (good, behind)] == ["complete", "pruned"]
    assert record(behind)["step"] == 4 and "results" not in record(behind)  # The test split was not read.
    assert {row["split"] for row in rows(behind)} <= {"train", "valid"}
    assert run(*command, "--halving=2,0.3", "--dry_run", **MODULE).code == 0

    assert run(*command, **MODULE).code == 0
    assert states.read(behind).name == "complete" and record(behind)["step"] == STEPS
    assert record(behind)["results"]["test"]["count"] == 1000


def test_two_commands_share_the_work(run, tmp_path):
    folder = tmp_path / "study"
    command = [*BASE, "--vary=optim.learning_rate=1e-3,2e-3", "--seeds=2", f"--workdir={folder}"]
    started = [run.start(*command, **MODULE) for _ in range(2)]
    for done in map(run.finish, started):
        assert done.code == 0, done
        assert "4/4 runs  4 complete" in done.out
    for each in by_name(folder).values():
        assert record(each.folder)["sessions"] == 1


def test_ctrl_c_saves_and_the_next_command_continues(run, tmp_path):
    folder = tmp_path / "study"
    longer = ["--config.train.steps=4000", "--config.checkpoint.every_steps=4000", f"--workdir={folder}"]
    done = run(*BASE, *longer, hooks=[["signal_when_there", str(folder), "*/seed0/run.json", signal.SIGINT]], **MODULE)
    assert done.code == 128 + signal.SIGINT, done
    (ours,) = by_name(folder).values()
    assert states.read(ours.folder).name == "interrupted"
    assert 0 < record(ours.folder)["step"] < 4000


def test_a_failure_is_shown_at_once_and_can_stop_the_rest(run, tmp_path):
    folder = tmp_path / "study"
    command = [*BASE, "--vary=optim.learning_rate=1e-3,2e-3", f"--workdir={folder}"]
    dry = run(*command, "--dry_run", **MODULE)
    # A folder is where the first run wants to write a file.
    (folder / dry.out.splitlines()[1].split()[1] / "metrics.csv").mkdir(parents=True)
    done = run(*command, "--fail_fast", **MODULE)
    assert done.code == 1, done
    assert "failed: learning_rate=0.001 seed 0" in done.err and "metrics.csv" in done.out
    first, second = (each.folder for each in by_name(folder).values())
    assert states.read(first).name == "failed"
    # The worker may have taken the second run already, and dies or saves at any point of it, soon after the command.
    end = time.monotonic() + 20
    while states.read(second).name == "running" and time.monotonic() < end:
        time.sleep(0.1)
    assert states.read(second).name in ("waiting", "stale", "interrupted")
    # After the repair, the same command continues; fields that change no number may change.
    (first / "metrics.csv").rmdir()
    done = run(*command, "--config.log.every_steps=3", **MODULE)
    assert done.code == 0, done
    assert [states.read(place).name for place in (first, second)] == ["complete"] * 2
    assert load_config(first).log.every_steps == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*BASE], "--workdir is missing"),
        (["--workdir=x"], "--config is missing"),
        (["--status", "--workdir=nowhere"], "nowhere holds no sweep"),
        ([*BASE, "--workdir=x", "--max_parallel=0"], "--max_parallel=0 must be at least 1"),
        ([*BASE, "--workdir=x", "--halving=1"], "--halving=1 must be"),
        ([*BASE, "--workdir=x", "--seeds=none"], "--seeds=none: write how many"),
        ([*BASE, "--workdir=x", "--slurm=gpu"], "'gpu' is not NAME=VALUE"),
        ([*BASE, "--workdir=x", "--vary=optim.learning_rat=1"], "did you mean optim.learning_rate?"),
        ([*BASE, "--workdir=x", "--vary=optim.momentum=2.0"], "momentum=2: optim.momentum=2.0 must be"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, arguments, message):
    done = run(*(argument.replace("configs/", f"{ROOT}/configs/") for argument in arguments), cwd=tmp_path, **MODULE)
    assert done.code == 2, done
    (line,) = done.err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []
