"""arrays/: images and labels in .npz and .npy files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from array_files import (
    SIZES,
    make,
    settings_of,
    split_arrays,
    write_compressed,
    write_npy,
    write_npz,
    write_npz_each,
    write_with_names,
)
from photo_folders import refused
from runs import record

from imgclf_jax import data
from imgclf_jax.data import statistics
from imgclf_jax.data.types import LazyImages, silent

WRITERS = [write_npz, write_compressed, write_npz_each, write_npy, write_with_names]


pytest_plugins = ["run_fixtures"]


def content(dataset):
    return {
        role: sorted((int(label), image.tobytes()) for label, image in zip(part.labels, part.images[:], strict=True))
        for role, part in dataset.splits.items()
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("write", WRITERS)
def test_every_layout_gives_the_same_examples(tmp_path, write, stream):
    named = split_arrays()
    config = settings_of(write(tmp_path, named))
    info, dataset = data.describe(config), data.load(config, stream=stream)
    assert info.split_sizes == dataset.counts == SIZES and info.image_shape == dataset.image_shape == (6, 5, 3)
    assert info.class_names == dataset.class_names == ("0", "1", "2") and not dataset.notice
    assert info.stored == dataset.stored
    for role, part in dataset.splits.items():
        assert isinstance(part.images, LazyImages) == stream
        assert part.labels.dtype == np.int32 and part.images.dtype == np.uint8
        expected = zip(named[f"{role}_labels"].tolist(), named[f"{role}_images"], strict=True)
        assert content(dataset)[role] == sorted((label, image.tobytes()) for label, image in expected)
        # The processes that read get a pickled copy.
        again = pickle.loads(pickle.dumps(part.images))
        np.testing.assert_array_equal(again[2:4], part.images[2:4])
        alone = data.load_split(config, role, stream=stream)
        assert list(alone.splits) == [role] and data.describe_split(config, role).split_sizes == {role: len(part)}
    assert dataset.fingerprint == data.load(config, stream=not stream).fingerprint


def test_the_fingerprint_covers_images_labels_and_names_but_no_file(tmp_path):
    named = split_arrays()
    prints = set()
    for number, write in enumerate(WRITERS[:4]):
        (tmp_path / str(number)).mkdir()
        prints.add(data.load(settings_of(write(tmp_path / str(number), named))).fingerprint)
    assert len(prints) == 1
    other = {name: array.copy() for name, array in named.items()}
    other["valid_images"][0, 0, 0, 0] ^= 1
    labels = named | {"test_labels": named["test_labels"][::-1]}
    for number, changed in enumerate((other, labels, named | {"class_names": np.array(["a", "b", "c"])})):
        (tmp_path / f"other{number}").mkdir()
        prints.add(data.load(settings_of(write_npz(tmp_path / f"other{number}", changed))).fingerprint)
    assert len(prints) == 4


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_one_set_is_divided_by_content(tmp_path, kind):
    images, labels = make(60)
    images[30:33] = images[0]  # copies of the first one, all of class 0 below
    labels[30:33] = labels[0]

    def settings(order, name):
        (tmp_path / name).mkdir()
        named = {"images": images[order], "labels": labels[order], "ids": np.arange(60)[order]}
        place = write_npz(tmp_path / name, named) if kind == "npz" else write_npy(tmp_path / name, named)
        return settings_of(place, split=(0.6, 0.2, 0.2))

    order = np.random.default_rng(1).permutation(60)
    config = settings(np.arange(60), "one")
    one, other = data.load(config), data.load(settings(order, "other"), stream=True)
    assert content(one) == content(other) and one.fingerprint == other.fingerprint
    assert sum(one.counts.values()) == 60
    roles = {int(name): role for role, part in one.splits.items() for name in part.ids}
    assert len({roles[number] for number in (0, 30, 31, 32)}) == 1
    for part in one.splits.values():
        assert np.ptp(np.bincount(part.labels)) <= 5 and len(set(part.labels.tolist())) == 3
    assert sum(data.describe(config).split_sizes.values()) == 60


def test_gray_images_have_one_channel(tmp_path):
    named = split_arrays((7, 4))
    for write, stream in ((write_npy, False), (write_npy, True), (write_compressed, True)):
        dataset = data.load(settings_of(write(tmp_path, named)), stream=stream)
        assert dataset.image_shape == (7, 4, 1)
        np.testing.assert_array_equal(dataset.splits["train"].images[:][..., 0], named["train_images"])


def test_names_and_ids(tmp_path):
    named = split_arrays() | {"class_names": np.array(["cat", "dog", "elk", "fox"]), "train_ids": np.arange(100, 121)}
    dataset = data.load(settings_of(write_npy(tmp_path, named)))
    assert dataset.class_names == ("cat", "dog", "elk", "fox")
    assert dataset.splits["train"].ids.tolist() == [str(number) for number in range(100, 121)]
    assert dataset.splits["valid"].ids[:2].tolist() == ["valid/0", "valid/1"]


def test_arrays_in_memory_are_views_of_the_file(tmp_path):
    dataset = data.load(settings_of(write_npy(tmp_path, split_arrays())))
    assert isinstance(dataset.splits["train"].images, np.memmap)
    fortran = np.asfortranarray(split_arrays()["train_images"])
    np.save(tmp_path / "train_images.npy", fortran)
    np.testing.assert_array_equal(data.load(settings_of(tmp_path)).splits["train"].images, fortran)


def test_copies_in_given_splits_are_reported_and_may_be_left_out(tmp_path):
    named = split_arrays()
    named["train_images"][4], named["train_labels"][4] = named["test_images"][1], named["test_labels"][1]
    config = settings_of(write_npz(tmp_path, named))
    kept = data.load(config)
    assert kept.counts == SIZES and "in two splits" in kept.notice and "train/4 = test/1" in kept.notice
    dropped = data.load(settings_of(config.dir, on_bad="skip"))
    assert dropped.counts == {**SIZES, "train": 20} and "left out" in dropped.notice
    assert "train/4" not in dropped.splits["train"].ids


def test_copies_under_two_classes_are_refused_when_the_content_decides(tmp_path):
    images, labels = make(30)
    images[1] = images[0]
    config = settings_of(write_npz(tmp_path, {"images": images, "labels": labels}))
    assert "images that are under two classes: 1" in refused(config, data.load)
    config.on_bad = "skip"
    assert sum(data.load(config).counts.values()) == 28


def test_a_file_that_changes_during_a_run_is_noticed(tmp_path):
    named = split_arrays()
    images = data.load(settings_of(write_npy(tmp_path, named)), stream=True).splits["train"].images
    other = pickle.loads(pickle.dumps(images))
    images[0]
    np.save(tmp_path / "train_images.npy", named["train_images"][:5])
    assert "has changed since the data set was examined" in refused(0, other.__getitem__)


def test_sums_of_streamed_arrays(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset = data.load(settings_of(write_npy(tmp_path, split_arrays())), stream=True)
    sums = statistics.of_split(dataset.splits["train"], dataset.fingerprint, silent)
    np.testing.assert_array_equal(sums.total, statistics.of_images(split_arrays()["train_images"]).total)


def changed(**changes):
    """What a folder of .npy files holds, with changes; None deletes."""
    named = split_arrays() | changes
    return {name: array for name, array in named.items() if array is not None}


IMAGES, LABELS = make(21)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (changed(train_images=IMAGES.astype(np.float32)), ["train_images.npy: holds float32", "uint8 [N, H, W, C]"]),
        (changed(train_images=IMAGES[0]), ["train_images.npy has 6 images"]),
        (changed(valid_images=make(9, 0, (6, 6, 3))[0]), ["valid 6×6×3", "differ in shape"]),
        (changed(train_images=IMAGES[:5]), ["train_images.npy has 5 images", "train_labels.npy has 21 labels"]),
        (changed(train_images=IMAGES[:0], train_labels=LABELS[:0]), ["train_images.npy"]),
        (changed(train_labels=LABELS / 2), ["train_labels.npy: holds float64", "whole numbers"]),
        (changed(train_labels=np.eye(3)[LABELS]), ["train_labels.npy: holds float64 [21, 3]"]),
        (changed(train_labels=LABELS * 2), ["no example has the label 3", "class_names"]),
        (changed(train_labels=LABELS - 1), ["the least label is -1"]),
        (changed(class_names=np.array(["a", "b"])), ["labels from 0 to 2", "2 class_names"]),
        (changed(class_names=np.array(["a", "b", "b"])), ["class_names.npy: holds the same name twice"]),
        (changed(class_names=np.array(["a", "b", "\n"])), ["class_names.npy: holds the name '\\n'"]),
        (changed(class_names=np.zeros(3)), ["class_names.npy: holds float64 [3]"]),
        (changed(train_ids=np.zeros(21, int)), ["the id '0' is given to several examples"]),
        (changed(train_ids=np.arange(3)), ["train_ids.npy: has 3 ids for 21 images"]),
        (changed(train_labels=None), ["lacks train_labels", "train_images"]),
        (changed(train_labels=None, train_images=None), ["no images and labels for training", "valid_images"]),
        (changed(images=IMAGES, labels=LABELS), ["both images and images of splits"]),
        (changed(val_images=IMAGES), ["val_images.npy and valid_images.npy are the same"]),
        ({"images": IMAGES, "labels": LABELS, "split": np.repeat("eval", 21)}, ["holds 'eval'", "train, valid"]),
        ({"images": IMAGES, "labels": LABELS, "split": np.repeat("test", 21)}, ["no example is for training"]),
        ({"images": IMAGES, "labels": LABELS, "split": np.repeat("train", 2)}, ["2 names for 21 images"]),
        ({"images": IMAGES, "labels": LABELS * 0}, ["only one class"]),
        ({"images": make(9, 0, (3, 8, 8))[0], "labels": LABELS[:9]}, ["8 channels", "transpose(0, 2, 3, 1)"]),
        ({}, ["no images and labels for training"]),
    ],
)
def test_wrong_arrays_are_reported_in_a_line(tmp_path, named, words):
    error = refused(settings_of(write_npy(tmp_path, named)))
    (line,) = error.splitlines()
    assert line.startswith(f"data.dir={str(tmp_path)!r}: ")
    for word in words:
        assert word in line


def test_wrong_settings_and_places_are_reported(tmp_path):
    place = write_npz(tmp_path, split_arrays())
    assert "data.dir is empty" in refused(settings_of(""))
    assert "no such file or folder" in refused(settings_of(tmp_path / "nothing"))
    (tmp_path / "x.mat").touch()
    assert "does not end in .npz" in refused(settings_of(tmp_path / "x.mat"))
    lines = refused(settings_of(place, image_size=(8, 8), train_split="train", split=(0.5, 0.5, 0.0))).splitlines()
    assert [line.partition("=")[0] for line in lines] == ["data.image_size", "data.split"]
    (tmp_path / "both").mkdir()
    write_npz_each(tmp_path / "both", split_arrays())
    np.save(tmp_path / "both/images.npy", IMAGES)
    assert "both test.npz and images.npy" in refused(settings_of(tmp_path / "both"))


def test_damaged_files_are_reported(tmp_path):
    place = write_compressed(tmp_path, split_arrays())
    whole = place.read_bytes()
    place.write_bytes(whole[: len(whole) // 2])
    assert "all.npz: cannot be read as a .npz file" in refused(settings_of(place))
    middle = bytearray(whole)
    middle[len(whole) // 20] ^= 255  # in the images of the training split
    place.write_bytes(middle)
    assert "all.npz['train_images']: cannot be read" in refused(settings_of(place), data.load)
    (tmp_path / "train_images.npy").write_bytes(b"no array")
    np.save(tmp_path / "train_labels.npy", LABELS)
    assert "train_images.npy: cannot be read (it is not in the .npy format)" in refused(settings_of(tmp_path))


class Trap:
    """An object whose pickle makes a file."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return Path.touch, (self._path,)


