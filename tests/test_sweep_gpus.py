"""sweep/: which GPU each of several workers on one machine gets, with a fake nvidia-smi."""

import json
import sys

import pytest
from fake_runs import write_sweep

from imgclf_jax.sweep import folder as sweep_folder
from imgclf_jax.sweep import gpus, local
from imgclf_jax.terminal.console import Console

ONE, TWO = "GPU-0a1b2c3d-0000-1111-2222-333344445555", "GPU-99887766-0000-1111-2222-333344445555"
MIGS = [f"MIG-{number}-aaaa-bbbb-cccc-ddddeeeeffff" for number in range(3)]
PLAIN = f"GPU 0: NVIDIA H200 (UUID: {ONE})\nGPU 1: NVIDIA A100-SXM4 (80 GB) (UUID: {TWO})\n"
WITH_MIG = (
    f"GPU 0: NVIDIA A100 (UUID: {ONE})\n"
    f"  MIG 1g.5gb     Device  0: (UUID: {MIGS[0]})\n"
    f"  MIG 1g.5gb     Device  1: (UUID: {MIGS[1]})\n"
    f"GPU 1: NVIDIA A100 (UUID: {TWO})\n"
)
FAILED = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine whose only program is nvidia-smi, if it has one. Returns a function that installs it."""
    for name in (gpus.VISIBLE, gpus.PLATFORMS, *gpus.FRACTIONS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def install(text, code=0):
        (tmp_path / "bin").mkdir(exist_ok=True)
        file = tmp_path / "bin" / "nvidia-smi"
        lines = [f"#!{sys.executable}", "import sys", "assert sys.argv[1:] == ['-L']", f"print(end={text!r})"]
        file.write_text("\n".join([*lines, f"sys.exit({code})", ""]))
        file.chmod(0o755)

    return install


def all_of(workers):
    return [gpus.environment(worker, workers) for worker in range(workers)]


def visible(*names):
    return [{gpus.VISIBLE: name} for name in names]


def test_nothing_is_set_without_gpus():
    assert all_of(4) == [{}] * 4


@pytest.mark.parametrize(("text", "code"), [("", 0), ("No devices found.\n", 6), (FAILED, 9)])
def test_nothing_is_set_if_nvidia_smi_lists_none(machine, text, code):
    machine(text, code)
    assert all_of(2) == [{}] * 2


def test_an_nvidia_smi_that_cannot_run_or_hangs_lists_none(machine, tmp_path, monkeypatch):
    machine("")
    (tmp_path / "bin" / "nvidia-smi").write_text("no program")
    assert all_of(2) == [{}] * 2
    (tmp_path / "bin" / "nvidia-smi").write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    monkeypatch.setattr(gpus, "_LONGEST_WAIT", 0.1)
    assert all_of(2) == [{}] * 2


def test_each_worker_gets_a_gpu_that_nvidia_smi_lists(machine):
    machine(PLAIN)
    assert all_of(2) == visible(ONE, TWO)
    assert gpus.environment(0, 1) == {}  # A run by itself uses all of them.


def test_mig_instances_take_the_place_of_their_gpu(machine):
    machine(WITH_MIG)
    assert all_of(3) == visible(MIGS[0], MIGS[1], TWO)


def test_gpus_without_a_uuid_have_their_number():
    assert gpus.parse("GPU 0: Tesla K80\nGPU 1: Tesla K80 \n  MIG 1g.5gb Device 0:\n") == ["0", "1"]


def test_workers_that_share_a_gpu_share_its_memory(machine):
    machine(PLAIN)
    shared = {gpus.FRACTION: "0.450"}
    assert all_of(3) == [{gpus.VISIBLE: ONE, **shared}, {gpus.VISIBLE: TWO}, {gpus.VISIBLE: ONE, **shared}]
    for five in all_of(5):
        assert five[gpus.FRACTION] == ("0.300" if five[gpus.VISIBLE] == ONE else "0.450")


@pytest.mark.parametrize("name", gpus.FRACTIONS)
def test_a_fraction_of_the_user_is_kept(machine, monkeypatch, name):
    machine(PLAIN)
    monkeypatch.setenv(name, "0.2")
    assert all_of(4) == visible(ONE, TWO) * 2


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("0,1", ["0", "1"]),
        ("3", ["3"]),
        (" 2 , 0 ", ["2", "0"]),
        (f"{ONE},{TWO}", [ONE, TWO]),
        (f"{MIGS[0]}, MIG-GPU-0a1b/3/0", [MIGS[0], "MIG-GPU-0a1b/3/0"]),
        ("1,1", ["1"]),
        ("", []),
        (" ", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("0,,1", ["0"]),
        ("none", []),
    ],
)
def test_gpus_that_the_user_names_are_divided(machine, monkeypatch, value, names):
    machine(PLAIN)  # It lists others, which the user has hidden.
    monkeypatch.setenv(gpus.VISIBLE, value)
    assert gpus.visible() == names
    given = [environment.get(gpus.VISIBLE) for environment in all_of(2)]
    assert given == ([(names * 2)[0], (names * 2)[1]] if names else [None, None])
    assert all((gpus.FRACTION in environment) == (len(names) == 1) for environment in all_of(2))


@pytest.mark.parametrize(
    ("platforms", "used"), [("cpu", False), ("cuda", True), ("cuda,cpu", True), ("tpu,cpu", False)]
)
def test_nothing_is_set_if_jax_may_not_use_gpus(machine, monkeypatch, platforms, used):
    machine(PLAIN)
    monkeypatch.setenv(gpus.PLATFORMS, platforms)
    assert all_of(2) == (visible(ONE, TWO) if used else [{}, {}])


WORKER = """#!{python}
import json, os, sys, time
names = ("CUDA_VISIBLE_DEVICES", "XLA_CLIENT_MEM_FRACTION")
with open({log!r}, "a") as file:
    file.write(json.dumps([os.environ.get(name) for name in names]) + "\\n")
for state in ("running", "complete"):
    print(json.dumps({{"run": {run!r}, "state": state}}), flush=True)
"""


@pytest.mark.parametrize("there", [True, False])
def test_workers_are_started_with_their_gpus(machine, tmp_path, monkeypatch, there):
    if there:
        machine(PLAIN)
    write_sweep(tmp_path / "study", {"plain": {}}, [0])
    (run,) = sweep_folder.runs(tmp_path / "study")
    log, worker = tmp_path / "log", tmp_path / "worker"
    worker.write_text(WORKER.format(python=sys.executable, log=str(log), run=str(run.folder)))
    worker.chmod(0o755)
    monkeypatch.setattr(local.sys, "executable", str(worker))
    assert local.run(tmp_path / "study", 3, False, Console("lines")) == 1  # No run is complete.
    started = sorted(map(json.loads, log.read_text().splitlines()), key=str)
    assert started == ([[ONE, "0.450"], [ONE, "0.450"], [TWO, None]] if there else [[None, None]] * 3)
