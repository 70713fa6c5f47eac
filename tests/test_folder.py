"""Photos in folders: what is found, split, refused, left out and kept."""

import functools
import hashlib
import itertools
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from runs import record

from imgclf_jax import data
from imgclf_jax.config import default
from imgclf_jax.data import folder, folder_splits, photos
from imgclf_jax.errors import UserError
from imgclf_jax.validate import validate

pytest_plugins = ["run_fixtures"]


def settings_of(root, **changes):
    config = default().data
    config.update({"source": "folder", "dir": str(root), "image_size": (6, 5), **changes})
    return config


def write(path, seed, size=(9, 8)):
    """A photo of its own for every `seed`; returns its pixels."""
    pixels = np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def make_splits(root, counts=(("train", 4), ("validation", 2), ("test", 3)), classes=("cat", "dog")):
    """`root`/SPLIT/CLASS/n.png, all different."""
    seeds = itertools.count()
    for split, count in counts:
        for name in classes:
            for number in range(count):
                write(root / split / name / f"{number}.png", next(seeds))
    return root


def make_classes(root, counts):
    """`root`/CLASS/n.png, all different."""
    seeds = itertools.count(1000)
    for name, count in counts.items():
        for number in range(count):
            write(root / name / f"{number}.png", next(seeds))
    return root


def refused(config, look=data.describe):
    with pytest.raises(UserError) as caught:
        look(config)
    return str(caught.value)


def hashes(dataset):
    """By role, (content, label) of each photo, in order."""
    return {
        role: [
            (hashlib.sha256((Path(dataset.location) / path).read_bytes()).hexdigest(), int(label))
            for path, label in zip(split.ids, split.labels, strict=True)
        ]
        for role, split in dataset.splits.items()
    }


@pytest.fixture
def decoding(monkeypatch):
    """The list of what is decoded from here on."""
    decoded = []
    read = photos.read
    monkeypatch.setattr(photos, "read", lambda *arguments: decoded.append(1) or read(*arguments))
    return decoded


