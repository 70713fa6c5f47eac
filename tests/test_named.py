"""Configs by name, wherever the package is, and what a wheel has besides the modules."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from runs import ROOT, environment

from imgclf_jax import __main__ as overview
from imgclf_jax import sweep
from imgclf_jax.errors import UserError
from imgclf_jax.sweep import loading
from imgclf_jax.terminal import config_file, named, tools

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def test_every_config_has_its_path_as_a_name():
    files = {path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in (ROOT / "configs").rglob("*.py")}
    assert set(named.names()) == files and {"cnn", "ablations/flip"} <= files
    for name in named.names():
        assert Path(named.file(name)).samefile(ROOT / "configs" / f"{name}.py")
        assert re.fullmatch(".{20,120}", overview._summary(Path(named.file(name))))  # in the list of `imgclf`


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("confusing", ["nothing", "file", "folder", "module"])
def test_a_name_means_the_same_in_every_folder(elsewhere, confusing):
    if confusing == "file":
        (elsewhere / "cnn").write_text("")
    elif confusing == "folder":
        (elsewhere / "cnn").mkdir()
        (elsewhere / "configs").mkdir()
    elif confusing == "module":
        (elsewhere / "cnn.py").write_text("raise ValueError")
    assert named.file("cnn") == str(ROOT / "configs/cnn.py")
    assert named.file("cnn.py") == "cnn.py" and named.file("./cnn") == "./cnn"


def test_of_several_the_last_counts():
    assert config_file.config_path(["main", "--config=nowhere", "--config", "cnn"]) == named.file("cnn")
    assert config_file.without_config(["--config=a", "--x", "--config", "b", "--config.seed=3"]) == [
        "--x",
        "--config.seed=3",
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("cn", ["did you mean cnn?", "ablations/flip"]),
        ("ablation/flip", ["did you mean ablations/flip?"]),
        ("zzzzz", ["there are cnn, "]),
        ("own", ["--config=own.py"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(elsewhere, value, words):
    (elsewhere / "own.py").write_text("")
    with pytest.raises(UserError) as error:
        named.file(value)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["configs/cnn.py", "cnn.py", "./configs/cnn"])
def test_the_path_of_a_clone_is_answered_with_the_name(elsewhere, path):
    with pytest.raises(UserError, match=r"does not exist; .* --config=cnn$"):
        config_file.check(path)


def test_a_sweep_is_based_on_a_config_of_the_package(elsewhere):
    (elsewhere / "own.py").write_text("def get_config(): raise ValueError")
    assert loading._base("softmax", str(elsewhere / "own.py")).model.name == "softmax"
    flip = loading._call(named.file("ablations/flip"), ("get_sweep",))[1]
    assert isinstance(flip, sweep.Sweep) and flip.base == "cnn"


def test_the_wheel_has_every_package_and_every_config():
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "imgclf_jax").rglob("__init__.py")}
    configs = {"imgclf_jax." + ".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("configs/**/*.py")}
    assert sorted(SETUPTOOLS["packages"]) == sorted(packages | configs)
    assert SETUPTOOLS["package-dir"] == {"imgclf_jax.configs": "configs"}


def test_the_wheel_has_every_file_that_is_not_python():
    patterns = SETUPTOOLS["package-data"]["imgclf_jax"]
    packed = {path for pattern in patterns for path in (ROOT / "imgclf_jax").glob(pattern) if path.is_file()}
    there = {path for path in (ROOT / "imgclf_jax").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in there if path.suffix != ".py"} <= packed


def test_every_tool_has_a_console_script():
    scripts = PROJECT["project"]["scripts"]
    assert scripts.pop("imgclf") == "imgclf_jax.terminal.tools:overview"
    assert scripts == {f"imgclf-{name}": f"imgclf_jax.terminal.tools:{name}" for name in tools.TOOLS}


def test_every_tool_starts_a_module_that_can_be_run():
    for name, (module, _) in tools.TOOLS.items():
        spec = importlib.util.find_spec(f"imgclf_jax.{module}")
        assert spec is not None, name
        path = ROOT / "imgclf_jax" / module / "__main__.py" if spec.submodule_search_locations else Path(spec.origin)
        names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert {"main", "define_flags"} <= names, name


def script(name, *arguments, cwd=ROOT):
    """Runs a tool as its console script does."""
    code = f"import sys; from imgclf_jax.terminal.tools import {name}; sys.exit({name}())"
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True)


def test_console_scripts_end_as_their_modules(tmp_path):
    for name, arguments, code in (
        ("train", ["--version"], 0),
        ("report", [], 2),
        ("overview", [], 0),
    ):
        done = script(name, *arguments, cwd=tmp_path)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.startswith("error: ") if code else not done.stderr
    assert "imgclf-train " in done.stdout and "ablations/flip" in done.stdout  # named as they were started


def test_files_are_copied_and_never_replaced(elsewhere):
    for name, file in (("slurm.sbatch", "slurm.sbatch"), ("ablations/flip", "flip.py")):
        assert overview._copy(name) == 0 and (elsewhere / file).stat().st_size
    with pytest.raises(UserError, match=r"slurm\.sbatch exists"):
        overview._copy("slurm.sbatch")
    with pytest.raises(UserError, match=r"did you mean slurm\.sbatch"):
        overview._copy("slurm.sbash")
