"""scripts/torture.py: a short pass, and whether it notices the problems that it looks for."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest
import torture
import torture_damage
import torture_judge as judge
from runs import ROOT
from torture_processes import Run, members
from torture_runs import outcome

from imgclf_jax.workdir.checkpoint import Checkpoints
from imgclf_jax.workdir.metrics import MetricsFiles
from imgclf_jax.workdir.rows import METRICS


@pytest.fixture
def ended(tmp_path):
    """Makes a process that has ended, out of what it said."""

    def make(code, err="", out="", sent=()):
        for name, text in (("err", err), ("out", out)):
            (tmp_path / name).write_text(text)
        paths = [tmp_path / name for name in ("out", "err", "stuck")]
        return Run("python -m tool --workdir=x", 1, *paths, time.monotonic(), sent=list(sent), code=code)

    return make


def kinds(*looks):
    findings = judge.Findings()
    for look, run in looks:
        look(run, findings)
    return findings.outcome()


# A short pass


def test_unknown_kind_is_a_mistake_on_the_command_line(capsys):
    with pytest.raises(SystemExit) as caught:
        torture.main(["--only=kill,smash"])
    assert caught.value.code == 2
    assert "'smash' is not a kind; choose from" in capsys.readouterr().err


def test_try_is_a_function_of_seed_and_number():
    def drawn(seed, number):
        kind, draws = torture.draw(seed, number)
        return kind.__name__, draws.random()

    assert [drawn(1, n) for n in range(20)] == [drawn(1, n) for n in range(20)]
    assert {drawn(0, n)[0] for n in range(300)} == set(torture.BY_NAME)


# What it notices


@pytest.mark.parametrize(
    "code, err, out, expected",
    [
        (0, "", "total time 3 s", "identical"),
        (2, "error: no space", "", "identical"),
        (130, "stopped", "", "identical"),
        (143, "", "interrupted at step 3 of 14; saved. To continue:", "identical"),
        (2, "error: no space\n" * 13, "", "wrong"),
        (0, "Traceback (most recent call last):\n  ...\nValueError: no", "", "traceback"),
        (1, "Exception ignored in: <_io.TextIOWrapper name='<stdout>'>\nBrokenPipeError", "", "traceback"),
        (1, "", "step 1/14", "silent"),
        (-6, "", "", "silent"),
    ],
)
def test_endings(ended, code, err, out, expected):
    assert kinds((judge.ending, ended(code, err, out))) == expected


def test_process_that_hangs(ended):
    run = ended(-9)
    run.hung = True
    assert kinds((judge.ending, run)) == "hang"


def test_death_by_a_signal_that_was_sent_is_an_ending_but_not_in_training(ended):
    early = ended(-15, sent=[(15, 0.2)])
    assert kinds((judge.ending, early), (judge.stopping, early)) == "identical"
    late = ended(-15, out="step  4/14  loss", sent=[(15, 3.0)])
    assert kinds((judge.stopping, late)) == "wrong"


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """What a complete run leaves, as far as it is compared."""
    folder = tmp_path_factory.mktemp("complete")
    checkpoints = Checkpoints(folder)
    files = MetricsFiles(folder, METRICS, tensorboard=False)
    for step in (12, 14):
        checkpoints.save(step, {"weights": jnp.full((3,), step, jnp.float32)})
        for split in ("train", "valid"):
            files.write(step=step, epoch=step / 7, split=split, loss=1 / step, accuracy=0.5)
    checkpoints.wait()
    checkpoints.close()
    files.close()
    results = {"test": {"correct": 5, "count": 10}}
    record = {"status": "complete", "step": 14, "results": results, "data": {"fingerprint": "abc"}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def same(complete, tmp_path):
    """Compares a changed copy of a complete run with the run: (change, what was said) -> outcome."""
    expected = outcome(complete)

    def compare(change, said=""):
        folder = tmp_path / f"copy-{random.random()}"
        shutil.copytree(complete, folder)
        change(folder)
        findings = judge.Findings()
        judge.compare(folder, expected, findings, said)
        return findings.outcome()

    return compare


def without_row(name):
    def change(folder):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:2] + lines[3:]))

    return change


def other_results(folder):
    record = json.loads((folder / "run.json").read_text())
    record["results"]["test"]["correct"] += 1
    (folder / "run.json").write_text(json.dumps(record))


def other_weights(folder):
    shutil.rmtree(folder / "checkpoints" / "14")
    shutil.copytree(folder / "checkpoints" / "12", folder / "checkpoints" / "14")


def test_comparison_of_runs(same):
    assert same(lambda folder: None) == "identical"
    assert same(other_results) == "wrong"
    assert same(other_weights) == "wrong"
    assert same(without_row("metrics.jsonl")) == "wrong"
    assert same(without_row("metrics.csv")) == "wrong"
    assert same(without_row("metrics.jsonl"), said="warning: rows of metrics.jsonl are lost") == "identical"
    assert same(lambda folder: (folder / "run.json").unlink()) == "wrong"


def test_what_a_refusal_may_change(tmp_path):
    def after(change):
        folder = tmp_path / f"folder-{random.random()}"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "3").write_text("weights")
        (folder / "run.json").write_text("{}")
        before = judge.snapshot(folder)
        change(folder)
        return judge.changes(before, judge.snapshot(folder))

    def quarantine(folder):
        (folder / "damaged_checkpoints").mkdir()
        (folder / "checkpoints" / "3").rename(folder / "damaged_checkpoints" / "3")

    assert after(lambda folder: (folder / ".lock").touch()) == []
    assert after(quarantine) == []
    assert after(lambda folder: (folder / "run.json").write_text("{ }")) == ["run.json has changed"]
    assert after(lambda folder: (folder / "checkpoints" / "3").unlink()) == ["checkpoints/3 is gone"]
    assert after(lambda folder: (folder / "config.json").touch()) == ["config.json is new"]


@pytest.mark.parametrize("how", ["flip_bits", "zero_page", "truncate", "append", "line_of_junk", "replace_by_junk"])
def test_damage_is_done_and_keeps_the_time_of_the_file(tmp_path, how):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(1, 256)) * 40)
    os.utime(path, (1e9, 1e9))
    before = path.read_bytes()
    getattr(torture_damage, how)(path, random.Random(0))
    assert path.read_bytes() != before
    assert path.stat().st_mtime == 1e9


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_processes_do_not_inherit_ignored_signals_and_groups_are_seen():
    code = (
        "import signal, subprocess, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
        "from torture_processes import inherit_default_signals; inherit_default_signals();"
        "asked = 'import signal; print(signal.getsignal(signal.SIGHUP) == signal.SIG_DFL)';"
        "print(subprocess.run([sys.executable, '-c', asked], capture_output=True, text=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True)
    assert done.stdout.split() == ["True"], done.stderr
    leader = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True)
    try:
        until = time.monotonic() + 20
        while not (found := members(leader.pid)) and time.monotonic() < until:
            time.sleep(0.01)
        assert len(found) == 1
    finally:
        os.killpg(leader.pid, 9)
        leader.wait()