def test_folders_say_class_and_split(tmp_path):
    root = make_splits(tmp_path / "pets")
    write(root / "train" / "cat" / "more" / "deep.JPG", 77)
    for junk in (".hidden.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".thumbnails/a.png"):
        (root / "train" / "cat" / junk).parent.mkdir(exist_ok=True)
        (root / "train" / "cat" / junk).write_bytes(b"junk")
    (root / "README.md").write_text("about")
    (root / ".trash" / "x").mkdir(parents=True)
    info = data.describe(settings_of(root))
    assert info.split_sizes == {"train": 9, "valid": 4, "test": 6}
    assert (info.name, info.class_names, info.image_shape) == ("pets", ("cat", "dog"), (6, 5, 3))
    assert info.is_prepared and not info.is_sample and info.location == str(root)
    dataset = data.load(settings_of(root))
    assert {role: len(split) for role, split in dataset.splits.items()} == info.split_sizes
    assert (dataset.name, dataset.class_names, dataset.image_shape) == ("pets", ("cat", "dog"), (6, 5, 3))
    assert list(dataset.splits["valid"].ids) == [
        f"validation/{name}/{n}.png" for name in ("cat", "dog") for n in (0, 1)
    ]
    assert list(dataset.splits["train"].ids[:5]) == [f"train/cat/{n}.png" for n in range(4)] + [
        "train/cat/more/deep.JPG"
    ]
    assert dataset.notice == ""
    for split in dataset.splits.values():
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        for image, label, path in zip(split.images, split.labels, split.ids, strict=True):
            assert path.split("/")[1] == dataset.class_names[label]
            np.testing.assert_array_equal(image, photos.read(root / path, (6, 5)))


def test_photos_of_the_wanted_size_are_what_was_written(tmp_path):
    written = {name: write(tmp_path / "train" / name / "x.png", seed) for seed, name in enumerate("ab")}
    dataset = data.load(settings_of(tmp_path, image_size=(9, 8)))
    assert list(dataset.splits) == ["train"]
    for image, name in zip(dataset.splits["train"].images, "ab", strict=True):
        np.testing.assert_array_equal(image, written[name])


def test_resize_is_honoured(tmp_path):
    make_splits(tmp_path)
    stretched, cropped = (data.load(settings_of(tmp_path, resize=how)) for how in ("stretch", "crop"))
    ours = cropped.splits["test"].images[0]
    np.testing.assert_array_equal(ours, photos.read(tmp_path / "test/cat/0.png", (6, 5), "crop"))
    assert not np.array_equal(ours, stretched.splits["test"].images[0])
    assert stretched.fingerprint != cropped.fingerprint


@pytest.mark.parametrize("name", ["valid", "val", "validation", "Val"])
def test_names_of_the_validation_folder(tmp_path, name):
    make_splits(tmp_path, (("train", 2), (name, 1)))
    assert data.describe(settings_of(tmp_path)).split_sizes == {"train": 4, "valid": 2}


def test_a_class_may_be_called_train(tmp_path):
    make_classes(tmp_path, {"car": 4, "plane": 4, "train": 4})
    info = data.describe(settings_of(tmp_path, split=(0.5, 0.25, 0.25)))
    assert info.class_names == ("car", "plane", "train")
    assert info.split_sizes == {"train": 6, "valid": 3, "test": 3}


def test_names_may_be_anything(tmp_path):
    odd = "häuser & «Bäume» 100%20 日本 " + "x" * 180
    make_splits(tmp_path / "a folder", (("train", 1), ("test", 1)), classes=(odd, "z"))
    write(tmp_path / "a folder" / "train" / "z" / ("ü" * 100 + "\n%s.png"), 500)
    write(tmp_path / "a folder" / "train" / "z" / os.fsdecode(b"\xff\xfe.png"), 501)
    for stream in (False, True):
        dataset = data.load(settings_of(tmp_path / "a folder"), stream=stream)
        assert dataset.class_names == (odd, "z")
        assert len(dataset.splits["train"]) == 4
        assert dataset.splits["train"].images[:].shape == (4, 6, 5, 3)
        json.dumps(list(dataset.splits["train"].ids)).encode()
        "".join(dataset.splits["train"].ids).encode()  # can be printed and written


def test_links_are_followed(tmp_path):
    make_splits(tmp_path / "elsewhere")
    root = tmp_path / "root"
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        (root / split / "cat").symlink_to(tmp_path / "elsewhere" / split / "cat")
        shutil.copytree(tmp_path / "elsewhere" / split / "dog", root / split / "dog")
    (root / "train" / "dog" / "photo.png").symlink_to(tmp_path / "elsewhere" / "validation" / "dog" / "0.png")
    (root / "train" / "dog" / "round").symlink_to(root / "train" / "dog")  # leads back to where it is
    assert data.describe(settings_of(root)).split_sizes == {"train": 9, "test": 6}
    assert len(data.load(settings_of(root)).splits["train"]) == 9


def problems_of(tmp_path, *paths, **changes):
    for path in paths:
        if path.endswith("/"):
            (tmp_path / path).mkdir(parents=True)
        else:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(b"x")
    return refused(settings_of(tmp_path, **changes))


def test_what_is_wrong_with_the_settings_is_told_at_once(tmp_path):
    changes = {"image_size": (), "split": (0.5, 0.4, 0.3), "valid_split": "train[:10]", "test_split": ""}
    lines = refused(settings_of(tmp_path / "missing", **changes)).splitlines()
    assert len(lines) == 5
    for text, line in zip(
        ("data.image_size is not set", "sum 1", "data.valid_split=", "data.test_split=", "no such folder"),
        lines,
        strict=True,
    ):
        assert text in line
    assert "data.dir is empty" in refused(settings_of(""))
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused(settings_of(tmp_path / "file"))


@pytest.mark.parametrize("size", [(0, 5), (5,), (1, 2, 3), (2.5, 3), (-1, 4)])
def test_wrong_image_sizes(tmp_path, size):
    make_splits(tmp_path)
    config = default().data.to_dict() | {"source": "folder", "dir": str(tmp_path), "image_size": size}
    assert "data.image_size" in refused(settings_of(tmp_path).__class__(config))


@pytest.mark.parametrize("split", [(0.0, 0.5, 0.5), (1.2, -0.1, -0.1), (0.5, 0.5), (float("nan"), 0.5, 0.5)])
def test_wrong_fractions(tmp_path, split):
    make_classes(tmp_path, {"a": 5, "b": 5})
    config = default().data.to_dict() | {"source": "folder", "dir": str(tmp_path), "image_size": (4, 4), "split": split}
    assert "data.split=" in refused(settings_of(tmp_path).__class__(config))


def test_fractions_do_not_apply_to_folders_that_are_split(tmp_path):
    make_splits(tmp_path)
    assert "does not apply" in refused(settings_of(tmp_path, split=(0.8, 0.1, 0.1)))


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        ([], ["no class folders"]),
        (["a.jpg", "b.jpg"], ["photos in the folder itself belong to no class: 2", "no class folders"]),
        (["cat/a.jpg"], ["only one class, cat"]),
        (["cat/a.jpg", "dog/"], ["no photo in dog/"]),
        (["cat/", "dog/.hidden.jpg"], ["there are no photos in it"]),
        (
            ["cat/a.jpg", "dog/a.jpg", "stray.PNG"],
            ["photos in the folder itself belong to no class: 1, e.g. stray.PNG"],
        ),
        (["train/cat/a.jpg", "test/cat/b.jpg"], ["only one class in train/, cat"]),
        (["train/cat/a.jpg", "train/dog/a.jpg", "train/b.jpg"], ["photos in train/ belong to no class: 1"]),
        (["train/cat/a.jpg", "train/dog/a.jpg", "bird/b.jpg"], ["train/ holds class folders, but bird/"]),
        (["train/cat/a.jpg", "train/dog/a.jpg", "test/b.jpg"], ["test/ beside it cannot be a split"]),
        (["train/a.jpg", "test/b.jpg"], ["no class folders in test/, train/"]),
        (["cat/a.jpg", "test/cat/b.jpg"], ["but no train/", "cat/ beside it cannot be a split"]),
        (
            ["train/cat/a", "train/dog/a", "val/cat/b", "val/dog/b", "valid/cat/c", "valid/dog/d"],
            ["both val/ and valid/"],
        ),
        (["training/cat/a", "training/dog/a", "testing/cat/b", "testing/dog/b"], ["call them train"]),
        (
            ["train/cat/a", "train/dog/a", "test/cat/b", "test/bird/c"],
            ["test/ lacks the classes dog", "test/ has classes that are not for training: bird"],
        ),
        (["train/cat/a", "train/dog/a", "test/cat/b", "test/dog/"], ["no photo in test/dog/"]),
    ],
)
def test_what_is_wrong_with_the_folder(tmp_path, paths, told):
    error = problems_of(tmp_path, *paths)
    assert len(error.splitlines()) == len(told), error
    for text in told:
        assert text in error


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser can read everything")
def test_folders_that_cannot_be_read(tmp_path):
    make_splits(tmp_path)
    (tmp_path / "train" / "cat").chmod(0)
    try:
        assert "train/cat/ cannot be read" in refused(settings_of(tmp_path))
    finally:
        (tmp_path / "train" / "cat").chmod(0o755)


