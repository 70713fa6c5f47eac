"""python -m imgclf_jax.report: reports on real runs, and what can be wrong with a workdir."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_runs import write_run
from runs import ROOT, SOFTMAX, environment, record

from imgclf_jax.data.types import LazyImages, silent
from imgclf_jax.errors import UserError
from imgclf_jax.report import drawing, runs, weights, workdirs, write
from imgclf_jax.report.side_by_side import different_data
from imgclf_jax.training import trained

pytest_plugins = ["run_fixtures"]


@pytest.fixture(scope="session")
def softmax(run, tmp_path_factory):
    """The folder of a softmax run, which has a report; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("softmax") / "run"
    done = run(*SOFTMAX, f"--workdir={folder}")
    assert done.code == 0, done
    report(folder)
    return folder


@pytest.fixture
def copy(softmax, tmp_path):
    """The same, for tests that change it; without its report."""
    return shutil.copytree(softmax, tmp_path / "run", ignore=shutil.ignore_patterns("report"))


@pytest.fixture(scope="session")
def compared(softmax, finished, tmp_path_factory):
    """The folder of a report on two runs, and what was said while it was made."""
    warned: list[str] = []
    output = tmp_path_factory.mktemp("compared") / "both"
    write.report([softmax, finished.folder], output, silent, warned.append)
    return output, warned


class OnDisk(LazyImages):
    """Images that look as if they were decoded when they are asked for."""

    def __init__(self, images):
        super().__init__(images.shape)
        self._images = images

    def read(self, index):
        return self._images[index]


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are not drawn, which takes most of a report's time."""
    blank = '<svg width="1pt" height="1pt"></svg>'
    monkeypatch.setattr(drawing, "finish", lambda figure, name, alt, *_: drawing.Picture(name, alt, blank, b"", {}))


def report(*folders, output=None):
    """(the page's text, the notes)"""
    warned: list[str] = []
    page = write.report(list(folders), output, silent, warned.append)
    return page.read_text(), warned


def table(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_predictions_are_those_of_the_run(softmax):
    rows, result = table(softmax / "report"), record(softmax)["results"]["test"]
    names = record(softmax)["data"]["class_names"]
    assert len(rows) == len({row["id"] for row in rows}) == result["count"] == 1000
    right = sum(row["true"] == row["predicted"] for row in rows)
    found = runs.read([softmax], silent)[0]
    # Another device may swap what is as good as equal, and nothing else.
    assert abs(right - result["correct"]) <= found.predictions.near_ties(1e-4)
    assert found.result["loss"] == pytest.approx(result["loss"], rel=1e-3)
    for row in rows[:50]:
        values = {name: float(row[f"p({name})"]) for name in names}
        assert sum(values.values()) == pytest.approx(1, abs=1e-4)
        assert values[row["predicted"]] == float(row["probability"]) == max(values.values())
        assert values[row["true"]] == float(row["probability_of_true"])


def test_scores_are_the_logarithms_of_probabilities(softmax):
    network = trained.load(softmax)
    images = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3)).astype(np.uint8)
    done: list[int] = []
    scores = trained.predictor(network, log=True)(images, done.append)
    np.testing.assert_allclose(np.exp(scores), trained.predictor(network)(images), atol=1e-5)
    assert done == [256, 300]
    assert np.array_equal(trained.predictor(network, log=True)(OnDisk(images), done.append), scores)


def test_the_page_says_what_the_run_was(softmax):
    page = (softmax / "report" / "index.html").read_text()
    saved = record(softmax)
    result = saved["results"]["test"]
    for text in (
        f"{result['accuracy']:.4f}",
        f"{result['correct']:,} of {result['count']:,} correct",
        "cifar10 (bundled sample)",
        saved["provenance"]["packages"]["jax"],
        saved["data"]["fingerprint"],
        "train[:5000]",
        "output/kernel",
        "30,730",
        "airplane",
        "What the classes look like to the network",
        "evaluated only once",
    ):
        assert text in page, text
    for anchor in re.findall(r'href="#([\w-]+)"', page):
        assert f'id="{anchor}"' in page


