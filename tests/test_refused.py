"""What is refused has changed nothing, what is complete stays complete, and starting over takes the user's own hand."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from runs import SOFTMAX, STEPS, TINY, bits, record, rows, steps
from tensorboardX.proto.event_pb2 import Event

pytest_plugins = ["run_fixtures"]

FORBIDDEN = [
    ["forbid", name]
    for name in ("train:prepare", "workdir.checkpoint:Checkpoints.save", "workdir.metrics:MetricsFiles.write")
]


@pytest.fixture
def complete(finished, tmp_path):
    """A copy of a complete run."""
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


def snapshot(folder):
    """Everything in a folder: what, when written, and of which content."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.is_file() and content(path))
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


def content(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(done, *parts):
    assert done.code == 2, done
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.err
    for part in parts:
        assert part in "\n".join(lines), done.err
    return lines


# A complete run


def test_the_same_command_on_a_complete_run_does_nothing(run, complete, finished):
    before = snapshot(complete)
    for arguments in (TINY, [*TINY, "--config.log.every_steps=1", "--config.eval.train=False"]):
        done = run(*arguments, f"--workdir={complete}", hooks=FORBIDDEN)
        assert done.code == 0, done.err
        assert f"complete: all {STEPS} steps were taken before" in done.out
        results = [line for line in finished.done.out.splitlines() if " accuracy  " in line and "loss" in line]
        assert results[-3:] == [line for line in done.out.splitlines() if " accuracy  " in line]
        assert snapshot(complete) == before


def test_a_complete_run_on_other_data_is_refused_and_stays_complete(run, complete):
    before = snapshot(complete)
    refused(run(*TINY, f"--workdir={complete}", hooks=[["other_fingerprint"]]), "holds a run on different data")
    assert snapshot(complete) == before


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("--config.augment.crop=(20,20)", "another model: parameter "),
        ("--config.optim.name=adam", "another model: opt_state/"),
        ("--config.optim.ema_decay=0", "another model: ema/"),
    ],
)
def test_another_model_is_refused_even_if_changes_are_allowed(run, complete, change, difference):
    before = snapshot(complete)
    longer = ["--config.train.epochs=3", "--allow_config_change", f"--workdir={complete}"]
    refused(run(*TINY, change, *longer), difference, "choose another --workdir")
    assert snapshot(complete) == before
    assert run(*TINY, f"--workdir={complete}", hooks=FORBIDDEN).code == 0


def test_a_failure_before_the_first_new_step_leaves_a_complete_run_as_it_was(run, complete):
    before = snapshot(complete)
    longer = [*TINY, "--config.train.epochs=3", "--allow_config_change", f"--workdir={complete}"]
    done = run(*longer, hooks=[["disk_full_before", "training.loop:run", 1]])
    assert done.code == 2, done
    assert snapshot(complete) == before
    assert run(*longer).code == 0
    assert record(complete)["step"] > STEPS


def test_only_what_was_not_evaluated_is(run, complete, finished):
    content = record(complete)
    del content["results"]["train"]
    (complete / "run.json").write_text(json.dumps(content))
    before = snapshot(complete)
    done = run(*TINY, f"--workdir={complete}", hooks=[["forbid", "workdir.metrics:MetricsFiles.write"]])
    assert done.code == 0, done.err
    assert record(complete)["results"] == record(finished.folder)["results"]
    assert record(complete)["sessions"] == content["sessions"]
    assert {name for name, value in snapshot(complete).items() if before[name] != value} == {"run.json"}


def points(folder):
    """(tag, step) of every value that TensorBoard would show."""
    found = []
    files = [path for path in (folder / "tensorboard").iterdir() if path.suffix != ".pictures"]  # a report's
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns):
        raw, place = path.read_bytes(), 0
        while place < len(raw):
            size = int.from_bytes(raw[place : place + 8], "little")
            event = Event.FromString(raw[place + 12 : place + 12 + size])
            place += 16 + size
            if event.HasField("session_log"):
                found = [point for point in found if point[1] < event.step]
            found += [(value.tag, event.step) for value in event.summary.value]
    return found


def test_tensorboard_shows_every_point_once(run, complete, finished, tmp_path):
    expected = points(finished.folder)
    assert len(expected) == len(set(expected)) and ("test/accuracy", STEPS) in expected
    assert run(*TINY, f"--workdir={complete}").code == 0
    assert points(complete) == expected
    # Killed after the row of the test split, which may be in the file by then, and before the end of the record.
    killed = tmp_path / "killed"
    assert run(*TINY, f"--workdir={killed}", hooks=[["signal_before", "training.phases:read_rows", 1, 9]]).code == -9
    assert run(*TINY, f"--workdir={killed}").code == 0
    assert sorted(points(killed)) == sorted(expected)


# A run that has not begun


