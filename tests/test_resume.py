"""A run that is interrupted, however and whenever, and started again is the run that was never interrupted."""

import shlex
import shutil
import signal
import subprocess

import pytest
from runs import ROOT, SOFTMAX, STEPS, TINY, bits, environment, record, rows, steps

pytest_plugins = ["run_fixtures"]

SAVE = "workdir.checkpoint:Checkpoints.save"
LONGER = [*SOFTMAX, "--config.train.steps=12", "--config.checkpoint.every_steps=3", "--config.log.every_steps=2"]


def assert_same_run(folder, reference):
    """Rows, results and the final checkpoint are the same, to the last bit."""
    assert rows(folder) == rows(reference)
    assert record(folder)["status"] == "complete"
    assert record(folder)["results"] == record(reference)["results"]
    assert bits(folder) == bits(reference)


# Killed


def test_run_killed_again_and_again_ends_the_same(run, finished, tmp_path):
    folder = tmp_path / "run"
    deaths = [
        ["signal_after", "workdir.metrics:MetricsFiles.write", 1, signal.SIGKILL],  # a row that nobody has flushed
        ["signal_after", SAVE, 1, signal.SIGKILL],  # a checkpoint half written
        [
            "signal_after",
            "workdir.metrics:MetricsFiles.flush",
            3,
            signal.SIGKILL,
        ],  # rows written, but no checkpoint yet
        ["signal_before", "training.phases:read_rows", 1, signal.SIGKILL],  # all done but not written down
    ]
    for hook in deaths:
        done = run(*TINY, f"--workdir={folder}", hooks=[hook])
        assert done.code == -signal.SIGKILL, (hook, done)
        assert record(folder)["status"] == "running"
    done = run(*TINY, f"--workdir={folder}")
    assert done.code == 0, done.err
    assert done.err == ""
    assert_same_run(folder, finished.folder)
    assert record(folder)["sessions"] == len(deaths) + 1


def test_checkpoints_that_are_kept_for_good_survive_a_kill(run, tmp_path):
    folder, whole = tmp_path / "run", tmp_path / "whole"
    arguments = [*LONGER, "--config.checkpoint.keep=1", "--config.checkpoint.keep_every=6"]
    done = run(*arguments, f"--workdir={folder}", hooks=[["signal_before", SAVE, 4, signal.SIGKILL]])
    assert (done.code, steps(folder)[0]) == (-signal.SIGKILL, 6)  # and perhaps 9, if it is complete
    for place in (folder, whole):
        assert run(*arguments, f"--workdir={place}").code == 0
        assert steps(place) == [6, 12]
    assert bits(folder, 6) == bits(whole, 6) and bits(folder, 12) == bits(whole, 12)


def test_dispatches_of_another_length_change_nothing(run, finished, tmp_path):
    folder = tmp_path / "run"
    done = run(*TINY, "--config.train.steps_per_dispatch=0", f"--workdir={folder}")
    assert done.code == 0, done.err
    assert_same_run(folder, finished.folder)


# Asked to stop


