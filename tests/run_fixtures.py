"""Fixtures for tests of whole runs; `pytest_plugins = ["run_fixtures"]` shares them between test files."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT, TINY, Done, Runner, environment


@pytest.fixture(scope="session")
def run(tmp_path_factory, private_cache):
    """See `Runner`."""
    runner = Runner(tmp_path_factory.mktemp("output"))
    yield runner
    runner.close()


# Runs the tool as `python -m` does, on a machine where TensorFlow seems to be installed, and writes down what was
# imported. Looking whether it is there, as several libraries do, is not importing it.
WATCHED = """
import atexit, importlib.machinery, json, pathlib, runpy, sys
class Bait:
    taken = []
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "tensorflow" else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        self.taken.append(module.__name__)
        raise ImportError
sys.meta_path.insert(0, Bait())
target = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: target.write_text(json.dumps({"tensorflow": Bait.taken, "modules": sorted(sys.modules)})))
runpy.run_module("imgclf_jax.main", run_name="__main__", alter_sys=True)
"""


@dataclasses.dataclass(frozen=True)
class Finished:
    """A complete, uninterrupted run of `TINY`, and what it imported."""

    folder: Path
    done: Done
    imports: dict[str, list[str]]


def watched(place, *arguments):
    """A complete run of `TINY` in a process started from nothing, not forked."""
    command = [sys.executable, "-c", WATCHED, str(place / "imports.json"), *TINY, *arguments]
    command.append(f"--workdir={place / 'run'}")
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    imports = json.loads((place / "imports.json").read_text())
    return Finished(place / "run", Done(done.returncode, done.stdout, done.stderr), imports)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, private_cache):
    """See `Finished`. Tests leave its folder as it is."""
    return watched(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def killed_run(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed") / "run"
    done = run(*TINY, f"--workdir={folder}", hooks=[["kill_when_on_disk", 5, signal.SIGKILL]])
    assert done.code == -signal.SIGKILL, done
    return folder


@pytest.fixture
def killed(killed_run, tmp_path):
    """The folder of a run of `TINY` that was killed when its checkpoint of step 12 was on disk; a copy."""
    return Path(shutil.copytree(killed_run, tmp_path / "killed"))
