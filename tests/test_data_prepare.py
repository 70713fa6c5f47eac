"""Downloading and preparing, on tiny archives of the published layouts, served by a server on this machine."""

import gzip
import hashlib
import http.server
import io
import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import prepared_sets
import pytest

from imgclf_jax import data
from imgclf_jax.data.tfds import catalog, download, prepare
from imgclf_jax.data.tfds.download import Published, Unavailable
from imgclf_jax.errors import UserError

SIZES = {"train": 30, "test": 10}
CIFAR_FILES = {
    "cifar10": {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
    "cifar100": {"train": ["train.bin"], "test": ["test.bin"]},
}


def make_config(root, **changes):
    return prepared_sets.make_config(**{"dir": str(root), "download": True} | changes)


def make_cifar(folder, name, rng):
    """Writes a binary tar archive like the published one; returns it and {split: (images, labels)}."""
    coarse = name == "cifar100"
    expected, contents = {}, {}
    for split, files in CIFAR_FILES[name].items():
        images = rng.integers(0, 256, (SIZES[split], 32, 32, 3), np.uint8)
        labels = rng.integers(0, 100 if coarse else 10, SIZES[split]).astype(np.uint8)
        columns = [labels[:, None] // 5] * coarse + [labels[:, None], images.transpose(0, 3, 1, 2).reshape(-1, 3072)]
        for file, rows in zip(files, np.split(np.concatenate(columns, axis=1), len(files)), strict=True):
            contents[file] = rows.tobytes()
        expected[split] = images, labels
    names = "\n".join(catalog.KNOWN[name].class_names) + "\n\n"
    if coarse:
        contents["fine_label_names.txt"] = names.encode()
        contents["coarse_label_names.txt"] = "\n".join(f"group{i}" for i in range(20)).encode()
    else:
        contents["batches.meta.txt"] = names.encode()
    path = folder / f"cifar-{name[5:]}-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for file, content in contents.items():
            member = tarfile.TarInfo(f"cifar-batches-bin/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return [path], expected


def make_idx(folder, name, rng):
    """Writes four files like the published ones; returns them and {split: (images, labels)}."""
    paths, expected = [], {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = rng.integers(0, 256, (SIZES[split], 28, 28), np.uint8)
        labels = rng.integers(0, 10, SIZES[split]).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
            paths.append(folder / f"{prefix}-{kind}-ubyte.gz")
            paths[-1].write_bytes(gzip.compress(header + array.tobytes()))
        expected[split] = images[..., None], labels
    return paths, expected


def publish(monkeypatch, paths, base_url="http://127.0.0.1:9/"):
    """Registers `paths` as the published archives."""
    files = tuple(
        Published(base_url + p.name, p.name, p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest())
        for p in paths
    )
    monkeypatch.setattr(prepare, "published_files", lambda base: files)
    return files


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def archives(tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    return folder


@pytest.fixture
def cifar(archives, monkeypatch):
    """The archive, published, and its content."""
    paths, expected = make_cifar(archives, "cifar10", np.random.default_rng(0))
    publish(monkeypatch, paths)
    return paths[0], expected


class Server(http.server.ThreadingHTTPServer):
    """Serves `contents` by path; what is cut off is promised all the same."""

    contents: dict[str, bytes]
    cut: int
    seen: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.seen.append(self.path)
        content = server.contents.get(self.path)
        if content is None:
            self.send_error(404, "Not Found")
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) - server.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as server:
        server.contents, server.cut, server.seen = {}, 0, []
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def address(server, path=""):
    return f"http://127.0.0.1:{server.server_address[1]}/{path}"


def files_under(root):
    return [p for p in Path(root).rglob("*") if p.is_file()]


# Preparing


@pytest.mark.parametrize("name", list(catalog.KNOWN))
def test_prepares_what_any_tfds_tool_reads(name, archives, tmp_path, monkeypatch, capfd):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import hashing

    known = catalog.KNOWN[name]
    make = make_cifar if known.kind == "cifar" else make_idx
    paths, expected = make(archives, name, np.random.default_rng(0))
    publish(monkeypatch, paths)
    calls = []
    config = make_config(tmp_path / "data", name=name, archive=str(archives))
    loaded = data.load(config, progress=lambda *a: calls.append(a))
    assert loaded.location == str(tmp_path / "data" / name / known.version)
    assert loaded.class_names == known.class_names and loaded.image_shape == known.image_shape
    sources = tfds.data_source(name, data_dir=str(tmp_path / "data"), download=False)
    for split, (images, labels) in expected.items():
        ours, theirs = loaded.splits[split], list(sources[split])
        np.testing.assert_array_equal(ours.images, [e["image"] for e in theirs])
        np.testing.assert_array_equal(ours.labels, [e["label"] for e in theirs])
        # In the very order that TFDS itself would write, so that 'train[45000:]' means the same images everywhere.
        hasher = hashing.Hasher(split)
        expected_order = sorted(range(len(labels)), key=hasher.hash_key)
        np.testing.assert_array_equal(ours.images, images[expected_order])
        np.testing.assert_array_equal(ours.labels, labels[expected_order])
        if known.kind == "cifar":
            assert ours.ids.tolist() == [f"{split}_{i:05d}" for i in expected_order]
    if name == "cifar100":
        assert all(e["coarse_label"] == e["label"] // 5 for e in sources["train"])
    assert (f"preparing {name}", 40, 40) in calls
    assert "tensorflow" not in sys.modules
    info = (Path(loaded.location) / "dataset_info.json").read_text()
    assert "tensorflow_datasets.image_classification" in info and '"downloadSize"' in info
    assert capfd.readouterr() == ("", "")  # TFDS's own bars would draw over ours


def test_catalogue_agrees_with_tfds():
    import tensorflow_datasets as tfds

    for name, known in catalog.KNOWN.items():
        cls = tfds.builder_cls(name)
        info = cls(data_dir="/nonexistent").info
        assert str(cls.VERSION) == known.version and info.features["image"].shape == known.image_shape
        assert info.features["label"].num_classes == len(known.class_names)
        names = info.features["label"].names
        assert known.class_names == tuple(names) or names == [str(i) for i in range(len(names))]
        files = prepare.published_files(name)
        assert len(files) == (1 if known.kind == "cifar" else 4)
        assert all(len(f.sha256) == 64 and f.size > 1000 and f.url.endswith(f.filename) for f in files)


def test_describe_knows_the_set_before_it_is_there(tmp_path):
    info = data.describe(make_config(tmp_path, train_split="train[:45000]", valid_split="train[45000:]"))
    assert info.split_sizes == {"train": 45000, "valid": 5000, "test": 10000}
    assert not info.is_prepared and not info.is_sample and info.location == str(tmp_path / "cifar10" / "3.0.2")
    with pytest.raises(UserError, match="incompatible with 50000"):
        data.load(make_config(tmp_path, train_split="train[:60000]"))  # before any download is tried


def test_killed_preparation_is_not_taken_for_whole(cifar, tmp_path):
    archive, _ = cifar
    script = f"""
import os
from ml_collections import ConfigDict
from imgclf_jax import data
from imgclf_jax.data.tfds import prepare
from imgclf_jax.data.tfds.download import Published
prepare.published_files = lambda base: {prepare.published_files("cifar10")!r}
config = ConfigDict({make_config(tmp_path / "data", archive=str(archive)).to_dict()!r})
data.load(config, progress=lambda what, done, total: os._exit(9) if (what, done) == ("preparing cifar10", 30) else None)
"""
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, timeout=100).returncode == 9
    (left,) = (tmp_path / "data" / "cifar10").iterdir()
    assert left.name.startswith(".tmp-")
    assert not data.describe(make_config(tmp_path / "data")).is_prepared
    unfinished = left.with_name("incomplete.ABCDEF_3.0.2")  # what TFDS itself leaves behind
    unfinished.mkdir()
    os.utime(unfinished, (1, 1))
    loaded = data.load(make_config(tmp_path / "data", archive=str(archive)))
    assert len(loaded.splits["train"]) == 30
    assert [p.name for p in (tmp_path / "data" / "cifar10").iterdir()] == ["3.0.2"]


def test_interrupted_preparation_can_be_repeated(cifar, tmp_path):
    config = make_config(tmp_path / "data", archive=str(cifar[0]))

    def interrupt(what, done, total):
        if what == "preparing cifar10":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.load(config, progress=interrupt)
    assert not files_under(tmp_path / "data" / "cifar10")
    assert len(data.load(config).splits["train"]) == 30


def test_another_process_prepares_first(cifar, tmp_path):
    config, raced = make_config(tmp_path / "data", archive=str(cifar[0])), []

    def race(what, done, total):
        if what == "preparing cifar10" and not raced:
            raced.append(data.load(config).fingerprint)

    assert data.load(config, progress=race).fingerprint == raced[0]
    assert [p.name for p in (tmp_path / "data" / "cifar10").iterdir()] == ["3.0.2"]


def test_read_only_folder_is_said_before_downloading(cifar, tmp_path, server):
    root = tmp_path / "data"
    root.mkdir(mode=0o555)
    with pytest.raises(UserError, match=f"{root}: cifar10 is not prepared there, and the folder is not writable"):
        data.load(make_config(root, url=address(server, "x.tar.gz")))
    assert server.seen == []


# Archives that the user has


def test_wrong_archive_is_refused(cifar, archives, tmp_path):
    other = archives / "cifar-10-python.tar.gz"
    other.write_bytes(cifar[0].read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"not the published cifar-10-binary\.tar\.gz: SHA-256"):
        data.load(make_config(tmp_path / "data", archive=str(other), allow_sample=True))  # never silently the sample
    other.write_bytes(b"x")
    with pytest.raises(UserError, match=r"size 1, expected \d+ bytes"):
        data.load(make_config(tmp_path / "data", archive=str(other)))


def test_mnist_wants_a_folder(archives, tmp_path, monkeypatch):
    paths, _ = make_idx(archives, "mnist", np.random.default_rng(0))
    publish(monkeypatch, paths)
    with pytest.raises(UserError, match="must be a folder that holds the 4 published files"):
        data.load(make_config(tmp_path / "data", name="mnist", archive=str(paths[0])))
    paths[2].unlink()
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz cannot be read \(No such file"):
        data.load(make_config(tmp_path / "data", name="mnist", archive=str(archives)))


@pytest.mark.parametrize(
    "content", [b"not an archive", gzip.compress(b"no tar in it" * 100, mtime=0)], ids=["text", "gzip"]
)
def test_published_file_that_is_not_an_archive(content, archives, tmp_path, monkeypatch):
    path = archives / "cifar-10-binary.tar.gz"
    path.write_bytes(content)
    publish(monkeypatch, [path])
    with pytest.raises(UserError, match="cannot be read as a binary archive of cifar10"):
        data.load(make_config(tmp_path / "data", archive=str(path)))


# The network


def test_downloads_verifies_and_keeps_the_archive(cifar, tmp_path, server):
    archive, expected = cifar
    server.contents = {"/mirror/c.tar.gz": archive.read_bytes()}
    calls = []
    config = make_config(tmp_path / "data", url=address(server, "mirror/c.tar.gz"))
    loaded = data.load(config, progress=lambda *a: calls.append(a))
    assert sorted(loaded.splits["train"].labels) == sorted(expected["train"][1])
    size = archive.stat().st_size
    assert ("downloading cifar-10-binary.tar.gz", size, size) in calls
    kept = tmp_path / "data" / "downloads" / "imgclf_jax" / "cifar10"
    assert [p.name for p in kept.iterdir()] == ["cifar-10-binary.tar.gz"]
    shutil.rmtree(loaded.location)  # what the message about a damaged record file says to do
    assert data.load(make_config(tmp_path / "data", download=False)).fingerprint == loaded.fingerprint
    assert len(server.seen) == 1


def test_downloads_a_set_of_several_files_from_a_mirror(archives, tmp_path, monkeypatch, server):
    paths, _ = make_idx(archives, "mnist", np.random.default_rng(0))
    publish(monkeypatch, paths)
    server.contents = {f"/m/{p.name}": p.read_bytes() for p in paths}
    loaded = data.load(make_config(tmp_path / "data", name="mnist", url=address(server, "m")))
    assert len(loaded.splits["test"]) == 10 and len(server.seen) == 4


def test_truncated_download_is_named_and_removed(cifar, tmp_path, server):
    size = cifar[0].stat().st_size
    server.contents, server.cut = {"/c": cifar[0].read_bytes()}, 100
    with pytest.raises(UserError, match=f"truncated, got {size - 100} of {size} bytes"):
        data.load(make_config(tmp_path / "data", url=address(server, "c")))
    assert not files_under(tmp_path / "data")
    server.cut = 0
    assert len(data.load(make_config(tmp_path / "data", url=address(server, "c"))).splits["test"]) == 10


@pytest.mark.parametrize("change", ["altered", "longer", "shorter"])
def test_wrong_content_is_refused_and_removed(cifar, tmp_path, server, change):
    content = cifar[0].read_bytes()
    wrong = {"altered": content[:-1] + bytes([content[-1] ^ 1]), "longer": content + b"x", "shorter": content[:-1]}
    server.contents = {"/c": wrong[change]}
    with pytest.raises(UserError, match="SHA-256" if change == "altered" else "size"):
        data.load(make_config(tmp_path / "data", url=address(server, "c")))
    assert not files_under(tmp_path / "data")


def closed_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_unreachable_host_fails_quickly_and_falls_back(cifar, tmp_path):
    url = f"http://127.0.0.1:{closed_port()}/c"
    start = time.monotonic()
    with pytest.raises(UserError, match=f"{url}: cannot reach 127.0.0.1.*refused"):
        data.load(make_config(tmp_path / "data", url=url))
    assert time.monotonic() - start < 5
    loaded = data.load(make_config(tmp_path / "data", url=url, allow_sample=True))
    assert loaded.is_sample and url in loaded.notice and "refused" in loaded.notice
    with pytest.raises(UserError, match="cannot reach"):  # the others have no sample
        data.load(make_config(tmp_path / "data", url=url, allow_sample=True, name="cifar100"))


def test_host_that_accepts_but_does_not_answer(cifar, tmp_path, monkeypatch):
    assert download.ANSWER_SECONDS <= 5
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.3)
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/c"
        with pytest.raises(UserError, match=r"no answer from 127\.0\.0\.1:\d+ within"):
            data.load(make_config(tmp_path / "data", url=url))
    assert time.monotonic() - start < 4


def test_http_error_is_reported(cifar, tmp_path, server):
    with pytest.raises(UserError, match="answered 404 Not Found"):
        data.load(make_config(tmp_path / "data", url=address(server, "c")))


def test_bad_address_is_reported(cifar, tmp_path):
    with pytest.raises(Unavailable, match="cannot be opened"):
        download.fetch(prepare.published_files("cifar10")[0], "nonsense", tmp_path / "x", lambda *_: None)


def test_full_disk_while_downloading(cifar, tmp_path, server):
    server.contents = {"/c": cifar[0].read_bytes()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write cifar10 there \(File too large\)"):
            data.load(make_config(tmp_path / "data", url=address(server, "c"), allow_sample=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not files_under(tmp_path / "data")
