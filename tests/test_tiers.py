"""The fast tests touch every module of the package."""

import ast
import importlib.util
import re

from runs import ROOT
from tiers import FAST, LONGEST, SLOW

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "imgclf_jax").rglob("*.py")
}


def imported(path, name=""):
    """The package's modules that a file imports, anywhere in it, or names in a string."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = re.findall(r"imgclf_jax(?:\.\w+)+", node.value)
            names |= {*named, *(f"{name}.__main__" for name in named)}  # as `python -m` runs them
    parts = [name.split(".") for name in names]
    return {".".join(part[: end + 1]) for part in parts for end in range(len(part))} & FILES.keys()


def test_fast_tests_reach_every_module():
    tests = [ROOT / "tests" / name for name in (*FAST, "fork_server.py")]
    reached, todo = set(), set().union(*map(imported, tests))
    while todo:
        name = todo.pop()
        reached.add(name)
        todo |= imported(FILES[name], name) - reached
    assert sorted(FILES.keys() - reached) == []


def test_the_files_of_the_tiers_exist():
    files = {name.partition("::")[0] for name in (*FAST, *LONGEST, *SLOW)}
    assert [name for name in sorted(files) if not (ROOT / "tests" / name).exists()] == []


def test_the_slow_tests_exist():
    for name in SLOW:
        file, _, test = name.partition("::")
        assert f"def {test.partition('[')[0]}" in (ROOT / "tests" / file).read_text() or not test, name
