"""Caches and storage: files on disk are checked when they are read, and made again if they are damaged."""

import errno
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from photo_folders import make_splits, settings_of, write
from prepared_sets import encode, make_config, tiny_config, write_set

from imgclf_jax import data
from imgclf_jax.data import splits, statistics, types
from imgclf_jax.data.tfds import sample
from imgclf_jax.errors import UserError
from imgclf_jax.storage import atomic, files, seals

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty place for caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "imgclf_jax" / "data"


@pytest.fixture(scope="module")
def whole_set(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 6, 3), np.uint8)
    examples = [(encode(image), i % 2) for i, image in enumerate(pixels)]
    return write_set(tmp_path_factory.mktemp("set"), {"train": examples[:20], "test": examples[20:]}, (8, 6, 3))


@pytest.fixture
def tiny(whole_set, tmp_path):
    """The folder of a prepared set of 20 training and 10 test images."""
    return Path(shutil.copytree(whole_set, tmp_path / "data" / "tiny" / "1.0.0"))


def cut(content):
    return content[: len(content) // 2]


def zero(content):
    """A page lost, as after a power cut."""
    return content[: len(content) // 2] + bytes(len(content) - len(content) // 2)


def flip(content):
    position = len(content) * 3 // 4
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


DAMAGES = {"flip": flip, "zero": zero, "cut": cut, "empty": lambda content: b"", "binary": lambda content: b"\xff" * 99}


def damage(path, kind):
    """Changes a file and keeps its times; "folder" puts a folder in its place."""
    before = path.stat()
    if kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(DAMAGES[kind](path.read_bytes()))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def content_of(dataset):
    return dataset.fingerprint, [
        (role, split.images[:].tobytes(), split.labels.tolist(), split.ids.tolist())
        for role, split in dataset.splits.items()
    ]


def folders_in(place):
    return sorted(path for path in place.iterdir() if path.is_dir())


@pytest.mark.parametrize("kind", [*DAMAGES, "folder"])
@pytest.mark.parametrize("source", ["tiny", "tiny labels", "photos", "photos seen"])
def test_every_kept_file_is_checked(source, kind, tiny, tmp_path):
    stream = source in ("tiny labels", "photos seen")
    if source.startswith("tiny"):
        config, place = tiny_config(tiny), tiny.parents[1] / ".imgclf_jax"
    else:
        config, place = settings_of(make_splits(tmp_path / "pets")), tmp_path / "pets" / ".imgclf_jax"
    expected = content_of(data.load(config, stream=stream))
    kept_files = [path for path in place.rglob("*") if path.is_file()]
    names = {path.name for path in kept_files}
    if source == "photos seen":
        assert len(names) == 1
    else:
        assert names >= {seals.NAME} | ({"seen.json"} if source == "photos" else {"labels.npy", "ids.npy", "meta.json"})
        assert ("images.npy" in names) != stream
    for path in kept_files:
        damage(path, kind)
        with pytest.warns(UserWarning) as reported:
            found = content_of(data.load(config, stream=stream))
        assert found == expected, path.name
        (line,) = [str(warning.message) for warning in reported]
        assert "\n" not in line and str(place) in line and ("again" in line or "rebuilt" in line)
        if path.is_dir() and source == "photos seen":
            path.rmdir()  # Nothing is put in the place of what is not ours.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert content_of(data.load(config, stream=stream)) == expected  # It was made again.


def test_a_cache_without_digests_is_made_again(tiny):
    expected = content_of(data.load(tiny_config(tiny)))
    for folder in folders_in(tiny.parents[1] / ".imgclf_jax"):
        (folder / seals.NAME).unlink()
    with pytest.warns(UserWarning, match="has no checksums, like the caches of earlier versions"):
        assert content_of(data.load(tiny_config(tiny))) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.load(tiny_config(tiny))


def test_any_damage_changes_a_digest(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(200)))
    (tmp_path / "b.json").write_text(files.sealed({"text": "ä\udcff", "numbers": [1, 2.5, -3], "none": None}))
    seals.seal(tmp_path)
    assert seals.damage(tmp_path) == "" and seals.damage(tmp_path, ["a", "never sealed"]) == ""
    draws = random.Random(0)
    for name in ("a", "b.json", seals.NAME):
        whole = (tmp_path / name).read_bytes()
        for _ in range(60):
            changed = bytearray(whole)
            changed[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
            (tmp_path / name).write_bytes(changed)
            assert name in seals.damage(tmp_path)
            if name != "a":
                assert files.read_sealed(tmp_path / name, report=False) is None
        (tmp_path / name).write_bytes(whole)
    assert files.read_sealed(tmp_path / "b.json")["numbers"] == [1, 2.5, -3]


class Code:
    """Pickled, it runs code when it is read."""

    def __reduce__(self):
        return (os.mkdir, (os.environ["EVIL"],))


@pytest.mark.parametrize("kind", ["pickle", "object array"])
def test_nothing_that_is_read_can_run_code(tiny, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    expected = content_of(data.load(tiny_config(tiny)))
    (folder,) = [path for path in folders_in(tiny.parents[1] / ".imgclf_jax") if "-train-" in path.name]
    for name in ("images.npy", "labels.npy", "ids.npy", "meta.json"):
        with (folder / name).open("wb") as f:
            if kind == "pickle":
                pickle.dump(Code(), f)
            else:
                np.save(f, np.array([Code()] * 20, object), allow_pickle=True)
        seals.seal(folder)  # Whoever means harm can write digests.
        with pytest.warns(UserWarning, match="do not fit together"):
            assert content_of(data.load(tiny_config(tiny))) == expected
    assert not (tmp_path / "evil").exists()
    with pytest.raises(FileExistsError):  # That it would have run, had it been read as a pickle.
        (tmp_path / "evil").mkdir()
        pickle.loads(pickle.dumps(Code()))


def test_damage_is_reported_in_one_line(tiny):
    data.load(tiny_config(tiny))
    for folder in folders_in(tiny.parents[1] / ".imgclf_jax"):
        damage(folder / "images.npy", "zero")
    script = """
import sys
from imgclf_jax import data
from imgclf_jax.terminal import cli
from ml_collections import ConfigDict
import json
def main(argv):
    data.load(ConfigDict(json.loads(argv[1])))
    return 0
sys.exit(cli.run_tool(main))
"""
    command = [sys.executable, "-c", script, tiny_config(tiny).to_json()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100)
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and len(lines) == 2
    for line in lines:
        assert line.startswith("warning: the cache ") and line.endswith(": the data are read again")


# What the data are read from


@pytest.mark.parametrize("stream", [False, True])
def test_a_flipped_bit_in_a_record_file_is_noticed(tiny, stream):
    config = tiny_config(tiny)
    expected = content_of(data.load(config, stream=stream))
    path = tiny / "tiny-train.array_record-00001-of-00002"
    whole = path.read_bytes()
    used = [position for position, byte in enumerate(whole) if byte]  # Most of so short a file fills up its block.
    draws, noticed = random.Random(1), 0
    for _ in range(25):
        changed = bytearray(whole)
        changed[draws.choice(used)] ^= 1 << draws.randrange(8)
        before = path.stat()
        path.write_bytes(changed)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # The labels kept of it stay in use.
        if not stream:
            shutil.rmtree(tiny.parents[1] / ".imgclf_jax")
        try:
            assert content_of(data.load(config, stream=stream)) == expected
        except UserError as error:
            noticed += 1
            assert path.name in str(error) and "\n" not in str(error)
    assert noticed > 20


def test_a_folder_in_the_place_of_a_record_file_is_named_once(tiny):
    path = tiny / "tiny-train.array_record-00000-of-00002"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="Is a directory") as caught:
        data.load(tiny_config(tiny))
    assert str(caught.value).count(path.name) == 1


@pytest.mark.parametrize("kind", [*DAMAGES, "folder", "missing"])
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "label.labels.txt"])
def test_the_description_of_a_prepared_set_is_checked(tiny, name, kind):
    seals.seal(tiny)  # As sets that are prepared here are.
    path = tiny / name
    if kind == "missing":
        path.unlink()
    else:
        damage(path, kind)
    with pytest.raises(UserError) as caught:
        data.describe(tiny_config(tiny))
    line = str(caught.value)
    assert ("\n" not in line and str(tiny) in line) or "there is no such data set under" in line


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dataset_info.json", "[]"),
        ("dataset_info.json", '{"name": "tiny", "splits": 5}'),
        ("dataset_info.json", '{"name": "tiny", "fileFormat": "array_record", "splits": [{"name": []}]}'),
        ("dataset_info.json", '{"name": "tiny", "splits": [{"name": "train", "shardLengths": ["-5"]}]}'),
        (
            "dataset_info.json",
            '{"name": "tiny", "splits": [{"name": "a", "shardLengths": ["1"], "filepathTemplate": "{0}"}]}',
        ),
        ("features.json", '{"featuresDict": {"features": []}}'),
        ("features.json", '{"featuresDict": {"features": {"image": 3, "label": 4}}}'),
        ("features.json", '{"featuresDict": {"features": {"image": {"image": 3}, "label": {"classLabel": 4}}}}'),
        ("label.labels.txt", "no\n"),
        ("label.labels.txt", "no\nyes\nperhaps\n"),
        ("label.labels.txt", b"no\n\xff\n"),
    ],
)
def test_descriptions_of_the_wrong_shape(tiny, name, text):
    (tiny / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        data.describe(tiny_config(tiny))
    assert "\n" not in str(caught.value) and str(tiny) in str(caught.value)


def test_a_damaged_sample_is_refused(tmp_path, monkeypatch):
    copy = shutil.copytree(sample.FOLDER, tmp_path / "sample")
    monkeypatch.setattr(sample, "FOLDER", copy)
    data.describe(make_config(source="sample"))
    damage(next(copy.rglob("*train.array_record-00002*")), "flip")
    with pytest.raises(
        UserError, match=r"sample is damaged \(cifar10-train.*00002.*differs.*install the package again"
    ):
        data.describe(make_config(source="sample"))


def test_a_streamed_photo_that_changes_is_noticed(tmp_path):
    root = make_splits(tmp_path)
    images = data.load(settings_of(root), stream=True).splits["train"].images
    expected = images.read(1)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(images)).read(1), expected)
    path = root / "train/cat/1.png"
    before = path.stat()
    write(path, 500)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for found in (images, pickle.loads(pickle.dumps(images))):
        with pytest.raises(UserError, match=r"train/cat/1\.png: its content has changed since"):
            found.read(1)
        images.read(2)


