"""How every tool ends: signals at any moment, and standard streams that are lost."""

import re
import signal
import subprocess
import sys

import pytest
from PIL import Image
from runs import ROOT, SOFTMAX, environment, record, steps

pytest_plugins = ["run_fixtures"]

TOOLS = ("main", "predict", "report", "preview", "export")
HUP, INT, TERM = signal.SIGHUP, signal.SIGINT, signal.SIGTERM
LINES = {INT: "stopped\n", TERM: "stopped by SIGTERM\n", HUP: "stopped by SIGHUP\n"}
LONGER = [*SOFTMAX, "--config.train.steps=12", "--config.checkpoint.every_steps=3", "--config.log.every_steps=2"]


@pytest.fixture
def command(finished, tmp_path):
    """The arguments of a tool with which it succeeds, writing to `tmp_path / "made"` if it writes files."""
    photo, made = tmp_path / "photo.png", tmp_path / "made"
    Image.new("RGB", (32, 32)).save(photo)
    return {
        "main": [*SOFTMAX, f"--workdir={made}"],
        "check": [*SOFTMAX, "--mode=check"],
        "eval": ["--mode=eval", f"--workdir={finished.folder}"],
        "predict": [f"--workdir={finished.folder}", photo],
        "report": [f"--workdir={finished.folder}", f"--output={made}"],
        "preview": [*SOFTMAX, f"--image={photo}", f"--output={made}.png"],
        "export": [f"--workdir={finished.folder}", f"--output={made}"],
    }


def left(tmp_path):
    return sorted(path.stem for path in tmp_path.iterdir() if path.stem not in ("photo", "swallowing", "__pycache__"))


# Signals


@pytest.mark.parametrize("tool", TOOLS)
def test_ctrl_c_while_jax_is_imported_ends_a_tool_at_once(command, tmp_path, tool):
    # In a process of its own: those that the other tests fork have imported JAX already.
    arguments = [sys.executable, "-v", "-m", f"imgclf_jax.{tool}", *map(str, command[tool])]
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        # Python says what it imports. This module is one of those whose initialization swallows an exception.
        next(line for line in process.stderr if "jaxlib" in line)
        process.send_signal(INT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "stopped" in rest.splitlines() and "Traceback" not in rest
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("tool", "moment", "number"),
    [
        ("main", "data:load", INT),
        ("main", "data:load", TERM),
        ("main", "train:prepare", HUP),
        ("predict", "training.trained:load", TERM),
        ("predict", "predict.formats:Table.head", HUP),
        ("report", "report.write:write_files", INT),
        ("report", "report.write:write_files", TERM),
        ("preview", "devices.xla:quiet", HUP),
        ("export", "workdir.provenance:collect", TERM),
    ],
)
def test_a_signal_in_the_middle_of_work_leaves_a_line_and_nothing_by_halves(
    run, command, tmp_path, tool, moment, number
):
    done = run(*command[tool], module=f"imgclf_jax.{tool}", hooks=[["signal_before", moment, 1, number]])
    assert (done.code, done.err) == (128 + number, LINES[number])
    assert left(tmp_path) == []


def test_a_signal_within_an_import_waits_for_its_end(run, command, tmp_path):
    hooks = [["signal_while_importing", "data:load", str(tmp_path), TERM]]
    done = run(*command["main"], hooks=hooks)
    assert (done.code, done.err) == (128 + TERM, LINES[TERM])


def test_a_signal_within_a_callback_of_the_garbage_collector_is_not_lost(run, command):
    done = run(*command["main"], hooks=[["signal_while_collecting", "data:load", TERM]])
    assert (done.code, done.err) == (128 + TERM, LINES[TERM])


def test_a_signal_that_a_library_swallows_still_stops_a_run(run, command, tmp_path):
    done = run(*command["main"], hooks=[["signal_swallowed", "data:load", HUP]])
    assert (done.code, done.err) == (128 + HUP, LINES[HUP])
    assert left(tmp_path) == []


def test_a_terminal_that_is_closed_lets_the_run_save(run, tmp_path):
    folder = tmp_path / "run"
    hooks = [["lose_terminal_after", "workdir.metrics:MetricsFiles.write", 1]]
    done = run(*LONGER, f"--workdir={folder}", "--config.log.line_seconds=0", hooks=hooks)
    assert done.code == 128 + HUP
    found = record(folder)
    assert found["status"] == "interrupted" and found["step"] == steps(folder)[-1] > 0
    assert "Input/output error" in found["console"]


