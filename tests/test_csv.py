"""csv.py and tables.py: photos that a .csv file lists."""

import shutil

import numpy as np
import pytest
from photo_folders import make_classes, make_splits, refused, settings_of, write

from imgclf_jax import data
from imgclf_jax.data.types import LazyImages


def listed(root, lines, header="path,label,split", **changes):
    """The settings of a file with these lines."""
    file = root / "photos.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([header, *lines]) + "\n")
    return settings_of(file, source="csv", **changes)


def lines_of(root, kinds):
    """One line for each photo in `root`/SPLIT/CLASS or `root`/CLASS; the last folders are the values of the columns."""
    paths = sorted(root.rglob("*.png"))
    return [",".join([str(p.relative_to(root)), *reversed(p.relative_to(root).parts[-1 - kinds : -1])]) for p in paths]


@pytest.mark.parametrize("stream", [False, True])
def test_a_list_of_photos_is_the_same_as_their_folders(tmp_path, stream):
    root = make_splits(tmp_path / "pets")
    config = listed(root, reversed(lines_of(root, 2)))
    info, dataset = data.describe(config), data.load(config, stream=stream)
    expected = data.load(settings_of(root), stream=stream)
    assert info.split_sizes == dataset.counts == expected.counts
    assert dataset.fingerprint == expected.fingerprint and dataset.class_names == ("cat", "dog")
    assert dataset.name == "photos.csv" and dataset.location == str(root / "photos.csv")
    for role, part in expected.splits.items():
        mine = dataset.splits[role]
        assert mine.ids.tolist() == part.ids.tolist() and isinstance(mine.images, LazyImages) == stream
        np.testing.assert_array_equal(mine.images[:], part.images[:])
        assert data.load_split(config, role).splits[role].ids.tolist() == part.ids.tolist()
        assert data.describe_split(config, role).split_sizes == {role: len(part)}


def test_without_splits_the_content_divides_as_for_folders(tmp_path):
    root = make_classes(tmp_path / "pets", {"cat": 12, "dog": 9})
    config = listed(root, lines_of(root, 1), "path,label", split=(0.6, 0.2, 0.2))
    dataset, expected = data.load(config), data.load(settings_of(root, split=(0.6, 0.2, 0.2)))
    assert dataset.fingerprint == expected.fingerprint
    assert {role: part.ids.tolist() for role, part in dataset.splits.items()} == {
        role: part.ids.tolist() for role, part in expected.splits.items()
    }


def test_files_lie_anywhere_and_labels_are_any_text(tmp_path):
    write(tmp_path / "here" / "a b,c.png", 1)
    write(tmp_path / "there" / "ä.png", 2)
    write(tmp_path / "here" / "c.png", 3)
    lines = [f'"{tmp_path}/there/ä.png", Ärger ,TRAIN,x', '"a b,c.png",10,train,y', "", "./c.png,9,Validation,z"]
    config = listed(tmp_path / "here", lines, "\ufeffpath,Label,split,note")
    assert "line 5: there is no training photo with the label 9" in refused(config)
    config = listed(tmp_path / "here", [*lines[:2], "", "./c.png,10,Validation,z"], "\ufeffpath,Label,split,note")
    dataset = data.load(config)
    assert dataset.class_names == ("10", "Ärger")
    assert dataset.splits["train"].ids.tolist() == ["a b,c.png", f"{tmp_path}/there/ä.png"]
    assert dataset.splits["valid"].ids.tolist() == ["c.png"]


def test_labels_are_sorted_as_numbers_or_as_text(tmp_path):
    for name, labels, expected in (
        ("numbers", ["10", "9", "-1"], ("-1", "9", "10")),
        ("text", ["10", "9", "x"], ("10", "9", "x")),
    ):
        root = tmp_path / name
        for number in range(3):
            write(root / f"{number}.png", number)
        config = listed(
            root, [f"{number}.png,{label}" for number, label in enumerate(labels)], "path,label", split=(1.0, 0.0, 0.0)
        )
        dataset = data.load(config)
        assert dataset.class_names == expected
        named = {
            str(i): dataset.class_names[n]
            for i, n in zip(dataset.splits["train"].ids, dataset.splits["train"].labels, strict=True)
        }
        assert named == {f"{number}.png": label for number, label in enumerate(labels)}


