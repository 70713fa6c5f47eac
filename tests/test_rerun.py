"""rerun.py: a run that is trained again from its own files, and how its numbers compare."""

import json
import shutil

import pytest
from runs import SOFTMAX, record, rows

from imgclf_jax import rerun
from imgclf_jax.config import default, to_json
from imgclf_jax.workdir.rows import read_rows

pytest_plugins = ["run_fixtures"]

RESULT = {"accuracy": 0.25, "loss": 2.0, "correct": 250, "count": 1000}
ROW = {"step": 2, "epoch": 0.5, "split": "train", "loss": 2.5, "accuracy": 0.125, "images_per_second": 10.0}
ORIGIN = {
    "imgclf_jax": "1",
    "git": {"commit": "abc", "package_changed": False},
    "python": "3.11.1",
    "packages": {"jax": "0.10.1", "flax": "1"},
    "device_kind": "cpu",
    "devices_used": 1,
    "process_count": 1,
    "xla_flags": "",
}


@pytest.fixture(scope="module")
def original(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "run"
    flags = ["--config.eval.every_steps=2", "--config.log.every_steps=2", "--config.seed=7"]
    done = run(*SOFTMAX, *flags, f"--workdir={folder}")
    assert done.code == 0, done.err
    return folder


def edit(folder, name="run.json", **changes):
    content = record(folder, name) | changes
    (folder / name).write_text(json.dumps(content))


# Whole runs


def test_a_rerun_gives_the_same_numbers(run, original, tmp_path):
    before = {path.name: path.read_bytes() for path in original.iterdir() if path.is_file()}
    done = run(f"--rerun={original / 'run.json'}", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "the numbers agree"
    assert "same data" in done.out and "test accuracy: identical" in done.out
    assert f"all {len(rows(original))} identical to the last digit" in done.out
    (folder,) = (tmp_path / "runs" / "softmax-rerun").iterdir()
    assert rows(folder) == rows(original) != []
    assert record(folder, "config.json") == record(original, "config.json")
    content = record(folder)
    assert content["seed"] == 7 and content["results"] == record(original)["results"]
    assert content["rerun_of"]["agrees"] is True and content["rerun_of"]["folder"] == str(original)
    assert {path.name: path.read_bytes() for path in original.iterdir() if path.is_file()} == before

    # The same command again has nothing to train, and compares again.
    done = run(f"--rerun={original}", f"--workdir={folder}")
    assert done.code == 0 and "nothing is left to do" in done.out and "the numbers agree" in done.out
    assert record(folder) == content


def test_a_rerun_says_what_differs(run, original, tmp_path):
    old, new = shutil.copytree(original, tmp_path / "old"), tmp_path / "new"
    content = record(old)
    content["results"]["test"] |= {"accuracy": 0.5, "correct": 500}
    content["provenance"]["packages"]["jax"] = "0.4"
    content["data"]["fingerprint"] = "0" * 64
    edit(old, **content)
    lines = read_rows(old)
    lines[-1]["loss"] += 1
    for name in ("metrics.jsonl", "metrics.csv"):
        (old / name).unlink()
    (old / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    done = run(f"--rerun={old}", f"--workdir={new}")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "the numbers do not agree"
    found = record(new)["rerun_of"]
    assert found["agrees"] is False
    for words in (
        "jax: 0.4 -> ",
        "data changed: ",
        "test accuracy: 0.5000 (500 / 1000) -> ",
        "standard errors",
        "rows",
    ):
        assert words in done.out
        assert any(words in line for line in found["differences"])
    assert f"1 of {len(lines)} differ, from step 4 (test) on: loss" in done.out
    assert "valid accuracy: identical" in done.out


# What is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rerun=nowhere"], "there is no folder nowhere"),
        (["--rerun=nowhere/run.json"], "there is no folder nowhere"),
        (["--rerun=empty"], "empty holds no run.json"),
        (["--rerun=damaged"], "cannot read damaged/run.json: "),
        (["--rerun=bare"], "bare holds no run (no config.json)"),
        (["--rerun=torn"], "cannot read torn/config.json"),
        (["--rerun=old", "--config.seed=3"], "--config.seed cannot be combined with --rerun"),
        (["--rerun", "old", "--config=configs/cnn.py"], "--config cannot be combined with --rerun"),
        (["--rerun=old", "--mode=eval", "--workdir=new"], "--rerun trains; leave out --mode=eval"),
        (["--rerun=old", "--split=train"], "--split has no effect with --mode=train"),
        (["--rerun=old", "--workdir=new", "--allow_config_change"], "--allow_config_change has no effect with --rerun"),
        (["--rerun=old", "--workdir=old"], "--workdir=old is in the folder of the run to repeat"),
        (["--rerun=old/run.json", "--workdir=old/new"], "--workdir=old/new is in the folder"),
    ],
)
def test_mistakes_are_reported_in_one_line(run, original, tmp_path, arguments, words):
    for name in ("old", "damaged", "bare", "torn"):
        (tmp_path / name).mkdir()
        for file in ("run.json", "config.json"):
            shutil.copy(original / file, tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare" / "config.json").unlink()
    (tmp_path / "torn" / "config.json").write_text("{")
    edit(tmp_path / "damaged", step=-1)
    before = sorted(tmp_path.rglob("*"))
    done = run(*arguments, cwd=tmp_path)
    assert done.code == 2 and words in done.err and len(done.err.splitlines()) == 1, done
    assert sorted(tmp_path.rglob("*")) == before


# The comparison


def recorded(folder, rows=(ROW,), **content):
    return rerun.Recorded(folder, default(), {"status": "complete", **content}, list(rows))


def complete(**results):
    return {"status": "complete", "results": results}


def test_identical_numbers_agree_at_any_speed(tmp_path):
    found = rerun.compare(
        recorded(tmp_path, results={"test": RESULT}), complete(test=RESULT), [ROW | {"images_per_second": 99.0}]
    )
    assert found.differences == []
    assert found.lines == [
        "test accuracy: identical, 0.2500 (250 / 1000)",
        "rows of the metrics: all 1 identical to the last digit",
    ]


def test_a_difference_in_accuracy_is_given_in_points_and_standard_errors(tmp_path):
    other = RESULT | {"accuracy": 0.27, "correct": 270}
    found = rerun.compare(recorded(tmp_path, results={"test": RESULT}), complete(test=other), [ROW])
    # sqrt(0.26 * 0.74 / 1000) = 1.387 points
    assert found.differences == [
        "test accuracy: 0.2500 (250 / 1000) -> 0.2700 (270 / 1000): +2.00 points, 1.4 standard errors"
    ]
    found = rerun.compare(recorded(tmp_path, results={"valid": RESULT}), complete(test=RESULT), [ROW])
    assert found.differences == [
        "valid accuracy: only the recorded run has it",
        "test accuracy: only the rerun has it",
    ]


def test_the_first_row_that_differs_is_named(tmp_path):
    def at(step, **changes):
        return ROW | {"step": step} | changes

    old = [at(2), at(4), at(4, split="valid"), at(6)]
    new = [at(2), at(4), at(4, split="valid", loss=2.5000001), at(8)]
    assert rerun.compare(recorded(tmp_path, old), complete(), new).differences == [
        "rows of the metrics: 1 of 3 differ, from step 4 (valid) on: loss 2.5 -> 2.5000001",
        "rows of the metrics: the rerun lacks 1 of the 4 recorded ones",
        "rows of the metrics: the recorded run lacks 1 of the 4 of the rerun",
    ]


def test_of_an_unfinished_run_the_rows_are_compared(tmp_path):
    later = ROW | {"step": 4}
    unfinished = recorded(tmp_path, [ROW], status="interrupted")
    found = rerun.compare(unfinished, complete(test=RESULT), [ROW, later])
    assert found.differences == [] and "not complete (interrupted)" in found.lines[0]
    assert rerun.compare(unfinished, complete(), [ROW | {"loss": 2.0}, later]).differences
    assert rerun.compare(recorded(tmp_path, [], status="failed"), complete(), [ROW]).differences


def test_a_rerun_that_ends_otherwise_does_not_agree(tmp_path):
    assert rerun.compare(recorded(tmp_path), {"status": "diverged"}, [ROW]).differences == [
        "status: complete -> diverged"
    ]


def test_one_line_for_each_version_commit_or_device_that_differs():
    assert rerun.environment(ORIGIN, ORIGIN) == []
    here = ORIGIN | {
        "packages": {"jax": "0.12.0", "flax": "1"},
        "git": {"commit": "def", "package_changed": False},
        "python": "3.12.0",
        "device_kind": "GPU",
        "xla_flags": "--fast",
    }
    assert rerun.environment(ORIGIN, here) == [
        "jax: 0.10.1 -> 0.12.0",
        "git commit: abc -> def",
        "python: 3.11.1 -> 3.12.0",
        "kind of device: cpu -> GPU",
        "XLA flags: '' -> --fast",
    ]
    assert rerun.environment(ORIGIN | {"git": None}, here | {"git": None})[0] == "jax: 0.10.1 -> 0.12.0"
    changed = ORIGIN | {"git": {"commit": "abc", "package_changed": True}}
    (line,) = rerun.environment(changed, changed)
    assert "not committed" in line
    assert len(rerun.environment({}, ORIGIN)) == 1


def test_a_run_on_the_whole_set_is_not_compared_with_one_on_the_sample(tmp_path):
    for name, allowed in (("cifar10", False), ("cifar10 (bundled sample)", True)):
        (tmp_path / "config.json").write_text(json.dumps(to_json(default())))
        (tmp_path / "run.json").write_text(json.dumps({"status": "complete", "data": {"name": name}}))
        assert rerun.read(str(tmp_path), None).config.data.allow_sample is allowed
