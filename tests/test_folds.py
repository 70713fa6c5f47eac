"""folds.py: cross-validation for every data source."""

import json
import pickle

import array_files
import numpy as np
import pytest
from photo_folders import make_classes, make_splits, settings_of, write
from prepared_sets import encode, make_config, tiny_config, write_set
from runs import SOFTMAX, record, rows

from imgclf_jax import config as configs
from imgclf_jax import data
from imgclf_jax.data import folds, statistics
from imgclf_jax.data.types import LazyImages, silent
from imgclf_jax.errors import UserError
from imgclf_jax.training.validate import validate
from imgclf_jax.workdir.saved_config import load_config

pytest_plugins = ["run_fixtures"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A set of 23 training and 4 test images, with labels i % 2 and without ids."""
    pixels = np.random.default_rng(0).integers(0, 256, (27, 8, 6, 3), np.uint8)
    examples = [(encode(image), i % 2) for i, image in enumerate(pixels)]
    return write_set(tmp_path_factory.mktemp("sets"), {"train": examples[:23], "test": examples[23:]}, (8, 6, 3))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_splits(tmp_path_factory.mktemp("photos") / "pets", (("train", 7), ("validation", 4), ("test", 2)))


@pytest.fixture(scope="module")
def table(photos):
    """The same photos, as lines of a .csv file."""
    file = photos.parent / "pets.csv"
    paths = [path.relative_to(photos.parent) for path in sorted(photos.rglob("*.png"))]
    file.write_text("\n".join(["path,label,split", *(f"{path},{path.parts[2]},{path.parts[1]}" for path in paths)]))
    return file


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """30 training and validation examples in .npy files."""
    return array_files.write_npy(tmp_path_factory.mktemp("arrays"), array_files.split_arrays())


@pytest.fixture(params=["sample", "tfds", "folder", "csv", "arrays"])
def settings(request, tiny, photos, table, arrays):
    """The settings of a data source with 4000, 23, 22, 22 or 30 training and validation examples."""
    if request.param == "sample":
        return make_config(source="sample", train_split="train[:45000]", valid_split="train[45000:]")
    if request.param == "tfds":
        return tiny_config(tiny, train_split="train[:9]+train[11:18]", valid_split="train[18:]+train[9:11]")
    if request.param == "arrays":
        return array_files.settings_of(arrays)
    return settings_of(photos) if request.param == "folder" else settings_of(table, source="csv")


def of_fold(settings, fold, count=3, **changes):
    config = settings.copy_and_resolve_references()
    config.update(folds=count, fold=fold, **changes)
    return config


def ids(split):
    return set(split.ids.tolist())


def by_id(split):
    """(label, pixels) of every example."""
    images = split.images[:]
    return {
        name: (int(label), image.tobytes()) for name, label, image in zip(split.ids, split.labels, images, strict=True)
    }


# The deal


def test_folds_are_equal_in_size_and_stratified_to_within_one():
    labels = np.random.default_rng(1).integers(0, 7, 1003).astype(np.int32)
    dealt = folds.deal(labels, np.arange(1003).astype(str), 4)
    assert np.bincount(dealt).tolist() == [251, 251, 251, 250]
    for label in range(7):
        counts = np.bincount(dealt[labels == label], minlength=4)
        assert counts.max() - counts.min() <= 1


def test_the_fold_of_an_example_does_not_depend_on_the_order():
    draws = np.random.default_rng(2)
    labels, names = draws.integers(0, 3, 100), np.array([f"photo {n}" for n in range(100)])
    order = draws.permutation(100)
    dealt = folds.deal(labels, names, 5)
    np.testing.assert_array_equal(folds.deal(labels[order], names[order], 5), dealt[order])
    # It is the same on every machine and in every version: published results refer to it.
    assert folds.deal(np.zeros(8, int), np.arange(8).astype(str), 3).tolist() == [2, 0, 2, 1, 0, 1, 0, 1]
    # The numbers follow from the id, so neighbors are not in the same fold or in turns.
    assert len(set(np.diff(dealt))) > 2


def test_copies_stay_together_and_names_do_not_matter():
    contents = np.array([5, 9, 5, 7, 8, 6], np.uint64)
    labels = np.array([0, 1, 0, 1, 0, 1])
    dealt = folds.deal(labels, np.array(list("abcdef")), 2, contents)
    assert dealt[0] == dealt[2] and sorted(np.bincount(dealt[1:])) == [2, 3]
    np.testing.assert_array_equal(folds.deal(labels, np.array(list("ghijkl")), 2, contents), dealt)


# The sources


@pytest.mark.parametrize("stream", [False, True])
def test_every_example_is_in_one_validation_split_and_in_training_otherwise(settings, stream):
    whole = data.load(settings)
    pool = by_id(whole.splits["train"]) | by_id(whole.splits["valid"])
    seen = []
    for fold in range(3):
        config = of_fold(settings, fold)
        dataset, info = data.load(config, stream=stream), data.describe(config)
        train, valid, test = (dataset.splits[role] for role in ("train", "valid", "test"))
        assert dataset.counts == info.split_sizes
        assert len(valid) == len(range(fold, len(pool), 3)) and len(train) == len(pool) - len(valid)
        if settings.source != "sample" or fold == 0:
            assert by_id(train) | by_id(valid) == pool
            assert by_id(test) == by_id(whole.splits["test"])
        assert not ids(train) & ids(valid)
        counts = np.bincount(train.labels) / len(train) - np.bincount(valid.labels) / len(valid)
        assert np.abs(counts).max() < 2 / len(valid)
        assert train.labels.dtype == np.int32 and train.images.dtype == np.uint8
        assert isinstance(train.images, LazyImages) == stream
        seen += valid.ids.tolist()
    assert sorted(seen) == sorted(pool)
    assert not stream or dataset.fingerprint == data.load(settings, stream=True).fingerprint


def test_streamed_and_resident_folds_are_the_same(settings):
    config = of_fold(settings, 1)
    resident, streamed = data.load(config), data.load(config, stream=True)
    for role, split in resident.splits.items():
        other = streamed.splits[role]
        some = slice(None, None, 1 + len(split) // 50)
        assert split.ids.tolist() == other.ids.tolist() and split.labels.tolist() == other.labels.tolist()
        # The processes that decode get a pickled copy.
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(other.images))[some], split.images[some])


def test_one_split_alone(settings):
    config = of_fold(settings, 2)
    whole = data.load(config)
    for role, split in whole.splits.items():
        alone = data.load_split(config, role)
        assert list(alone.splits) == [role] and by_id(alone.splits[role]) == by_id(split)
        assert data.describe_split(config, role).split_sizes == {role: len(split)}


def test_splits_by_name_are_as_without_folds(tiny):
    config = of_fold(tiny_config(tiny), 0)
    assert data.load_split(config, "train[3:5]").splits["train[3:5]"].ids.tolist() == ["train/3", "train/4"]


def test_without_a_validation_split_the_training_split_is_the_pool(tiny):
    dataset = data.load(of_fold(tiny_config(tiny, train_split="train[3:]", test_split=""), 0, 2))
    assert dataset.counts == {"train": 10, "valid": 10}
    assert ids(dataset.splits["train"]) | ids(dataset.splits["valid"]) == {f"train/{n}" for n in range(3, 23)}


def test_how_the_pool_is_configured_makes_no_difference(tiny):
    one = data.load(of_fold(tiny_config(tiny), 1))
    other = data.load(of_fold(tiny_config(tiny, train_split="train[9:]", valid_split="train[:9]"), 1))
    assert ids(one.splits["valid"]) == ids(other.splits["valid"])


def test_photos_are_dealt_by_content_and_copies_stay_together(tmp_path):
    root = make_classes(tmp_path / "one", {"cat": 9, "dog": 9})
    for number in range(4):
        write(root / "cat" / f"copy{number}.bmp", 1000 + number)  # of 0.png to 3.png
    config = settings_of(root, split=(0.9, 0.1, 0.0))
    sides = {}
    for fold in range(2):
        dataset = data.load(of_fold(config, fold, 2))
        sides[fold] = {image.tobytes() for image in dataset.splits["valid"].images}
        assert not sides[fold] & {image.tobytes() for image in dataset.splits["train"].images}
    for number, path in enumerate(sorted((root / "cat").glob("?.png"))):
        path.rename(path.with_name(f"z{8 - number}.png"))
    dataset = data.load(of_fold(config, 1, 2))
    assert {image.tobytes() for image in dataset.splits["valid"].images} == sides[1]


def test_warnings_about_small_classes_are_about_folds(tmp_path):
    root = make_classes(tmp_path / "pets", {"ant": 1, "bee": 3, "cat": 9})
    config = settings_of(root, split=(0.4, 0.2, 0.4))
    assert "so none in the validation split" in "\n".join(data.describe(config).overlaps)
    config = of_fold(config, 0, 4)
    info = data.describe(config)
    assert info.overlaps == (
        "class ant has 1 photo, so none in the test split; give it at least 3 different photos, or leave the class out",
        "class ant has 1 photo for 4 folds, so 3 of them hold out none, and without the fold of the only one there is "
        "none to train on",
        "class bee has 2 photos for 4 folds, so 2 of them hold out none",
    )
    assert not data.load(config).notice
    held_out = [data.load(of_fold(config, fold, 4)).splits["valid"].labels.tolist() for fold in range(4)]
    assert [sum(label in labels for labels in held_out) for label in range(3)] == [1, 2, 4]
    # Validation may get none from data.split, because the folds decide.
    make_classes(tmp_path / "few", {"ant": 2, "bee": 2})
    config = settings_of(tmp_path / "few", split=(0.9, 0.1, 0.0))
    assert data.describe(of_fold(config, 0, 2)).split_sizes == {"train": 2, "valid": 2}


def test_sums_of_streamed_folds_are_not_confused(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):  # the second time, they are remembered
        for fold in range(3):
            config = of_fold(tiny_config(tiny), fold)
            dataset, resident = data.load(config, stream=True), data.load(config)
            sums = statistics.of_split(dataset.splits["train"], dataset.fingerprint, silent)
            expected = statistics.of_images(resident.splits["train"].images)
            np.testing.assert_array_equal(sums.total, expected.total)
            assert sums.images == expected.images


# What is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"folds": 1}, ["data.folds=1: ", "--config.data.folds=5"]),
        ({"folds": -2}, ["data.folds=-2 must be", "--config.data.folds=0"]),
        ({"folds": 3, "fold": 3}, ["data.fold=3 must be below data.folds=3", "--config.data.fold=2"]),
        ({"folds": 3, "fold": -1}, ["data.fold=-1 must be", "--config.data.fold=0"]),
        ({"fold": 2}, ["data.fold=2 has no effect", "--config.data.folds=5"]),
        ({"folds": 5000}, ["data.folds=5000", "4000 training and validation examples", "--config.data.folds=5"]),
        ({"folds": 2, "valid_split": "test[:50%]"}, ["data.valid_split='test[:50%]' shares 500 examples", "disjoint"]),
    ],
)
def test_folds_that_make_no_sense_are_refused(changes, words):
    config = configs.default()
    config.data.update({"source": "sample", **changes})
    config.update_from_flattened_dict({"model.name": "softmax", "train.epochs": 1.0, "parallel.devices": 1})
    with pytest.raises(UserError) as caught:
        validate(config)
    (line,) = str(caught.value).splitlines()
    for word in words:
        assert word in line


# Whole runs


def test_a_fold_is_trained_and_evaluated(run, tmp_path):
    common = [*SOFTMAX, "--config.data.valid_split=train[5000:9000]", "--config.eval.every_steps=2"]
    identities = set()
    for fold in range(2):
        folder = tmp_path / str(fold)
        flags = ["--config.data.folds=2", f"--config.data.fold={fold}", f"--workdir={folder}"]
        done = run(*common, *flags)
        assert done.code == 0, done.err
        content = record(folder)
        assert content["data"]["counts"] == {"train": 360, "valid": 360, "test": 1000}
        assert [row["split"] for row in rows(folder)].count("valid") == 2
        recorded = content["results"]["valid"]
        done = run("--mode=eval", "--split=valid", f"--workdir={folder}")
        assert f"valid accuracy {recorded['accuracy']:.4f} ({recorded['correct']} / 360)" in done.out
        assert "in the training split" not in done.out
        identities.add(configs.identity(load_config(folder)))
    assert len(identities) == 1
    # All validation examples of one fold are training examples of the other.
    done = run("--mode=eval", "--split=train[:9000]", f"--workdir={tmp_path / '0'}")
    assert "360 of these 720 examples are in the training split" in done.out
    done = run(*common, "--config.data.folds=2", "--config.data.fold=1", f"--workdir={tmp_path / '0'}")
    assert done.code == 2 and "data.fold: 0 -> 1" in done.err
    assert json.loads((tmp_path / "0" / "config.json").read_text())["data"]["fold"] == 0
