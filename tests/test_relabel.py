"""relabel.py: other labels for the training split."""

import hashlib
import json

import numpy as np
import pytest
from array_files import make, split_arrays, write_npz
from array_files import settings_of as arrays_of
from photo_folders import make_splits, refused
from photo_folders import settings_of as photos_of
from prepared_sets import make_config
from runs import SOFTMAX, record

from imgclf_jax import config as configs
from imgclf_jax import data
from imgclf_jax.errors import UserError
from imgclf_jax.workdir import record as records
from imgclf_jax.workdir import resume
from imgclf_jax.workdir.saved_config import load_config

pytest_plugins = ["run_fixtures"]


def sample(**changes):
    return make_config(
        **{"source": "sample", "train_split": "train[:45000]", "valid_split": "train[45000:]", **changes}
    )


def originals():
    """int [50000], by original number: the labels of the sample's training examples, and 0 for all others."""
    whole = data.load(sample(train_split="train", valid_split="")).splits["train"]
    labels = np.zeros(50000, int)
    labels[[int(name.partition("_")[2]) for name in whole.ids]] = whole.labels
    return labels


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    """A file in which every label is the one after the right one."""
    path = tmp_path_factory.mktemp("labels") / "shifted.npy"
    np.save(path, (originals() + 1) % 10)
    return path


def table(path, lines, header="id,label"):
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("folds", [{}, {"folds": 3, "fold": 1}])
def test_the_training_split_alone_gets_other_labels(shifted, stream, folds):
    plain, config = data.load(sample(**folds)), sample(labels=str(shifted), **folds)
    dataset = data.load(config, stream=stream)
    assert data.describe(config).split_sizes == dataset.counts == plain.counts
    for role, part in plain.splits.items():
        mine = dataset.splits[role]
        assert mine.ids.tolist() == part.ids.tolist() and mine.labels.dtype == np.int32
        expected = (part.labels + 1) % 10 if role == "train" else part.labels
        np.testing.assert_array_equal(mine.labels, expected)
        np.testing.assert_array_equal(data.load_split(config, role).splits[role].labels, expected)
    size = plain.counts["train"]
    assert f"{size:,} of {size:,} training labels differ" in dataset.notice
    sha256 = hashlib.sha256(shifted.read_bytes()).hexdigest()
    assert dataset.facts()["labels"] == {"file": str(shifted), "sha256": sha256, "changed": size}
    # Runs with and without it are still on the same data, and can be compared.
    assert stream or dataset.fingerprint == plain.fingerprint
    assert "labels" not in plain.facts() and "labels" not in data.load_split(config, "test").facts()


def test_named_splits_keep_their_labels(shifted):
    config = sample(labels=str(shifted))
    part = data.load_split(config, "train[:500]").splits["train[:500]"]
    np.testing.assert_array_equal(part.labels, data.load(sample()).splits["train"].labels[: len(part)])


def test_a_table_of_some_labels(tmp_path):
    plain = data.load(sample())
    train, valid = plain.splits["train"], plain.splits["valid"]
    other = plain.class_names[(train.labels[7] + 1) % 10]
    lines = [f"{train.ids[7]},{other}", f"{train.ids[9]},{train.labels[9]}", f"{valid.ids[0]},3", "train_49999,0"]
    dataset = data.load(sample(labels=table(tmp_path / "some.csv", lines)))
    assert np.flatnonzero(dataset.splits["train"].labels != train.labels).tolist() == [7]
    assert "1 of 3,600 training labels differ" in dataset.notice and "it lists 2 of them" in dataset.notice
    np.testing.assert_array_equal(dataset.splits["valid"].labels, valid.labels)


def test_photos_are_relabeled_by_path(tmp_path):
    root = make_splits(tmp_path / "pets")
    file = table(tmp_path / "labels.csv", ["train/cat/0.png,dog", "validation/cat/0.png,dog"])
    dataset = data.load(photos_of(root, labels=file))
    labels = {role: dict(zip(s.ids.tolist(), s.labels.tolist(), strict=True)) for role, s in dataset.splits.items()}
    assert labels["train"].pop("train/cat/0.png") == 1 and set(labels["train"].values()) == {0, 1}
    assert labels["valid"]["validation/cat/0.png"] == 0
    file = table(tmp_path / "labels.csv", ["train/cat/0.png,dog", "train/cat/99.png,dog"])
    assert "line 3: there is no example 'train/cat/99.png'" in refused(photos_of(root, labels=file), data.load)
    np.save(tmp_path / "labels.npy", np.zeros(8, int))
    error = refused(photos_of(root, labels=str(tmp_path / "labels.npy")))
    assert "have no numbers" in error and ".csv file" in error


