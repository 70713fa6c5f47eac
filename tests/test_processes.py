"""processes.py: several processes are one run, and what goes wrong in one of them ends all."""

import re
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
from runs import ROOT, SOFTMAX, STEPS, TINY, record, rows, steps

from imgclf_jax.devices import processes
from imgclf_jax.errors import UserError
from imgclf_jax.workdir.checkpoint import Checkpoints

pytest_plugins = ["run_fixtures"]

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="a GPU would be shared by the processes")


# As many steps as `TINY`, in a program that compiles in a second: process 1 of a job never finds it in the cache.
CHEAP = (
    *SOFTMAX,
    f"--config.train.steps={STEPS}",
    "--config.train.steps_per_dispatch=2",
    "--config.augment.flip=True",
    "--config.optim.ema_decay=0.9",
    "--config.checkpoint.every_steps=3",
)


def parameters(folder):
    """Path -> array of the last checkpoint, on the host."""
    checkpoints = Checkpoints(folder, read_only=True)
    tree = checkpoints.restore(STEPS)
    checkpoints.close()
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree["state"])}


def assert_close(folder, reference):
    """The same run to float32 tolerance, and the same images right and wrong."""
    assert record(folder)["status"] == "complete"
    for ours, theirs in zip(rows(folder), rows(reference), strict=True):
        for name, value in theirs.items():
            assert ours[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value)
    for name, result in record(reference)["results"].items():
        ours = record(folder)["results"][name]
        assert (ours["correct"], ours["count"]) == (result["correct"], result["count"])
    expected = parameters(reference)
    for name, ours in parameters(folder).items():
        np.testing.assert_allclose(ours, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def pair(run, tmp_path_factory):
    """The folder of a run by two processes, and what they printed."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    done = run.together(*TINY, f"--workdir={folder}", processes=2)
    assert [process.code for process in done] == [0, 0], done
    return folder, done


def test_two_processes_are_the_run_of_one(pair, finished):
    assert_close(pair[0], finished.folder)
    assert record(pair[0])["provenance"]["process_count"] == 2


def test_only_the_first_process_prints(pair):
    first, second = pair[1]
    assert "test accuracy" in first.out
    # What the library of the collectives says of itself is not ours to suppress.
    assert [line for line in second.out.splitlines() if line and "[Gloo]" not in line] == []


def test_processes_agree_on_what_a_workdir_holds(run, pair):
    folder = pair[0]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    job = [*TINY, f"--workdir={folder}"]
    again = run.together(*job, processes=2)
    assert [process.code for process in again] == [0, 0], again
    assert "complete: all" in again[0].out
    refused = run.together(*job, "--config.optim.name=adam", "--allow_config_change", processes=2)
    assert [process.code for process in refused] == [2, 2], refused
    for process in refused:
        assert "belong to another model" in process.err and "Traceback" not in process.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_processes_without_a_workdir_share_a_new_one(run, tmp_path):
    arguments = [f"--config={ROOT / 'configs' / 'softmax.py'}", *SOFTMAX[1:]]
    for count in (1, 2):
        done = run.together(*arguments, processes=2, cwd=tmp_path)
        assert [process.code for process in done] == [0, 0], done
        assert len(list((tmp_path / "runs" / "softmax").iterdir())) == count


def test_processes_with_a_part_of_the_data_each(run, tmp_path):
    folder, reference = tmp_path / "run", tmp_path / "reference"
    options = ["--config.parallel.strategy=shard_map", "--config.parallel.data=sharded"]
    done = run.together(*CHEAP, *options, f"--workdir={folder}", processes=2)
    assert [process.code for process in done] == [0] * 2, done
    assert run(*CHEAP, f"--workdir={reference}").code == 0
    assert_close(folder, reference)


def test_killed_and_stopped_processes_end_the_job_which_goes_on_bit_by_bit(run, tmp_path):
    folder, reference = tmp_path / "run", tmp_path / "reference"
    job = [*CHEAP, f"--workdir={folder}"]
    assert [process.code for process in run.together(*CHEAP, f"--workdir={reference}", processes=2)] == [0, 0]
    killed = run.together(
        *job, processes=2, hooks={1: [["signal_after", "devices.parallel:Parallel.highest", 4, signal.SIGKILL]]}
    )
    assert killed[1].code == -signal.SIGKILL
    assert killed[0].code not in (0, -signal.SIGKILL)
    assert "another process of this job has ended" in killed[0].err or "another task died" in killed[0].err
    assert record(folder)["status"] in ("running", "failed")

    # One process gets the signal: all of them save the same step.
    hook = ["signal_after", "devices.parallel:Parallel.highest", 1, signal.SIGTERM]
    stopped = run.together(*job, processes=2, hooks={1: [hook]})
    assert [process.code for process in stopped] == [128 + signal.SIGTERM] * 2, stopped
    assert record(folder)["status"] == "interrupted"
    assert steps(folder)[-1] == record(folder)["step"] < STEPS

    # One process alone continues it as well as two.
    alone = tmp_path / "alone"
    shutil.copytree(folder, alone)
    assert run(*CHEAP, f"--workdir={alone}").code == 0
    assert_close(alone, reference)

    assert [process.code for process in run.together(*job, processes=2)] == [0, 0]
    assert rows(folder) == rows(reference)
    assert record(folder)["results"] == record(reference)["results"]
    expected = parameters(reference)
    for name, ours in parameters(folder).items():
        np.testing.assert_array_equal(ours, expected[name], err_msg=name)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_process_ends_the_job_with_a_line(run, tmp_path, frozen):
    folder = tmp_path / "run"
    hooks = {process: [["assign", "devices.processes:HEARTBEAT_SECONDS", 3]] for process in (0, 1)}
    hooks[frozen].append(["freeze_after", "devices.parallel:Parallel.highest", 5, 9])
    done = run.together(*CHEAP, f"--workdir={folder}", processes=2, hooks=hooks)
    other = done[1 - frozen]
    assert other.code == 3
    reason = f"process {frozen} of this job has not answered for 3 s"
    assert re.fullmatch(
        f".*, process {1 - frozen}: error: {reason}.* to continue from the last checkpoint\n", other.err
    )
    assert done[frozen].code != 0  # It finds itself alone.
    found = record(folder)
    assert found["status"] == "failed"
    if frozen == 1:
        assert reason in found["error"]


def test_a_signal_stops_a_process_that_waits_for_the_others(run, tmp_path):
    flags = ["--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=1", "--connect_seconds=60"]
    hooks = [["signal_soon_after", "terminal.interrupt:begin_work", 1.0, signal.SIGTERM]]
    done = run(*TINY, f"--workdir={tmp_path / 'run'}", *flags, hooks=hooks)
    assert done.code == 128 + signal.SIGTERM
    assert done.err.endswith("process 1: stopped by SIGTERM\n") and len(done.err.splitlines()) == 1


# What is refused


@pytest.mark.skipif(sys.platform != "linux", reason="needs abstract names of sockets")
@pytest.mark.parametrize("place", [0, 1])
def test_two_processes_of_the_same_place_are_refused(run, tmp_path, place):
    hooks = {process: [["add_argument", f"--process_id={place}"]] for process in (0, 1)}
    for process in run.together(*TINY, f"--workdir={tmp_path / 'run'}", processes=2, hooks=hooks):
        assert process.code == 2
        (line,) = process.err.splitlines()
        assert "error: two processes of the job at 127.0.0.1:" in line and f"have --process_id={place};" in line
    assert not (tmp_path / "run").exists()


def test_processes_with_different_configs_are_refused(run, tmp_path):
    done = run.together(
        *TINY, f"--workdir={tmp_path / 'run'}", processes=2, hooks={1: [["add_argument", "--config.seed=3"]]}
    )
    for process in done:
        assert process.code == 2
        assert "process 1 has a different config from process 0: seed: 0 -> 3" in process.err
    assert not (tmp_path / "run").exists()


def test_processes_with_different_data_are_refused(run, tmp_path):
    done = run.together(*TINY, f"--workdir={tmp_path / 'run'}", processes=2, hooks={1: [["other_fingerprint"]]})
    for process in done:
        assert process.code == 2
        assert re.search("process 1 has a different data set from process 0: fingerprint: .+ -> another$", process.err)


def test_a_mistake_ends_all_processes_with_one_line_each(run, tmp_path):
    done = run.together(*TINY, "--config.train.batch_size=65", f"--workdir={tmp_path / 'run'}", processes=2)
    for number, process in enumerate(done):
        assert process.code == 2
        (line,) = process.err.strip().splitlines()
        assert f"process {number}: error: " in line and "cannot be divided evenly among the 2 devices" in line


@pytest.mark.parametrize("process", [0, 1])
def test_a_missing_process_is_not_waited_for_without_end(run, tmp_path, process):
    flags = ["--coordinator=127.0.0.1:1", "--num_processes=2", f"--process_id={process}", "--connect_seconds=1"]
    if process == 0:
        flags[0] = "--coordinator=127.0.0.1:29517"
    done = run(*TINY, f"--workdir={tmp_path / 'run'}", *flags)
    assert done.code == 2
    assert f"process {process} of 2 timed out after waiting 1 s for the others" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--process_id=1"], "--process_id needs --coordinator"),
        (["--num_processes=2"], "--num_processes needs --coordinator"),
        (["--coordinator=nowhere", "--num_processes=2", "--process_id=0"], "must be HOST:PORT"),
        (["--coordinator=host:1"], "needs --num_processes and --process_id"),
        (["--coordinator=host:1", "--num_processes=2", "--process_id=2"], "--process_id=2 must be from 0"),
    ],
)
def test_flags_that_make_no_sense(run, flags, message):
    done = run(*TINY, *flags)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize("size", ["several", ""])
def test_nonsense_from_a_launcher_is_ignored(run, size):
    assert run(*TINY, "--mode=check", env={"SLURM_STEP_NUM_TASKS": size}).code == 0


def test_a_launcher_that_does_not_say_which_process_this_is(run):
    done = run(*TINY, "--coordinator=host:1", env={"OMPI_COMM_WORLD_SIZE": "2"})
    assert done.code == 2
    assert "needs --num_processes and --process_id" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_single_process_of_a_job_is_alone(run, tmp_path):
    flags = ["--coordinator=host:1", "--num_processes=1", "--process_id=0"]
    assert run(*TINY, "--mode=check", *flags).code == 0


# Agreements, with the other processes' part played by the test


@pytest.fixture
def others(monkeypatch):
    """What the processes after this one bring to every agreement."""

    def play(*texts):
        monkeypatch.setattr(processes, "gather", lambda text: [text, *texts])

    return play


def test_a_single_process_agrees_with_itself():
    assert processes.gather("anything") == ["anything"]
    assert processes.together(lambda: 3) == 3
    assert processes.first_alone(lambda: 4) == 4
    processes.same("config", "x", lambda other, first: "")
    assert processes.is_first() and not processes.several()
    with pytest.raises(UserError, match="mine"):
        processes.together(lambda: raising("mine"))


def raising(message):
    raise UserError(message)


def test_a_failure_elsewhere_is_raised_here(others):
    others("", "its disk is full")
    with pytest.raises(UserError, match="process 2 stopped: its disk is full"):
        processes.together(lambda: 3)


def test_the_own_failure_comes_first(others):
    others("its disk is full")
    with pytest.raises(UserError, match=r"^mine$"):
        processes.together(lambda: raising("mine"))


def test_what_must_be_the_same_is_compared(others):
    def explain(other, first):
        return f"{other} and {first}"

    others("abc", "abc")
    processes.same("data set", "abc", explain)
    others("abc", "xyz")
    with pytest.raises(UserError, match="process 2 has a different data set from process 0: xyz and abc"):
        processes.same("data set", "abc", explain)