def test_folders_that_fail_are_told(tmp_path, monkeypatch):
    make_splits(tmp_path)
    scandir = os.scandir

    def fail(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    assert "train/cat/ cannot be read: Permission denied" in refused(settings_of(tmp_path))


def test_split_by_content_is_stratified_and_depends_on_no_name(tmp_path):
    root = make_classes(tmp_path / "one", {"a": 20, "b": 40, "c": 3})
    config = settings_of(root, split=(0.7, 0.2, 0.1))
    info, dataset = data.describe(config), data.load(config)
    counts = {role: np.bincount(split.labels).tolist() for role, split in dataset.splits.items()}
    assert counts == {"train": [14, 28, 2], "valid": [4, 8, 1], "test": [2, 4]}
    assert info.split_sizes == {role: len(split) for role, split in dataset.splits.items()}
    # Renamed, moved and touched: the same photos in the same places.
    moved = tmp_path / "two"
    for path in sorted(root.glob("*/*.png")):
        target = moved / path.parent.name / "below" / f"{hashlib.md5(path.name.encode()).hexdigest()}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    other = data.load(settings_of(moved, split=(0.7, 0.2, 0.1)))
    assert hashes(other) == hashes(dataset)
    assert other.fingerprint == dataset.fingerprint
    for role, split in dataset.splits.items():
        np.testing.assert_array_equal(split.images, other.splits[role].images)


def test_fractions_of_zero_leave_splits_out(tmp_path):
    make_classes(tmp_path, {"a": 5, "b": 5})
    assert list(data.load(settings_of(tmp_path, split=(0.6, 0.0, 0.4))).splits) == ["train", "test"]
    assert list(data.load(settings_of(tmp_path, split=(0.6, 0.4, 0.0))).splits) == ["train", "valid"]
    assert {r: len(s) for r, s in data.load(settings_of(tmp_path, split=(1.0, 0.0, 0.0))).splits.items()} == {
        "train": 10
    }


def test_a_split_without_photos_is_told(tmp_path):
    make_classes(tmp_path, {"a": 2, "b": 2})
    assert "valid and test would get none of the 4 photos" in refused(settings_of(tmp_path, split=(0.9, 0.05, 0.05)))


ROLES = ("train", "valid", "test")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=60),
    st.tuples(st.integers(1, 10), st.integers(0, 10), st.integers(0, 10)),
    st.randoms(use_true_random=False),
)
def test_any_split_by_content(listed, weights, random):
    fractions = tuple(weight / sum(weights) for weight in weights)
    labels = [label for label, _ in listed]
    contents = [hashlib.sha256(f"{label} {content}".encode()).hexdigest() for label, content in listed]
    roles = folder_splits.by_content(labels, contents, fractions)
    assert set(roles) <= {role for role, fraction in zip(ROLES, fractions, strict=True) if fraction}
    by_content = {}
    for content, role in zip(contents, roles, strict=True):
        assert by_content.setdefault(content, role) == role  # equal photos stay together
    for label in set(labels):
        mine = [role for other, role in zip(labels, roles, strict=True) if other == label]
        assert "train" in mine
        if len(set(c for c, other in zip(contents, labels, strict=True) if other == label)) == len(mine):
            for role, fraction in zip(ROLES, fractions, strict=True):
                assert abs(mine.count(role) - fraction * len(mine)) <= 1.5
    order = list(range(len(labels)))
    random.shuffle(order)
    shuffled = folder_splits.by_content([labels[i] for i in order], [contents[i] for i in order], fractions)
    assert shuffled == [roles[i] for i in order]