def test_the_page_needs_nothing_else(softmax, compared):
    for path in (softmax / "report", compared[0]):
        page = (path / "index.html").read_text()
        assert not re.findall(r"(?i)(?:https?:|file:|//\w)", re.sub(r"base64,[\w+/=]+", "", page))
        assert not re.findall(r"(?i)<(?:script|link|iframe|object|embed)\b", page)
        for source in re.findall(r'(?:src|href)="([^"]*)"', page):
            assert source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "#")), source[:80]


def test_ids_are_unique_and_all_that_are_used_are_there(compared):
    page = (compared[0] / "index.html").read_text()
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', page))
    assert used and {one or other for one, other in used} <= set(ids)


def test_pictures_are_files_too(softmax, finished, compared):
    names = {
        "learning_accuracy",
        "learning_loss",
        "confusion",
        "reliability",
    }
    names |= {"mistakes", "hardest_and_easiest"}
    expected = {f"pictures/{name}.{kind}" for name in names | {"templates"} for kind in ("svg", "png")}
    assert files(softmax / "report") == expected | {"index.html", "predictions.csv", write.MARKER}
    there = files(compared[0])
    assert {f"run1/{name}" for name in expected} <= there
    assert {f"run2/pictures/{name}.png" for name in names} <= there
    assert "run2/pictures/filters.png" not in there  # Kernels of 3 rows show nothing.
    assert {"pictures/compare_accuracy.svg", "pictures/compare_loss.png"} <= there
    assert {"run1/predictions.csv", "run2/predictions.csv"} <= there
    described = json.loads((compared[0] / write.MARKER).read_text())["runs"]
    assert [(compared[0] / place).resolve() for place in described.values()] == [softmax, finished.folder]


def test_the_same_run_gives_the_same_report(softmax, tmp_path):
    report(softmax, output=tmp_path / "again")
    assert files(tmp_path / "again") == files(softmax / "report")
    for name in files(softmax / "report"):
        assert (tmp_path / "again" / name).read_bytes() == (softmax / "report" / name).read_bytes(), name


def test_runs_side_by_side(softmax, finished, compared):
    output, _ = compared
    page = (output / "index.html").read_text()
    assert page.count('<details class="run"') == 2
    for folder in (softmax, finished.folder):
        assert f"{record(folder)['results']['test']['accuracy']:.4f}" in page
    assert "optim.learning_rate" in page
    assert "what the network looked at" in page
    # Of the same data and splits.
    assert record(softmax)["data"]["fingerprint"] == record(finished.folder)["data"]["fingerprint"]
    assert "not comparable" not in page
    assert not (softmax / "report" / "run1").exists()


def test_runs_on_other_data_do_not_compare(softmax, copy, tmp_path, undrawn):
    saved = record(copy)
    saved["data"]["fingerprint"] = "0" * 64
    (copy / "run.json").write_text(json.dumps(saved))
    page, _ = report(softmax, copy.rename(tmp_path / "other"), output=tmp_path / "both")
    assert "not comparable: the runs differ in content of the images." in page
    assert "the runs have the same config" in page


def test_runs_on_images_of_another_size_compare_by_the_names_of_examples(softmax, tmp_path, run):
    small = tmp_path / "small"
    done = run(*SOFTMAX, "--config.data.image_size=(16, 16)", f"--workdir={small}")
    assert done.code == 0, done.err
    assert record(small)["data"]["fingerprint"] != record(softmax)["data"]["fingerprint"]
    one, two = runs.read([softmax, small], silent)
    assert different_data([one, two]) == ""
    other = two._replace(predictions=two.predictions._replace(ids=two.predictions.ids[::-1]))
    assert different_data([one, other]) == "content of the images"
    assert different_data([one, two._replace(predictions=None)]) == "content of the images"


def test_names_are_as_long_as_it_takes(tmp_path):
    a, b, c = (tmp_path / name for name in ("a/run", "b/run", "cnn/20260102-030405"))
    assert runs.names([a]) == ["run"]
    assert runs.names([c]) == ["cnn/20260102-030405"]
    assert runs.names([a, b]) == ["a/run", "b/run"]