def test_arrays_are_relabeled_by_position(tmp_path):
    np.save(tmp_path / "labels.npy", np.arange(21)[::-1] % 3)
    config = arrays_of(write_npz(tmp_path, split_arrays()), labels=str(tmp_path / "labels.npy"))
    dataset = data.load(config)
    assert dataset.splits["train"].labels.tolist() == (np.arange(21)[::-1] % 3).tolist()
    assert dataset.splits["valid"].labels.tolist() == split_arrays()["valid_labels"].tolist()
    config.update(folds=3)
    assert "the training examples are from train and valid; use a .csv" in refused(config, data.load)
    images, labels = make(40)
    np.savez(tmp_path / "one.npz", images=images, labels=labels)
    np.save(tmp_path / "labels.npy", (labels + 1) % 3)
    dataset = data.load(arrays_of(tmp_path / "one.npz", labels=str(tmp_path / "labels.npy")))
    for role, part in dataset.splits.items():
        right = labels[[int(name.partition("/")[2]) for name in part.ids]]
        np.testing.assert_array_equal(part.labels, (right + 1) % 3 if role == "train" else right)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros(45000, int), ["holds 45000 labels", "50000 (train)", "10000 (test)"]),
        (np.zeros(10000, int), ["holds 10000 labels", "50000 original examples in train"]),
        (np.full(50000, 10), ["50000 labels are not from 0 to 9", "10, that of example 0"]),
        (np.zeros(50000), ["holds float64 [50000]", "int [N]"]),
        (np.zeros((50000, 3), int), ["holds int64 [50000, 3]"]),
        (b"nothing", ["cannot be read as an array"]),
        (["train_00001,10"], ["line 2: the label '10' is neither a class nor a number from 0 to 9"]),
        (["train_00001,1", "train_00001,1"], ["line 3: 'train_00001' is also in line 2"]),
        (["train_50000,1", "train_49999,2"], ["line 2: there is no example 'train_50000'"]),
        ([",1"], ["line 2: the id is empty"]),
        (["test_00001,1"], ["none of its ids is a training example", "'train_"]),
        ([], ["lists no labels"]),
    ],
)
def test_wrong_labels_are_reported_in_a_line(tmp_path, content, words):
    path = tmp_path / ("labels.csv" if isinstance(content, list) else "labels.npy")
    if isinstance(content, list):
        table(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    (line,) = refused(sample(labels=str(path)), data.load).splitlines()
    assert line.startswith(f"data.labels={str(path)!r}: ")
    for word in words:
        assert word in line


def test_the_file_is_checked_before_data_is_read(tmp_path):
    assert "there is no such file" in refused(sample(labels="nothing.npy"))
    assert "must be a .npy file, or a .csv file" in refused(sample(labels=str(tmp_path / "labels.pt")))
    np.save(tmp_path / "labels.npy", np.full(50000, 99))
    assert "not from 0 to 9" in refused(sample(labels=str(tmp_path / "labels.npy")))
    assert data.describe_split(sample(labels="nothing.npy"), "test").split_sizes == {"test": 1000}


# What a run remembers


def facts(**labels):
    return {"fingerprint": "f", "name": "n", "location": "l", **({"labels": labels} if labels else {})}


def test_other_labels_are_refused_at_a_resume(tmp_path):
    one = facts(file="a.npy", sha256="1" * 64, changed=3)
    other = facts(file="a.npy", sha256="2" * 64, changed=4)
    assert not resume.check_data(one, one, tmp_path, print, False)
    assert not resume.check_data(facts(), facts(), tmp_path, print, False)
    assert not resume.check_data({}, one, tmp_path, print, False)
    assert not resume.check_data(one, one | {"labels": {**one["labels"], "file": "b.npy"}}, tmp_path, print, False)
    for before, after, words in ((one, other, "a.npy has changed"), (facts(), one, "those of the data set -> a.npy")):
        with pytest.raises(UserError, match=words):
            resume.check_data(before, after, tmp_path, print, False)
        lines = []
        assert resume.check_data(before, after, tmp_path, lines.append, True)
        assert len(lines) == 1 and words in lines[0]
    assert resume.explain_difference(json.dumps(one), json.dumps(facts())).startswith("labels: None -> {")


def test_records_with_and_without_labels_are_read():
    assert records.find_problem({"data": facts()}, records.FIELDS) is None
    assert records.find_problem({"data": facts(file="a", sha256="b", changed=1)}, records.FIELDS) is None
    problem = records.find_problem({"data": facts(file="a", sha256="b", changed=-1)}, records.FIELDS)
    assert problem == "data.labels.changed is -1, not a non-negative integer"


def test_a_run_with_noisy_labels_remembers_them(run, tmp_path, shifted):
    file = tmp_path / "noisy.npy"
    file.write_bytes(shifted.read_bytes())
    flags = [*SOFTMAX, f"--config.data.labels={file}", "--config.train.steps=4", f"--workdir={tmp_path / 'run'}"]
    done = run(*flags)
    assert done.code == 0 and "400 of 400 training labels differ" in done.err + done.out
    content = record(tmp_path / "run")
    assert content["data"]["labels"]["changed"] == 400
    plain = load_config(tmp_path / "run")
    identity = configs.identity(plain)
    plain.data.labels = ""
    assert configs.identity(plain) != identity
    np.save(file, originals())
    done = run(*flags)
    assert done.code == 2 and f"other training labels ({file} has changed" in done.err
    file.unlink()  # Evaluation on other splits does not need it.
    done = run("--mode=eval", "--split=valid", f"--workdir={tmp_path / 'run'}")
    assert done.code == 0 and f"{content['results']['valid']['correct']} / " in done.out