# Statistics and splits


class Held(types.LazyImages):
    """Images in memory that seem to stay on disk."""

    def __init__(self, images):
        super().__init__(images.shape)
        self._images = images

    def read(self, index):
        return self._images[index]


@pytest.mark.parametrize("kind", [*DAMAGES, "folder"])
def test_remembered_statistics_are_checked(kind, cache):
    images = np.random.RandomState(0).randint(0, 256, (9, 4, 5, 3)).astype(np.uint8)
    split = types.Split(Held(images), np.zeros(9, np.int32), np.arange(9).astype(str))

    def sums():
        _, *sums = statistics.of_split(split, "fingerprint", types.silent)
        return [values.tolist() for values in sums]

    expected = sums()
    (memo,) = cache.iterdir()
    damage(memo, kind)
    with pytest.warns(UserWarning, match=f"{memo} cannot be used"):
        assert sums() == expected


def test_a_remembered_split_is_not_believed_blindly(tmp_path):
    first = splits.resolve({"train": "train[:50%]"}, {"train": (20,)}, tmp_path)
    (memo,) = tmp_path.iterdir()
    memo.write_text(memo.read_text().replace("10]", "11]"))
    with pytest.warns(UserWarning, match="not what was written"):
        assert splits.resolve({"train": "train[:50%]"}, {"train": (20,)}, tmp_path) == first