def test_duplicates_are_not_torn_apart(tmp_path):
    make_classes(tmp_path, {"a": 12, "b": 12})
    for number in range(12):
        for copy in range(3):
            shutil.copyfile(tmp_path / "a" / f"{number}.png", tmp_path / "a" / f"copy {number} {copy}.png")
    dataset = data.load(settings_of(tmp_path, split=(0.5, 0.25, 0.25)))
    places = {}
    for role, found in hashes(dataset).items():
        for content, _ in found:
            assert places.setdefault(content, role) == role
    assert sum(map(len, dataset.splits.values())) == 60


def spoil(root):
    """Four bad files of 18 + 4."""
    (root / "train/cat/empty.png").touch()
    (root / "train/dog/notes.txt").write_text("no photo")
    whole = (root / "test/dog/2.png").read_bytes()
    (root / "test/dog/half.png").write_bytes(whole[: len(whole) // 2])
    (root / "validation/dog/gone.png").symlink_to("nowhere")
    return root


@pytest.mark.parametrize("stream", [False, True])
def test_bad_files_are_all_listed_or_left_out(tmp_path, stream):
    root = spoil(make_splits(tmp_path / "pets"))
    error = refused(settings_of(root), functools.partial(data.load, stream=stream))
    first, *listed = error.splitlines()
    assert "4 of 22 files" in first and "data.on_bad=skip" in first
    assert [line.split(":")[0].strip() for line in listed] == [
        "train/cat/empty.png",
        "train/dog/notes.txt",
        "validation/dog/gone.png",
        "test/dog/half.png",
    ]
    for line, reason in zip(listed, ("empty", "no image", "No such file", "damaged"), strict=True):
        assert line.startswith("  ") and reason in line
    dataset = data.load(settings_of(root, on_bad="skip"), stream=stream)
    assert "4 of 22 files" in dataset.notice and "1 × an empty file" in dataset.notice
    clean = make_splits(tmp_path / "clean")
    expected = data.load(settings_of(clean))
    assert dataset.fingerprint == expected.fingerprint
    for role, split in expected.splits.items():
        assert list(dataset.splits[role].ids) == list(split.ids)
        np.testing.assert_array_equal(dataset.splits[role].images[:], split.images)


def test_a_long_list_of_bad_files_is_cut(tmp_path):
    root = make_splits(tmp_path)
    for number in range(60):
        (root / "train" / "cat" / f"bad{number:02}.png").touch()
    lines = refused(settings_of(root), data.load).splitlines()
    assert len(lines) == 52 and lines[-1].strip() == "... and 10 more"


def test_the_same_photo_in_two_splits(tmp_path):
    root = make_splits(tmp_path)
    shutil.copyfile(root / "test/cat/0.png", root / "train/cat/copy.png")
    shutil.copyfile(root / "test/cat/0.png", root / "validation/cat/copy.png")
    shutil.copyfile(root / "validation/dog/1.png", root / "train/dog/copy.png")
    shutil.copyfile(root / "train/dog/1.png", root / "train/dog/again.png")  # twice in one split does no harm
    error = refused(settings_of(root), data.load)
    assert "in two splits" in error and len(error.splitlines()) == 3
    assert "train/cat/copy.png = validation/cat/copy.png = test/cat/0.png" in error
    assert "train/dog/copy.png = validation/dog/1.png" in error
    dataset = data.load(settings_of(root, on_bad="skip"))
    assert "2 (train) and 1 (valid)" in dataset.notice
    assert {role: len(split) for role, split in dataset.splits.items()} == {"train": 9, "valid": 4, "test": 6}
    assert not any("copy" in path for split in dataset.splits.values() for path in split.ids)


@pytest.mark.parametrize("flat", [False, True])
def test_the_same_photo_under_two_classes(tmp_path, flat):
    if flat:
        root, names = make_classes(tmp_path, {"cat": 9, "dog": 9}), ("cat/0.png", "dog/copy.png")
    else:
        root, names = make_splits(tmp_path), ("train/cat/0.png", "test/dog/copy.png")
    shutil.copyfile(root / names[0], root / names[1])
    error = refused(settings_of(root), data.load)
    assert "under two classes: 1" in error and f"{names[0]} = {names[1]}" in error
    assert len(error.splitlines()) == 2
    dataset = data.load(settings_of(root, on_bad="skip"))
    assert "under two classes: 1" in dataset.notice
    assert not set(names) & {path for split in dataset.splits.values() for path in split.ids}
    assert sum(map(len, dataset.splits.values())) == 17


@pytest.mark.parametrize("flat", [False, True])
def test_a_class_without_photos_left_is_told(tmp_path, flat):
    root = make_classes(tmp_path, {"cat": 6, "dog": 6, "bird": 1}) if flat else make_splits(tmp_path)
    for path in (root / ("bird" if flat else "test/dog")).glob("*.png"):
        path.write_bytes(b"no photo")
    error = refused(settings_of(root, on_bad="skip"), data.load)
    assert f"no photo is left of {'bird' if flat else 'test dog'};" in error


@pytest.mark.parametrize("flat", [False, True])
def test_streamed_photos_are_the_resident_ones(tmp_path, flat, decoding):
    root = make_classes(tmp_path, {"cat": 9, "dog": 12}) if flat else make_splits(tmp_path)
    resident = data.load(settings_of(root))
    shutil.rmtree(root / ".imgclf_jax")
    streamed = data.load(settings_of(root), stream=True)
    assert not list(root.glob(".imgclf_jax/**/*.npy"))
    assert streamed.fingerprint == resident.fingerprint
    for role, split in resident.splits.items():
        ours = streamed.splits[role]
        assert isinstance(ours.images, folder.Photos) and not isinstance(split.images, folder.Photos)
        assert ours.images.shape == split.images.shape and ours.images.nbytes == split.images.nbytes
        for images in (ours.images, pickle.loads(pickle.dumps(ours.images))):
            np.testing.assert_array_equal(images[:], split.images)
        np.testing.assert_array_equal(ours.images[1], split.images[1])
        np.testing.assert_array_equal(ours.labels, split.labels)
        np.testing.assert_array_equal(ours.ids, split.ids)
    decoding.clear()
    data.load(settings_of(root), stream=True)  # what was found out is remembered
    data.load(settings_of(root, image_size=(3, 3)), stream=True)
    assert not decoding


def test_resident_splits_are_mapped_not_copied(tmp_path):
    root = make_splits(tmp_path)
    for split in data.load(settings_of(root)).splits.values():
        assert isinstance(split.images, np.memmap) and split.images.base is not None


def test_a_streamed_photo_that_vanishes_is_told(tmp_path):
    root = make_splits(tmp_path)
    images = data.load(settings_of(root), stream=True).splits["train"].images
    (root / "train/cat/1.png").unlink()
    with pytest.raises(UserError, match=r"train/cat/1\.png: cannot be read: No such file"):
        images.read(1)


def test_the_second_start_decodes_nothing(tmp_path, decoding):
    root = spoil(make_splits(tmp_path))
    seen = []
    first = data.load(settings_of(root, on_bad="skip"), progress=lambda *what: seen.append(what))
    assert len(decoding) == 21  # of 22, one cannot even be read
    assert seen[-1][1:] == (22, 22) and all("decoding" in what for what, *_ in seen)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    seen.clear()
    again = data.load(settings_of(root, on_bad="skip"), progress=lambda *what: seen.append(what))
    streamed = data.load(settings_of(root, on_bad="skip"), stream=True)
    assert len(decoding) == 21 and not seen
    assert again.notice == first.notice == streamed.notice
    assert again.fingerprint == first.fingerprint == streamed.fingerprint
    np.testing.assert_array_equal(again.splits["test"].images, first.splits["test"].images)
    # The cache lies in the folder, and is neither a class nor lost when the folder moves.
    moved = tmp_path.parent / f"{tmp_path.name} moved"
    shutil.move(root, moved)
    assert data.load(settings_of(moved, on_bad="skip")).fingerprint == first.fingerprint
    assert len(decoding) == 21


@pytest.mark.parametrize("stream", [False, True])
def test_changes_are_noticed(tmp_path, stream):
    root = make_splits(tmp_path)

    def look():
        dataset = data.load(settings_of(root), stream=stream)
        return dataset.fingerprint, len(dataset.splits["train"]), dataset.splits["train"].images[:].tobytes()

    first = look()
    expected = write(root / "train/cat/1.png", 300)
    changed = look()
    assert changed[0] != first[0] and changed[1] == 8 and changed[2] != first[2]
    again = data.load(settings_of(root, image_size=(9, 8)), stream=stream).splits["train"].images[1]
    np.testing.assert_array_equal(again, expected)
    write(root / "train/dog/new.png", 301)
    added = look()
    assert added[1] == 9 and added[0] != changed[0]
    (root / "train/dog/new.png").unlink()
    assert look() == changed
    os.utime(root / "train/dog/0.png", (1, 1))
    assert look() == changed  # times are not part of what the data is


@pytest.mark.parametrize("file", ["images.npy", "seen.json"])
def test_a_damaged_cache_is_made_again(tmp_path, file):
    root = make_splits(tmp_path)
    first = data.load(settings_of(root))
    expected = first.splits["test"].images.copy()
    (place,) = (root / ".imgclf_jax").iterdir()
    (place / file).write_bytes((place / file).read_bytes()[:-9])
    again = data.load(settings_of(root))
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.splits["test"].images, expected)


def test_a_file_that_becomes_readable_is_read(tmp_path, monkeypatch):
    root = make_splits(tmp_path)
    content = photos.content

    def fail(file):
        if file.name == "1.png":
            raise photos.BadPhoto("cannot be read: Input/output error")
        return content(file)

    for stream in (True, False):
        monkeypatch.setattr(photos, "content", fail)
        assert "6 of 18" in refused(settings_of(root), functools.partial(data.load, stream=stream))
        monkeypatch.setattr(photos, "content", content)
        assert len(data.load(settings_of(root), stream=stream).splits["train"]) == 8


def test_a_folder_that_cannot_be_written_is_cached_elsewhere(tmp_path, private_cache, decoding):
    root = make_splits(tmp_path / "pets")
    root.chmod(0o555)
    try:
        first = data.load(settings_of(root))
        count = len(decoding)
        assert data.load(settings_of(root)).fingerprint == first.fingerprint
        assert len(decoding) == count == 18
        assert not (root / ".imgclf_jax").exists()
    finally:
        root.chmod(0o755)


def test_validation_of_a_config_opens_no_file(tmp_path, monkeypatch):
    root = make_splits(tmp_path, (("train", 20), ("test", 2)))
    config = default()
    config.parallel.devices = 1
    config.data.update(settings_of(root))
    config.model.name = "softmax"
    config.train.update({"batch_size": 8, "epochs": 2.0})
    monkeypatch.setattr(photos, "read", None)
    monkeypatch.setattr(photos, "content", None)
    plan, info = validate(config)
    assert (plan.train_count, plan.steps_per_epoch, info.split_sizes) == (40, 5, {"train": 40, "test": 4})
    config.train.batch_size = 41
    assert "larger than the training split (40 examples)" in refused(config, validate)


def test_one_split_alone(tmp_path):
    root = make_splits(tmp_path)
    dataset = data.load_split(settings_of(root), "valid")
    assert list(dataset.splits) == ["valid"] and len(dataset.splits["valid"]) == 4
    with pytest.raises(UserError, match=r"no split 'train\[:3\]'.*train, valid, test"):
        data.load_split(settings_of(root), "train[:3]")


def test_a_whole_run(run, tmp_path):
    root = make_classes(tmp_path / "pets", {"cat": 30, "dog": 30})
    (root / "dog" / "broken.jpg").write_bytes(b"no photo")
    arguments = (
        "--config=configs/softmax.py",
        "--config.data.source=folder",
        f"--config.data.dir={root}",
        "--config.data.image_size=(8,8)",
        "--config.train.batch_size=10",
        "--config.train.steps=4",
        "--config.log.tensorboard=False",
    )
    failed = run(*arguments, f"--workdir={tmp_path / 'failed'}")
    assert failed.code == 2 and "dog/broken.jpg: no image" in failed.err and "Traceback" not in failed.err
    workdir = tmp_path / "run"
    done = run(*arguments, "--config.data.on_bad=skip", f"--workdir={workdir}")
    assert done.code == 0, done.err
    assert "1 of 61 files" in done.err
    result = record(workdir)
    assert result["data"]["name"] == "pets" and result["data"]["class_names"] == ["cat", "dog"]
    assert result["results"]["train"]["count"] == 42 and result["results"]["test"]["count"] == 8
    assert run(*arguments, "--config.data.on_bad=skip", f"--workdir={workdir}").code == 0  # goes on, at its end
    evaluated = run(f"--workdir={workdir}", "--mode=eval", "--split=test")
    assert evaluated.code == 0 and f"({result['results']['test']['correct']} / 8)" in evaluated.out
    write(root / "cat" / "another.png", 5000)
    other = run(*arguments, "--config.data.on_bad=skip", f"--workdir={workdir}")
    assert other.code == 2 and "other data" in other.err
