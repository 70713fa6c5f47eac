"""scripts/speedrun.py: its statistics, and that its runs are those of imgclf_jax.main."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import speedrun
import speedrun_report
import unrecorded
from runs import ROOT, SOFTMAX, environment, record
from scipy import stats

from imgclf_jax.config import default
from imgclf_jax.errors import UserError
from imgclf_jax.terminal.console import Console

pytest_plugins = ["run_fixtures"]


@pytest.fixture(scope="module")
def loaded():
    config = default()
    config.data.source = "sample"
    config.data.train_split = "train[:5000]"
    config.model.name = "softmax"
    config.train.update(batch_size=50, epochs=2.0)
    config.parallel.devices = 1
    return unrecorded.load(config, Console("silent"))


@pytest.fixture(scope="module")
def ready(loaded):
    return unrecorded.ready(loaded, Console("silent"))


def test_the_statistics_are_those_of_scipy():
    values = np.random.default_rng(0).normal(0.94, 0.0015, 12).tolist()
    one = speedrun_report.describe(values)
    assert (one["n"], one["least"], one["most"]) == (12, min(values), max(values))
    assert one["std"] == pytest.approx(np.std(values, ddof=1))
    reach = stats.t.ppf(0.975, 11) * one["std"] / 12**0.5
    assert one["interval"] == pytest.approx([one["mean"] - reach, one["mean"] + reach])
    for target in (0.93, 0.9399, 0.95):
        expected = stats.ttest_1samp(values, target, alternative="greater").pvalue
        assert speedrun_report.p_above(values, target) == pytest.approx(expected)


def test_a_single_run_has_no_interval_and_equal_ones_no_test():
    one = speedrun_report.describe([0.5])
    assert (one["mean"], one["std"], one["interval"]) == (0.5, None, None)
    assert speedrun_report.p_above([0.5], 0.4) is None
    assert speedrun_report.p_above([0.5, 0.5], 0.4) is None


def test_the_summary_counts_runs_and_products():
    results = [{"accuracy": 0.5, "tta_accuracy": 0.7}, {"accuracy": 0.7, "tta_accuracy": 0.9}]
    runs = [
        {"results": {"test": one}, "train_seconds": 2.0, "evaluate_seconds": 1.0, "seconds": 3.0} for one in results
    ]
    record = {"target": 0.4, "flops": 8e9, "product_rate": 16e9, "peak": {"flops": 40e9}}
    summary = speedrun_report.summarize(runs, record)
    assert summary["accuracies"]["test"]["accuracy"]["mean"] == pytest.approx(0.6)
    assert summary["accuracies"]["test"]["tta_accuracy"]["mean"] == pytest.approx(0.8)
    assert summary["times"]["seconds"]["mean"] == 3.0
    assert (summary["rate"], summary["mfu"], summary["of_peak"]) == (4e9, 0.25, 0.1)


def test_runs_are_those_of_main_and_the_rest_of_a_split_is_its_own(run, tmp_path):
    out = tmp_path / "runs.json"
    picture = tmp_path / "runs.png"
    options = ["--runs=2", "--first_seed=3", "--skip_first=999", "--warmup_steps=1", f"--json={out}"]
    command = [sys.executable, "scripts/speedrun.py", *SOFTMAX, *options, f"--plot={picture}"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert [one["seed"] for one in result["runs"]] == [3, 4]
    for one in result["runs"]:
        workdir = tmp_path / str(one["seed"])
        assert run(*SOFTMAX, f"--config.seed={one['seed']}", f"--workdir={workdir}").code == 0
        assert one["results"]["test"] == record(workdir)["results"]["test"]
        assert one["results"]["test[999:]"]["count"] == 1
        assert one["seconds"] == pytest.approx(one["train_seconds"] + one["evaluate_seconds"])
    # Forward and the kernel's gradient, in 4 steps of 50 images.
    assert result["flops"] == 4 * 2 * 2 * 50 * 32 * 32 * 3 * 10
    assert result["from_process_start"] > result["runs"][0]["seconds"]
    assert "run 2/2: seed 4" in done.stdout and "p (mean > 0.94)" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_splits_are_named_after_what_they_hold(loaded):
    dataset = loaded.dataset
    splits = speedrun.evaluated(dataset, "test", 200)
    assert {name: len(split) for name, split in splits.items()} == {"test": 1000, "test[200:]": 800}
    np.testing.assert_array_equal(splits["test[200:]"].labels, dataset.splits["test"].labels[200:])
    for skipped in (0, 1000):
        assert list(speedrun.evaluated(dataset, "test", skipped)) == ["test"]
    without = dataclasses.replace(dataset, splits={"train": dataset.splits["train"]})
    with pytest.raises(UserError, match=r"--split=valid: the config has no valid split; for example --config\.data"):
        speedrun.evaluated(without, "valid", 0)


def test_another_seed_compiles_nothing_and_trains_something_else(ready):
    compiled = []
    states = []
    for seed in (0, 1, 0):
        if seed:
            listen = lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None  # noqa: E731
            jax.monitoring.register_event_duration_secs_listener(listen)
        training = unrecorded.begin(ready, seed)
        states.append(jax.device_get(unrecorded.take(ready, training, ready.plan.steps)))
    assert not compiled
    first, other, again = (state.params["output"]["kernel"] for state in states)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0
    assert unrecorded.evaluate(ready, "test", states[0])["count"] == 1000


def test_a_run_that_diverges_is_an_error(ready):
    training = unrecorded.begin(ready, 0)
    broken = jax.tree.map(lambda leaf: leaf * np.float32("nan"), training.state.params)
    with pytest.raises(UserError, match="diverged"):
        unrecorded.take(ready, training._replace(state=training.state.replace(params=broken)), 3)