def test_bad_photos_are_handled_as_in_folders(tmp_path):
    root = make_splits(tmp_path / "pets")
    (root / "train/cat/0.png").write_bytes(b"no photo")
    shutil.copyfile(root / "test/dog/0.png", root / "train/dog/0.png")
    config = listed(root, [*lines_of(root, 2), "gone.png,cat,train"])
    assert "line 20: there is no file gone.png" in refused(config)
    config.on_bad = "skip"
    dataset = data.load(config)
    assert dataset.counts == {"train": 6, "valid": 4, "test": 6} and "2 of 19 files cannot be read" in dataset.notice
    error = refused(listed(root, lines_of(root, 2)), data.load)
    assert "photos.csv: 1 of 18 files cannot be read" in error and "in two splits" in error


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["0.png,cat,train", "1.png,dog,train", "gone.png,cat,test"], ["line 4: there is no file gone.png"]),
        (["0.png,cat,train", "1.png,dog,train", "./0.png,cat,test"], ["line 4: ./0.png is also in line 2"]),
        (["0.png,cat,train", "1.png,dog,train", "2.png,cat,tset"], ["line 4: the split is 'tset'", "train, valid or"]),
        (["0.png,cat,train", "1.png,dog,train", "2.png,cat,"], ["line 4: the split is ''"]),
        (["0.png,cat,train", "1.png,,train", "2.png,dog,test"], ["line 3: the label is empty"]),
        (["0.png,cat,train", ",dog,train"], ["line 3: the path is empty"]),
        (["0.png,cat,train", "1.png,dog"], ["line 3 has 2 values instead of 3"]),
        (["0.png,cat,train", '"1.png,dog,train'], ["line 3 is not valid CSV"]),
        (["0.png,cat,train", "1.png,cat,train"], ["only one class, cat"]),
        (["0.png,cat,test", "1.png,dog,test"], ["no line has the split train"]),
        (["0.png,cat,train", "1.png,dog,train", "2.png,elk,test"], ["line 4: there is no training photo", "elk"]),
        ([], ["lists no photos"]),
    ],
)
def test_each_wrong_line_is_reported_with_its_number(tmp_path, lines, words):
    for number in range(3):
        write(tmp_path / f"{number}.png", number)
    (line,) = refused(listed(tmp_path, lines)).splitlines()
    assert line.startswith(f"data.dir={str(tmp_path / 'photos.csv')!r}: ")
    for word in words:
        assert word in line


def test_wrong_files_and_settings_are_reported_at_once(tmp_path):
    assert "lacks the columns path, label; it has 'path;label'" in refused(listed(tmp_path, [], "path;label"))
    assert "the column label is there twice" in refused(listed(tmp_path, [], "path,label,label"))
    write(tmp_path / "0.png", 0)
    config = listed(tmp_path, ["0.png,,train"], split=(0.5, 0.5, 0.0), test_split="")
    starts = ["data.split=(0.5, 0.5, 0.0) does not", "data.dir="]
    for line, start in zip(refused(config).splitlines(), starts, strict=True):
        assert line.startswith(start)
    many = refused(listed(tmp_path, [f"{number}.jpg,a,train" for number in range(60)])).splitlines()
    assert len(many) == 51 and many[-1].startswith("... and 1")
    for place, word in (
        ("", "data.dir is empty"),
        (tmp_path / "x.csv", "there is no such file"),
        (tmp_path, "not a file"),
    ):
        assert word in refused(settings_of(place, source="csv"))
