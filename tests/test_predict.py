"""predict.py from end to end: rows, score, exit status, mistakes; and the network as a function."""

import csv
import io
import json
import os
import pty
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from runs import ROOT, environment, record

from imgclf_jax import predict
from imgclf_jax.data.decode import read
from imgclf_jax.errors import UserError
from imgclf_jax.workdir.checkpoint import Checkpoints

pytest_plugins = ["run_fixtures"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
GOOD = ("cat/a, b.png", "cat/x.png", "dog/old/y.jpg", "other/z.png")
BAD = ("cat/empty.png", "dog/cut.jpg")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with `GOOD` and `BAD` files."""
    folder = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    for index, name in enumerate(GOOD):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        coarse = draws.integers(0, 256, (3, 4, 3)).astype(np.uint8)  # photos that differ in more than their noise
        Image.fromarray(coarse).resize((40 + index, 50)).save(folder / name)
    (folder / BAD[0]).touch()
    (folder / BAD[1]).write_bytes((folder / "dog/old/y.jpg").read_bytes()[:300])
    return folder


@pytest.fixture(scope="module")
def network(finished):
    return predict.load(finished.folder)


@pytest.fixture(scope="module")
def tool(run, finished):
    """Runs the tool on the finished run, where no other workdir is given."""

    def call(*arguments, **options):
        given = any(str(argument).startswith("--workdir") for argument in arguments)
        workdir = [] if given else [f"--workdir={finished.folder}"]
        return run(*workdir, *arguments, module="imgclf_jax.predict", **options)

    return call


@pytest.fixture(scope="module")
def as_csv(tool, photos):
    """All of `photos`, as CSV; and the folder once more, which makes no difference."""
    return tool("--format=csv", "--top_k=99", "--batch_size=3", "cat", "*/empty.png", ".", cwd=photos)


# Rows


def test_csv_has_a_row_a_file_with_the_network_s_probabilities(as_csv, photos, network):
    head, *rows = csv.reader(io.StringIO(as_csv.out, newline=""))
    places = range(1, len(CLASSES) + 1)  # top_k is more than there are
    assert head == ["file", *(f"{column}_{place}" for place in places for column in ("class", "probability")), "error"]
    assert [row[0] for row in rows] == sorted([*GOOD, *BAD])  # each once, although "." was given as well
    by_name = {row[0]: row for row in rows}
    for name in BAD:
        assert not any(by_name[name][1:-1]) and by_name[name][-1]
    expected = network(np.stack([read(photos / name, (32, 32)) for name in GOOD]))
    for name, probabilities in zip(GOOD, expected, strict=True):
        row = by_name[name]
        assert row[-1] == ""
        found = dict(zip(row[1:-1:2], map(float, row[2:-1:2]), strict=True))
        np.testing.assert_allclose([found[name] for name in CLASSES], probabilities, atol=1e-6)
        assert list(found.values()) == sorted(found.values(), reverse=True)
    assert len({tuple(row) for row in expected.round(4)}) == len(GOOD)  # that it is the right photo can be seen


def test_the_status_and_standard_error_report_bad_files(as_csv):
    assert as_csv.code == 1
    lines = as_csv.err.splitlines()
    assert lines[-1] == "2 of 6 files could not be read"
    assert " / 3 correct, " in lines[0]
    assert lines[1].startswith("1 of 4 files are not scored")


def test_json_has_all_classes_and_the_true_one(tool, photos, as_csv):
    done = tool("--format=json", "dog", "other", cwd=photos)
    cut, dog, other = map(json.loads, done.out.splitlines())
    assert cut["file"] == "dog/cut.jpg" and cut["error"] and "class" not in cut
    assert dog["file"] == "dog/old/y.jpg" and dog["true"] == "dog" and "true" not in other
    assert sorted(dog["probabilities"]) == sorted(CLASSES)
    assert abs(sum(dog["probabilities"].values()) - 1) < 1e-5
    assert dog["class"] == next(iter(dog["probabilities"])) == max(dog["probabilities"], key=dog["probabilities"].get)
    assert f"{dog['class']},{dog['probability']}"[:12] in as_csv.out


def test_table_is_followed_by_the_score(tool, photos):
    done = tool("--top_k=2", photos / "cat" / "a, b.png", photos / "cat" / "x.png")
    assert done.code == 0 and done.err == ""
    lines = done.out.splitlines()
    assert lines[0].split() == ["file", "class", "1", "class", "2"]
    assert [line.split("  ")[0] for line in lines[1:3]] == [str(photos / name) for name in GOOD[:2]]
    best = [line.removeprefix(str(photos / name)).split()[0] for name, line in zip(GOOD, lines[1:3], strict=False)]
    correct = best.count("cat")
    assert lines[4] == f"{correct} / 2 correct, {correct / 2:.4f}"
    counts = dict(zip(lines[7].split()[1:], lines[8].split()[1:], strict=True))
    assert lines[8].split()[0] == "cat"
    assert {name: int(count) for name, count in counts.items() if count != "."} == {
        name: best.count(name) for name in best
    }


def test_folders_that_are_no_classes_are_not_scored(tool, photos, tmp_path):
    shutil.copytree(photos / "other", tmp_path / "a" / "one")
    done = tool(tmp_path)
    assert done.code == 0
    last = done.out.splitlines()[-1]
    assert last == f"not scored: no folder is named like a class of the model ({', '.join(CLASSES)})"
    assert "scored" not in tool(tmp_path / "a" / "one").out


def test_all_files_bad_is_an_error_and_says_why(tool, photos):
    done = tool(*(photos / name for name in BAD))
    assert done.code == 2
    assert "an empty file" in done.out
    assert done.err == "2 of 2 files could not be read\n"


def test_a_name_that_matches_nothing_is_reported_and_the_rest_is_predicted(tool, photos):
    done = tool("--format=csv", photos / "other", photos / "*.gif")
    assert done.code == 1
    assert len(done.out.splitlines()) == 2
    assert done.err == f"warning: no file matches '{photos}/*.gif'\n"


def test_output_is_the_same_rows_and_never_overwritten(tool, photos, as_csv, tmp_path):
    path = tmp_path / "rows.csv"
    arguments = (f"--output={path}", "--format=csv", "--top_k=99", "cat", "*/empty.png", ".")
    done = tool(*arguments, cwd=photos)
    assert done.code == 1 and done.out == ""
    assert done.err.splitlines()[-1] == "2 of 6 files could not be read, such as cat/empty.png: an empty file"
    rows = [row[:2] for row in csv.reader(io.StringIO(path.read_text()))]
    assert rows == [row[:2] for row in csv.reader(io.StringIO(as_csv.out))]
    before = path.read_bytes()
    assert_one_error(tool(*arguments, cwd=photos), f"{path} exists", "--output")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# On a terminal


def command(finished, *arguments):
    return [sys.executable, "-m", "imgclf_jax.predict", f"--workdir={finished.folder}", *map(str, arguments)]


def test_progress_is_shown_on_a_terminal_and_only_there(finished, photos):
    terminal, other_end = pty.openpty()
    with subprocess.Popen(
        command(finished, "--format=csv", "--batch_size=1", photos),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=other_end,
        text=True,
    ) as process:
        os.close(other_end)
        shown = b""
        try:
            while chunk := os.read(terminal, 4096):
                shown += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
        assert process.stdout
        rows = process.stdout.read()
    os.close(terminal)
    assert "predicting" in shown.decode() and "ETA" in shown.decode() and "6/6" in shown.decode()
    assert len(rows.splitlines()) == 7 and "\x1b" not in rows


def test_a_closed_pipe_is_not_an_error(finished, photos):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command(finished, photos), cwd=ROOT, env=environment(), stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == ""


# Mistakes


def assert_one_error(done, *words):
    assert done.code == 2, done
    assert done.out == ""
    assert done.err.startswith("error: ") and len(done.err.splitlines()) == 1, done.err
    for word in words:
        assert word in done.err


MISTAKES = {
    "no workdir": (["--workdir=", "."], "--workdir is missing"),
    "no run": (["--workdir=cat", "."], "cat holds no run"),
    "no files": ([], "no files are given"),
    "nothing matches": (["x*.png", "y.png"], "no file matches 'x*.png'", "'y.png'"),
    "unknown flag": (["--topk=3", "."], "'topk'", "top_k"),
    "a config": (["--config=configs/cnn.py", "."], "'config'"),
    "unknown format": (["--format=xml", "."], "--format=xml", "csv"),
    "no classes": (["--top_k=0", "."], "--top_k=0"),
    "no batch": (["--batch_size=0", "."], "--batch_size=0"),
    "unknown checkpoint": (["--checkpoint=first", "."], "--checkpoint=first", "reported"),
    "output exists": (["--output=cat/x.png", "."], "cat/x.png exists"),
    "output without a name": (["--output=", "."], "--output= is empty"),
    "name that is too long": (["x" * 300], "File name too long"),
    "a device": (["/dev/null"], "'/dev/null' is not a regular file"),
    "output folder missing": (["--output=new/rows.csv", "."], "folder new does not exist"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_reported_in_one_line(tool, photos, case):
    arguments, *words = MISTAKES[case]
    assert_one_error(tool(*arguments, cwd=photos), *words)


def test_several_mistakes_are_reported_at_once(tool, photos):
    done = tool("--workdir=", "--output=new/rows.csv", "y.png", cwd=photos)
    assert done.code == 2
    assert [line[:7] for line in done.err.splitlines()] == ["error: "] * 3


def test_mistakes_are_reported_before_jax_is_imported():
    code = (
        "import sys; from imgclf_jax.terminal import cli; from imgclf_jax.predict import __main__ as predict\n"
        "sys.argv = ['predict', '--workdir=x', 'nothing.png']\n"
        "assert cli.run_tool(predict.main, takes_config=False) == 2\n"
        "print(sorted({'jax', 'flax', 'PIL', 'rich', 'orbax', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_help_does_not_mention_a_config(tool):
    done = tool("--help")
    assert done.code == 0
    for flag in ("--workdir", "--checkpoint", "--top_k", "--format", "--output", "--batch_size"):
        assert flag in done.out
    assert "--config" not in done.out


def changed(finished, tmp_path, file, change):
    folder = tmp_path / "changed"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns("tensorboard"))
    content = record(folder, file)
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


EDITS = {
    "option of another model": (lambda config: config["model"].update(name="mlp", widths=[], dropout=0), "model.norm"),
    "no model": (lambda config: config["model"].update(name="cn"), "model.name='cn'", "config.json"),
    "no pixels": (lambda config: config["data"].update(pixels="units"), "data.pixels='units'"),
    "no crop": (lambda config: config["augment"].update(crop=[99, 99]), "augment.crop"),
    "unknown field": (lambda config: config.update(zebra=1), "zebra"),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edited_config_is_reported(finished, tmp_path, case):
    edit, *words = EDITS[case]
    folder = changed(finished, tmp_path, "config.json", edit)
    with pytest.raises(UserError) as error:
        predict.load(folder)
    assert len(str(error.value).splitlines()) == 1
    assert all(word in str(error.value) for word in words)


OTHER_MODELS = {
    "another width": {"widths": [4, 4, 5]},
    "another model": {"name": "softmax", "widths": [], "hidden": [], "norm": "none", "dropout": None},
}


@pytest.mark.parametrize("case", OTHER_MODELS)
def test_a_checkpoint_of_another_model_is_reported(tool, finished, tmp_path, photos, case):
    folder = changed(finished, tmp_path, "config.json", lambda config: config["model"].update(OTHER_MODELS[case]))
    assert_one_error(tool(f"--workdir={folder}", photos), "checkpoint", "belong to another model")


def test_a_checkpoint_that_is_damaged_or_missing_is_reported(tool, finished, tmp_path, photos):
    folder = changed(finished, tmp_path, "config.json", lambda config: None)
    for file in (folder / "checkpoints").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            content = bytearray(file.read_bytes())
            content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
            file.write_bytes(content)
    assert_one_error(tool(f"--workdir={folder}", photos), "checkpoint", str(folder))
    shutil.rmtree(folder / "checkpoints")
    assert_one_error(tool(f"--workdir={folder}", photos), "holds no checkpoint")


def test_the_images_shape_comes_out_of_the_checkpoint_if_the_record_lacks_it(finished, tmp_path, monkeypatch):
    folder = changed(finished, tmp_path, "run.json", lambda record: record["data"].pop("image_shape"))
    assert predict.load(folder).image_shape == (32, 32, 3)
    # Older checkpoints do not hold it.
    monkeypatch.setattr(Checkpoints, "notes", lambda checkpoints, step: {})
    with pytest.raises(UserError, match=r"run\.json lacks image_shape"):
        predict.load(folder)


# From Python


def test_the_network_is_a_function(network):
    assert network.class_names == CLASSES
    assert network.image_shape == (32, 32, 3)
    images = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3)).astype(np.uint8)
    probabilities = network(images)
    assert probabilities.shape == (300, 10) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(network(images[:3]), probabilities[:3], atol=1e-6)
    np.testing.assert_allclose(network(images[299:]), probabilities[299:], atol=1e-6)
    assert network(images[:0]).shape == (0, 10)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((2, 32, 31, 3), np.uint8),
        np.zeros((2, 32, 32, 1), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((), np.uint8),
        [[1, 2], [3, 4]],
    ],
)
def test_images_of_another_shape_or_dtype_are_refused(network, images):
    with pytest.raises(UserError, match=r"uint8 \[N, 32, 32, 3\]") as error:
        network(images)
    assert len(str(error.value).splitlines()) == 1


def test_checkpoints_are_those_of_the_run(finished):
    with pytest.raises(UserError, match="'bset'"):
        predict.load(finished.folder, "bset")
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    reported, last = (predict.load(str(finished.folder), which)(images) for which in ("reported", "last"))
    np.testing.assert_array_equal(reported, last)  # eval.report is "last"