def test_globs_are_expanded_to_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/seed10", "a/seed2", "b/seed0", "[c]"):
        write_run(tmp_path / name)
    (tmp_path / "a" / "report").mkdir()
    expanded = {
        ("a/*",): ["a/seed2", "a/seed10"],
        ("*/seed*", "[c]"): ["a/seed2", "a/seed10", "b/seed0", "[c]"],
        ("a/seed*", "a/seed2", "*/seed*"): ["a/seed10", "a/seed2", "b/seed0"],
        ("a/seed2", "a/seed2", "missing"): ["a/seed2", "a/seed2", "missing"],  # `runs.check` reports them.
    }
    for given, folders in expanded.items():
        assert list(map(str, workdirs.expand(given))) == folders
    with pytest.raises(UserError) as caught:
        workdirs.expand(["*/report", "a/seed2", "x*"])
    assert [line.split(";")[0] for line in str(caught.value).splitlines()] == [
        "--workdir=*/report matches no run",
        "--workdir=x* matches no run",
    ]


def test_the_report_on_several_runs_is_beside_them(tmp_path):
    for name in ("a/seed0", "a/seed1", "b/seed0", "b/seed0/again"):
        write_run(tmp_path / name)
    for names, place in (
        (["a/seed0"], "a/seed0/report"),
        (["a/seed0", "a/seed1"], "a/report"),
        (["a/seed0", "b/seed0"], "report"),
        (["b/seed0", "b/seed0/again"], "b/report"),
    ):
        assert workdirs.default_output([tmp_path / name for name in names]) == tmp_path / place


def test_a_result_that_differs_from_the_record_is_reported(copy, undrawn):
    saved = record(copy)
    saved["results"]["test"]["correct"] += 300
    (copy / "run.json").write_text(json.dumps(saved))
    page, warned = report(copy)
    assert len(warned) == 1
    assert "has changed since" in warned[0] and f"run.json says {saved['results']['test']['correct']}" in warned[0]
    assert "has changed since" in page


def test_a_run_without_a_test_split_is_judged_by_its_validation_split(copy, undrawn):
    config, saved = (record(copy, name) for name in ("config.json", "run.json"))
    config["data"]["test_split"] = ""
    del saved["data"]["counts"]["test"], saved["results"]["test"]
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "run.json").write_text(json.dumps(saved))
    page, warned = report(copy)
    assert any("no test split" in line for line in warned)
    assert "Validation accuracy:" in page and "Test accuracy" not in page
    assert len(table(copy / "report")) == saved["data"]["counts"]["valid"]


def test_an_interrupted_run_is_reported_as_incomplete(killed, undrawn):
    page, warned = report(killed)
    assert any(
        line.startswith("Not complete: the run is running, and its last checkpoint is from step") for line in warned
    )
    assert 'class="note"' in page and "Not complete" in page
    assert len(table(killed / "report")) == 1000
    assert "no results" in page


@pytest.mark.parametrize("change", [{"source": "tfds", "dir": "/nowhere"}, {"name": "cifar100", "source": "tfds"}])
def test_without_its_data_a_run_still_has_its_curves(copy, change, tmp_path, monkeypatch, undrawn):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    config, saved = (record(copy, name) for name in ("config.json", "run.json"))
    config["data"] |= change
    saved["data"]["name"] = config["data"]["name"]
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "run.json").write_text(json.dumps(saved))
    page, warned = report(copy)
    assert len(warned) == 1 and warned[0].startswith("This report has only curves and settings, no predictions: ")
    assert "A report downloads nothing" in warned[0] and saved["data"]["location"] in warned[0]
    assert "Learning curves" in page and "What the classes look like" in page and "train[:5000]" in page
    assert f"{saved['results']['test']['accuracy']:.4f}" in page
    assert "predictions.csv" not in files(copy / "report")


def test_without_a_checkpoint_a_run_still_has_its_curves(copy, undrawn):
    shutil.rmtree(copy / "checkpoints")
    page, warned = report(copy)
    assert len(warned) == 1 and "holds no checkpoint" in warned[0]
    assert "Learning curves" in page and "Configuration" in page


def test_weights_of_a_softmax_classifier_are_its_kernel(softmax):
    network = trained.load(softmax)
    found = weights.templates(network)
    kernel = np.asarray(network.variables["params"]["output"]["kernel"])
    assert list(found) == list(network.class_names)
    for index, image in enumerate(found.values()):
        assert image.shape == (32, 32, 3)
        template = kernel[:, index].reshape(32, 32, 3)
        strong = np.abs(template) > 0.1 * np.abs(template).max()
        assert strong.any() and np.array_equal(image[strong] > 127.5, template[strong] > 0)
    assert weights.filters(network) is None


