"""scripts/bench_peers.py takes turns, scales to epochs, and reads the published output."""

import sys
import types

import bench_peers
import numpy as np
import peer_runs
import pytest

from imgclf_jax.config import default
from imgclf_jax.errors import UserError
from imgclf_jax.terminal.console import Console

# Plays airbench94_muon: three epochs a run, a row for each and one of the end, as in the published program.
PLAYED = """
import pathlib
names = ["run   ", "epoch", "train_acc", "val_acc", "tta_val_acc", "time_seconds"]
def show(*cells):
    line = "".join("|  %s  " % str(cell).rjust(len(name)) for cell, name in zip(cells, names)) + "|"
    print(line)
    print("-" * len(line))
def main(run):
    base = 0.1 if run == "warmup" else 0.94 + 0.001 * run
    for epoch in range(3):
        show(run if epoch == 0 else "", epoch, "0.9000", f"{base:0.4f}", "", f"{epoch + 1:0.4f}")
    show("", "eval", "0.9000", f"{base:0.4f}", f"{base + 0.01:0.4f}", "3.5000")
    return base
assert pathlib.Path("cifar10/train.pt").is_file()
show(*names)
main("warmup")
accs = [main(run) for run in range(200)]
print("Mean: %.4f    Std: %.4f" % (0, 0))
"""
# Plays speedrun.py.
OURS = """
import json, sys
flags = dict(argument[2:].partition("=")[::2] for argument in sys.argv[1:])
assert flags["config"] == "some.py"
first, count = int(flags["first_seed"]), int(flags["runs"])
runs = [{"results": {"test": {"accuracy": 0.5}}, "seconds": 1.0 + seed} for seed in range(first, first + count)]
open(flags["json"], "w").write(json.dumps({"runs": runs}))
"""


@pytest.fixture
def played(tmp_path):
    path = tmp_path / "airbench94_muon.py"
    path.write_text(PLAYED)
    return path


def test_both_sides_take_turns_and_the_warm_up_is_left_out(played, tmp_path, monkeypatch):
    (tmp_path / "speedrun.py").write_text(OURS)
    monkeypatch.setattr(peer_runs, "SCRIPTS", tmp_path)
    monkeypatch.setattr(peer_runs, "CONVERT", "import sys; open(sys.argv[1] + '/train.pt', 'w').close()")
    split = types.SimpleNamespace(images=np.zeros((2, 4, 4, 3), np.uint8), labels=np.zeros(2, np.int32))
    dataset = types.SimpleNamespace(splits={"train": split, "test": split}, class_names=("a", "b"))
    source, console = peer_runs.shortened(played, 2), Console("silent")
    runs = peer_runs.in_turns(source, sys.executable, dataset, ["--config=some.py"], 2, 2, console)
    theirs = [(run["accuracy"], run["tta_accuracy"], run["seconds"]) for run in runs["airbench"]]
    assert theirs == 2 * [(0.94, 0.95, 3.5), (0.941, 0.951, 3.5)]
    assert [run["seconds"] for run in runs["ours"]] == [1, 2, 3, 4]
    summary = peer_runs.summarize(runs)["summary"]
    assert (summary["ours"]["seconds"]["mean"], summary["airbench"]["seconds"]["n"]) == (2.5, 4)
    assert "tta_accuracy" not in summary["ours"]


def test_other_files_and_outputs_are_refused(tmp_path):
    other = tmp_path / "other.py"
    other.write_text("print(1)")
    with pytest.raises(UserError, match="it has no loop over runs"):
        peer_runs.shortened(other, 2)
    with pytest.raises(UserError, match="cannot be read"):
        peer_runs.shortened(tmp_path / "nowhere.py", 2)
    with pytest.raises(UserError, match="no table"):
        peer_runs.read("Mean: 0.94\n")


def test_sides_alternate(monkeypatch):
    monkeypatch.setattr(bench_peers, "PAUSE_SECONDS", 0)
    order = []

    def side(name, seconds):
        def run(steps):
            order.append((name, steps))
            return next(seconds)

        return run

    sides = {"ours": side("ours", iter([9.0, 1.0, 3.0, 2.0])), "PyTorch": side("PyTorch", iter([9.0, 4.0, 5.0, 6.0]))}
    results = bench_peers.summarize(bench_peers.measure(sides, 3, 7, "32 pixels", Console("silent")))
    warm_up, rounds = order[:2], order[2:]
    assert [name for name, _ in rounds] == ["ours", "PyTorch", "PyTorch", "ours", "ours", "PyTorch"]
    # The warm-up takes as many steps: a schedule with stages has several programs.
    assert {steps for _, steps in order} == {7} and len(warm_up) == 2
    assert (results["PyTorch"]["median"], results["PyTorch"]["ours"], results["ours"]["ours"]) == (5.0, 2.5, 1.0)


def test_our_side_trains_at_the_size_and_scales_to_an_epoch(monkeypatch):
    config = default()
    config.data.source = "sample"
    config.data.train_split = "train[:5000]"
    config.model.name = "speednet"
    config.model.widths = (8, 8)
    config.model.options.pool = "global"
    config.train.update(batch_size=50, epochs=1.0)
    config.parallel.devices = 1
    taken = []
    monkeypatch.setattr(bench_peers.unrecorded, "take", lambda ready, training, steps: taken.append(steps))
    monkeypatch.setattr(bench_peers.unrecorded, "seconds_of", lambda call: (call(), 3.0)[1])
    run = bench_peers.ours(config, 24, Console("silent"))
    # 400 images: 8 steps in an epoch.
    assert (run(2), run(0), run(100)) == (12.0, 3.0, 3.0)
    assert taken == [2, 8, 8]


def test_sizes_must_be_numbers():
    assert bench_peers.numbers(["24", "32"]) == [24, 32]
    for wrong in ([], ["0"], ["a"], [""]):
        with pytest.raises(UserError, match="--sizes"):
            bench_peers.numbers(wrong)
