"""Data that stays on disk and is streamed: a run must equal one whose data is on the devices."""

import json
import os
import pickle
import shutil
import signal
import threading
import time
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_fixtures import watched
from runs import SOFTMAX, TINY, bits, record, rows, steps
from synthetic import (
    IDENTITY,
    SMALL_CNN,
    Trainer,
    assert_same_state,
    make_config,
    make_data,
    make_experiment,
    make_normalization,
)

from imgclf_jax import augment, data
from imgclf_jax.data import statistics, stream
from imgclf_jax.data.tfds import sample
from imgclf_jax.data.types import LazyImages, Split
from imgclf_jax.devices import parallel
from imgclf_jax.errors import UserError
from imgclf_jax.training import exact_evaluation, multistep, streamed

pytest_plugins = ["run_fixtures"]

STREAMED = "--config.data.max_device_bytes=1"
# So that a run of 14 steps is several chunks, of which an interruption leaves one unfinished.
SHORT_CHUNKS = ["assign", "training.streamed:CHUNK_STEPS", 5]


class Held(LazyImages):
    """Images that count how often they are read; `bad` ones cannot be."""

    def __init__(self, images, bad=()):
        super().__init__(images.shape)
        self.images, self.bad = images, bad
        self.reads = [0] * len(images)

    def read(self, index):
        if index in self.bad:
            raise UserError(f"image {index} is damaged")
        self.reads[index] += 1
        return self.images[index]


def lazily(images, labels, bad=()):
    return Split(Held(images, bad), labels, np.array([str(index) for index in range(len(labels))]))


# Images in record files


@pytest.mark.parametrize("image_size", [(), (20, 24)])
def test_images_left_in_their_files_are_those_that_are_decoded(image_size):
    config = make_config({"data.source": "sample", "data.image_size": image_size, "data.valid_split": ""}).data
    config.train_split, config.test_split = "train[:100]+test[10:400]+train[20000:]", "test[500:]"
    decoded, left = data.load(config), data.load(config, stream=True)
    for name, split in decoded.splits.items():
        lazy = left.splits[name]
        assert isinstance(lazy.images, LazyImages) and lazy.images.shape == split.images.shape
        np.testing.assert_array_equal(lazy.labels, split.labels)
        np.testing.assert_array_equal(lazy.ids, split.ids)
        some = np.unique(np.linspace(0, len(split) - 1, 50).astype(int))
        elsewhere = pickle.loads(pickle.dumps(lazy.images))
        np.testing.assert_array_equal(elsewhere[some], split.images[some])
    assert (left.class_names, left.image_shape) == (decoded.class_names, decoded.image_shape)


def test_labels_are_read_once(monkeypatch):
    config = make_config({"data.source": "sample"}).data
    first = data.load(config, stream=True)
    monkeypatch.setattr("imgclf_jax.data.tfds.records.read_labels", None)
    again = data.load(config, stream=True)
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.splits["valid"].labels, first.splits["valid"].labels)


@pytest.fixture
def records(tmp_path):
    """A copy of the sample, and the flags that make it the data set."""
    folder = tmp_path / "records"
    shutil.copytree(sample.FOLDER, folder)
    (version,) = (path.parent for path in folder.rglob("dataset_info.json"))
    splits = ["--config.data.train_split=train[:400]", "--config.data.valid_split=train[400:800]"]
    return version, ["--config.data.source=tfds", f"--config.data.dir={folder}", *splits]


def test_a_damaged_record_is_named(records):
    folder, _ = records
    config = make_config({"data.dir": str(folder.parents[1]), "data.train_split": "train[:400]"}).data
    config.update(valid_split="train[400:]")
    images = data.load(config, stream=True).splits["valid"].images
    first = images.read(5)
    for path in folder.glob("*train*"):
        path.unlink()
    np.testing.assert_array_equal(images.read(5), first)  # The file is open.
    with pytest.raises(UserError, match=r"train.*: damaged \(the file is missing\)"):
        pickle.loads(pickle.dumps(images)).read(5)


# What is read ahead