# Places


@pytest.mark.parametrize("kind", ["file", "file below", "broken link", "no home"])
def test_a_place_where_nothing_can_be_kept(tmp_path, monkeypatch, kind):
    place = tmp_path / "place"
    if kind == "file":
        place.touch()
    elif kind == "file below":
        (place / "imgclf_jax").mkdir(parents=True)
        (place / "imgclf_jax" / "data").touch()
    elif kind == "broken link":
        place.symlink_to(tmp_path / "nowhere" / "at all")
        (tmp_path / "nowhere").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", "" if kind == "no home" else str(place))
    if kind == "no home":
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(UserError, match="XDG_CACHE_HOME") as caught:
        data.load(make_config(source="sample", dir=str(tmp_path), train_split="train[:100]"))
    assert "\n" not in str(caught.value)
    photos_in = make_splits(tmp_path / "pets")
    assert len(data.load(settings_of(photos_in)).splits["train"]) == 8  # Beside the photos there is a place.


def test_files_in_the_place_of_caches(tiny):
    place = tiny.parents[1] / ".imgclf_jax"
    expected = content_of(data.load(tiny_config(tiny)))
    for folder in folders_in(place):
        shutil.rmtree(folder)
        folder.write_text("a file")
    with pytest.warns(UserWarning, match="is damaged"):
        assert content_of(data.load(tiny_config(tiny))) == expected
    shutil.rmtree(place)
    place.write_text("a file")
    assert content_of(data.load(tiny_config(tiny))) == expected
    assert place.is_file()


def test_everything_is_written_out_before_it_gets_its_name(tiny, monkeypatch, cache):
    written, renamed = [], []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: written.append(str(Path(f"/proc/self/fd/{fd}").readlink())) or fsync(fd)
    )

    def noted(change):
        def named(path, target):
            renamed.append((str(path), str(target), list(written)))
            return change(path, target)

        return named

    monkeypatch.setattr(Path, "rename", noted(rename))
    monkeypatch.setattr(Path, "replace", noted(replace))
    data.load(tiny_config(tiny, train_split="train[:50%]"))
    assert len(renamed) == 4  # two caches, the answer about the split, and the note of the folder
    for source, target, before in renamed:
        files = [f"{source}/{path.name}" for path in Path(target).iterdir()] if Path(target).is_dir() else []
        assert {source, *files} <= set(before)
        assert str(Path(target).parent) in written[len(before) :]


