"""Every tool once, on the cheapest run there is."""

import io
import json
import os
import signal
import time
import urllib.request

import pytest
from PIL import Image
from runs import ROOT, SOFTMAX, record

pytest_plugins = ["run_fixtures"]


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tools") / "run"
    done = run(*SOFTMAX, f"--workdir={folder}")
    assert done.code == 0, done.err
    assert record(folder)["status"] == "complete"
    return folder


@pytest.mark.parametrize("mode", ["eval", "check"])
def test_modes_of_the_main_tool(run, folder, mode):
    flags = SOFTMAX if mode == "check" else [f"--workdir={folder}"]
    done = run(*flags, f"--mode={mode}")
    assert done.code == 0, done.err
    assert done.out


def test_preview_then_predict(run, folder, tmp_path):
    images = tmp_path / "images"
    flags = [f"--config={ROOT / 'configs/cnn.py'}", "--config.data.source=sample", f"--save_dir={images}"]
    done = run(*flags, cwd=tmp_path, module="imgclf_jax.preview")
    assert done.code == 0, done.err
    done = run(f"--workdir={folder}", *images.glob("*-original.png"), module="imgclf_jax.predict")
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) > 1


def test_report(run, folder):
    done = run(f"--workdir={folder}", module="imgclf_jax.report")
    assert done.code == 0, done.err


def test_demo_prints_its_address_writes_nothing_and_ends_with_ctrl_c(run, folder):
    def state():
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    before = state()
    started = run.start(f"--workdir={folder}", module="imgclf_jax.demo")
    pid, _, out, _, stuck = started
    deadline = time.monotonic() + 100
    while not (stuck.exists() and out.read_text().endswith("\n")):  # `stuck` is made after the other two
        assert time.monotonic() < deadline
        time.sleep(0.02)
    url = out.read_text().split()[1]
    photo = io.BytesIO()
    Image.new("RGB", (50, 40)).save(photo, "JPEG")
    with urllib.request.urlopen(f"{url}classify", photo.getvalue()) as response:
        assert len(json.load(response)["classes"]) == 5
    os.kill(pid, signal.SIGINT)
    done = run.finish(started)
    assert (done.code, done.out, done.err) == (130, f"page {url}  (Ctrl-C ends it)\n", "stopped\n")
    assert state() == before


def test_export(run, folder, tmp_path):
    done = run(f"--workdir={folder}", f"--output={tmp_path / 'softmax.zip'}", module="imgclf_jax.export")
    assert done.code == 0, done.err
    assert (tmp_path / "softmax.zip").stat().st_size


def test_one_seed_is_no_ensemble(run, folder):
    done = run(str(folder), module="imgclf_jax.ensemble")
    assert done.code == 2 and "train more seeds" in done.err
