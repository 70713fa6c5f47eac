"""halving.py: at each rung, the best one in FACTOR of the runs that have been there goes on."""

import json

import pytest

from imgclf_jax.errors import UserError
from imgclf_jax.sweep.halving import Halving, parse, rungs, stops, value_at

RULE = Halving(3, 0.1)


@pytest.fixture
def others(tmp_path):
    """Validation accuracies by step -> the folders of runs that have them."""

    def make(*runs):
        folders = []
        for number, accuracies in enumerate(runs):
            folder = tmp_path / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            lines = [
                json.dumps({"step": step, "epoch": 0, "split": split, "loss": 1.0, "accuracy": accuracy})
                for step, accuracy in accuracies.items()
                for split in ("train", "valid")
            ]
            (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
            folders.append(folder)
        return folders

    return make


def test_rungs_are_a_factor_apart_and_within_the_run():
    assert rungs(RULE, 100) == [10, 30, 90]
    assert rungs(Halving(2, 0.25), 8) == [2, 4]
    assert rungs(Halving(4, 0.001), 10) == [1, 3] or rungs(Halving(4, 0.001), 10)[0] == 1


def test_the_first_run_goes_on_and_a_better_one_too(others):
    assert not stops(RULE, 100, 0, 10, 0.2, others())
    assert not stops(RULE, 100, 0, 10, 0.3, others({10: 0.2}))
    assert stops(RULE, 100, 0, 10, 0.1, others({10: 0.2}))


def test_the_best_third_goes_on(others):
    runs = others(*({10: value / 10} for value in range(8)))  # this run is the ninth: three go on
    assert not stops(RULE, 100, 0, 10, 0.55, runs)
    assert stops(RULE, 100, 0, 10, 0.45, runs)


def test_between_rungs_nothing_is_decided_and_runs_that_are_not_there_yet_do_not_count(others):
    runs = others({10: 0.9}, {5: 0.9})
    assert not stops(RULE, 100, 10, 20, 0.1, runs)
    assert not stops(RULE, 100, 20, 30, 0.1, runs)
    assert stops(RULE, 100, 5, 12, 0.1, runs)


def test_the_value_at_a_rung_is_that_of_the_first_evaluation_from_there_on():
    rows = [{"step": step, "split": "valid", "accuracy": step / 100} for step in (40, 15, 5)]
    assert value_at(rows, 10) == 0.15
    assert value_at(rows, 41) is None
    assert value_at([{"step": 50, "split": "train", "accuracy": 1.0}], 10) is None


def test_the_flag():
    assert parse("") is None
    assert parse("3,0.1") == RULE
    assert parse("2") == Halving(2, 0.25)
    for wrong in ("1", "3,0", "3,1", "x", "3,x", "0"):
        with pytest.raises(UserError, match=r"as in --halving=3,0\.1"):
            parse(wrong)
