"""Loading, splits and the cache, on the bundled sample and on tiny sets written with TFDS's own builder."""

import errno
import inspect
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepared_sets import encode, make_config, tiny_config, write_set

from imgclf_jax import data
from imgclf_jax.data import loading, splits
from imgclf_jax.data.tfds import decoded, sample
from imgclf_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "tfds"


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def caches(shared_cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_cache))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def tiny_pixels():
    return np.random.default_rng(0).integers(0, 256, (30, 8, 6, 3), np.uint8)


@pytest.fixture
def tiny(tmp_path, tiny_pixels):
    """The folder of a set of 20 training and 10 test images in two shards a split; labels are i % 2."""
    examples = [(encode(image), i % 2) for i, image in enumerate(tiny_pixels)]
    return write_set(tmp_path / "data", {"train": examples[:20], "test": examples[20:]}, (8, 6, 3))


# The sample


def test_sample_is_stratified_and_every_prefix_balanced():
    loaded = data.load(make_config(source="sample"))
    assert loaded.is_sample and loaded.name == "cifar10 (bundled sample)" and loaded.image_shape == (32, 32, 3)
    for split, per_class in (("train", 400), ("test", 100)):
        labels = loaded.splits[split].labels
        assert labels.dtype == np.int32 and np.bincount(labels).tolist() == [per_class] * 10
        for prefix in (1, 7, 64, 355):
            counts = np.bincount(labels[:prefix], minlength=10)
            assert counts.max() - counts.min() <= 1
    ids = np.concatenate([s.ids for s in loaded.splits.values()])
    assert len(set(ids)) == 5000 and {i.split("_")[0] for i in ids} == {"train", "test"}
    assert loaded.class_names[3] == "cat"


