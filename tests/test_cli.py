"""The command line from end to end: what a run leaves behind and prints, checking, evaluating, and mistakes."""

import csv
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys

import pytest
from absl import flags
from runs import ROOT, SOFTMAX, STEPS, TINY, record, steps

from imgclf_jax.terminal import cli
from imgclf_jax.training.metrics import COLUMNS
from imgclf_jax.workdir.rows import columns, read_rows
from imgclf_jax.workdir.saved_config import load_config

pytest_plugins = ["run_fixtures"]

SAMPLE = "cifar10 (bundled sample)"
COUNTS = {"train": 400, "valid": 400, "test": 1000}


# What a run prints


def test_json_lines_are_the_rows_and_the_results(run, tmp_path):
    folder = tmp_path / "run"
    arguments = [*SOFTMAX, "--config.log.every_steps=2", f"--workdir={folder}"]
    done = run(*arguments, "--config.log.progress=json")
    assert (done.code, done.err) == (0, "")
    *printed, end = map(json.loads, done.out.splitlines())
    assert printed == read_rows(folder) and {row["split"] for row in printed} == {"train", "valid", "test"}
    assert (end["status"], end["results"]) == ("complete", record(folder)["results"])
    again = run(*arguments, "--config.log.progress=json")
    assert json.loads(again.out) == end | {"wall_time_seconds": json.loads(again.out)["wall_time_seconds"]}
    quiet = run(*arguments, "--config.log.progress=none").out.splitlines()
    assert quiet[-3].startswith("test accuracy ") and quiet[-1].split() == ["workdir", str(folder)]
    assert len(quiet) == len(end["results"]) + 2
    evaluated = run("--config=configs/softmax.py", *arguments[1:], "--config.log.progress=json", "--mode=eval")
    result = json.loads(evaluated.out)
    assert result["split"] == "test" and result["accuracy"] == end["results"]["test"]["accuracy"]


# What a run leaves behind


def test_run_leaves_all_its_files(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert names >= {"config.json", "run.json", "metrics.jsonl", "metrics.csv", "tensorboard", "checkpoints"}
    assert not [name for name in names if name.endswith(".tmp")]
    assert steps(finished.folder)[-1] == STEPS


def test_run_record_says_where_the_numbers_come_from(finished):
    content = record(finished.folder)
    assert content["status"] == "complete"
    assert content["seed"] == 0
    assert content["step"] == content["reported_step"] == STEPS
    assert content["wall_time_seconds"] > 0
    assert content["data"]["name"] == SAMPLE
    assert re.fullmatch("[0-9a-f]{64}", content["data"]["fingerprint"])
    assert content["data"]["counts"] == COUNTS
    provenance = content["provenance"]
    assert {"jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"} <= provenance["packages"].keys()
    assert all(provenance["packages"].values())
    assert provenance["device_kind"] and provenance["device_count"] >= 1
    assert isinstance(provenance["xla_flags"], str)


def test_results_cover_every_example_of_every_split(finished):
    results = record(finished.folder)["results"]
    assert {name: result["count"] for name, result in results.items()} == COUNTS
    for result in results.values():
        assert result["accuracy"] == result["correct"] / result["count"]
        assert result["loss"] > 0


def test_saved_config_is_that_of_the_command_line(finished):
    assert record(finished.folder, "config.json")["version"] == 1
    saved = load_config(finished.folder)
    assert saved.model.widths == (4,)
    assert saved.train.epochs == 2
    assert saved.train.steps is None


def test_csv_and_jsonl_hold_the_same_rows(finished):
    with (finished.folder / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    rows = read_rows(finished.folder)
    assert [{name: "" if row[name] is None else str(row[name]) for name in columns(COLUMNS)} for row in rows] == table


def test_rows_come_at_the_configured_steps(finished):
    rows = read_rows(finished.folder)
    by_split = {split: [row["step"] for row in rows if row["split"] == split] for split in COUNTS}
    assert by_split == {"train": [4, 8, 12, 14], "valid": [7, 14], "test": [14]}
    # Evaluated once, when everything else is decided.
    assert rows[-1]["split"] == "test"


def test_tensorboard_file_holds_the_rows(finished):
    assert len(list((finished.folder / "tensorboard").glob("*.hparams"))) == 1
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(finished.folder / "tensorboard"))
    events.Reload()
    for split, name in (("train", "loss"), ("valid", "accuracy"), ("test", "accuracy")):
        rows = [row for row in read_rows(finished.folder) if row["split"] == split]
        found = [(event.step, event.value) for event in events.Scalars(f"{split}/{name}")]
        assert found == [(row["step"], pytest.approx(row[name])) for row in rows]


def test_console_begins_and_ends_with_the_workdir(finished):
    lines = finished.done.out.splitlines()
    assert lines[0] == f"workdir {finished.folder}"
    assert lines[-1].split() == ["workdir", str(finished.folder)]
    assert finished.done.err == ""


def test_summary_gives_accuracy_with_numerator_and_denominator(finished):
    result = record(finished.folder)["results"]["test"]
    line = next(line for line in finished.done.out.splitlines() if line.startswith("test accuracy"))
    match = re.search(r"(\d\.\d{4}) \((\d+) / 1000\)", line)
    assert match and int(match[2]) == result["correct"] and match[1] == f"{result['accuracy']:.4f}"
    assert SAMPLE in line


def test_default_workdir_is_named_after_config_and_time(run, tmp_path):
    done = run("--config=softmax", *SOFTMAX[1:], "--config.data.valid_split=", cwd=tmp_path)
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs" / "softmax").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}", folder.name)
    assert done.out.splitlines()[0] == f"workdir {folder.relative_to(tmp_path)}"
    assert record(folder)["results"].keys() == {"train", "test"}
    file = record(folder)["provenance"]["config_file"]
    content = (ROOT / "configs/softmax.py").read_bytes()
    assert file == {"path": str(ROOT / "configs/softmax.py"), "sha256": hashlib.sha256(content).hexdigest()}
    assert (folder / "config_file.txt").read_bytes() == content
    # Without a validation split there is no best checkpoint.
    done = run("--mode=eval", f"--workdir={folder}", "--checkpoint=best")
    assert_one_error(done, "no best checkpoint")


