"""Listing and removing caches: only ours, nothing that is in use; the limit of the compiled programs."""

import json
import os
import subprocess
import sys

import pytest
from runs import ROOT, environment

from imgclf_jax.data import caches, kept
from imgclf_jax.devices import programs
from imgclf_jax.storage import atomic, seals
from imgclf_jax.storage.files import write_sealed_if_possible

PROGRAM = f"jit_step-{'0' * 64}-cache"


def make(folder, name, size=1000):
    """A cache of `size` bytes besides its digests."""
    (folder / name).mkdir(parents=True)
    (folder / name / "images.npy").write_bytes(b"x" * size)
    seals.seal(folder / name)
    return folder / name


@pytest.fixture
def user(tmp_path, monkeypatch):
    """An empty cache folder of a user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv(programs.VARIABLE, raising=False)
    return tmp_path / "user" / "imgclf_jax"


def tool(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "imgclf_jax.cache", *map(str, arguments)],
        env={**environment(), "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_what_is_not_a_cache_is_named_and_never_removed(user, tmp_path):
    data = user / "data"
    ours = make(data, "cifar10-1", 5_000_000)
    write_sealed_if_possible(data / "split-1.json", {"question": "?"})
    (data / "thesis").mkdir()
    (data / "thesis" / "chapter.txt").write_text("irreplaceable")
    (data / "notes.json").write_text(json.dumps({"content": 1}))
    (data / "link").symlink_to(ours, target_is_directory=True)
    photos = make(tmp_path / "photos" / caches.FOLDER, "photos-64x64-stretch-1")
    (user / "xla").mkdir()
    for name in (PROGRAM, "mine-cache"):
        (user / "xla" / name).write_bytes(b"x" * 1000)

    listed = tool(tmp_path / "photos")
    assert "cifar10-1" in listed and "5.0 MB" in listed and "photos-64x64-stretch-1" in listed and "1 program" in listed
    assert "not ours, never removed: link, notes.json, thesis" in listed and "removed\n" not in listed
    assert "photos-64x64-stretch-1: removed" in tool(tmp_path / "photos", "--clear=photos")
    assert not photos.parent.exists() and ours.exists()
    assert tool("--clear").count(": removed\n") == 3
    assert sorted(path.name for path in data.iterdir()) == ["link", "notes.json", "thesis"]
    assert [path.name for path in (user / "xla").iterdir()] == ["mine-cache"]
    assert (data / "thesis" / "chapter.txt").read_text() == "irreplaceable"


def test_folders_next_to_data_are_found_again(user, tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for _ in range(2):  # The second call finds what the first one wrote.
        cache = caches.folders(root)[0]
        assert caches.open_or_make("a", root, "", lambda folder: (folder / "x").exists(), lambda f: (f / "x").touch())
    assert cache.parent == root and kept.places([]) == [cache]
    assert [entry.path.name for entry in kept.entries(cache)[0]] == ["a"]


def test_a_cache_that_a_process_uses_is_kept(user):
    folder = make(user / "data", "arrays-1")
    code = "import sys, pathlib; from imgclf_jax.storage import atomic; atomic.hold(pathlib.Path(sys.argv[1]))"
    code += "; print(); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment(), text=True) as process:
        process.stdout.readline()
        (entry,) = kept.entries(user / "data")[0]
        assert not kept.remove(entry) and folder.exists()
        process.communicate()
    assert kept.remove(entry) and not folder.exists()


def test_the_least_recently_used_programs_go_first(tmp_path):
    for age in range(10):
        path = tmp_path / PROGRAM.replace("0", str(age))
        path.write_bytes(b"x" * 100)
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "other").write_bytes(b"x" * 10_000)
    assert programs.trim(tmp_path, 1000) == 0
    assert programs.trim(tmp_path, 999) == 3  # down to three quarters
    assert sorted(path.name[9] for path in tmp_path.glob("*-cache")) == list("0123456")
    assert (tmp_path / "other").exists() and programs.trim(tmp_path / "missing") == 0


def test_a_held_folder_can_be_replaced(tmp_path):
    for _ in range(2):
        atomic.hold(make(tmp_path, "a"))
        atomic.discard(tmp_path / "a")