def test_sample_fits_in_the_package():
    files = [p for p in sample.FOLDER.rglob("*") if p.is_file()]
    assert max(p.stat().st_size for p in files) < 2e6 and sum(p.stat().st_size for p in files) < 13e6
    info = json.loads((sample.FOLDER / "cifar10" / "3.0.2" / "dataset_info.json").read_text())
    assert "SAMPLE" in info["description"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real CIFAR-10")
def test_sample_is_the_real_images_by_id():
    from array_record.python.array_record_module import ArrayRecordReader
    from tensorflow_datasets.proto import tf_example_pb2

    loaded = data.load(make_config(source="sample"))
    index = {i: (split, n) for split in loaded.splits.values() for n, i in enumerate(split.ids)}
    for path in sorted((SHARED / "cifar10" / "3.0.2").glob("*array_record*")):
        for record in ArrayRecordReader(str(path)).read_all():
            features = tf_example_pb2.Example.FromString(record).features.feature
            found = index.pop(features["id"].bytes_list.value[0].decode(), None)
            if found:
                split, n = found
                assert features["label"].int64_list.value[0] == split.labels[n]
                image = np.asarray(Image.open(io.BytesIO(features["image"].bytes_list.value[0])))
                np.testing.assert_array_equal(image, split.images[n])
    assert not index


def test_reads_what_tfds_reads():
    import tensorflow_datasets as tfds

    source = tfds.data_source("cifar10", data_dir=str(sample.FOLDER), split="test", download=False)
    ours = data.load(make_config(source="sample")).splits["test"]
    assert len(source) == len(ours)
    for i in (0, 1, 500, 999):  # both shards
        theirs = source[i]
        np.testing.assert_array_equal(theirs["image"], ours.images[i])
        assert (theirs["label"], theirs["id"].decode()) == (ours.labels[i], ours.ids[i])


def test_splits_are_scaled_to_the_sample():
    config = make_config(source="sample", train_split="train[:45000]", valid_split="train[45000:]")
    config.test_split = "test[:10%]"
    loaded = data.load(config)
    assert {k: len(v) for k, v in loaded.splits.items()} == {"train": 3600, "valid": 400, "test": 100}
    assert not set(loaded.splits["train"].ids) & set(loaded.splits["valid"].ids)
    assert data.describe(config).split_sizes == {"train": 3600, "valid": 400, "test": 100}


def test_falls_back_to_the_sample_with_a_notice(tmp_path):
    config = make_config(dir=str(tmp_path), allow_sample=True, train_split="train[:90%]")
    for found in (data.load(config), data.describe(config)):
        assert found.is_sample and found.name == "cifar10 (bundled sample)"
        for needed in ("NOT THE REAL CIFAR-10", "data.download=False", "data.archive=", "TFDS_DATA_DIR", str(tmp_path)):
            assert needed in found.notice
    assert not list(tmp_path.iterdir())  # looking must not make folders
    config.allow_sample = False
    with pytest.raises(UserError, match="not prepared under"):
        data.describe(config)


# Splits


def test_tfds_split_syntax(tiny):
    config = tiny_config(tiny, train_split="train[:25%]+train[10:]", valid_split="train[5:10]", test_split="test[-3:]")
    loaded = data.load(config)
    expected = {"train": [*range(5), *range(10, 20)], "valid": [*range(5, 10)], "test": [7, 8, 9]}
    for role, numbers in expected.items():
        stored = "test" if role == "test" else "train"
        assert loaded.splits[role].ids.tolist() == [f"{stored}/{n}" for n in numbers]
        assert loaded.splits[role].labels.tolist() == [n % 2 for n in numbers]
    assert data.describe(config).split_sizes == {"train": 15, "valid": 5, "test": 3}


def test_one_range_is_a_view_of_the_file(tiny, tiny_pixels):
    loaded = data.load(tiny_config(tiny, train_split="train[2:5]+train[5:9]"))  # neighbours join
    images = loaded.splits["train"].images
    assert isinstance(images, np.memmap) and not images.flags.owndata and not images.flags.writeable
    np.testing.assert_array_equal(images, tiny_pixels[2:9])


def test_all_split_problems_at_once(tiny):
    config = tiny_config(tiny, train_split="train[:21]", valid_split="validation", test_split="test[")
    with pytest.raises(UserError) as caught:
        data.describe(config)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for line, (role, text) in zip(
        lines,
        [("train", "incompatible with 20"), ("valid", "Unknown split"), ("test", "not an expression")],
        strict=True,
    ):
        assert f"data.{role}_split=" in line and text in line and "train (20 examples), test (10 examples)" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_split": "train[5:5]"}, "selects no example"),
        ({"train_split": ""}, "data.train_split is empty"),
        ({"train_split": "train[:9]+train[8:]"}, "names the same examples twice"),
        ({"valid_split": "train[19:]"}, "shares 1 examples with data.train_split"),
        ({"test_split": "train[:3]"}, "shares 3 examples with data.train_split"),
    ],
)
def test_refused_splits(tiny, changes, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        data.describe(tiny_config(tiny, **changes))


def test_selecting_on_the_test_split_is_reported(tiny):
    assert "share 10 examples" in data.describe(tiny_config(tiny, valid_split="test")).overlaps[0]
    assert data.describe(tiny_config(tiny)).overlaps == ()


def test_damaged_memo_is_asked_again(tmp_path):
    lengths = {"train": (20,)}
    first = splits.resolve({"train": "train[:50%]"}, lengths, tmp_path)
    (memo,) = tmp_path.iterdir()
    for text in ("{}", '{"question": 1}', "[[1]]"):  # not of this version
        memo.write_text(text)
        assert splits.resolve({"train": "train[:50%]"}, lengths, tmp_path) == first == {"train": (("train", 0, 10),)}
    whole = memo.read_text()
    for text in ("", whole[:-9], whole.replace("10]", "11]")):
        memo.write_text(text)
        with pytest.warns(UserWarning, match=f"{memo} cannot be used"):
            assert splits.resolve({"train": "train[:50%]"}, lengths, tmp_path) == first
        assert memo.read_text() == whole


# One split alone


@pytest.mark.parametrize("call", [data.describe_split, data.load_split])
@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("foo", "--split='foo': Unknown split 'foo'; available splits"),
        ("train[", "--split='train[': not an expression"),
        ("train[:21]", "--split='train[:21]': "),
        ("train[3:3]", "--split='train[3:3]': selects no example"),
        ("", "--split='': must not be empty"),
        ("valid", "--split='valid': data.valid_split of this run is empty"),
        ("test", "data.test_split='nothing': Unknown split"),
    ],
)
def test_a_split_that_there_is_not_goes_by_its_name(tiny, call, split, message):
    with pytest.raises(UserError) as caught:
        call(tiny_config(tiny, test_split="nothing"), split)
    line = str(caught.value)
    name, _, reason = message.partition(": ")
    assert line.startswith(f"{name}: ") and reason in line
    assert "train_split" not in line and "\n" not in line
    assert "such as train" in line or "train (20 examples), test (10 examples)" in line