@pytest.mark.parametrize("name", ["train_labels", "class_names", "train_images", "train_ids"])
@pytest.mark.parametrize("write", [write_npz, write_npz_each, write_npy])
def test_arrays_cannot_run_code(tmp_path, name, write):
    named = split_arrays()
    traps = np.array([Trap(tmp_path / "caught")] * 21, object)
    place = write(tmp_path, named | {name: traps} if write is not write_npz_each else named)
    if write is write_npz_each:
        part = {"images": IMAGES, "labels": LABELS, name.removeprefix("train_"): traps}
        np.savez(tmp_path / "train.npz", **part)
    error = refused(settings_of(place), data.load)
    assert "holds Python objects, which could run code" in error or "holds object" in error or "not in the" in error
    assert not (tmp_path / "caught").exists()


def test_a_run_is_the_same_whether_arrays_are_streamed(run, tmp_path):
    place = write_npz(tmp_path, split_arrays((8, 8)))
    common = ["--config=configs/softmax.py", "--config.data.source=arrays", f"--config.data.dir={place}"]
    common += ["--config.train.batch_size=7", "--config.train.steps=6", "--config.log.tensorboard=False"]
    common += ["--config.data.folds=3", "--config.data.fold=2"]
    for name, most in (("resident", 0), ("streamed", 1)):
        folder = tmp_path / name
        done = run(*common, f"--config.data.max_device_bytes={most}", "--config.data.workers=1", f"--workdir={folder}")
        assert done.code == 0, done.err
        assert ("streamed, decoded by" in done.out) == bool(most)
    resident, streamed = (record(tmp_path / name) for name in ("resident", "streamed"))
    assert resident["results"] == streamed["results"]
    assert resident["data"] == streamed["data"] and resident["data"]["counts"]["valid"] == 10
    done = run("--mode=eval", "--split=valid", f"--workdir={tmp_path / 'streamed'}")
    assert f"({resident['results']['valid']['correct']} / 10)" in done.out
    changed = split_arrays((8, 8))
    changed["train_images"][0] ^= 1
    write_npz(tmp_path, changed)
    done = run(*common, f"--workdir={tmp_path / 'resident'}")
    assert done.code == 2 and f"all.npz in {place} has changed" in done.err