# --mode=check and --mode=eval


def test_check_prints_the_table_and_touches_no_data(run, tmp_path):
    hooks = [
        ["forbid", name] for name in ("data:load", "data.loading:load", "data.tfds.records:read_split", "train:train")
    ]
    done = run(*TINY, "--mode=check", cwd=ROOT, hooks=hooks, env={"XDG_CACHE_HOME": str(tmp_path)})
    assert done.code == 0, done.err
    assert re.search(r"conv1/kernel\s+3×3×3×4\s+108", done.out)
    assert f"{STEPS} steps, 2 epochs of 400 training examples" in done.out
    assert re.search(r"^output\s+64×10$", done.out, re.MULTILINE)
    assert done.out.splitlines()[-1] == "config is valid"


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_eval_gives_the_numbers_of_the_run(run, finished, split):
    done = run("--mode=eval", f"--workdir={finished.folder}", f"--split={split}")
    assert done.code == 0, done.err
    result = record(finished.folder)["results"][split]
    expected = f"accuracy {result['accuracy']:.4f} ({result['correct']} / {result['count']})  loss {result['loss']:.4f}"
    assert expected in done.out
    assert done.out.startswith(f"step {STEPS} ")


def test_eval_takes_any_split_and_changes_nothing_in_the_workdir(run, finished):
    def state():
        return {str(path): path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.is_file()}

    before = state()
    done = run("--mode=eval", f"--workdir={finished.folder}", "--split=test[:25%]+test[75%:]")
    assert done.code == 0, done.err
    assert " / 500)" in done.out
    assert state() == before


def test_eval_of_the_best_checkpoint(run, finished):
    valid = [row for row in read_rows(finished.folder) if row["split"] == "valid"]
    best = max(valid, key=lambda row: (row["accuracy"], row["step"]))
    done = run("--mode=eval", f"--workdir={finished.folder}", "--checkpoint=best", "--split=valid")
    assert done.code == 0, done.err
    assert done.out.startswith(f"step {best['step']} ")
    assert f"accuracy {best['accuracy']:.4f}" in done.out