def test_rows_are_waited_for_and_an_older_or_torn_one_is_none():
    rows = stream.Rows(2, 3)
    elsewhere = pickle.loads(pickle.dumps(rows))
    rows.write(0, np.array([1, 2, 3]))
    np.testing.assert_array_equal(elsewhere(0), [1, 2, 3])
    found = []
    thread = threading.Thread(target=lambda: found.append(elsewhere(2)))  # in the place of row 0
    thread.start()
    table = np.memmap(rows.path, np.int32, "r+")
    table[0] = 2  # the step of a row whose indices are still those of another
    time.sleep(5 * stream.POLL_SECONDS)
    assert not found
    rows.write(2, np.array([4, 5, 6]))
    thread.join()
    np.testing.assert_array_equal(found[0], [4, 5, 6])
    rows.close()
    with pytest.raises(stream.Closed):
        elsewhere(3)
    with pytest.raises(stream.Closed):
        pickle.loads(pickle.dumps(rows))(0)
    assert not rows.path.exists()


def test_a_full_disk_is_reported(monkeypatch):
    monkeypatch.setattr("tempfile.mkstemp", lambda **_: os.open("/dev/null/nowhere", os.O_RDWR))
    with pytest.raises(UserError, match="set TMPDIR"):
        stream.Rows(2, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_chunks_come_in_order(workers):
    images, _ = make_data(30)
    order = np.random.default_rng(0).integers(0, 30, (24, 4)).astype(np.int32)
    order[:2] = order[5, 1] = stream.NOTHING
    rows = stream.Rows(24, 4)
    for step, row in enumerate(order):
        rows.write(step, row)
    expected = np.where((order == stream.NOTHING)[..., None, None, None], 0, images[order])
    with stream.Chunks(stream.Reader(Held(images), rows), 6, 24, 6, workers, 4) as chunks:
        for first in (6, 12, 18):
            np.testing.assert_array_equal(chunks.get(), expected[first : first + 6])


def test_an_image_that_cannot_be_read_is_reported_to_the_reader():
    images, _ = make_data(30)
    read = stream.Reader(Held(images, bad={17}), lambda step: np.array([step]))
    with stream.Chunks(read, 0, 30, 10, 0, 1) as chunks:
        chunks.get()
        with pytest.raises(UserError, match="image 17 is damaged"):
            chunks.get()


def test_chunks_can_be_left_before_they_end():
    read = stream.Reader(Held(make_data(30)[0]), stream.Rows(2, 4))
    before = threading.active_count()
    with stream.Chunks(read, 0, 1000, 2, 0, 4):
        pass  # The threads wait for rows that nobody writes.
    assert threading.active_count() <= before


# Where a data set goes


def test_what_a_device_cannot_hold_is_streamed():
    def streams(gigabytes, **changes):
        config = make_config({key.replace("_", ".", 1): value for key, value in changes.items()})
        return parallel.create(config, gigabytes).streamed

    assert not streams(1000)
    assert streams(2**60)
    assert not streams(1000, data_max_device_bytes=1000)
    assert streams(1001, data_max_device_bytes=1000)
    if jax.device_count() >= 8:
        eight = {"parallel_devices": 8, "data_max_device_bytes": 1000}
        assert streams(8000, parallel_data="replicated", **eight)
        assert not streams(8000, parallel_data="sharded", **eight)
        assert streams(8001, parallel_data="sharded", **eight)


@pytest.mark.parametrize(("batch_size", "expected"), [(64, 64), (20_000, 1), (1_000, 21)])
def test_a_chunk_is_of_some_megabytes(batch_size, expected):
    assert streamed.chunk_steps(batch_size, (32, 32, 3)) == expected


# The same training

COUNT, BATCH = 22, 8
SMALL = SMALL_CNN | {"model.norm": "batch", "model.dropout": 0.2, "augment.flip": True, "train.last_batch": "wrap"}
IMAGES, LABELS = make_data(COUNT)
TEST_IMAGES, TEST_LABELS = make_data(37, seed=2)
PLAN_STEPS = 7  # three an epoch: the last one of an epoch, and the last epoch, are not whole
TOPOLOGIES = [("jit", 8, (4, 2)), ("pmap", 2, ())]


def small_config(topology, sampling, accumulate):
    strategy, devices, mesh = topology
    changes = {"parallel.strategy": strategy, "parallel.devices": devices, "parallel.mesh": mesh}
    changes |= {"train.sampling": sampling, "train.accumulate": accumulate, "train.epochs": None}
    return make_config(SMALL, changes, {"train.steps": PLAN_STEPS})


def streamed_run(config, start=0, state=None):
    """(state, meters, result of an evaluation) of a run whose data is streamed, from step `start` on."""
    strategy = parallel.create(config, image_bytes=2**60)
    assert strategy.streamed
    built = make_experiment(config, IMAGES, strategy=strategy)
    feed = built.place(lazily(IMAGES, LABELS)).feed(built.sampler, PLAN_STEPS, built.key, 0)
    run_steps = built.compile_run_steps()
    state = built.compile_init()(built.key) if state is None else state
    meters, step = [], start
    while step < PLAN_STEPS:
        chunk, count = feed(step, min(2, PLAN_STEPS - step))
        meter = strategy.put(multistep.empty_meter())
        state, meter = run_steps(
            state=state, meter=meter, normalization=IDENTITY, data=chunk, count=np.int32(count), key=built.key
        )
        meters.append(jax.device_get(meter))
        step += count
    feed.close()
    return state, meters, evaluated(built, lazily(TEST_IMAGES, TEST_LABELS), state)


def evaluated(built, split, state):
    """The result of an exact evaluation."""
    variables, progress = state.eval_variables(), lambda done, total: None
    run, split = built.compile_evaluate(), built.place(split)
    return exact_evaluation.evaluate_split(run, split, variables, IDENTITY, BATCH, progress)


@cache
def resident_run(sampling, accumulate):
    config = small_config(("jit", 1, ()), sampling, accumulate)
    ours = Trainer(config, IMAGES, LABELS)
    state, meters = ours.train(ours.init(), 1)
    for _ in range(PLAN_STEPS - 1):
        state, (meter,) = ours.train(state, 1)
        meters.append(meter)
    split = Split(TEST_IMAGES, TEST_LABELS, np.arange(37))
    return state, meters, evaluated(ours.experiment, split, state)


def total(meters, name):
    return sum(meter[name] for meter in meters)


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(streamed, "CHUNK_STEPS", 3)


def test_on_one_device_a_streamed_run_has_the_same_bits(short_chunks):
    state, meters, sums = streamed_run(small_config(("jit", 1, ()), "replacement", 2))
    expected, expected_meters, expected_sums = resident_run("replacement", 2)
    assert_same_state(state, expected, rtol=0, atol=0)
    assert len(meters) < len(expected_meters) and total(meters, "steps") == PLAN_STEPS
    assert total(meters, "accuracy") == total(expected_meters, "accuracy")
    jax.tree.map(np.testing.assert_array_equal, sums, expected_sums)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
def test_on_several_devices_a_streamed_run_is_the_same(topology, short_chunks):
    accumulate = 1 if topology[1] == 8 else 2
    state, meters, sums = streamed_run(small_config(topology, "epoch", accumulate))
    expected, expected_meters, expected_sums = resident_run("epoch", accumulate)
    assert_same_state(state, expected)
    assert total(meters, "accuracy") == total(expected_meters, "accuracy")
    assert total(meters, "loss") == pytest.approx(total(expected_meters, "loss"), rel=1e-5)
    assert (sums["count"], sums["correct"]) == (37, expected_sums["correct"])
    assert sums["loss"] == pytest.approx(expected_sums["loss"], rel=1e-5)


@pytest.mark.parametrize("start", [1, 3])
def test_a_streamed_run_goes_on_in_the_middle_of_a_chunk(start, short_chunks):
    ours = Trainer(small_config(("jit", 1, ()), "epoch", 1), IMAGES, LABELS)
    state = ours.init()
    for _ in range(start):
        state, _ = ours.train(state, 1)
    state, meters, _ = streamed_run(small_config(("jit", 1, ()), "epoch", 1), start, state)
    assert total(meters, "steps") == PLAN_STEPS - start
    assert_same_state(state, resident_run("epoch", 1)[0], rtol=0, atol=0)


def test_every_example_is_evaluated_once(short_chunks):
    split = lazily(TEST_IMAGES, TEST_LABELS)
    reported = []
    strategy = parallel.create(make_config(), image_bytes=2**60)
    run = strategy.compile(exact_evaluation.make_evaluate(seen, 4, strategy))
    placed = streamed.place(split, strategy)
    sums = placed.sums(partial(run, variables={}, normalization=IDENTITY), 4, lambda *done: reported.append(done))
    assert split.images.reads == [1] * 37
    assert (int(sums["count"]), int(sums["accuracy"])) == (37, int(TEST_LABELS.sum()))
    assert reported == [(12, 37), (24, 37), (36, 37)]


def seen(variables, normalization, batch):
    mask = batch["mask"]
    correct = jnp.where(mask, batch["label"], 0).sum(dtype=jnp.int32)
    count = mask.sum(dtype=jnp.int32)
    return {"loss": jnp.float32(0), "accuracy": correct, "count": count, "not_finite": jnp.int32(0)}


# Statistics


@pytest.mark.parametrize("pixels", ["standardized", "mean_image"])
def test_statistics_are_the_same_and_remembered(pixels):
    images, labels = make_data(150, (5, 4, 3))
    split = lazily(images, labels)
    sums = statistics.of_split(split, pixels, data.types.silent)
    assert split.images.reads == [1] * 150
    config = make_config({"data.pixels": pixels})
    ours, theirs = augment.normalization(config, (5, 4, 3), sums), make_normalization(config, images)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    again = statistics.of_split(split, pixels, data.types.silent)
    assert split.images.reads == [1] * 150
    jax.tree.map(np.testing.assert_array_equal, again, sums)
    # Of another part of the same data they are others.
    statistics.of_split(Split(split.images, labels, split.ids[::-1]), pixels, data.types.silent)
    assert split.images.reads == [2] * 150


# Whole runs


def assert_same_run(folder, reference):
    assert rows(folder) == rows(reference)
    assert record(folder)["status"] == "complete"
    assert record(folder)["results"] == record(reference)["results"]
    assert bits(folder) == bits(reference)


def assert_gone(path):
    """None of the processes whose numbers are in a file is there any more."""
    pids = json.loads(path.read_text())
    assert len(pids) == 2
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_streamed_run_is_the_run(finished, tmp_path):
    ours = watched(tmp_path, STREAMED)
    assert "are streamed, decoded by 2 worker processes" in ours.done.out
    assert ours.done.err == ""
    assert_same_run(ours.folder, finished.folder)
    assert ours.imports["tensorflow"] == []
    assert "grain" in ours.imports["modules"] and "grain" not in finished.imports["modules"]


def test_a_run_that_is_killed_may_be_streamed_or_not_from_then_on(run, finished, tmp_path):
    folder = tmp_path / "run"
    where = f"--workdir={folder}"
    # At step 6, in the middle of a chunk.
    done = run(*TINY, STREAMED, where, hooks=[SHORT_CHUNKS, ["kill_when_on_disk", 2, signal.SIGKILL]])
    assert done.code == -signal.SIGKILL, done
    done = run(*TINY, where, hooks=[["signal_after", "workdir.checkpoint:Checkpoints.save", 1, signal.SIGTERM]])
    assert done.code == 128 + signal.SIGTERM, done
    assert "resuming at step 6 of" in done.out and done.err == ""
    assert not record(folder)["data"]["fingerprint"].startswith("records:")
    done = run(*TINY, STREAMED, "--config.data.workers=0", where, hooks=[SHORT_CHUNKS])
    assert done.code == 0, done
    assert done.err == "" and "streamed, decoded by threads" in done.out
    assert record(folder)["data"]["fingerprint"].startswith("records:")
    assert_same_run(folder, finished.folder)


LONG = [*SOFTMAX, STREAMED, "--config.train.steps=400", "--config.checkpoint.every_steps=20"]


@pytest.fixture
def temporary(tmp_path):
    """The folder of temporary files, which must be empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    yield {"TMPDIR": str(folder)}
    deadline = time.monotonic() + 60
    while left := list(folder.glob("*rows*")):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_a_signal_to_all_processes_saves_and_leaves_none_behind(run, tmp_path, temporary):
    workers = tmp_path / "workers"
    hooks = [SHORT_CHUNKS, ["own_group"], ["tell_workers", "workdir.checkpoint:Checkpoints.save", 1, str(workers)]]
    hooks.append(["signal_group_after", "workdir.checkpoint:Checkpoints.save", 1, signal.SIGINT])
    done = run(*LONG, f"--workdir={tmp_path / 'run'}", hooks=hooks, env=temporary)
    assert done.code == 128 + signal.SIGINT, done
    assert done.err == ""
    assert 20 <= steps(tmp_path / "run")[-1] == record(tmp_path / "run")["step"] < 400
    assert_gone(workers)


def test_a_run_that_is_killed_leaves_no_process_behind(run, tmp_path, temporary):
    workers = tmp_path / "workers"
    hooks = [SHORT_CHUNKS, ["tell_workers", "workdir.checkpoint:Checkpoints.save", 1, str(workers)]]
    hooks.append(["signal_after", "workdir.checkpoint:Checkpoints.save", 1, signal.SIGKILL])
    done = run(*LONG, f"--workdir={tmp_path / 'run'}", hooks=hooks, env=temporary)
    assert done.code == -signal.SIGKILL, done
    assert_gone(workers)


def test_a_record_that_is_damaged_meanwhile_is_one_line(run, records, tmp_path, temporary):
    folder, flags = records
    hooks = [SHORT_CHUNKS, ["damage_after", "workdir.checkpoint:Checkpoints.save", 1, str(folder)]]
    done = run(*LONG, *flags, f"--workdir={tmp_path / 'run'}", hooks=hooks, env=temporary)
    assert done.code == 2, done
    assert len(done.err.splitlines()) == 1, done.err
    assert done.err.startswith(f"error: {folder}") and "train" in done.err and "damaged" in done.err
    assert steps(tmp_path / "run")[0] == 20
    assert record(tmp_path / "run")["status"] == "failed"


def test_a_worker_that_is_killed_is_one_line(run, tmp_path, temporary):
    hooks = [SHORT_CHUNKS, ["kill_worker_after", "workdir.checkpoint:Checkpoints.save", 1, signal.SIGKILL]]
    done = run(*LONG, f"--workdir={tmp_path / 'run'}", hooks=hooks, env=temporary)
    assert done.code == 2, done
    assert len(done.err.splitlines()) == 1, done.err
    assert "exit code -9" in done.err and "data.workers" in done.err
    assert steps(tmp_path / "run")[0] == 20


def test_evaluation_of_a_streamed_split_is_exact(run, finished):
    done = run(f"--workdir={finished.folder}", "--mode=eval", "--split=test", *TINY, STREAMED)
    assert done.code == 0, done
    result = record(finished.folder)["results"]["test"]
    assert f"{result['correct']} / {result['count']}" in done.out and f"loss {result['loss']:.4f}" in done.out
    assert "are streamed" in done.out


def test_check_says_what_is_streamed(run):
    done = run(*SOFTMAX, "--mode=check", STREAMED)
    assert done.code == 0, done
    assert "are streamed" in done.out and "two chunks of streamed data" in done.out


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a GPU would be shared by the processes")
def test_two_processes_stream_a_part_each(run, finished, tmp_path):
    done = run.together(*TINY, STREAMED, "--config.data.workers=0", f"--workdir={tmp_path / 'run'}", processes=2)
    assert [process.code for process in done] == [0, 0], done
    for ours, theirs in zip(rows(tmp_path / "run"), rows(finished.folder), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["accuracy"] == theirs["accuracy"]
    for name, result in record(finished.folder)["results"].items():
        found = record(tmp_path / "run")["results"][name]
        assert (found["correct"], found["count"]) == (result["correct"], result["count"])
