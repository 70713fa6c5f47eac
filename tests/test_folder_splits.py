"""assignment.py: splits by content, bad files, photos in two places."""

import functools
import hashlib
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photo_folders import hashes, make_classes, make_splits, refused, settings_of, spoil
from PIL import Image

from imgclf_jax import data
from imgclf_jax.data.folder import cut


def test_split_by_content_is_stratified_and_depends_on_no_name(tmp_path):
    root = make_classes(tmp_path / "one", {"a": 20, "b": 40, "c": 3})
    config = settings_of(root, split=(0.7, 0.2, 0.1))
    info, dataset = data.describe(config), data.load(config)
    counts = {role: np.bincount(split.labels).tolist() for role, split in dataset.splits.items()}
    assert counts == {"train": [14, 28, 1], "valid": [4, 8, 1], "test": [2, 4, 1]}
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


def test_a_split_without_photos_is_reported(tmp_path):
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
    roles = cut.by_content(labels, contents, contents, fractions)
    assert set(roles) <= {role for role, fraction in zip(ROLES, fractions, strict=True) if fraction}
    by_content = {}
    for content, role in zip(contents, roles, strict=True):
        assert by_content.setdefault(content, role) == role  # equal photos stay together
    for label in set(labels):
        mine = [role for other, role in zip(labels, roles, strict=True) if other == label]
        assert "train" in mine
        if len(set(c for c, other in zip(contents, labels, strict=True) if other == label)) == len(mine):
            for role, fraction in zip(ROLES, fractions, strict=True):
                assert abs(mine.count(role) - fraction * len(mine)) <= 2
    order = list(range(len(labels)))
    random.shuffle(order)
    moved = [contents[i] for i in order]
    shuffled = cut.by_content([labels[i] for i in order], moved, moved, fractions)
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
    for line, reason in zip(listed, ("empty", "not an image", "No such file", "damaged"), strict=True):
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
def test_a_class_without_photos_left_is_reported(tmp_path, flat):
    root = make_classes(tmp_path, {"cat": 6, "dog": 6, "bird": 1}) if flat else make_splits(tmp_path)
    for path in (root / ("bird" if flat else "test/dog")).glob("*.png"):
        path.write_bytes(b"no photo")
    error = refused(settings_of(root, on_bad="skip"), data.load)
    assert f"no photos are left of {'bird' if flat else 'test dog'};" in error


def save_again(source, target):
    """The same pixels in another format."""
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.open(source).convert("RGB").save(target)


@pytest.mark.parametrize("stream", [False, True])
def test_a_photo_that_was_saved_again_is_the_same_photo(tmp_path, stream):
    look = functools.partial(data.load, stream=stream)
    root = make_splits(tmp_path)
    clean = data.load(settings_of(root)).fingerprint
    save_again(root / "test/cat/0.png", root / "train/cat/copy.bmp")
    save_again(root / "train/dog/0.png", root / "train/dog/again.tif")  # twice in one split does no harm
    error = refused(settings_of(root), look)
    assert "in two splits" in error and len(error.splitlines()) == 2
    assert "train/cat/copy.bmp = test/cat/0.png" in error
    dataset = look(settings_of(root, on_bad="skip"))
    assert "1 (train)" in dataset.notice and "train/cat/copy.bmp" not in dataset.splits["train"].ids
    (root / "train/dog/again.tif").unlink()
    assert look(settings_of(root, on_bad="skip")).fingerprint == clean
    save_again(root / "train/cat/1.png", root / "train/dog/other.bmp")
    error = refused(settings_of(root), look)
    assert "under two classes: 1" in error and "train/cat/1.png = train/dog/other.bmp" in error


def test_a_jpeg_that_was_saved_again_is_the_same_photo(tmp_path):
    root = make_splits(tmp_path)
    Image.open(root / "train/cat/0.png").save(root / "train/cat/0.jpg")
    (root / "train/cat/0.png").unlink()
    save_again(root / "train/cat/0.jpg", root / "test/cat/other.png")
    assert "train/cat/0.jpg = test/cat/other.png" in refused(settings_of(root), data.load)


