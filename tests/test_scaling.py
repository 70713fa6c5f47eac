"""scripts/scaling.py runs and its numbers add up; scripts/scaling_model.py behaves like a model of communication."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hlo_collectives
import jax
import numpy as np
import pytest
from hlo_collectives import Buffer, Collective

from imgclf_jax.config import default
from imgclf_jax.devices import parallel
from imgclf_jax.errors import UserError

PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT / "scripts"))
        yield


def run(*options):
    command = [sys.executable, "scripts/scaling.py", *options]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300)


STRATEGIES = {"weak": ("shard_map",)}
SOFTMAX = ("--config=configs/softmax.py", "--config.data.source=sample", "--rounds=1", "--steps=1")


@pytest.fixture(scope="module", params=["weak"])
def measured(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaling")
    options = [f"--mode={request.param}", f"--json={folder / 'result.json'}"]
    if request.param == "weak":
        pytest.importorskip("matplotlib")
        options.append(f"--plot={folder / 'result.png'}")
    options.append(f"--strategies={','.join(STRATEGIES[request.param])}")
    done = run(*SOFTMAX, "--devices=2,1", *options)
    assert done.returncode == 0, done.stderr
    return request.param, done, folder


def test_it_says_that_shared_cores_show_no_speed_up(measured):
    _, done, _ = measured
    assert "NO SPEED-UP CAN BE SEEN HERE" in done.stdout
    assert "NO SPEED-UP CAN BE SEEN HERE" in done.stderr


def test_its_numbers_agree(measured):
    mode, _, folder = measured
    results = json.loads((folder / "result.json").read_text())
    assert (results["mode"], results["forced_host_devices"]) == (mode, True)
    rows = {(row["strategy"], row["devices"]): row for row in results["rows"]}
    strategies = STRATEGIES[mode]
    assert list(rows) == [(name, count) for count in (1, 2) for name in strategies]
    for (name, count), row in rows.items():
        base = rows[name, 1]
        batch = 100 * count if mode == "weak" else 100
        assert row["batch_size"] == batch
        assert len(row["seconds"]) == 1
        assert row["images_per_second"] == pytest.approx(batch / row["median"])
        assert row["per_device"] == pytest.approx(row["images_per_second"] / count)
        assert row["efficiency"] == pytest.approx(row["per_device"] / base["per_device"])
        assert row["speedup"] == pytest.approx(row["images_per_second"] / base["images_per_second"])
        assert sum(row["parts"].values()) == pytest.approx(row["median"])
        # The cores are shared: perfect is a time in proportion to all images.
        assert row["beyond_perfect"] == pytest.approx(row["median"] - base["median"] * batch / 100, abs=1e-12)
        assert row["flops"] == 2 * 2 * batch * 32 * 32 * 3 * 10
        assert row["mfu"] is None and row["of_product"] > 0
    for (_, count), row in rows.items():
        sent = row["collectives"]
        assert (sent["count"], sent["bytes"]) == ((2, 4 * (3072 * 10 + 10) + 8) if count > 1 else (0, 0))
        assert (row["parts"]["collectives"] > 0) == (count > 1)
    layer = results["layer"]
    assert list(layer["strategies"]) == list(strategies)
    for one in layer["strategies"].values():
        assert one["cost"] == one["fastest"] == one["rounds"][0]  # of a single round
        assert one["cost"] > -1


def test_it_draws_a_picture(measured):
    mode, _, folder = measured
    if mode == "weak":
        assert (folder / "result.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--config is missing"),
        ([*SOFTMAX, "--devices=1,0"], "--devices=1,0 must be whole numbers above 0"),
        ([*SOFTMAX, "--strategies=jit,ring"], "'ring' is not a strategy"),
        ([*SOFTMAX, "--plot=picture.bmp"], "must end in .png"),
        ([*SOFTMAX, "--json=nowhere/result.json"], "the folder does not exist"),
        ([*SOFTMAX, "--devices=1,3", "--mode=strong"], "=100 cannot be divided evenly among the 3 devices"),
        ([*SOFTMAX, "--config.parallel.devices=2"], "parallel.devices: use --devices"),
    ],
)
def test_mistakes_are_reported_in_one_line(options, message):
    done = run(*options)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.skipif(jax.local_device_count() < 8, reason="needs eight devices")
def test_collectives_are_replayed_as_they_are():
    from scaling_replay import program

    each = [
        Collective("all-reduce", (Buffer("f32", (4,)),), 1),
        Collective("all-reduce", (Buffer("f32", (3, 5)), Buffer("f32", ()), Buffer("f32", (7,))), 1, repeats=2),
        Collective("reduce-scatter", (Buffer("u8", (2, 3)),), 1),
        Collective("all-gather", (Buffer("s32", (16, 1)),), 1),
        Collective("all-to-all", (Buffer("f32", (8, 2)),), 1),
        Collective("collective-permute", (Buffer("s32", (5,)),), 1),
        Collective("all-reduce", (Buffer("u8", (9,)),), 1),
    ]
    replay = program(parallel.create(default()), each)
    text = replay.lower(np.int32(1)).compile().as_text()
    found = [one for one in hlo_collectives.in_loops(hlo_collectives.read(text)) if one.kind != "all-to-all"]
    expected = [one for one in each for _ in range(one.repeats) if one.kind != "all-to-all"]
    # Nothing is left out, combined or cut up.
    assert sorted((one.kind, one.bytes) for one in found) == sorted((one.kind, one.bytes) for one in expected)
    assert replay(np.int32(3)) == 0


def test_flags_that_name_nothing_are_refused():
    import scaling

    with pytest.raises(UserError, match="whole numbers"):
        scaling.device_counts([""])
    with pytest.raises(UserError, match="the list is empty"):
        scaling.chosen_strategies([])
    assert scaling.device_counts(["8", "2", "8"]) == [2, 8]


def test_peaks_are_found_by_the_longest_name():
    from scaling_peaks import PEAKS, arithmetic, peak

    assert peak("NVIDIA A100-SXM4-80GB", "tf32") == 156e12
    assert peak("NVIDIA H100 80GB HBM3", "bfloat16") == PEAKS["NVIDIA H100"].bfloat16
    assert peak("NVIDIA H100 PCIe", "float32") == 51e12
    assert peak("TPU v5 lite", "bfloat16") == 197e12
    assert peak("TPU v5", "bfloat16") == 459e12
    assert peak("NVIDIA H200 NVL", "tf32") is None and peak("cpu", "float32") is None
    assert peak("TPU v4", "float32") is None and peak("TPU v4", "float16") is None
    assert arithmetic("bfloat16", "gpu") == "bfloat16"
    assert [arithmetic("float32", name) for name in ("gpu", "tpu", "cpu")] == ["tf32", "bfloat16", "float32"]
    assert arithmetic("float32", "gpu", "highest") == "float32"


# Accelerators, which tests have none of


def test_too_few_accelerators_start_the_process_anew_on_the_cpu(monkeypatch):
    import scaling

    started = []
    monkeypatch.setenv("XLA_FLAGS", f"--some_flag=1 {scaling.FORCE}=3")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    monkeypatch.setattr(os, "execv", lambda *call: started.append(call))
    assert scaling.provide_devices(2, ["scaling.py"]) is False and not started
    scaling.provide_devices(4, ["scaling.py", "--devices=4"])
    assert started == [(sys.executable, [sys.executable, "scaling.py", "--devices=4"])]
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert f"{scaling.FORCE}=4" in os.environ["XLA_FLAGS"] and f"{scaling.FORCE}=3" not in os.environ["XLA_FLAGS"]
    assert "--some_flag=1" in os.environ["XLA_FLAGS"]


@pytest.mark.parametrize(("mode", "batches", "perfect"), [("weak", (10, 40), 1.0), ("strong", (10, 10), 0.25)])
def test_utilization_and_perfect_scaling_count_accelerators(mode, batches, perfect, monkeypatch, capsys):
    import scaling_report
    from bench_cases import Case
    from scaling_cases import Point, Prepared

    from imgclf_jax.terminal.console import Console

    monkeypatch.setattr(scaling_report, "of_this_process", lambda dtype: (1000.0, "tf32"))
    prepared, seconds = {}, {"product": [2.0]}
    for count, batch, times in zip((1, 4), batches, ([1.0], [2.0]), strict=True):
        config = default()
        config.train.batch_size = batch
        names = {"whole": f"whole {count}", "input": f"input {count}"}
        cases = {part: Case(name, lambda steps: None) for part, name in names.items()}
        prepared[Point("jit", count)] = Prepared(fake_setup(config), cases, [], 7)
        seconds |= {names["whole"]: times, names["input"]: [0.25]}
    extra = {"product": Case("product", lambda steps: None, flops=800)}
    results = scaling_report.summarize(prepared, extra, seconds, {}, mode, forced=False)
    one, four = results["rows"]
    assert (one["mfu"], one["of_product"]) == (0.2, 0.5)
    assert four["mfu"] == pytest.approx(20 * batches[1] / 2 / 1000 / 4)
    assert four["of_product"] == pytest.approx(20 * batches[1] / 2 / 400 / 4)
    assert four["beyond_perfect"] == pytest.approx(2 - perfect)
    assert four["efficiency"] == pytest.approx(perfect / 2)
    assert four["parts"] == {"collectives": 0.0, "input": 0.25, "compute": 1.75}
    scaling_report.report(Console("lines"), config, results)
    assert "MFU" in capsys.readouterr().out


def fake_setup(config):
    step = 20 * config.train.batch_size
    return SimpleNamespace(experiment=SimpleNamespace(config=config, network_flops=lambda: (step, step)))


# The model


@pytest.fixture(scope="module")
def model():
    import scaling_model

    return scaling_model


@pytest.fixture(scope="module")
def loads(model):
    return [model.workload(name) for name in model.MEASURED]


def powers(machine):
    return [2**power for power in range(machine.devices.bit_length())]


def test_workloads_send_what_compiled_programs_send(loads):
    cnn = next(load for load in loads if load.name == "cnn")
    pairs = [8 * width for width in (64, 128, 256)]
    means = [4 * width for width in (64, 128, 256)]
    assert sorted(cnn.messages) == sorted([3982124, 4, *means, *means, *pairs])
    assert cnn.batch == 64


def test_one_device_sends_nothing(model, loads):
    for machine in model.MACHINES:
        assert model.all_reduce_seconds(machine, 1, 1e9) == 0
        for load in loads:
            assert model.collective_seconds(machine, load, 1) == 0
            assert model.efficiency(machine, load, 1, 64) == 1


def test_more_bytes_and_more_devices_take_longer(model):
    for machine in model.MACHINES:
        for size in (0, 4, 1e6):
            times = [model.all_reduce_seconds(machine, count, size) for count in powers(machine)]
            assert times == sorted(set(times))
        times = [model.all_reduce_seconds(machine, 8, size) for size in (4, 1e4, 1e6, 1e8)]
        assert times == sorted(set(times))


def test_efficiency_falls_with_devices_and_rises_with_the_batch(model, loads):
    for machine in model.MACHINES:
        for load in loads:
            by_devices = [model.efficiency(machine, load, count, 4096) for count in powers(machine)]
            by_batch = [model.efficiency(machine, load, machine.devices, 2**power) for power in range(6, 24)]
            assert by_devices == sorted(by_devices, reverse=True)
            assert by_batch == sorted(by_batch)
            assert model.efficiency(machine, load, machine.devices, 1e12) == pytest.approx(1, abs=1e-3)


def test_large_messages_travel_at_the_links_rate(model):
    for machine in model.MACHINES:
        count, size = machine.devices, 1e13
        expected = 2 * (count - 1) / count * size / machine.bandwidth
        assert model.all_reduce_seconds(machine, count, size) == pytest.approx(expected, rel=1e-3)


def test_small_messages_take_the_quickest_protocol(model):
    machine = model.MACHINES[0]
    quickest = machine.protocols[0]
    assert model.all_reduce_seconds(machine, 8, 0) == pytest.approx(quickest.base + 14 * quickest.hop)


def test_hops_of_rings_and_tori(model):
    assert [model.hops(count, 1) for count in (1, 2, 8)] == [0, 2, 14]
    assert [model.hops(count, 2) for count in (1, 2, 4, 8, 64)] == [0, 2, 4, 8, 28]


def test_the_least_batch_is_where_the_efficiency_reaches_the_goal(model, loads):
    for machine in model.MACHINES:
        for load in loads:
            for goal in (0.5, 0.8):
                batch = model.least_batch(machine, load, machine.devices, goal)
                assert batch % machine.devices == 0
                assert model.efficiency(machine, load, machine.devices, batch) >= goal - 1e-9
                assert model.efficiency(machine, load, machine.devices, batch - machine.devices) < goal
            assert model.least_batch(machine, load, 1) == 1
            links = model.least_batch(model.without_starts(machine), load, machine.devices)
            assert links < model.least_batch(machine, load, machine.devices)
