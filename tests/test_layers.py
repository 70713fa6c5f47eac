"""The rooms of the package import downwards only; what must start quickly imports no JAX."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT, environment

PACKAGE = "imgclf_jax"
GROUND = {"errors", "rng", "config", "storage", "components", "onednn"}
BELOW_DOORS = GROUND | {"terminal", "models", "augment", "data", "devices", "workdir", "training"}
DOORS = {"__main__", "main", "train", "evaluate", "check", "rerun", "preview", "export", "ensemble", "cache"}
# Room -> the rooms that its modules may import, besides their own.
ALLOWED: dict[str, set[str]] = {
    "__init__": {"predict"},  # lazily, for `imgclf_jax.load`
    **dict.fromkeys(GROUND, GROUND),
    "terminal": {"errors", "components"},
    "models": GROUND,
    "augment": GROUND,
    "data": GROUND,
    "devices": GROUND | {"terminal"},
    "workdir": GROUND | {"terminal", "devices"},
    "training": BELOW_DOORS,
    "predict": BELOW_DOORS,
    "report": BELOW_DOORS | {"predict"},
    "demo": BELOW_DOORS | {"predict", "report"},
    "profile": BELOW_DOORS,
    "sweep": BELOW_DOORS | {"train"},
    "compare": GROUND | {"terminal", "workdir", "report"},
    **dict.fromkeys(DOORS, BELOW_DOORS | DOORS | {"predict", "report", "compare", "profile"}),
}
# (module, what it imports although its room must not). To be emptied, not extended.
EXCEPTIONS: set[tuple[str, str]] = set()


def imports(path: Path, root: Path) -> set[str]:
    """The full names of all that a module imports, anywhere in it; of `from a import b`, "a.b"."""
    names: set[str] = set()
    parents = list(path.relative_to(root).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def violations(root: Path) -> set[tuple[str, str]]:
    """(module, what it must not import) of the package in the folder `root`."""
    outside = {"scripts", "tests"} | {path.stem for name in ("scripts", "tests") for path in (root / name).glob("*.py")}
    wrong = set()
    for path in sorted((root / PACKAGE).rglob("*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        _, room, *_ = module.split(".")
        for name in imports(path, root):
            top, *rest = name.split(".")
            allowed = {"__version__", room} | ALLOWED.get(room, set())
            if top in outside or (top == PACKAGE and rest and rest[0] not in allowed):
                wrong.add((module, name))
    return wrong


def test_rooms_import_downwards_only():
    assert violations(ROOT) == EXCEPTIONS


def test_every_module_is_in_a_room():
    entries = {path.stem for path in (ROOT / PACKAGE).iterdir() if path.suffix == ".py" or path.is_dir()}
    assert entries - {"__pycache__"} == set(ALLOWED)


@pytest.mark.parametrize(
    ("module", "line", "name"),
    [
        ("data/loading", "import imgclf_jax.augment.color", "imgclf_jax.augment.color"),
        ("data/folder/cut", "from imgclf_jax import devices", "imgclf_jax.devices"),
        ("augment/color", "def f():\n    from imgclf_jax.data.types import Split", "imgclf_jax.data.types.Split"),
        ("terminal/cli", "from ..config import default", "imgclf_jax.config.default"),
        ("workdir/writer", "if True:\n    import imgclf_jax.training.loop as x", "imgclf_jax.training.loop"),
        ("training/loop", "class A:\n    from imgclf_jax.train import train", "imgclf_jax.train.train"),
        ("report/page", "from imgclf_jax import main", "imgclf_jax.main"),
        ("predict/files", "from imgclf_jax import report", "imgclf_jax.report"),
        ("errors", "from . import data", "imgclf_jax.data"),
        ("main", "import bench_cases", "bench_cases"),
        ("data/loading", "from tests.runs import ROOT", "tests.runs.ROOT"),
        ("data/loading", "from synthetic import make_data", "synthetic.make_data"),
        ("attic/old", "from imgclf_jax.config import default", "imgclf_jax.config.default"),
    ],
)
def test_an_import_in_the_wrong_direction_is_found(tmp_path, module, line, name):
    for other in ("scripts/bench_cases.py", "tests/synthetic.py"):
        (tmp_path / other).parent.mkdir()
        (tmp_path / other).touch()
    path = tmp_path / PACKAGE / f"{module}.py"
    path.parent.mkdir(parents=True)
    path.write_text("import json\n\nfrom imgclf_jax import __version__\n")
    assert violations(tmp_path) == set()
    path.write_text(f"{path.read_text()}{line}\n")
    assert violations(tmp_path) == {(f"{PACKAGE}.{module.replace('/', '.')}", name)}


def test_imports_within_a_room_and_downwards_are_let_through(tmp_path):
    lines = {
        "data/loading": "from imgclf_jax.data import splits\nfrom . import types\nimport imgclf_jax.storage.files",
        "workdir/writer": "from imgclf_jax.devices import processes\nfrom imgclf_jax.terminal import streams",
        "training/loop": "import imgclf_jax\nfrom imgclf_jax import data, rng\nfrom imgclf_jax.workdir import record",
        "main": "from imgclf_jax.train import train\nfrom imgclf_jax import predict",
    }
    for module, text in lines.items():
        path = tmp_path / PACKAGE / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert violations(tmp_path) == set()


def test_the_command_line_and_the_saved_config_need_no_jax():
    code = (
        "import sys, imgclf_jax.terminal.cli, imgclf_jax.workdir.saved_config\n"
        "assert not {'jax', 'flax', 'orbax', 'tensorflow_datasets', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
