"""A sweep with --seeds_per_process: ordinary runs, whatever trained beside them."""

import json
import signal

import numpy as np
import pytest
from runs import SOFTMAX, bits, record, rows

from imgclf_jax import ensemble
from imgclf_jax.sweep import folder as sweep_folder
from imgclf_jax.sweep import states

pytest_plugins = ["run_fixtures"]

STEPS = 12
BASE = (
    *SOFTMAX,
    f"--config.train.steps={STEPS}",
    "--config.checkpoint.every_steps=4",
    "--config.eval.every_steps=6",
    "--config.data.valid_split=train[49000:]",
    "--vary=optim.learning_rate=1e-3,2e-3,1e38",  # the last one diverges
    "--seeds=2",
)
MODULE = {"module": "imgclf_jax.sweep.__main__"}


def sweep(run, folder, *flags, **options):
    return run(*BASE, f"--workdir={folder}", *flags, **MODULE, **options)


def by_name(folder):
    return {run.name: run.folder for run in sweep_folder.runs(folder)}


@pytest.fixture(scope="module")
def apart(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("apart") / "study"
    assert sweep(run, folder).code == 1
    return folder


@pytest.fixture(scope="module")
def together(run, tmp_path_factory):
    """The same sweep in one program, and what was printed."""
    folder = tmp_path_factory.mktemp("together") / "study"
    return folder, sweep(run, folder, "--seeds_per_process=6")


def test_runs_together_are_those_of_single_runs(apart, together):
    folder, done = together
    assert done.code == 1 and "6/6 runs  4 complete, 2 diverged" in done.out, done
    for name, theirs in by_name(apart).items():
        ours = by_name(folder)[name]
        assert states.read(ours).name == states.read(theirs).name
        if "1e+38" in name:
            assert record(ours)["diverged_at_step"] == record(theirs)["diverged_at_step"]
            continue
        assert record(ours)["together"] == 6 and "together" not in record(theirs)
        assert [row["step"] for row in rows(ours)] == [row["step"] for row in rows(theirs)]
        assert [row["loss"] for row in rows(ours)] == pytest.approx([row["loss"] for row in rows(theirs)], rel=1e-5)
        rates = [row["learning_rate"] for row in rows(ours)]
        assert rates == [row["learning_rate"] for row in rows(theirs)]
        for split, result in record(theirs)["results"].items():
            assert record(ours)["results"][split]["loss"] == pytest.approx(result["loss"], rel=1e-5)
    first, *others = by_name(folder).values()
    assert "6 runs in one program" in states.log_path(first).read_text()
    assert str(states.log_path(first)) in states.log_path(others[0]).read_text()


def test_an_ensemble_has_the_mean_probabilities_of_its_members(run, together):
    folder, _ = together
    done = run(str(folder), "--format=json", module="imgclf_jax.ensemble")
    assert done.code == 0, done
    found = {result["name"]: result for result in json.loads(done.out)}
    assert set(found) == {"learning_rate=0.001", "learning_rate=0.002"}
    for name, result in found.items():
        members = [record(place)["results"]["test"] for each, place in by_name(folder).items() if name in each]
        assert result["accuracies"] == [member["accuracy"] for member in members]
        assert result["losses"] == pytest.approx([member["loss"] for member in members], rel=1e-5)
        assert result["loss"] < sum(result["losses"]) / 2  # because the logarithm is concave


def test_probabilities_not_logits_are_averaged():
    scores = np.log([[0.9, 0.1], [0.2, 0.8]])
    accuracy, loss = ensemble.score(scores, np.array([0, 0]))
    assert accuracy == 0.5 and loss == pytest.approx(-np.log([0.9, 0.2]).mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        assert ensemble.score(np.log([[np.nan, np.nan]]), np.array([0]))[0] == 0


def test_a_killed_command_is_continued_together_with_the_same_bits(run, together, tmp_path):
    folder = tmp_path / "study"
    hooks = [["kill_all_when_there", str(folder), "*/seed0/checkpoints/4"]]
    assert sweep(run, folder, "--seeds_per_process=6", hooks=hooks).code == -signal.SIGKILL
    assert sweep(run, folder, "--seeds_per_process=6").code == 1
    for name, theirs in by_name(together[0]).items():
        ours = by_name(folder)[name]
        assert states.read(ours).name == states.read(theirs).name
        if "1e+38" not in name:
            assert rows(ours) == rows(theirs) and bits(ours, STEPS) == bits(theirs, STEPS)


def test_a_run_that_was_left_continues_alone(run, together, tmp_path):
    folder = tmp_path / "study"
    longer = ["--config.train.steps=4000", "--config.checkpoint.every_steps=4000", "--seeds_per_process=6"]
    done = sweep(run, folder, *longer, hooks=[["signal_when_there", str(folder), "*/seed1/run.json", signal.SIGINT]])
    assert done.code == 128 + signal.SIGINT, done
    found = {name: states.read(ours).name for name, ours in by_name(folder).items()}
    assert {state for name, state in found.items() if "1e+38" not in name} == {"interrupted"}
    steps = {record(ours)["step"] for name, ours in by_name(folder).items() if "1e+38" not in name}
    assert len(steps) == 1 and 0 < steps.pop() < 4000


def test_convolutional_networks_train_one_after_another_on_one_device(run, tmp_path):
    folder = tmp_path / "study"
    small = ["--config.model.name=cnn", "--config.model.widths=(4,)", "--config.model.hidden=(8,)"]
    flags = [*small, "--config.parallel.devices=1", "--config.train.steps=2", "--seeds_per_process=2"]
    done = run(*SOFTMAX, *flags, "--seeds=2", f"--workdir={folder}", **MODULE)
    assert done.code == 0, done
    for ours in by_name(folder).values():
        assert "together" not in record(ours)
        assert "test accuracy" in states.log_path(ours).read_text()