@pytest.mark.parametrize("number", [HUP, INT])
def test_a_signal_that_was_ignored_from_the_start_stays_ignored(run, tmp_path, number):
    hooks = [["ignore", number], ["signal_after", "workdir.metrics:MetricsFiles.write", 1, number]]
    done = run(*SOFTMAX, f"--workdir={tmp_path / 'run'}", hooks=hooks)
    assert done.code == 0, done


# Standard streams

LOSSES = {
    "full": "No space left on device",
    "closed": "Bad file descriptor",
    "pipe": "Broken pipe",
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_outlives_standard_output_and_says_so(run, tmp_path, loss):
    folder = tmp_path / "run"
    done = run(*LONGER, f"--workdir={folder}", "--config.log.line_seconds=0", hooks=[["break_stream", 1, loss]])
    assert (done.code, done.err) == (0, "")
    found = record(folder)
    assert found["status"] == "complete" and found["step"] == 12 and "error" not in found
    assert LOSSES[loss] in found["console"]
    # What native code prints does not end up in a file that got the number of a closed stream.
    assert (folder / ".lock").read_bytes() == b""


@pytest.mark.parametrize(
    ("tool", "loss"), [("report", "pipe"), ("preview", "full"), ("preview", "pipe"), ("export", "closed")]
)
def test_a_tool_that_writes_files_needs_no_standard_output(run, command, tmp_path, tool, loss):
    done = run(*command[tool], module=f"imgclf_jax.{tool}", hooks=[["break_stream", 1, loss]])
    assert (done.code, done.err) == (0, "")
    assert left(tmp_path) == ["made"]


@pytest.mark.parametrize(
    ("tool", "loss"),
    [*(("predict", loss) for loss in LOSSES), ("help", "pipe"), ("help", "full"), ("check", "pipe")],
)
def test_a_tool_that_writes_to_standard_output_ends_when_it_is_lost(run, command, tool, loss):
    module = "imgclf_jax.predict" if tool == "predict" else "imgclf_jax.main"
    done = run(*command.get(tool, ["--help"]), module=module, hooks=[["break_stream", 1, loss]])
    if loss == "pipe":
        assert (done.code, done.err) == (141, "")
    else:
        assert (done.code, done.err) == (2, f"error: cannot write standard output: {LOSSES[loss]}\n")


@pytest.mark.parametrize(("tool", "loss"), [*(("main", loss) for loss in LOSSES), ("predict", "closed")])
def test_a_lost_standard_error_changes_nothing(run, command, tool, loss):
    done = run(*command[tool], module=f"imgclf_jax.{tool}", hooks=[["break_stream", 2, loss]])
    assert done.code == 0 and done.out


@pytest.mark.parametrize("loss", LOSSES)
def test_a_mistake_keeps_its_status_without_standard_error(run, loss):
    assert run("--mode=eval", hooks=[["break_stream", 2, loss]]).code == 2


@pytest.mark.parametrize("tool", TOOLS)
def test_what_a_terminal_cannot_show_is_replaced(run, command, tool):
    done = run(*command[tool], module=f"imgclf_jax.{tool}", hooks=[["encode", "ascii"]])
    assert (done.code, done.err) == (0, "")
    if tool in ("main", "export"):
        assert re.search(r"\d\?\d", done.out)  # 3×3


@pytest.mark.parametrize("tool", TOOLS)
def test_help_lists_the_exit_statuses(run, tool):
    done = run("--help", module=f"imgclf_jax.{tool}", hooks=[["encode", "ascii"]])
    assert done.code == 0
    assert "Exit status:\n" in done.out and "128 + N  ended by signal N" in done.out


# Endings of another kind


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (["SystemExit", 0], 1, "error: a library ended the program with sys.exit(0)\n"),
        (["MemoryError"], 2, "error: out of memory\n"),
    ],
)
def test_other_endings_have_a_line_and_a_status(run, command, error, code, line):
    done = run(*command["eval"], hooks=[["raise_before", "evaluate:evaluate_run", *error]])
    assert (done.code, done.err) == (code, line)


def test_a_crash_of_native_code_shows_where_in_python_it_was(run, command):
    done = run(*command["eval"], hooks=[["signal_before", "training.trained:load", 1, signal.SIGSEGV]])
    assert done.code == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.err and "evaluate_run" in done.err