def test_filters_are_the_kernels_of_the_first_convolution(finished, monkeypatch):
    network = trained.load(finished.folder)
    assert weights.templates(network) is None
    assert weights.filters(network) is None  # They are too small to look at.
    monkeypatch.setattr(weights, "SMALLEST", 3)
    found = weights.filters(network)
    kernel = np.asarray(network.variables["params"]["conv1"]["kernel"])
    assert found.layer == "conv1/kernel" and found.images.shape == (4, 3, 3, 3)
    assert sorted(found.norms) == pytest.approx(sorted(np.linalg.norm(kernel[..., i]) for i in range(4)))


def test_a_folder_that_is_not_a_report_is_left_alone(copy, undrawn):
    output = copy / "report"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"is not an earlier report: it contains thesis\.txt; move it"):
        report(copy)
    assert (output / "thesis.txt").read_text() == "years of work"
    with pytest.raises(UserError, match="is not an earlier report: it contains"):
        report(copy, output=copy)
    with pytest.raises(UserError, match="is not a folder"):
        report(copy, output=copy / "run.json")
    (output / "thesis.txt").unlink()
    report(copy)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"contains notes\.txt, which is not from an earlier report"):
        report(copy)
    (output / "notes.txt").unlink()
    (output / "index.html").write_text("old")
    report(copy)
    assert (output / "index.html").read_text() != "old"
    assert not list(copy.glob(".tmp-*"))


def test_a_report_that_fails_leaves_the_one_before(copy, monkeypatch, undrawn):
    output = copy / "report"
    report(copy)
    before = (output / "index.html").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write.predictions, "write_csv", full)
    with pytest.raises(UserError, match="No space left on device; choose another --output"):
        report(copy)
    assert (output / "index.html").read_text() == before
    assert not list(copy.glob(".tmp-*"))


def test_a_report_that_is_interrupted_while_it_is_exchanged_leaves_the_one_before(copy, monkeypatch, undrawn):
    output = copy / "report"
    report(copy)
    before = (output / "index.html").read_text()
    rename = Path.rename

    def interrupted(self, target):
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report(copy)
    assert (output / "index.html").read_text() == before
    assert not list(copy.glob(".tmp-*"))


def test_a_report_through_a_link_keeps_the_link(copy, tmp_path, undrawn):
    (copy / "report").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        report(copy)
        assert (copy / "report").is_symlink() and (tmp_path / "elsewhere" / "index.html").exists()


@pytest.mark.parametrize("results", [None, {}])
def test_a_run_without_results_is_shown_without_them(copy, undrawn, results):
    saved = record(copy)
    saved["results"] = results
    (copy / "run.json").write_text(json.dumps(saved))
    shutil.rmtree(copy / "checkpoints")
    page, _ = report(copy)
    assert "run.json has no results" in page and "Test accuracy" not in page


def command(*arguments):
    line = [sys.executable, "-m", "imgclf_jax.report", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200)


def test_as_a_command(copy):
    done = command(f"--workdir={copy}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"report {copy.resolve() / 'report' / 'index.html'}"
    assert done.stderr == ""
    assert (copy / "report" / "index.html").read_text().startswith("<!doctype html>")


def test_each_folder_without_a_run_is_reported_in_a_line(tmp_path, softmax):
    (tmp_path / "half").mkdir()
    shutil.copy(softmax / "config.json", tmp_path / "half")
    wrong = [tmp_path / "nothing", tmp_path / "half", softmax, softmax]
    done = command(*(f"--workdir={folder}" for folder in wrong))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {wrong[0]} holds no run (no config.json); give the workdir that training printed",
        f"error: {wrong[1]} holds no run (no run.json); give the workdir that training printed",
        f"error: --workdir={softmax} is given twice",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir is missing"),
        (["--workdir=x", "--config=configs/cnn.py"], "nknown command line flag 'config'"),
        (["--workdirs=x"], "workdirs"),
    ],
)
def test_mistakes_on_the_command_line_are_reported_before_jax_is_imported(arguments, message):
    code = (
        "import sys; from imgclf_jax.terminal import cli; from imgclf_jax.report import __main__ as report\n"
        f"sys.argv = ['report', *{arguments}]\n"
        "assert cli.run_tool(report.main) == 2\n"
        "assert not {'jax', 'matplotlib', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
