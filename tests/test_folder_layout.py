"""folder/layout.py: problems with a folder of photos that show in names alone."""

import os
import runpy

import pytest
from photo_folders import make_classes, make_splits, refused, settings_of, write
from runs import ROOT

from imgclf_jax import augment, data, models
from imgclf_jax.config import default
from imgclf_jax.data.folder import layout


def problems_of(tmp_path, *paths, **changes):
    for path in paths:
        if path.endswith("/"):
            (tmp_path / path).mkdir(parents=True)
        else:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(b"x")
    return refused(settings_of(tmp_path, **changes))


def test_all_problems_with_the_settings_are_reported_at_once(tmp_path):
    changes = {"image_size": (0, 4), "split": (0.5, 0.4, 0.3)}
    lines = refused(settings_of(tmp_path / "missing", **changes)).splitlines()
    for text, line in zip(("data.image_size=(0, 4)", "sum of 1", "no such folder"), lines, strict=True):
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
    ("paths", "problems"),
    [
        ([], ["no class folders"]),
        (["a.jpg", "b.jpg"], ["photos in the folder itself do not belong to a class: 2", "no class folders"]),
        (["cat/a.jpg"], ["only one class, cat"]),
        (["cat/a.jpg", "dog/"], ["there are no photos in dog/"]),
        (["cat/", "dog/.hidden.jpg"], ["there are no photos in it"]),
        (
            ["cat/a.jpg", "dog/a.jpg", "stray.PNG"],
            ["photos in the folder itself do not belong to a class: 1, e.g. stray.PNG"],
        ),
        (["train/cat/a.jpg", "test/cat/b.jpg"], ["only one class in train/, cat"]),
        (["train/cat/a.jpg", "train/dog/a.jpg", "train/b.jpg"], ["photos in train/ do not belong to a class: 1"]),
        (["train/cat/a.jpg", "train/dog/a.jpg", "bird/b.jpg"], ["train/ holds class folders, but bird/"]),
        (["train/cat/a.jpg", "train/dog/a.jpg", "test/b.jpg"], ["test/ next to it cannot be a split"]),
        (["train/a.jpg", "test/b.jpg"], ["no class folders in test/, train/"]),
        (["cat/a.jpg", "test/cat/b.jpg"], ["but no train/", "cat/ next to it cannot be a split"]),
        (
            ["train/cat/a", "train/dog/a", "val/cat/b", "val/dog/b", "valid/cat/c", "valid/dog/d"],
            ["both val/ and valid/"],
        ),
        (["training/cat/a", "training/dog/a", "testing/cat/b", "testing/dog/b"], ["rename them to train"]),
        (
            ["train/cat/a", "train/dog/a", "test/cat/b", "test/bird/c"],
            ["test/ lacks the classes dog", "test/ has classes that are not for training: bird"],
        ),
        (["train/cat/a", "train/dog/a", "test/cat/b", "test/dog/"], ["there are no photos in test/dog/"]),
    ],
)
def test_what_is_wrong_with_the_folder(tmp_path, paths, problems):
    error = problems_of(tmp_path, *paths)
    assert len(error.splitlines()) == len(problems), error
    for text in problems:
        assert text in error


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser can read everything")
def test_folders_that_cannot_be_read(tmp_path):
    make_splits(tmp_path)
    (tmp_path / "train" / "cat").chmod(0)
    try:
        assert "train/cat/ cannot be read" in refused(settings_of(tmp_path))
    finally:
        (tmp_path / "train" / "cat").chmod(0o755)


def test_folders_that_fail_are_reported(tmp_path, monkeypatch):
    make_splits(tmp_path)
    scandir = os.scandir

    def fail(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    assert "train/cat/ cannot be read: Permission denied" in refused(settings_of(tmp_path))


def test_clutter_is_no_class_and_no_photo_and_is_said_once(tmp_path):
    make_splits(tmp_path)
    clutter = ("__MACOSX/x/._a.png", "train/@eaDir/a.png/SYNO.png", "train/cat/@eaDir/a.png", "lost+found/b.png")
    for path in (*clutter, "train/.ipynb_checkpoints/a.png", "test/Thumbs.db", "train/cat/._0.png", ".DS_Store"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"no photo")
    info = data.describe(settings_of(tmp_path))
    assert info.class_names == ("cat", "dog") and info.split_sizes == {"train": 8, "valid": 4, "test": 6}
    (line,) = info.overlaps
    assert "._* (1), .ipynb_checkpoints (1), @eaDir (2), Thumbs.db (1), __MACOSX (1), lost+found (1)" in line


def test_class_names_that_differ_in_their_normal_form_are_one_class(tmp_path):
    composed, decomposed = "Blätter", "Bla\u0308tter"
    make_classes(tmp_path / "train", {composed: 2, "Rinde": 3})
    for number, folder in enumerate((f"train/{decomposed}/0.png", f"test/{decomposed}/0.png", "test/Rinde/0.png")):
        write(tmp_path / folder, 100 + number)
    listing = layout.scan(settings_of(tmp_path))
    assert listing.class_names == (composed, "Rinde")
    assert sorted((file.role, file.label, file.path) for file in listing.files) == sorted(
        [
            *(("train", 0, f"train/{composed}/{number}.png") for number in range(2)),
            ("train", 0, f"train/{decomposed}/0.png"),
            *(("train", 1, f"train/Rinde/{number}.png") for number in range(3)),
            ("test", 0, f"test/{decomposed}/0.png"),
            ("test", 1, "test/Rinde/0.png"),
        ]
    )


def test_splits_for_other_sources_and_a_missing_size_are_remarked(tmp_path):
    make_splits(tmp_path)
    info = data.describe(settings_of(tmp_path, train_split="train", valid_split="", image_size=()))
    size, names = info.overlaps
    assert info.image_shape == (32, 32, 3) and "--config.data.image_size='(64, 64)'" in size
    assert names.startswith("data.train_split='train' and data.valid_split='' do not apply to photos in folders")


CONFIGS = sorted(set((ROOT / "configs").glob("*.py")) - {ROOT / "configs" / "finetune.py"})  # needs a trained network


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_takes_photos_of_any_number_of_classes(tmp_path, path):
    make_classes(tmp_path, {"a": 3, "b": 3, "c": 3})
    config = runpy.run_path(str(path))["get_config"]()
    config.data.update(source="folder", dir=str(tmp_path))
    info = data.describe(config.data)
    assert info.split_sizes == {"train": 6, "valid": 3} or info.split_sizes == {"train": 3, "valid": 3, "test": 3}
    assert augment.problems(config.augment, info.image_shape) == []
    assert models.problems(config.model, augment.input_shape(config, info.image_shape), 3) == []