@pytest.mark.parametrize("name", list(loading.SOURCES))
def test_every_source_has_the_functions_of_the_protocol(name):
    for function in ("describe", "load"):
        expected = inspect.signature(getattr(loading.Source, function)).parameters
        actual = inspect.signature(getattr(loading.SOURCES[name], function)).parameters
        assert list(actual.values()) == list(expected.values())[1:]  # without `self`


# Sets of other kinds


def test_gray_images_and_folder_of_the_newest_version(tmp_path):
    gray = np.arange(20 * 25, dtype=np.uint8).reshape(20, 5, 5)
    folder = write_set(tmp_path, {"train": [(encode(g), 1) for g in gray]}, (5, 5, 1))
    shutil.copytree(folder, folder.parent / "0.9.9")
    loaded = data.load(make_config(name="tiny", dir=str(tmp_path), test_split=""))
    assert loaded.location == str(folder) and loaded.class_names == ("no", "yes")
    np.testing.assert_array_equal(loaded.splits["train"].images, gray[..., None])
    assert set(loaded.splits) == {"train"}
    old = data.describe(make_config(name="tiny:0.9.9", dir=str(tmp_path), test_split=""))
    assert old.location.endswith("0.9.9")


def test_sets_with_configs(tiny):
    root = tiny.parents[1]
    for config in ("big", "small"):
        shutil.copytree(tiny, root / "many" / config / "1.0.0")
    for name, config in (("many/big", "big"), ("many/small:1.*.*", "small")):
        info = data.describe(make_config(name=name, dir=str(root)))
        assert info.location == str(root / "many" / config / "1.0.0") and info.split_sizes == {"train": 20, "test": 10}
    with pytest.raises(UserError, match="there is no such data set under"):
        data.describe(make_config(name="many", dir=str(root)))
    (root / "many" / ".config").mkdir()
    (root / "many" / ".config" / "metadata.json").write_text('{"default_config_name": "small"}')
    assert "/small/" in data.describe(make_config(name="many", dir=str(root))).location


def test_images_of_different_sizes_need_image_size(tmp_path):
    rng = np.random.default_rng(1)
    pixels = [rng.integers(0, 256, (12 + i, 20 - i, 3), np.uint8) for i in range(6)]
    write_set(tmp_path, {"train": [(encode(p), i % 2) for i, p in enumerate(pixels)]}, (None, None, 3))
    config = make_config(name="tiny", dir=str(tmp_path), test_split="")
    for call in (data.describe, data.load):
        with pytest.raises(UserError, match=r"--config\.data\.image_size="):
            call(config)
    config.image_size = (8, 10)
    loaded = data.load(config)
    assert loaded.image_shape == data.describe(config).image_shape == (8, 10, 3)
    expected = [np.asarray(Image.fromarray(p).resize((10, 8), Image.Resampling.BILINEAR)) for p in pixels]
    np.testing.assert_array_equal(loaded.splits["train"].images, expected)
    # The middle of the longer side, in the cache and from the records alike.
    config.update(image_size=(8, 8), resize="crop")
    boxes = [((p.shape[1] - p.shape[0]) / 2, 0, (p.shape[1] + p.shape[0]) / 2, p.shape[0]) for p in pixels[:4]]
    resized = [
        Image.fromarray(p).resize((8, 8), Image.Resampling.BILINEAR, box=box)
        for p, box in zip(pixels, boxes, strict=False)
    ]
    cropped, streamed = data.load(config), data.load(config, stream=True)
    np.testing.assert_array_equal(
        cropped.splits["train"].images[:4], np.stack([np.asarray(image) for image in resized])
    )
    np.testing.assert_array_equal(streamed.splits["train"].images[:], cropped.splits["train"].images)
    assert cropped.fingerprint != loaded.fingerprint


def test_resized_images_have_their_own_cache(tiny):
    native, resized = (data.load(tiny_config(tiny, image_size=size)) for size in ((), (4, 4)))
    assert native.splits["train"].images.shape == (20, 8, 6, 3)
    assert resized.splits["train"].images.shape == (20, 4, 4, 3)
    assert native.fingerprint != resized.fingerprint
    for size in ((), (4, 4)):  # neither took the other's place
        data.load(tiny_config(tiny, image_size=size), progress=lambda *_: pytest.fail("decoded again"))


