"""Runs, checkpoints and exports of the version before the rooms: read, resumed and reported on with the same numbers.

old_runs.tar.xz holds a run of 14 steps on the bundled sample, complete and as it was interrupted at step 9, and an
export of the complete one; expected.json has the probabilities that it gave.
"""

import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from runs import record, rows

from imgclf_jax import data, predict
from imgclf_jax.evaluate import evaluate_run
from imgclf_jax.train import train
from imgclf_jax.workdir.saved_config import load_config

pytest_plugins = ["run_fixtures"]

# Another CPU rounds in another way.
CLOSE = {"rel": 1e-3, "abs": 1e-3}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(Path(__file__).with_name("old_runs.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder


def config(folder):
    """The config of a run, on one device as then."""
    config = load_config(folder)
    config.parallel.devices = 1
    return config


@pytest.fixture(scope="module")
def images(old):
    return data.load_split(config(old / "complete").data, "test").splits["test"].images[:4]


@pytest.fixture(scope="module")
def expected(old):
    return np.array(json.loads((old / "expected.json").read_text())["probabilities_of_the_first_test_images"])


def test_an_interrupted_run_is_resumed_as_it_would_have_gone_on(old, tmp_path):
    folder = Path(shutil.copytree(old / "interrupted", tmp_path / "run"))
    assert train(config(folder), folder) == 0
    ours, theirs = rows(folder), rows(old / "complete")
    assert len(ours) == len(theirs) == 8
    for row, before in zip(ours, theirs, strict=True):
        assert (row["step"], row["split"]) == (before["step"], before["split"])
        for name in ("loss", "accuracy", "learning_rate"):
            assert row[name] == (before[name] and pytest.approx(before[name], **CLOSE))
    # A column that is new is empty in the rows of the old version.
    norms = [row.get("grad_norm") for row in ours if row["split"] == "train"]
    assert [norm is not None for norm in norms] == [False, False, False, True, True]
    for name, result in record(old / "complete")["results"].items():
        assert record(folder)["results"][name] == pytest.approx(result, **CLOSE)


def test_a_complete_run_stays_complete(old, tmp_path):
    folder = Path(shutil.copytree(old / "complete", tmp_path / "run"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert train(config(folder), folder) == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_finds_the_accuracy_that_was_printed(old, split):
    result = evaluate_run(config(old / "complete"), old / "complete", split, "last")
    assert result == pytest.approx(record(old / "complete")["results"][split], **CLOSE)


def test_predictions_are_the_same(old, images, expected):
    np.testing.assert_allclose(predict.load(old / "complete")(images), expected, atol=1e-3)


def test_an_export_still_loads(old, images, expected):
    with zipfile.ZipFile(old / "exported.zip") as archive:
        network = jax.export.deserialize(bytearray(archive.read("model.stablehlo")))
    np.testing.assert_allclose(network.call(np.asarray(images)), expected, atol=1e-3)


def test_a_report_is_written(run, old, tmp_path):
    done = run(f"--workdir={old / 'complete'}", f"--output={tmp_path / 'report'}", module="imgclf_jax.report")
    assert done.code == 0, done.err
    page = (tmp_path / "report" / "index.html").read_text()
    assert "confusion" in page.lower()
