"""tar/: photos in .tar files, with their labels beside them."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from photo_folders import make_classes, make_splits, refused, settings_of

from imgclf_jax import data
from imgclf_jax.data.types import LazyImages
from imgclf_jax.errors import UserError


def shard(path, members):
    """Writes a .tar file of (name, content: bytes or text)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def packed(root, place, each=5, label="cls"):
    """Packs the photos of `root`/[SPLIT/]CLASS into shards with the name of their split, if they have one."""
    groups = {}
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        *split, name, _ = path.relative_to(root).parts
        value = name if label == "cls" else json.dumps({"label": name, "width": 8})
        members = [(f"./{number:04}.png", path.read_bytes()), (f"./{number:04}.{label}", value)]
        groups.setdefault("".join(split) or "photos", []).append(members)
    for split, samples in groups.items():
        for first in range(0, len(samples), each):
            chosen = [member for sample in samples[first : first + each] for member in sample]
            shard(place / f"pets-{split}-{first:06}.tar", chosen)
    return place


def tars(place, **changes):
    return settings_of(place, source="tar", **changes)


@pytest.mark.parametrize(("stream", "label"), [(False, "cls"), (True, "json")])
def test_shards_of_splits_hold_the_same_data_as_folders(tmp_path, stream, label):
    root = make_splits(tmp_path / "pets")
    config = tars(packed(root, tmp_path / "shards", label=label))
    info, dataset = data.describe(config), data.load(config, stream=stream)
    expected = data.load(settings_of(root), stream=stream)
    assert info.split_sizes == dataset.counts == expected.counts
    assert dataset.fingerprint == expected.fingerprint and dataset.class_names == ("cat", "dog")
    assert dataset.location == str(tmp_path / "shards")
    for role, part in expected.splits.items():
        mine = dataset.splits[role]
        assert isinstance(mine.images, LazyImages) == stream
        images = pickle.loads(pickle.dumps(mine.images))  # as for the processes that decode
        np.testing.assert_array_equal(images[:], part.images[:])
        np.testing.assert_array_equal(mine.labels, part.labels)
    assert dataset.splits["train"].ids[0] == "pets-train-000000.tar/0006.png"
    only = data.load_split(config, "test", stream=stream).splits["test"]
    assert only.ids.tolist() == dataset.splits["test"].ids.tolist()


def test_without_splits_the_content_divides_as_for_folders(tmp_path):
    root = make_classes(tmp_path / "pets", {"cat": 12, "dog": 9})
    place = packed(root, tmp_path / "shards")
    expected = data.load(settings_of(root, split=(0.6, 0.2, 0.2)))
    for folder, each in (("a", 4), ("b", 100)):  # also from one file
        packed(root, tmp_path / folder, each)
        place = tmp_path / folder if each == 4 else tmp_path / folder / "pets-photos-000000.tar"
        dataset = data.load(tars(place, split=(0.6, 0.2, 0.2)))
        assert (dataset.fingerprint, dataset.counts) == (expected.fingerprint, expected.counts)


def test_numbers_are_classes_in_their_order_and_a_file_may_name_them(tmp_path):
    photos = [path.read_bytes() for path in sorted(make_classes(tmp_path / "one", {"a": 6}).rglob("*.png"))]
    members = [
        (f"{n}.{end}", content) for n in range(6) for end, content in (("png", photos[n]), ("cls", f"{n * 2:03}"))
    ]
    place = shard(tmp_path / "shards" / "train.tar", members).parent
    dataset = data.load(tars(place))
    assert dataset.class_names == ("0", "2", "4", "6", "8", "10")
    assert dataset.splits["train"].labels.tolist() == [0, 1, 2, 3, 4, 5]
    (place / "class_names.txt").write_text("\n".join(f"class {n}" for n in range(12)))
    dataset = data.load(tars(place))
    assert len(dataset.class_names) == 12 and dataset.splits["train"].labels.tolist() == [0, 2, 4, 6, 8, 10]
    (place / "class_names.txt").write_text("one\ntwo\n")
    assert refused(tars(place)).endswith("class_names.txt names 2 classes, but there is a label 10")