def test_other_record_formats_are_refused(tiny):
    path = tiny / "dataset_info.json"
    path.write_text(path.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match=r"prepared as tfrecord.*--file_format=array_record"):
        data.describe(tiny_config(tiny))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "cifar1O"}, "did you mean 'cifar10'"),
        ({"name": "svhn_cropped"}, "tfds build svhn_cropped --file_format=array_record"),
        ({"name": "cifar10:9.9.9"}, "only version 3.0.2"),
        ({"name": "mnist", "source": "sample"}, "only bundled sample"),
        ({"dir": "gs://bucket/data"}, "must be a local folder"),
        ({"source": "disk"}, "is unknown; give --config.data.source=tfds (or sample, folder, csv, tar, arrays"),
        ({"archive": "/does/not/exist"}, "does not exist"),
        ({"source": "sample", "image_size": (32,)}, "data.image_size"),
    ],
)
def test_user_mistakes_are_one_line(tmp_path, changes, message):
    with pytest.raises(UserError) as caught:
        data.describe(make_config(**{"dir": str(tmp_path), **changes}))
    assert message in str(caught.value) and "\n" not in str(caught.value)


# Damage


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "emptied"])
def test_damaged_record_file_is_named(tiny, damage):
    path = tiny / "tiny-test.array_record-00001-of-00002"
    content = path.read_bytes()
    start = content.index(b"\x89PNG")
    changed = {
        "truncated": content[: len(content) // 2],
        "altered": content[:start] + bytes(100) + content[start + 100 :],
        "emptied": b"",
    }
    path.unlink()
    if damage != "missing":
        path.write_bytes(changed[damage])
    with pytest.raises(UserError) as caught:
        data.load(tiny_config(tiny))
    message = str(caught.value)
    assert path.name in message and f"delete the folder {tiny}" in message and "\n" not in message
    assert "00000-of" not in message  # the whole one is not accused
    assert not [p for p in (tiny.parents[1] / ".imgclf_jax").iterdir() if "test" in p.name or p.name[:4] == ".tmp"]


def test_swapped_shards_of_different_length_are_noticed(tiny):
    path = tiny / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"] = ["11", "9"]
    path.write_text(json.dumps(info))
    with pytest.raises(UserError, match="10 readable records, 11 expected"):
        data.load(tiny_config(tiny))


# The cache


def cache_folders(place):
    return sorted(p for p in place.iterdir() if p.is_dir())


def test_cache_is_hidden_next_to_the_data(tiny, fresh_cache):
    place = tiny.parents[1] / ".imgclf_jax"
    before = {p for p in tiny.parents[1].rglob("*")}
    first = data.load(tiny_config(tiny))
    assert len(cache_folders(place)) == 2
    # For the tool that lists caches.
    assert [path.name for path in (fresh_cache / "imgclf_jax").iterdir()] == ["places"]
    assert all(place in (p, *p.parents) for p in set(tiny.parents[1].rglob("*")) - before)
    times = [p.stat().st_mtime_ns for p in cache_folders(place)]
    second = data.load(tiny_config(tiny), progress=lambda *_: pytest.fail("decoded again"))
    assert first.fingerprint == second.fingerprint
    assert times == [p.stat().st_mtime_ns for p in cache_folders(place)]


def test_changed_records_are_decoded_again(tiny):
    first = data.load(tiny_config(tiny))
    for path in tiny.glob("*array_record*"):
        os.utime(path, (1, 1))
    calls = []
    again = data.load(tiny_config(tiny), progress=lambda *a: calls.append(a))
    assert again.fingerprint == first.fingerprint  # of the content, not of the files
    assert ("decoding tiny train", 20, 20) in calls


def test_fingerprint_differs_with_the_content(tiny, tiny_pixels, tmp_path):
    changed = tiny_pixels.copy()
    changed[3, 0, 0, 0] ^= 1
    examples = [(encode(image), i % 2) for i, image in enumerate(changed)]
    other = write_set(tmp_path / "other", {"train": examples[:20], "test": examples[20:]}, (8, 6, 3))
    assert data.load(tiny_config(tiny)).fingerprint != data.load(tiny_config(other)).fingerprint
    same = write_set(
        tmp_path / "same",
        {"train": [(encode(p), i % 2) for i, p in enumerate(tiny_pixels[:20])], "test": examples[20:]},
        (8, 6, 3),
        num_shards=1,
    )
    assert data.load(tiny_config(tiny)).fingerprint == data.load(tiny_config(same)).fingerprint


@pytest.mark.parametrize("damage", ["short images", "no labels", "no meta", "wrong ids"])
def test_damaged_cache_is_rebuilt(tiny, tiny_pixels, damage):
    data.load(tiny_config(tiny))
    folder = next(p for p in cache_folders(tiny.parents[1] / ".imgclf_jax") if "-train-" in p.name)
    if damage == "short images":
        content = (folder / "images.npy").read_bytes()
        (folder / "images.npy").write_bytes(content[:-1])
    elif damage == "no labels":
        (folder / "labels.npy").unlink()
    elif damage == "no meta":
        (folder / "meta.json").write_text("")
    else:
        np.save(folder / "ids.npy", np.array(["a"]))
    with pytest.warns(UserWarning, match=f"^the cache {folder} is damaged .*: the data are read again$"):
        loaded = data.load(tiny_config(tiny))
    np.testing.assert_array_equal(loaded.splits["train"].images, tiny_pixels[:20])
    assert len(loaded.splits["train"].ids) == 20
    data.load(tiny_config(tiny), progress=lambda *_: pytest.fail("decoded again"))


def test_read_only_data_is_cached_elsewhere(tiny, fresh_cache):
    root = tiny.parents[1]
    root.chmod(0o555)
    try:
        assert len(data.load(tiny_config(tiny)).splits["train"]) == 20
    finally:
        root.chmod(0o755)
    assert not (root / ".imgclf_jax").exists()
    assert len(cache_folders(fresh_cache / "imgclf_jax" / "data")) == 2


def test_full_disk_leaves_nothing_half_written(fresh_cache):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # writing past it fails as on a full disk
    try:
        with pytest.raises(UserError, match=f"cannot cache the decoded images.*{os.strerror(errno.EFBIG)}"):
            data.load(make_config(source="sample"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert cache_folders(fresh_cache / "imgclf_jax" / "data") == []


@pytest.mark.parametrize("theirs_is_whole", [True, False])
def test_another_process_publishes_first(tiny, tiny_pixels, monkeypatch, theirs_is_whole):
    write, raced = decoded.decode_into, []

    def write_while_another_does(folder, *args):
        write(folder, *args)
        if not raced:
            raced.append(True)
            data.load(tiny_config(tiny, test_split=""))
            (theirs,) = [p for p in cache_folders(folder.parent) if p.name[:4] != ".tmp"]
            (theirs / "mark").touch()
            if not theirs_is_whole:
                (theirs / "labels.npy").unlink()

    monkeypatch.setattr(decoded, "decode_into", write_while_another_does)
    loaded = data.load(tiny_config(tiny, test_split=""))
    np.testing.assert_array_equal(loaded.splits["train"].images, tiny_pixels[:20])
    (kept,) = cache_folders(tiny.parents[1] / ".imgclf_jax")
    assert raced and (kept / "mark").exists() == theirs_is_whole  # what another process may be reading stays


SCRIPT = """
import json, sys
import imgclf_jax.data as data
from ml_collections import ConfigDict
after_import = [m for m in {heavy} if m in sys.modules]
config = ConfigDict(json.loads(sys.argv[1]))
info, loaded = data.describe(config), data.load(config)
after_load = [m for m in {heavy} if m in sys.modules]
print(json.dumps([after_import, after_load, loaded.fingerprint, info.split_sizes, len(loaded.splits["train"])]))
"""
HEAVY = ["tensorflow", "tensorflow_datasets", "PIL", "requests", "jax"]


def start_process(config):
    command = [sys.executable, "-c", SCRIPT.replace("{heavy}", repr(HEAVY)), config.to_json()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])


def test_concurrent_cold_starts_then_a_warm_one_that_imports_nothing(fresh_cache):
    config = make_config(source="sample", train_split="train[:90%]")
    both = [start_process(config) for _ in range(2)]
    cold = [json.loads(p.communicate(timeout=100)[0]) for p in both]
    warm = json.loads(start_process(config).communicate(timeout=100)[0])
    assert cold[0][0] == warm[0] == warm[1] == []
    assert "tensorflow" not in cold[0][1] + cold[1][1]
    assert cold[0][2:] == cold[1][2:] == warm[2:] and warm[3:] == [{"train": 3600, "test": 1000}, 3600]
    names = [p.name for p in cache_folders(fresh_cache / "imgclf_jax" / "data")]
    assert len(names) == 2 and not any(n.startswith(".tmp") for n in names)
