"""folder.py: photos in folders as a data set, from what is found to whole runs."""

import json
import os
import shutil

import numpy as np
import pytest
from photo_folders import make_classes, make_splits, refused, settings_of, write
from runs import record

from imgclf_jax import data
from imgclf_jax.config import default
from imgclf_jax.data import decode
from imgclf_jax.errors import UserError
from imgclf_jax.training.validate import validate

pytest_plugins = ["run_fixtures"]


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
            np.testing.assert_array_equal(image, decode.read(root / path, (6, 5)))


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
    np.testing.assert_array_equal(ours, decode.read(tmp_path / "test/cat/0.png", (6, 5), "crop"))
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


def test_validation_of_a_config_opens_no_file(tmp_path, monkeypatch):
    root = make_splits(tmp_path, (("train", 20), ("test", 2)))
    config = default()
    config.parallel.devices = 1
    config.data.update(settings_of(root))
    config.model.name = "softmax"
    config.train.update({"batch_size": 8, "epochs": 2.0})
    monkeypatch.setattr(decode, "read", None)
    monkeypatch.setattr(decode, "content", None)
    plan, info = validate(config)
    assert (plan.train_count, plan.steps_per_epoch, info.split_sizes) == (40, 5, {"train": 40, "test": 4})
    config.train.batch_size = 41
    assert "larger than the training split (40 examples)" in refused(config, validate)


def test_one_split_alone(tmp_path):
    root = make_splits(tmp_path)
    dataset = data.load_split(settings_of(root), "valid")
    assert list(dataset.splits) == ["valid"] and len(dataset.splits["valid"]) == 4
    with pytest.raises(UserError, match=r"^--split='train\[:3\]': .*train, valid, test$"):
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
    assert failed.code == 2 and "dog/broken.jpg: not an image" in failed.err and "Traceback" not in failed.err
    workdir = tmp_path / "run"
    done = run(*arguments, "--config.data.on_bad=skip", f"--workdir={workdir}")
    assert done.code == 0, done.err
    assert "1 of 61 files" in done.err
    result = record(workdir)
    assert result["data"]["name"] == "pets" and result["data"]["class_names"] == ["cat", "dog"]
    assert result["results"]["train"]["count"] == 42 and result["results"]["test"]["count"] == 8
    assert run(*arguments, "--config.data.on_bad=skip", f"--workdir={workdir}").code == 0  # continues from its end
    evaluated = run(f"--workdir={workdir}", "--mode=eval", "--split=test")
    assert evaluated.code == 0 and f"({result['results']['test']['correct']} / 8)" in evaluated.out
    write(root / "cat" / "another.png", 5000)
    other = run(*arguments, "--config.data.on_bad=skip", f"--workdir={workdir}")
    assert other.code == 2 and f"on different data (pets in {root} has changed; fingerprint " in other.err
