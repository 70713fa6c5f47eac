"""train.patience: a run that no longer gets better ends as a complete run."""

import pytest
from array_runs import STEPS, config_of, data_of, run
from runs import bits, record, rows, steps

from imgclf_jax.errors import UserError
from imgclf_jax.sweep import together
from imgclf_jax.train import train
from imgclf_jax.training import hooks, patience, phases
from imgclf_jax.training.run import Calls
from imgclf_jax.training.validate import validate

# With this rate nothing changes, so the first evaluation is the best one.
STILL = {"optim.learning_rate": 1e-30, "model.norm": "none", "train.patience": 2}
STOP = 9  # the third evaluation


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return data_of(tmp_path_factory.mktemp("data"), 2)


@pytest.fixture(scope="module")
def stopped(place, tmp_path_factory):
    return run(config_of(place, STILL), tmp_path_factory.mktemp("stopped") / "run")


@pytest.mark.parametrize(
    ("values", "number", "expected"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.5], 1, True),
        ([0.5, 0.6], 1, False),
        ([0.5, 0.6, 0.6], 2, False),
        ([0.5, 0.6, 0.6, 0.55], 2, True),
        ([0.5, 0.4, 0.6], 2, False),
        ([0.5, 0.4, 0.4, 0.4], 0, False),
    ],
)
def test_only_a_better_accuracy_counts(values, number, expected):
    assert patience.ran_out({10 * step: value for step, value in enumerate(values)}, number) == expected


def test_rows_of_other_splits_and_later_steps_do_not_count():
    table = [("valid", 3, 0.5), ("train", 3, 0.9), ("valid", 6, None), ("valid", 9, 0.4), ("test", 6, 0.1)]
    found = [{"split": split, "step": step, "accuracy": value} for split, step, value in table]
    assert patience.accuracies(found, 6) == {3: 0.5}


def test_the_run_is_complete_and_says_where_it_stopped(stopped):
    content = record(stopped)
    assert content["status"] == "complete" and content["step"] == content["reported_step"] == STOP
    assert content["stopped_early"] == {"step": STOP, "patience": 2}
    assert set(content["results"]) == {"train", "valid", "test"} and steps(stopped)[-1] == STOP


def test_the_same_command_has_nothing_left_to_do(stopped, place, capsys):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    run(config_of(place, STILL), stopped)
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before
    assert f"complete: stopped early at step {STOP}; nothing is left to do" in capsys.readouterr().out


def test_an_evaluation_that_is_missing_is_added_without_a_step(stopped, place, tmp_path):
    config = config_of(place, STILL | {"eval.train": False})
    folder = run(config, tmp_path / "run")
    assert "train" not in record(folder)["results"]
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.csv").unlink()
    config.eval.train = True
    run(config, folder)
    assert record(folder)["results"] == record(stopped)["results"] and steps(folder)[-1] == STOP


@pytest.mark.parametrize("until", [3, 6])
def test_a_run_that_was_interrupted_decides_the_same(stopped, place, tmp_path, until):
    folder = run(config_of(place, STILL), tmp_path / "run", until=until)
    assert record(folder)["status"] == "pruned"
    run(config_of(place, STILL), folder)
    assert rows(folder) == rows(stopped) and bits(folder, STOP) == bits(stopped, STOP)
    assert record(folder)["stopped_early"] == record(stopped)["stopped_early"]
    assert record(folder)["results"] == record(stopped)["results"]


def test_a_run_that_was_killed_after_the_last_checkpoint_takes_no_further_step(stopped, place, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(phases, "finish", die)
        train(config_of(place, STILL), tmp_path / "run")
    assert record(tmp_path / "run")["status"] == "interrupted" and steps(tmp_path / "run")[-1] == STOP
    run(config_of(place, STILL), tmp_path / "run")
    assert rows(tmp_path / "run") == rows(stopped) and record(tmp_path / "run")["status"] == "complete"
    assert record(tmp_path / "run")["stopped_early"] == record(stopped)["stopped_early"]


def test_more_patience_continues_the_run(place, tmp_path):
    folder = run(config_of(place, STILL), tmp_path / "run")
    config = config_of(place, STILL | {"train.patience": 100})
    with pytest.raises(UserError, match="different config"):
        train(config, folder)
    assert train(config, folder, allow_config_change=True) == 0
    assert record(folder)["step"] == STEPS and "stopped_early" not in record(folder)


def test_the_best_checkpoint_is_reported_on_request(place, tmp_path):
    folder = run(config_of(place, STILL | {"eval.report": "best", "checkpoint.keep": 1}), tmp_path / "run")
    best = record(folder)["reported_step"]
    assert best in steps(folder) and record(folder)["step"] == STOP
    accuracies = {row["step"]: row["accuracy"] for row in rows(folder) if row["split"] == "valid"}
    assert accuracies[best] == max(accuracies.values())


def test_runs_in_one_program_stop_one_by_one(place, tmp_path, monkeypatch):
    def ran_out(run, step, accuracy=None):  # the first one alone, and no luck in it
        return run.config.optim.learning_rate < 0.1 and step >= 6

    monkeypatch.setattr(hooks, "ran_out", ran_out)
    base = STILL | {"model.name": "mlp", "model.widths": ()}
    configs = [config_of(place, base | {"optim.learning_rate": rate}) for rate in (0.01, 0.1)]
    folders = [tmp_path / str(number) for number in range(2)]
    assert together.train(configs, folders, [Calls()] * 2) == 0
    first, second = map(record, folders)
    assert first["status"] == second["status"] == "complete" and first["together"] == second["together"] == 2
    assert first["stopped_early"] == {"step": 6, "patience": 2} and first["step"] == 6 and "test" in first["results"]
    assert second["step"] == STEPS and "stopped_early" not in second
    alone = run(configs[0], tmp_path / "alone")
    assert [row["step"] for row in rows(alone)] == [row["step"] for row in rows(folders[0])]
    assert run(configs[0], folders[0]) and record(folders[0])["sessions"] == 1


def test_what_it_needs_is_said_in_a_line(tmp_path, place):
    lines = {
        "--config.eval.every_epochs=1": {"eval.every_steps": 0},
        "train.patience=-1 must be": {"train.patience": -1},
    }
    for line, changes in lines.items():
        with pytest.raises(UserError) as caught:
            validate(config_of(place, STILL | changes))
        assert line in str(caught.value) and "\n" not in str(caught.value)
    sample = {"data.source": "sample", "data.valid_split": "", "data.train_split": "train[:5000]"}
    with pytest.raises(UserError, match="needs a validation split"):
        validate(config_of(place, STILL | sample))
