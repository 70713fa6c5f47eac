"""--mode=check: what training would refuse is refused in the same words, and nothing is written."""

import fcntl
import json
import shutil
from pathlib import Path

import pytest
from photo_folders import make_splits
from runs import ROOT, SOFTMAX, record

from imgclf_jax import evaluate
from imgclf_jax.config import default

pytest_plugins = ["run_fixtures"]

PHOTOS = (
    "--config=configs/elephants_cars.py",
    "--config.data.dir=photos",
    "--config.train.epochs=0",
    "--config.train.steps=1",
    "--config.train.batch_size=4",
)
TFDS = (*SOFTMAX, "--config.data.source=tfds", "--config.data.dir=nothing")
REFUSED = {
    "model": [*SOFTMAX, "--config.model.name=cn"],
    "too many devices": [*SOFTMAX, "--config.parallel.devices=64"],
    "overlapping splits": [*SOFTMAX, "--config.data.valid_split=train[:500]"],
    "no archive": [*TFDS, "--config.data.archive=nowhere.tar.gz"],
    "data folder that cannot be written": [*TFDS, "--config.data.dir=file"],
    "a single class": [*PHOTOS, "--config.data.dir=one"],
    "batch larger than the split": [*PHOTOS, "--config.train.batch_size=500", "--config.train.last_batch=drop"],
    "workdir is a file": [*SOFTMAX, "--workdir=file"],
    "workdir of another config": [*SOFTMAX, "--config.optim.learning_rate=0.5", "--workdir=run"],
    "flag of another mode": [*SOFTMAX, "--allow_config_change"],
}


@pytest.fixture(scope="module")
def place(run, tmp_path_factory):
    """A folder to run the cases in."""
    folder = tmp_path_factory.mktemp("place")
    make_splits(folder / "photos")
    make_splits(folder / "one", classes=("cat",))
    (folder / "file").write_text("")
    (folder / "configs").symlink_to(ROOT / "configs")
    done = run(*SOFTMAX, "--workdir=run", cwd=folder)
    assert done.code == 0, done.err
    return folder


def state(folder):
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("case", REFUSED)
def test_check_refuses_what_training_refuses_in_the_same_words(run, place, case):
    arguments = REFUSED[case]
    if case != "flag of another mode" and not any(argument.startswith("--workdir") for argument in arguments):
        arguments = [*arguments, "--workdir=new"]
    before = state(place)
    checked = run(*arguments, "--mode=check", cwd=place)
    assert state(place) == before
    assert checked.code == 2 and checked.out == "", checked
    assert checked.err.startswith("error: ") and "Traceback" not in checked.err
    trained = run(*arguments, cwd=place)
    assert (trained.code, trained.err) == (2, checked.err)


def test_check_warns_as_training_does(run, place):
    arguments = [*SOFTMAX, "--config.data.valid_split=test[:500]"]
    checked = run(*arguments, "--mode=check", cwd=place)
    assert checked.code == 0 and "config is valid" in checked.out
    assert "the validation and test splits share" in checked.err
    trained = run(*arguments, "--workdir=overlap", cwd=place)
    assert (trained.code, trained.err) == (0, checked.err)


def test_check_says_that_the_sample_would_stand_in(run, place):
    arguments = [*TFDS, "--config.data.download=False"]
    checked = run(*arguments, "--mode=check", cwd=place)
    assert checked.code == 0 and "NOT THE REAL CIFAR-10" in checked.err
    assert run(*arguments, "--workdir=sample", cwd=place).err == checked.err


def test_check_of_a_workdir_lists_what_has_changed_and_leaves_it_alone(run, place):
    before = state(place / "run")
    arguments = [*SOFTMAX, "--config.optim.learning_rate=0.5", "--workdir=run", "--mode=check"]
    done = run(*arguments, "--allow_config_change", cwd=place)
    assert done.code == 0, done.err
    assert done.err.startswith("config changed: optim.learning_rate")
    assert run(*SOFTMAX, "--workdir=run", "--mode=check", cwd=place).err == ""
    assert run(*SOFTMAX, "--workdir=not/yet/there", "--mode=check", cwd=place).code == 0
    assert not (place / "not").exists()
    assert state(place / "run") == before


def test_check_of_a_workdir_in_use_is_refused(run, place):
    with (place / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(*SOFTMAX, "--workdir=run", "--mode=check", cwd=place)
    assert done.code == 2 and "another process is using" in done.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_names": ["a", "b"]}, "are of the classes a, b;"),
        ({"image_shape": [8, 8, 3]}, "are of images of 8×8×3;"),
    ],
)
def test_check_compares_data_with_what_checkpoints_are_of(run, place, tmp_path, change, words):
    folder = shutil.copytree(place / "run", tmp_path / "run")
    content = record(folder)
    content["data"] |= change
    (folder / "run.json").write_text(json.dumps(content))
    done = run(*SOFTMAX, f"--workdir={folder}", "--mode=check")
    assert done.code == 2 and words in done.err and len(done.err.splitlines()) == 1, done


# --mode=eval


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("train[:100]", "8 of these 8 examples are in the training split"),
        ("train[4000:6000]", "80 of these 160 examples are in the training split"),  # a twelfth and a half, scaled
        ("train[5000:6000]", None),
        ("train", None),  # which says so itself
    ],
)
def test_eval_says_how_many_examples_were_trained_on(run, place, split, words):
    done = run("--mode=eval", "--workdir=run", f"--split={split}", cwd=place)
    assert done.code == 0, done.err
    line = done.out.splitlines()[-1]
    assert "training split" not in line if words is None else line.endswith(f"; {words}"), line


def test_examples_of_another_data_set_were_not_trained_on(monkeypatch):
    saved, other = default(), default()
    saved.data.update(source="sample", train_split="train")
    other.data.update(name="cifar100", source="tfds")
    monkeypatch.setattr(evaluate.saved_config, "load_config", lambda folder: saved)
    assert evaluate.trained_on(other, Path("run"), "test", None, None) == 0


def test_eval_with_another_config_says_what_differs(run, place):
    arguments = ["--mode=eval", *SOFTMAX, "--config.optim.learning_rate=0.5", "--workdir=run"]
    assert run(*arguments, cwd=place).code == 2
    done = run(*arguments, "--allow_config_change", cwd=place)
    assert done.code == 0 and done.err.startswith("warning: config changed: optim.learning_rate")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--split=valid"], "--split has no effect with --mode=train; use it with --mode=eval"),
        (["--checkpoint=best", "--mode=check"], "--checkpoint has no effect with --mode=check"),
        (["--allow_config_change"], "--allow_config_change has no effect without --workdir"),
    ],
)
def test_flags_that_would_make_no_difference_are_refused(run, tmp_path, arguments, words):
    done = run(f"--config={ROOT / 'configs' / 'softmax.py'}", *SOFTMAX[1:], *arguments, cwd=tmp_path)
    assert done.code == 2 and words in done.err and len(done.err.splitlines()) == 1, done
    assert not list(tmp_path.iterdir())


def test_a_config_change_cannot_be_allowed_without_a_config(run, place):
    done = run("--mode=eval", "--workdir=run", "--allow_config_change", cwd=place)
    assert done.code == 2 and "no effect without --config" in done.err