def test_a_file_that_cannot_be_flushed_is_reported(monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"cannot cache the decoded images.*No space left"):
        data.load(make_config(source="sample"))


@pytest.mark.parametrize("code", files.ERRORS)
def test_every_error_of_a_disk_has_fitting_advice(tmp_path, code):
    with pytest.raises(UserError, match="again with") as caught, files.explain_errors(tmp_path):
        raise OSError(code, os.strerror(code))
    message = str(caught.value)
    assert message.startswith(f"cannot write to workdir {tmp_path}: {os.strerror(code)}; what was saved before is kept")
    assert ("Make room" in message) == (code in (errno.ENOSPC, errno.EDQUOT))


def test_other_errors_pass_through(tmp_path):
    with pytest.raises(PermissionError), files.explain_errors(tmp_path):
        raise PermissionError(errno.EACCES, "no")


# What dead processes leave behind


HOLD = """
import sys, time
from pathlib import Path
from imgclf_jax.storage import atomic
with atomic.temporary_folder(Path(sys.argv[1])) as folder:
    (folder / "images.npy").write_bytes(bytes(1000))
    print(folder.name, flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_folders_are_swept_when_their_owner_is_dead(tmp_path, number):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        left = tmp_path / process.stdout.readline().strip()
        for path in (left / "images.npy", left):
            os.utime(path, (1, 1))
        atomic.sweep(tmp_path)
        assert left.is_dir()  # However old, it is in use.
        process.send_signal(number)
        process.wait()
        assert left.is_dir()
        with atomic.temporary_folder(tmp_path) as mine:
            assert not left.exists() and mine.is_dir()
            atomic.sweep(tmp_path)
            assert mine.is_dir()
    assert not list(tmp_path.iterdir())


def test_folders_of_other_hosts_are_swept_when_they_are_old(tmp_path):
    theirs, older, file = (
        tmp_path / ".tmp-other-1a2b3c4d-abcdefgh",
        tmp_path / ".tmp-12345678",
        tmp_path / ".tmp-other-11111111",
    )
    mine = tmp_path / ".tmp-my own"
    for folder in (theirs, older, mine):
        folder.mkdir()
        (folder / "images.npy").touch()
    file.touch()
    atomic.sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    for path in (theirs, older, mine, file):
        os.utime(path, (1, 1))
    atomic.sweep(tmp_path)
    assert theirs.is_dir() and older.is_dir() and not file.exists()  # Files in them have just been written.
    for folder in (theirs, older, mine):
        os.utime(folder / "images.npy", (1, 1))
    atomic.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".tmp-my own"]


def test_folders_from_before_a_restart_are_swept_after_an_hour(tmp_path):
    before = tmp_path / f"{atomic._HOST}00000000-abcdefgh"
    before.mkdir()
    now = time.time()
    for minutes, left in ((50, True), (70, False)):
        os.utime(before, (now, now - 60 * minutes))
        atomic.sweep(tmp_path)
        assert before.exists() == left


def test_a_start_sweeps_although_nothing_is_decoded(tiny):
    data.load(tiny_config(tiny))
    place = tiny.parents[1] / ".imgclf_jax"
    command = [sys.executable, "-c", HOLD, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        left = place / process.stdout.readline().strip()
        process.kill()
        process.wait()
    data.load(tiny_config(tiny))
    assert not left.exists() and len(folders_in(place)) == 2


def test_several_processes_mend_the_same_cache(tiny):
    expected = data.load(tiny_config(tiny)).fingerprint
    for folder in folders_in(tiny.parents[1] / ".imgclf_jax"):
        damage(folder / "images.npy", "zero")
    script = """
import json, sys
from imgclf_jax import data
from ml_collections import ConfigDict
loaded = data.load(ConfigDict(json.loads(sys.argv[1])))
print(loaded.fingerprint, [int(split.images.sum()) for split in loaded.splits.values()])
"""
    command = [sys.executable, "-c", script, tiny_config(tiny).to_json()]
    several = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)]
    outputs = {process.communicate(timeout=200)[0] for process in several}
    assert len(outputs) == 1 and outputs.pop().startswith(expected)
    assert not [path for path in folders_in(tiny.parents[1] / ".imgclf_jax") if path.name.startswith(".tmp")]