def test_a_stopped_run_prints_the_command_that_continues_it(run, finished, tmp_path):
    folder = tmp_path / "a run"
    # The workdir as an argument of its own: the printed command must keep both halves of it.
    arguments = [*TINY, "--workdir", folder]
    done = run(*arguments, hooks=[["signal_after", "workdir.metrics:MetricsFiles.write", 1, signal.SIGTERM]])
    assert done.code == 128 + signal.SIGTERM, done
    assert done.err == ""
    first = record(folder)
    assert first["status"] == "interrupted"
    assert steps(folder)[-1] == first["step"]
    assert f"interrupted at step {first['step']} of {STEPS}" in done.out

    done = run(*arguments, hooks=[["signal_after", "workdir.metrics:MetricsFiles.write", 1, signal.SIGINT]])
    assert done.code == 128 + signal.SIGINT, done
    assert f"resuming at step {first['step']} of {STEPS}" in done.out
    second = record(folder)
    assert second["status"] == "interrupted" and first["step"] < second["step"] < STEPS

    command = done.out.splitlines()[-1].strip()
    assert shlex.split(command)[:3] == ["python", "-m", "imgclf_jax.main"]
    again = subprocess.run(command, shell=True, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert_same_run(folder, finished.folder)


def test_stopped_run_without_a_workdir_names_the_one_it_chose(run, tmp_path):
    arguments = [f"--config={ROOT / 'configs' / 'softmax.py'}", *LONGER[1:]]
    done = run(
        *arguments, cwd=tmp_path, hooks=[["signal_after", "workdir.metrics:MetricsFiles.write", 1, signal.SIGINT]]
    )
    assert done.code == 128 + signal.SIGINT, done
    (folder,) = (tmp_path / "runs" / "softmax").iterdir()
    assert shlex.split(done.out.splitlines()[-1])[-1] == f"--workdir={folder.relative_to(tmp_path)}"


def test_second_signal_ends_the_run_at_once(run, tmp_path):
    hooks = [["signal_after", "workdir.metrics:MetricsFiles.write", 1, signal.SIGTERM]]
    # The first is caught; the second comes while the run saves what it has.
    hooks.append(["signal_before", "workdir.checkpoint:Checkpoints.save", 1, signal.SIGTERM])
    done = run(*SOFTMAX, "--config.log.every_steps=1", f"--workdir={tmp_path / 'run'}", hooks=hooks)
    assert (done.code, done.err) == (128 + signal.SIGTERM, "stopped by SIGTERM\n")
    assert record(tmp_path / "run")["status"] == "interrupted"


# Another config


def test_changed_config_is_refused_with_the_difference(run, killed):
    before = {path: path.read_bytes() for path in killed.glob("*.json")}
    done = run(*TINY, "--config.optim.momentum=0.5", f"--workdir={killed}")
    assert done.code == 2
    assert "optim.momentum: 0.9 -> 0.5" in done.err
    assert "--allow_config_change" in done.err
    assert {path: path.read_bytes() for path in killed.glob("*.json")} == before


def test_changed_log_interval_is_accepted(run, killed, finished):
    done = run(*TINY, "--config.log.every_steps=5", "--config.checkpoint.keep=1", f"--workdir={killed}")
    assert done.code == 0, done.err
    assert record(killed)["results"] == record(finished.folder)["results"]


def test_a_changed_config_is_accepted_on_demand_and_reported(run, killed, finished):
    done = run(*TINY, "--config.optim.momentum=0.5", "--allow_config_change", f"--workdir={killed}")
    assert done.code == 0, done.err
    assert "optim.momentum: 0.9 -> 0.5" in done.err
    assert '"momentum": 0.5' in (killed / "config.json").read_text()
    until = [[row for row in rows(folder) if row["step"] <= 12] for folder in (killed, finished.folder)]
    assert until[0] == until[1]
    assert record(killed)["results"] != record(finished.folder)["results"]


# Damage


def array_files(folder, step):
    return sorted((folder / "checkpoints" / str(step)).rglob("d/*"))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(run, killed, finished):
    assert steps(killed)[-1] == 12
    for path in array_files(killed, 12):
        flip(path)
    torn = killed / "checkpoints" / "13.orbax-checkpoint-tmp"
    shutil.copytree(killed / "checkpoints" / "9", torn / "default.orbax-checkpoint-tmp")
    done = run(*TINY, f"--workdir={killed}")
    assert done.code == 0, done.err
    assert done.err.startswith("warning: ") and str(killed / "checkpoints" / "12") in done.err
    assert len(done.err.splitlines()) == 1
    assert "resuming at step 9 of" in done.out
    assert_same_run(killed, finished.folder)
    assert (killed / "damaged_checkpoints" / "12").is_dir()


# A disk that is full


@pytest.mark.parametrize(
    ("target", "call", "size", "kept"),
    [
        (
            "workdir.checkpoint:Checkpoints.save",
            3,
            20_000,
            [6],
        ),  # large files cannot be written: that is the checkpoint
        ("training.loop:run", 1, 600, []),  # nor small ones: the rows, the record
    ],
)
def test_full_disk_is_one_clear_error_and_the_run_goes_on_later(run, tmp_path, target, call, size, kept):
    folder, reference = tmp_path / "run", tmp_path / "reference"
    changes = {"train.steps": 24, "checkpoint.every_steps": 6, "checkpoint.keep": 9, "log.every_steps": 1}
    # Nothing on the console: it goes to files here, which are limited as well.
    changes |= {"log.progress": "none", "log.line_seconds": 10}
    arguments = [*SOFTMAX, *(f"--config.{name}={value}" for name, value in changes.items())]
    done = run(*arguments, f"--workdir={folder}", hooks=[["limit_file_size", target, call, size]])
    assert done.code == 2, done
    assert len(done.err.splitlines()) == 1 and done.err.startswith("error: "), done.err
    assert "File too large" in done.err and "--workdir" in done.err
    assert steps(folder)[: len(kept)] == kept
    # A step that could not be saved is not recorded. In the second case the record itself cannot be written.
    if (folder / "run.json").exists():
        assert record(folder).get("step", 0) in [0, *steps(folder)]
    else:
        assert size == 600
    assert run(*arguments, f"--workdir={folder}").code == 0
    assert run(*arguments, f"--workdir={reference}").code == 0
    assert rows(folder) == rows(reference)
    assert bits(folder, 24) == bits(reference, 24)
    assert steps(folder) == [6, 12, 18, 24]


def test_a_disk_that_is_full_from_the_start_is_one_clear_error(run, tmp_path):
    # The first thing that is written is the record.
    done = run(*SOFTMAX, f"--workdir={tmp_path}", hooks=[["disk_full_before", "workdir.record:write_json", 1]])
    assert done.code == 2, done
    (line,) = done.err.splitlines()
    assert line.startswith(f"error: cannot write to workdir {tmp_path}: No space left on device; ")


# Divergence


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(run, tmp_path):
    assert run(*LONGER, "--config.train.steps=3", f"--workdir={tmp_path}").code == 0
    good = bits(tmp_path, 3)
    wild = [*LONGER, "--config.optim.learning_rate=1e38", "--allow_config_change", f"--workdir={tmp_path}"]
    done = run(*wild)
    assert done.code == 1
    assert "Traceback" not in done.err
    content = record(tmp_path)
    assert content["status"] == "diverged"
    step = content["diverged_at_step"]
    assert 3 < step <= 6
    assert f"not finite at step {step};" in done.err
    assert "learning_rate" in done.err
    assert steps(tmp_path)[-1] == 3 and bits(tmp_path, 3) == good
    done = run(*LONGER, "--allow_config_change", f"--workdir={tmp_path}")
    assert done.code == 0, done.err
    assert record(tmp_path)["status"] == "complete"
