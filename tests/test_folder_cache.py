"""folder/cache.py: photos are read once, and changes are noticed; streamed photos are the resident ones."""

import functools
import os
import pickle
import shutil

import numpy as np
import pytest
from photo_folders import make_classes, make_splits, refused, settings_of, spoil, write
from PIL import Image

from imgclf_jax import data
from imgclf_jax.data import decode as photos
from imgclf_jax.data import folder
from imgclf_jax.errors import UserError

STREAM = functools.partial(data.load, stream=True)


@pytest.fixture
def decoding(monkeypatch):
    """The list of what is decoded from here on."""
    decoded = []
    decode = photos.decode
    monkeypatch.setattr(photos, "decode", lambda *arguments: decoded.append(1) or decode(*arguments))
    return decoded


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


def test_many_streamed_photos_are_read_but_not_decoded(tmp_path, monkeypatch, decoding):
    root = make_splits(tmp_path)
    Image.new("RGB", (9, 9), "red").save(root / "train/cat/red.jpg")
    expected = data.load(settings_of(root, examine="decode"), stream=True)
    monkeypatch.setattr(folder, "MOST_DECODED", 18)
    decoding.clear()
    dataset = data.load(settings_of(root), stream=True)
    assert not decoding and dataset.fingerprint == expected.fingerprint
    assert data.load(settings_of(root)).fingerprint == expected.fingerprint  # Resident photos are decoded in any case.
    content = photos.content
    monkeypatch.setattr(photos, "content", None)
    assert data.load(settings_of(root), stream=True).fingerprint == expected.fingerprint  # from the cache
    monkeypatch.setattr(photos, "content", content)
    shutil.copy(root / "train/cat/0.png", root / "test/dog/copy.png")
    assert "photos that are under two classes: 1;" in refused(settings_of(root), STREAM)
    assert data.load(settings_of(root, on_bad="skip"), stream=True).counts == {"train": 8, "valid": 4, "test": 6}


def test_photos_that_are_only_read_must_begin_and_end_like_photos(tmp_path):
    root = make_splits(tmp_path)
    Image.new("RGB", (99, 99), "red").save(root / "train/cat/red.jpg")
    whole = (root / "train/cat/red.jpg").read_bytes()
    (root / "train/cat/cut.jpg").write_bytes(whole[:-20])
    (root / "train/dog/notes.jpg").write_text("no photo")
    (root / "train/dog/empty.png").touch()
    error = refused(settings_of(root, examine="read"), STREAM)
    assert [line.split(":")[0].strip() for line in error.splitlines()[1:]] == [
        "train/cat/cut.jpg",
        "train/dog/empty.png",
        "train/dog/notes.jpg",
    ]
    (root / "train/cat/odd.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50) + b"IEND\xaeB`\x82")
    split = data.load(settings_of(root, examine="read", on_bad="skip"), stream=True).splits["train"]
    with pytest.raises(UserError, match=r"train/cat/odd\.png: .*--config\.data\.examine=decode finds"):
        split.images[split.ids.tolist().index("train/cat/odd.png")]


def test_resident_splits_are_mapped_not_copied(tmp_path):
    root = make_splits(tmp_path)
    for split in data.load(settings_of(root)).splits.values():
        assert isinstance(split.images, np.memmap) and split.images.base is not None


def test_a_streamed_photo_that_vanishes_is_reported(tmp_path):
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
    # The cache is in the folder. It is not a class, and it moves with the folder.
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
    with pytest.warns(UserWarning, match=f"the cache {place} is damaged"):
        again = data.load(settings_of(root))
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.splits["test"].images, expected)


def test_a_file_that_becomes_readable_is_read(tmp_path, monkeypatch):
    root = make_splits(tmp_path)
    content = photos.content

    def fail(file):
        if str(file).endswith("/1.png"):
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