def light_copy(folder, tmp_path, without=()):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("tensorboard", *without))
    return copy


def test_eval_without_a_checkpoint_is_refused(run, finished, tmp_path):
    folder = light_copy(finished.folder, tmp_path, without=["checkpoints"])
    assert_one_error(run("--mode=eval", f"--workdir={folder}"), "holds no checkpoint")
    (folder / "checkpoints").mkdir()
    assert_one_error(run("--mode=eval", f"--workdir={folder}"), "holds no checkpoint")
    assert_one_error(run("--mode=eval", f"--workdir={tmp_path / 'nowhere'}"), "holds no run")
    assert not (tmp_path / "nowhere").exists()


def test_eval_of_an_unknown_split_is_refused(run, finished):
    done = run("--mode=eval", f"--workdir={finished.folder}", "--split=holdout")
    assert_one_error(done, "holdout")


def test_a_damaged_json_file_is_one_clear_error(run, finished, tmp_path):
    folder = light_copy(finished.folder, tmp_path)
    (folder / "run.json").write_text("[]")
    assert_one_error(run("--mode=eval", f"--workdir={folder}"), "cannot read", "run.json")
    (folder / "config.json").write_text('{"model": {')
    assert_one_error(run("--mode=eval", f"--workdir={folder}"), "cannot read", "config.json")
    assert_one_error(run(*SOFTMAX, f"--workdir={folder}"), "cannot read", "config.json")


# Mistakes: one clear line each, exit status 2


def assert_errors(done):
    assert done.code == 2, done
    assert "Traceback" not in done.err
    assert done.err.strip() and all(line.startswith(("error: ", "  ")) for line in done.err.splitlines()), done.err


def assert_one_error(done, *words):
    assert_errors(done)
    assert len(done.err.splitlines()) == 1, done.err
    for word in words:
        assert word in done.err