def test_photos_are_read_again_from_a_shard_that_has_changed_only(tmp_path, monkeypatch):
    from imgclf_jax.data.tar import index

    place = packed(make_splits(tmp_path / "pets"), tmp_path / "shards")
    data.load(tars(place))
    with monkeypatch.context() as patch:
        patch.setattr(index, "read", None)  # The index is cached.
        dataset = data.load(tars(place), stream=True)
    changed = place / "pets-train-000000.tar"
    content = bytearray(changed.read_bytes())
    content[600] ^= 1  # in the first photo
    changed.write_bytes(content)
    with pytest.raises(UserError, match="has changed since the data set was examined"):
        dataset.splits["train"].images[0]
    changed.write_bytes(content[:700])
    with pytest.raises(UserError, match="cut off"):
        dataset.splits["train"].images[4]


PNG = b"\x89PNG"
GOOD = [("1.png", PNG), ("1.cls", "cat"), ("2.png", PNG), ("2.cls", "dog")]


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ([*GOOD, ("3.png", PNG)], "train.tar: sample 3 has no label; add 3.cls, or 3.json with a field label"),
        ([*GOOD, ("d/3.cls", "cat")], "train.tar: sample d/3 has no photo, only .cls; photos end in "),
        (
            [*GOOD, ("3.xyz", PNG), ("3.cls", "cat")],
            "train.tar: sample 3 has no photo, only .cls, .xyz; photos end in ",
        ),
        ([*GOOD, ("3.png", PNG), ("3.jpg", PNG)], "train.tar: sample 3 has 2 photos, 3.png and 3.jpg; keep one"),
        (
            [*GOOD, ("3.png", PNG), ("3.json", "{")],
            "sample 3 has no label in its .json (its field label); put the name",
        ),
        ([*GOOD, ("3.png", PNG), ("3.json", '{"label": 1.5}')], "has no label in its .json (its field label)"),
        ([*GOOD, ("3.png", PNG), ("3.cls", " ")], "sample 3 has no label in its .cls; put the name or the number"),
        (GOOD[:2], "only one class, cat; there must be two or more"),
        ([], "holds no photos; photos end in "),
    ],
)
def test_a_wrong_sample_has_a_line(tmp_path, members, line):
    shard(tmp_path / "train.tar", members)
    error = refused(tars(tmp_path))
    assert line in error and error.startswith(f"data.dir={str(tmp_path)!r}: ") and len(error.splitlines()) == 1


def test_wrong_files_have_a_line_each(tmp_path):
    def error_with(change):
        place = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shard(place / "train.tar", GOOD)
        change(place)
        (line,) = refused(tars(place)).splitlines()
        return line

    whole = shard(tmp_path / "whole.tar", GOOD).read_bytes()
    cut = {
        "in its end": whole[:4096],
        "in a photo": whole[:2100],
    }
    for content in cut.values():
        assert "train.tar: cannot be read as a .tar file" in error_with(
            lambda place, c=content: (place / "train.tar").write_bytes(c)
        )
    damaged = whole[:600] + b"\7" * 900 + whole[1500:]
    assert "cannot be read as a .tar file" in error_with(lambda place: (place / "train.tar").write_bytes(damaged))
    assert "is compressed" in error_with(lambda place: (place / "train.tar").write_bytes(b"\x1f\x8b\x08\0" + whole))
    two = error_with(lambda place: shard(place / "train-val.tar", GOOD))
    assert "train-val.tar: its path names several splits, train and valid; rename it" in two
    assert "more.tar: its path names no split, but others do" in error_with(
        lambda place: shard(place / "more.tar", GOOD)
    )
    assert "no .tar file is for training" in error_with(lambda place: (place / "train.tar").rename(place / "test.tar"))
    other = error_with(lambda place: shard(place / "val.tar", [("1.png", PNG), ("1.cls", "cow")]))
    assert "there is no training photo with the label cow" in other
    assert "there are no .tar files in it" in error_with(lambda place: (place / "train.tar").rename(place / "train"))
    assert "there is no such folder or file" in refused(tars(tmp_path / "none"))
    assert "data.dir is empty" in refused(tars(""))
