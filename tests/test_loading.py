"""No file that is loaded can run code: caches, records, archives, checkpoints and exported files are data."""

import ast
from pathlib import Path

import numpy as np
import pytest
from runs import ROOT

from imgclf_jax.errors import UserError
from imgclf_jax.workdir import saved_config

MODULES = sorted((ROOT / "imgclf_jax").rglob("*.py"))
# Modules that run code from the files they load.
FORBIDDEN_MODULES = {"cloudpickle", "dill", "jax.experimental.serialize_executable", "joblib", "marshal", "pickle"}
FORBIDDEN_MODULES |= {"shelve", "torch", "yaml"}
FORBIDDEN_CALLS = {"compile", "eval", "exec"}


def forbidden_in(source):
    """Returns the names in the source of a module that could run code from files."""
    forbidden = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            forbidden += [alias.name for alias in node.names if alias.name in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            forbidden += sorted(names & FORBIDDEN_MODULES)
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                forbidden.append(node.func.id)
            for keyword in node.keywords:
                allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg == "allow_pickle" and not allowed:
                    forbidden.append("allow_pickle")
    return forbidden


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_loads_what_can_run_code(path):
    assert forbidden_in(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle", ["pickle"]),
        ("from yaml import safe_load", ["yaml"]),
        ("from jax.experimental import serialize_executable", ["jax.experimental.serialize_executable"]),
        ("def f(path):\n    return eval(path.read_text())", ["eval"]),
        ("np.load(path, allow_pickle=True)", ["allow_pickle"]),
        ("np.load(path, allow_pickle=flag)", ["allow_pickle"]),
        ("np.load(path, allow_pickle=False); re.compile('x')", []),
    ],
)
def test_the_search_finds_forbidden_names(source, expected):
    assert forbidden_in(source) == expected


class Trap:
    """An object whose pickle makes a file."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return Path.touch, (self._path,)


def test_numpy_refuses_pickled_arrays_by_default(tmp_path):
    np.save(tmp_path / "labels.npy", np.array([Trap(tmp_path / "caught")], object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(tmp_path / "labels.npy")
    assert not (tmp_path / "caught").exists()


def test_a_config_in_a_workdir_is_only_json(tmp_path):
    (tmp_path / "config.json").write_text(f"__import__('pathlib').Path({str(tmp_path / 'caught')!r}).touch()")
    with pytest.raises(UserError, match="cannot read"):
        saved_config.load_config(tmp_path)
    assert not (tmp_path / "caught").exists()