CNN = "--config=configs/cnn.py"
OWN = "--config=own.py"
MISTAKES = {
    "misspelt flag": (["--confg=configs/cnn.py"], "'confg'", "config"),
    "misspelt flag of the tool": ([*TINY, "--wrkdir=x"], "'wrkdir'", "workdir"),
    "misspelt field": ([CNN, "--config.optim.learning_rat=1"], "no field learning_rat;", "did you mean learning_rate?"),
    "misspelt section": ([CNN, "--config.optm.name=sgd"], "no field optm;", "did you mean optim?"),
    "unknown field": ([CNN, "--config.zebra=1"], "no field zebra"),
    "field of a field": ([CNN, "--config.train.batch_size.x=3"], "train.batch_size.x"),
    "word for a number": ([CNN, "--config.optim.learning_rate=fast"], "--config.optim.learning_rate=fast"),
    "float for an int": ([CNN, "--config.train.batch_size=1e3"], "--config.train.batch_size=1e3"),
    "number for a section": ([CNN, "--config.train=3"], "--config.train=3"),
    "number for a size": ([*TINY, "--config.augment.crop=24"], "augment.crop"),
    "no value": ([CNN, "--config.train.batch_size"], "Missing value", "train.batch_size"),
    "no config": ([], "--config is missing"),
    "config without a value": (["--config"], "--config"),
    "override without a config": (["--config.seed=1"], "config.seed"),
    "argument that is no flag": ([*TINY, "junk"], "'junk'"),
    "unknown mode": ([*TINY, "--mode=evaluate"], "--mode=evaluate", "eval"),
    "eval without a workdir": (["--mode=eval"], "--workdir"),
    "no such config": (["--config=configs/cn.py"], "configs/cn.py does not exist", "configs/cnn.py"),
    "no such folder": (["--config=nowhere/cnn.py"], "nowhere/cnn.py does not exist"),
    "unknown model": ([*TINY, "--config.model.name=cn"], "model.name='cn'", "tutorial_cnn"),
    "unknown optimizer": ([*TINY, "--config.optim.name=sdg"], "optim.name='sdg'", "sgd"),
    "unknown data set": ([*TINY, "--config.data.source=tfds", "--config.data.name=cifr10"], "cifr10", "'cifar10'"),
    "data set without a sample": ([*TINY, "--config.data.name=mnist"], "'mnist'", "cifar10"),
    "steps and epochs": ([*TINY, "--config.train.steps=3"], "train.steps=3 and train.epochs=2.0"),
    "batch larger than the split": ([*TINY, "--config.train.last_batch=drop", "--config.train.batch_size=500"], "400"),
    "overlapping splits": ([*TINY, "--config.data.valid_split=train[:500]"], "data.valid_split", "data.train_split"),
    "malformed split": ([*TINY, "--config.data.train_split=train["], "data.train_split='train['"),
    "seed that is cut off": ([*TINY, "--config.seed=4294967296"], "seed=4294967296"),
}
CONFIG_FILES = {
    "syntax error": ("x = 1\ndef get_config(:\n", "line 2", "syntax"),
    "no get_config": ("x = 1\n", "has no get_config()"),
    "no get_config but its name": ("'get_config'\n", "has no get_config()"),
    "sys.exit": ("import sys\nsys.exit(0)\n", "it ended the program with sys.exit(0)"),
    "sys.exit in get_config": ("import sys\ndef get_config():\n    sys.exit('done')\n", "sys.exit('done')"),
    "endless recursion": ("def get_config():\n    return get_config()\n", "RecursionError"),
    "unknown coding": ("# coding: klingon\ndef get_config():\n    pass\n", "klingon"),
    "zero bytes": (b"x = 1\0\n", "null bytes"),
    "get_config raises": ("def get_config():\n    raise ValueError('one\\ntwo')\n", "ValueError: one two"),
    "get_config cannot read": ("def get_config():\n    open('/nowhere/at/all')\n", "FileNotFoundError", "/nowhere"),
    "get_config divides by zero": ("def get_config():\n    return 1 / 0\n", "ZeroDivisionError"),
    "get_config returns a number": ("def get_config():\n    return 3\n", "returned int"),
    "get_config returns nothing": ("def get_config():\n    pass\n", "returned NoneType"),
    "get_config returns a dict": ("def get_config():\n    return {'seed': 0}\n", "returned dict"),
    "get_config wants an argument": ("def get_config(size):\n    return size\n", "TypeError", "size"),
    "import fails": ("import no_such_module\ndef get_config():\n    pass\n", "no_such_module"),
    "not text": (b"\xff\xfe\x00", "config file own.py"),
    "misspelt field": (
        "from imgclf_jax.config import default\ndef get_config():\n    config = default()\n"
        "    config.model.nmae = 'x'\n    return config\n",
        "no field nmae; did you mean name?",
    ),
    "fields missing": (
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'seed': 0})\n",
        "the config lacks",
        "train.batch_size",
        "default()",
    ),
    "neither steps nor epochs": (
        "from imgclf_jax.config import default\ndef get_config():\n    config = default()\n"
        "    config.data.source = 'sample'\n    return config\n",
        "train.steps or train.epochs",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_reported_in_one_line(run, tmp_path, case):
    arguments, *words = MISTAKES[case]
    data = tmp_path / "data"
    workdir = [f"--workdir={tmp_path / 'run'}"] if case != "eval without a workdir" else []
    assert_one_error(run(*workdir, *arguments, env={"TFDS_DATA_DIR": str(data)}), *words)
    assert not list(tmp_path.iterdir())


DEFAULT = "from imgclf_jax.config import default\n"
SOUND = {
    "assigned": DEFAULT + "get_config = default\n",
    "partial": "import functools\n" + DEFAULT + "get_config = functools.partial(default)\n",
    "lambda": DEFAULT + "get_config = lambda: default()\n",
    "imported": "from imgclf_jax.config import default as get_config\n",
    "conditional": DEFAULT + "if True:\n    def get_config():\n        return default()\n",
    "annotated": DEFAULT + "get_config: object = default\n",
    "sibling": "from beside import get_config\n",
    "all of a sibling": "from beside import *\n",
    "byte order mark": b"\xef\xbb\xbf" + DEFAULT.encode() + b"get_config = default\n",
    "another coding": b"# coding: latin-1\n" + DEFAULT.encode() + b"get_config = default  # \xe9\n",
    "it prints": DEFAULT + "print('hello')\nget_config = default\n",
}


@pytest.mark.parametrize("case", SOUND)
def test_a_config_file_is_what_python_makes_of_it(tmp_path, monkeypatch, case):
    folder = tmp_path / "configs"
    folder.mkdir()
    text = SOUND[case]
    (folder / "own.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "beside.py").write_text(DEFAULT + "def get_config():\n    return default()\n")
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    path = list(sys.path)
    assert parse(monkeypatch, f"--config={folder / 'own.py'}", "--config.seed=3").seed == 3
    assert sys.path == path
    assert not (folder / "__pycache__").exists()


def parse(monkeypatch, *arguments):
    """What `cli.parse` returns, with flags of its own."""
    monkeypatch.setattr(cli, "FLAGS", flags.FlagValues())
    return cli.parse(["main", *arguments])


def test_an_edit_within_a_second_is_seen(tmp_path, monkeypatch):
    file = tmp_path / "own.py"
    for seed in (3, 4):
        lines = ["def get_config():", "    config = default()", f"    config.seed = {seed}", "    return config"]
        file.write_text(DEFAULT + "\n".join(lines))
        os.utime(file, (1e9, 1e9))
        assert parse(monkeypatch, f"--config={file}").seed == seed


def test_the_last_value_of_a_field_wins(monkeypatch):
    def widths(*values):
        return parse(
            monkeypatch,
            f"--config={ROOT / 'configs' / 'cnn.py'}",
            *(f"--config.model.widths={value}" for value in values),
        ).model.widths

    assert widths("(4,)", "(8, 9)") == (8, 9)
    assert widths("(4, 5)", "8", "(6,)") == (6,)
    assert widths("(4,)", "()") == ()
    assert widths("(4,)") == (4,)


@pytest.mark.parametrize("kind", ["folder", "device"])
def test_a_config_that_is_not_a_file_is_reported_in_one_line(run, tmp_path, kind):
    name = {"folder": "configs", "device": "/dev/null"}[kind]
    done = run(f"--config={name}")
    assert_one_error(done, f"config file {name} is", "configs/cnn.py" if kind == "folder" else "not a regular file")


@pytest.mark.parametrize("case", CONFIG_FILES)
def test_mistake_in_a_config_file_is_reported_in_one_line(run, tmp_path, case):
    text, *words = CONFIG_FILES[case]
    file = tmp_path / "own.py"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = run(OWN, f"--workdir={tmp_path / 'run'}", cwd=tmp_path)
    assert_one_error(done, *words)
    assert not (tmp_path / "run").exists()


def test_all_problems_of_a_config_are_reported_at_once(run, tmp_path):
    wrong = {
        "model.name": "cn",
        "optim.name": "sdg",
        "log.progress": "loud",
        "train.batch_size": "0",
        "train.steps": "3",
        "data.train_split": "trian",
        "augment.flip": "True",
    }
    done = run(*TINY, *(f"--config.{name}={value}" for name, value in wrong.items()), f"--workdir={tmp_path / 'run'}")
    assert_errors(done)
    for name in wrong.keys() - {"augment.flip"}:
        assert name in done.err
    assert len(done.err.splitlines()) == len(wrong) - 1


def test_workdir_that_cannot_be_made_is_reported_in_one_line(run, tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_error(run(*SOFTMAX, f"--workdir={tmp_path / 'file' / 'run'}"), "cannot write to workdir")
    assert_one_error(run(*SOFTMAX, f"--workdir={tmp_path / 'file'}"), "cannot write to workdir")


def test_workdir_in_use_is_refused(run, tmp_path):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_one_error(run(*SOFTMAX, f"--workdir={tmp_path}"), "another process is using")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_help_names_every_flag(run):
    done = run("--help")
    assert done.code == 0
    named = (
        "--workdir",
        "--mode",
        "--split",
        "--checkpoint",
        "--parts",
        "allow_config_change",
        "--config.train.epochs=3",
    )
    for flag in named:
        assert flag in done.out