@pytest.mark.parametrize("below", ["run", "a/b/run"])
def test_a_new_run_that_is_refused_leaves_no_folder(run, tmp_path, below):
    folder = tmp_path / "there" / below
    (tmp_path / "there").mkdir()
    refused(run(*TINY, "--config.seed=-1", f"--workdir={folder}"), "seed")
    refused(run(*SOFTMAX, "--config.train.batch_size=6000", f"--workdir={folder}"))
    assert list((tmp_path / "there").iterdir()) == []
    photos = tmp_path / "photos"
    for name in ("train", "test"):
        (photos / name / "a").mkdir(parents=True)
        (photos / name / "a" / "x.png").write_text("no photo")
    source = ["--config.data.source=folder", f"--config.data.dir={photos}", "--config.data.image_size=(8,8)"]
    refused(run(*SOFTMAX, *source, f"--workdir={folder}"))
    assert list((tmp_path / "there").iterdir()) == []


def test_a_field_that_does_not_exist_is_refused_before_training(run, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(
        "from imgclf_jax.config import default\n\n\ndef get_config():\n    config = default()\n    config.unlock()\n"
        "    config.optim.learning_rat = 0.5\n    return config\n"
    )
    done = run(f"--config={config}", *SOFTMAX[1:], f"--workdir={tmp_path / 'run'}")
    refused(done, "unknown config field optim.learning_rat; did you mean optim.learning_rate?")
    assert not (tmp_path / "run").exists()


def test_a_tilde_is_the_home_folder(run, tmp_path):
    done = run(*SOFTMAX, "--workdir=~/x", env={"HOME": str(tmp_path)})
    assert done.code == 0, done.err
    assert record(tmp_path / "x")["status"] == "complete"
    assert run("--mode=eval", "--workdir", "~/x", env={"HOME": str(tmp_path)}).code == 0


# Checkpoints that are damaged or gone


def cut(folder, number):
    for path in (folder / "checkpoints" / str(number)).rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-100])


def test_only_damaged_checkpoints_stop_every_attempt(run, killed):
    for step in steps(killed):
        cut(killed, step)
    before = snapshot(killed)
    for _ in range(3):
        refused(run(*TINY, f"--workdir={killed}"), "none of the checkpoints", "start over")
        assert snapshot(killed) == before
    # The user takes them away: that does not mean that training may begin again beside the rest of the run.
    shutil.rmtree(killed / "checkpoints")
    before = snapshot(killed)
    for _ in range(2):
        refused(run(*TINY, f"--workdir={killed}"), "says that step ", " was saved", "delete run.json to start over")
        assert snapshot(killed) == before
    (killed / "run.json").unlink()
    done = run(*TINY, f"--workdir={killed}")
    assert done.code == 0, done.err
    assert "resuming" not in done.out


def test_a_run_whose_record_was_deleted_goes_on_and_is_usable(run, killed, finished, tmp_path):
    (killed / "run.json").unlink()
    before = snapshot(killed)
    for tool, flags in {
        "imgclf_jax.main": ["--mode=eval"],
        "imgclf_jax.export": [f"--output={tmp_path / 'model.zip'}"],
        "imgclf_jax.report.__main__": [f"--output={tmp_path / 'report'}"],
    }.items():
        done = run(*flags, f"--workdir={killed}", module=tool)
        assert done.code == 0, (tool, done)
    assert snapshot(killed) == before
    refused(run(*TINY, f"--workdir={killed}", hooks=[["other_fingerprint"]]), "holds a run on different data")
    assert snapshot(killed) == before
    assert run(*TINY, f"--workdir={killed}").code == 0
    assert rows(killed) == rows(finished.folder)
    assert bits(killed) == bits(finished.folder)
    assert record(killed)["results"] == record(finished.folder)["results"]


def test_tools_fall_back_to_the_checkpoint_before_and_say_so(run, complete, tmp_path):
    kept = steps(complete)
    cut(complete, STEPS)
    before = snapshot(complete)
    done = run("--mode=eval", f"--workdir={complete}")
    assert done.code == 0, done.err
    assert f"step {kept[-2]}  test accuracy" in done.out
    (warning,) = done.err.splitlines()
    assert warning.startswith("warning: checkpoint") and f"the one of step {kept[-2]} is used instead" in warning
    done = run(f"--workdir={complete}", f"--output={tmp_path / 'report'}", module="imgclf_jax.report.__main__")
    assert done.code == 0 and f"from step {STEPS}, cannot be read" in done.err, done.err
    for step in kept[:-1]:
        cut(complete, step)
    done = run("--mode=eval", f"--workdir={complete}")
    refused(done, "none of the checkpoints")
    shutil.rmtree(complete / "checkpoints")
    refused(run("--mode=eval", f"--workdir={complete}"), "holds no checkpoint")
    assert {path for path in before if not path.startswith("checkpoints")} == set(snapshot(complete))


def test_divergence_before_any_checkpoint_promises_none(run, tmp_path):
    wild = ["--config.optim.learning_rate=1e38", "--config.optim.momentum=0.99", "--config.train.steps=30"]
    done = run(*SOFTMAX, *wild, f"--workdir={tmp_path / 'run'}")
    assert done.code == 1, done
    assert "not finite at step" in done.err and "earlier checkpoints" not in done.err
    assert record(tmp_path / "run")["status"] == "diverged"
