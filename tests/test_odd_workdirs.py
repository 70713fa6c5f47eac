"""Files of a workdir in every wrong shape: every tool works or says why, and what is refused has changed nothing."""

import functools
import importlib.util
import shutil
import warnings
from pathlib import Path

import pytest

from imgclf_jax import evaluate as evaluation
from imgclf_jax.errors import UserError
from imgclf_jax.report import runs
from imgclf_jax.train import train
from imgclf_jax.training import trained
from imgclf_jax.workdir import saved_config

ROOT = Path(__file__).parent.parent


def config():
    spec = importlib.util.spec_from_file_location("softmax", ROOT / "configs" / "softmax.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.get_config()
    changes = {
        "data.source": "sample",
        "data.train_split": "train[:2000]",
        "data.valid_split": "train[49000:]",
        "data.test_split": "test[:2000]",
        "train.batch_size": 50,
        "train.epochs": 0.0,
        "train.steps": 4,
        "checkpoint.every_steps": 2,
        "log.every_steps": 1,
        "log.tensorboard": False,
        "log.progress": "none",
        "eval.train": False,
        "parallel.devices": 1,
    }
    found.update_from_flattened_dict(changes)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory, private_cache):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(config(), folder) == 0
    return folder


def go_on(folder):
    assert train(config(), folder) == 0


def evaluate(folder):
    evaluation.evaluate_run(saved_config.load_config(folder), folder, "test", "last")


def predict(folder):
    trained.load(folder, "reported")


def report(folder):
    runs.read([folder], lambda *_: None)


def write(content, path):
    path.write_bytes(content)


def cut(fraction, path):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])


def replace(old, new, path):
    text = path.read_bytes()
    assert old in text
    lines = text.replace(old, new, 1).splitlines(keepends=True)
    # Edited on purpose: without its digest the file is read as it is.
    path.write_bytes(b"".join(line for line in lines if not line.startswith(b'  "sha256": ')))


def folder_instead(path):
    path.unlink()
    path.mkdir()


def link_to_nothing(path):
    path.unlink()
    path.symlink_to("nowhere")


def link_to_itself(path):
    path.unlink()
    path.symlink_to(path.name)


ANY_FILE = {
    "empty": functools.partial(write, b""),
    "zeros": functools.partial(write, b"\0" * 500),
    "not UTF-8": functools.partial(write, b'{"a": "\xff\xfe"}\n'),
    "half": functools.partial(cut, 0.5),
    "all but the end": functools.partial(cut, 0.99),
    "list": functools.partial(write, b"[1, 2]\n"),
    "empty object": functools.partial(write, b"{}\n"),
    "deep": functools.partial(write, b'{"a":' * 50_000),
    "folder": folder_instead,
    "deleted": Path.unlink,
    "link to nothing": link_to_nothing,
    "link to itself": link_to_itself,
}
SPECIAL = {
    "config.json": {
        "section is a number": functools.partial(replace, b'"model": {', b'"model": 3, "x": {'),
        "number is an object": functools.partial(replace, b'"seed": 0', b'"seed": {"a": 1}'),
        "number is a text": functools.partial(replace, b'"batch_size": 50', b'"batch_size": "fifty"'),
        "endless": functools.partial(replace, b'"epochs": 0.0', b'"epochs": Infinity'),
        "no batch": functools.partial(replace, b'"batch_size": 50', b'"batch_size": 0'),
        "unknown model": functools.partial(replace, b'"softmax"', b'"hardmax"'),
    },
    "run.json": {
        "data is a list": functools.partial(replace, b'"data": {', b'"data": [], "x": {'),
        "results are a number": functools.partial(replace, b'"results": {', b'"results": 3, "x": {'),
        "counts are null": functools.partial(replace, b'"counts": {', b'"counts": null, "x": {'),
        "shape of two": functools.partial(replace, b'"image_shape": [', b'"image_shape": [1, 2], "x": ['),
        "other classes": functools.partial(replace, b'"class_names": [', b'"class_names": ["a"], "x": ['),
        "step is a text": functools.partial(replace, b'"step": 4', b'"step": "four"'),
        "step of the future": functools.partial(replace, b'"step": 4', b'"step": 400'),
        "another step is reported": functools.partial(replace, b'"reported_step": 4', b'"reported_step": 3'),
        "accuracy is a text": functools.partial(replace, b'"accuracy": ', b'"accuracy": "x", "y": '),
        "git is a text": functools.partial(replace, b'"git": ', b'"git": "x", "y": '),
    },
    "metrics.jsonl": {
        "blank line": functools.partial(replace, b"\n", b"\n\n"),
        "row is a number": functools.partial(replace, b"{", b"3\n{"),
        "loss is a list": functools.partial(replace, b'"loss": ', b'"loss": [], "x": '),
    },
    "metrics.csv": {"other columns": functools.partial(replace, b"step", b"stop")},
}
# One reader reads all of the files: every damage is done to one of them, and a few to the others.
FEW = {what: ANY_FILE[what] for what in ("empty", "not UTF-8", "half", "folder", "deleted")}
CASES = [
    (name, what, damage)
    for name, special in SPECIAL.items()
    for what, damage in ((ANY_FILE if name == "run.json" else FEW) | special).items()
]


def content(folder):
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else path.is_symlink()
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def try_all(folder, tools=(evaluate, predict, report, go_on)):
    """{tool: its refusal, or an empty string}; any other exception is an error."""
    messages = {}
    for tool in tools:
        before = content(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                tool(folder)
                messages[tool] = ""
            except UserError as error:
                messages[tool] = str(error)
                assert str(error)
        if messages[tool] or tool is not go_on:
            assert content(folder) == before, tool
    return messages


@pytest.mark.parametrize(("name", "what", "damage"), CASES, ids=[f"{name}-{what}" for name, what, _ in CASES])
def test_a_file_in_the_wrong_shape(whole, tmp_path, name, what, damage):
    folder = Path(shutil.copytree(whole, tmp_path / "run", symlinks=True))
    damage(folder / name)
    messages = try_all(folder, (report, go_on) if name.startswith("metrics") else (evaluate, predict, report, go_on))
    for tool, message in messages.items():
        named = name in message or "with a different config" in message or "to another model" in message
        assert named or not message, (tool, message)
    if name == "run.json" and what in ("half", "folder", "step is a text"):
        # It says that the file can be deleted: so it can.
        assert "can be deleted" in messages[go_on]
        path = folder / name
        path.rmdir() if path.is_dir() else path.unlink()
        assert set(try_all(folder).values()) == {""}


@pytest.mark.parametrize("name", ["checkpoints/300", "checkpoints/x", "damaged_checkpoints", "checkpoints/007"])
def test_a_file_among_the_checkpoints(whole, tmp_path, name):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    (folder / name).write_text("what is this?")
    messages = try_all(folder)
    for tool in (evaluate, predict, report):
        assert messages[tool] == ""
    in_the_way = name in ("checkpoints/300", "damaged_checkpoints")
    assert ("a file where a folder belongs; move it away" in messages[go_on]) == in_the_way


@pytest.mark.parametrize("name", ["checkpoints/300", "checkpoints/300/default"])
def test_an_empty_folder_among_the_checkpoints(whole, tmp_path, name):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    (folder / name).mkdir(parents=True)
    assert set(try_all(folder).values()) == {""}


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/4", "tensorboard", ".lock"])
def test_a_file_in_the_place_of_a_folder(whole, tmp_path, name):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    path.write_text("what is this?") if name != ".lock" else (path.unlink(missing_ok=True), path.mkdir())
    assert try_all(folder)[go_on]