def test_photos_that_were_saved_again_are_not_torn_apart(tmp_path):
    make_classes(tmp_path, {"a": 12, "b": 12})
    for number in range(12):
        for ending in ("bmp", "tif"):
            save_again(tmp_path / "a" / f"{number}.png", tmp_path / "a" / f"again {number}.{ending}")
    dataset = data.load(settings_of(tmp_path, split=(0.5, 0.25, 0.25)))
    places = {}
    for role, split in dataset.splits.items():
        for image in split.images:
            assert places.setdefault(image.tobytes(), role) == role
    assert sum(map(len, dataset.splits.values())) == 48 and len(places) == 24


@pytest.mark.parametrize("stream", [False, True])
def test_small_classes_reach_every_split_or_are_named(tmp_path, stream):
    root = make_classes(tmp_path, {"five": 5, "many": 30, "one": 1, "three": 3, "two": 2})
    config = settings_of(root, split=(0.8, 0.1, 0.1))
    info, dataset = data.describe(config), data.load(config, stream=stream)
    counts = {role: np.bincount(split.labels, minlength=5).tolist() for role, split in dataset.splits.items()}
    assert counts == {"train": [3, 24, 1, 1, 2], "valid": [1, 3, 0, 1, 0], "test": [1, 3, 0, 1, 0]}
    assert info.split_sizes == {role: len(split) for role, split in dataset.splits.items()}
    todo = "; give it at least 3 different photos, or leave the class out"
    assert info.overlaps == (
        f"class one has 1 photo, so none in the validation split and none in the test split{todo}",
        f"class two has 2 photos, so none in the validation split and none in the test split{todo}",
    )
    assert dataset.notice == ""  # It is known without reading a file.
    # What only reading the files shows.
    for copy in ("2", "3"):
        shutil.copyfile(root / "three" / "1.png", root / "three" / f"{copy}.png")
    assert data.load(config, stream=stream).notice.startswith("class three has 4 photos, so none in the ")
    assert len(data.describe(config).overlaps) == 2
    # Where a split is not wanted, nothing lacks in it.
    assert data.describe(settings_of(root, split=(1.0, 0.0, 0.0))).overlaps == ()
    two = data.describe(settings_of(root, split=(0.9, 0.0, 0.1)))
    assert two.overlaps[0].startswith("class one has 1 photo, so none in the test split; give it at least 2")


@pytest.mark.parametrize(("count", "words"), [(14, "4 more classes have"), (11, "1 more class has")])
def test_many_small_classes_are_counted(tmp_path, count, words):
    make_classes(tmp_path, {"large": 9} | {f"small {number:02}": 1 for number in range(count)})
    *named, last = data.describe(settings_of(tmp_path, split=(0.4, 0.3, 0.3))).overlaps
    assert len(named) == 10 and last == f"{words} too few photos for every split"


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.tuples(st.integers(1, 20), st.integers(0, 10), st.integers(0, 10)))
def test_classes_that_had_photos_in_every_split_are_cut_as_ever(count, weights):
    fractions = tuple(weight / sum(weights) for weight in weights)
    contents = [f"{index:03}" for index in range(count)]
    trained = max(1, round(count * fractions[0]))
    validated = count if not fractions[2] else max(trained, round(count * (fractions[0] + fractions[1])))
    validated = validated if fractions[1] else trained
    before = ["train"] * trained + ["valid"] * (validated - trained) + ["test"] * (count - validated)
    wanted = {role for role, fraction in zip(ROLES, fractions, strict=True) if fraction}
    roles = cut.by_content([0] * count, contents, contents, fractions)
    if set(before) == wanted or count < len(wanted):
        assert roles == before
    else:
        assert set(roles) == wanted and roles == sorted(roles, key=ROLES.index)


def test_dark_photos_of_16_bits_are_reported(tmp_path):
    root = make_splits(tmp_path)
    for split in ("train", "test"):
        values = np.random.RandomState(len(split)).randint(0, 4096, (8, 9)).astype(np.uint16)
        Image.fromarray(values).save(root / split / "cat" / "dark.png")
    for stream in (False, True):
        (line,) = data.load(settings_of(root), stream=stream).notice.splitlines()
        assert "2 of 20 photos come out dark (2 × values stay below 4,096 of 65,535)" in line
        assert "train/cat/dark.png" in line
