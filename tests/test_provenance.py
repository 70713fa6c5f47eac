"""provenance.py and what runs record with it: every entry is true, or is not there."""

import hashlib
import json
import shutil
import subprocess
import sys
import types

import jax
import pytest
from runs import ROOT, SOFTMAX, TINY, record

from imgclf_jax.report import facts
from imgclf_jax.workdir import provenance

pytest_plugins = ["run_fixtures"]


@pytest.fixture
def package(tmp_path):
    """A package in a repository of its own, with everything committed."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    folder = tmp_path / "repository" / "package"
    (folder / "data").mkdir(parents=True)
    for name in ("__init__.py", "data/load.py", "style.css", "../config.py", "../.gitignore"):
        (folder / name).write_text("ignored.py\n" if name.endswith(".gitignore") else "")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        names = ("-c", "user.name=x", "-c", "user.email=x@example.invalid", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *names, *command], cwd=folder.parent, check=True)
    return folder


def test_a_clean_package_is_that_of_its_commit(package):
    found = provenance.git_facts(package)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=package, capture_output=True, text=True, check=True)
    assert found == {"commit": head.stdout.strip(), "package_changed": False}


@pytest.mark.parametrize("name", ["data/load.py", "style.css", "new.py", "data/new.py", "ignored.py"])
def test_any_other_content_of_the_package_is_a_change(package, name):
    (package / name).write_text("x = 1\n")
    assert provenance.git_facts(package)["package_changed"]


def test_a_change_that_is_staged_or_a_file_that_is_gone_is_a_change(package):
    (package / "data" / "load.py").write_text("x = 1\n")
    subprocess.run(["git", "add", "-A"], cwd=package, check=True)
    assert provenance.git_facts(package)["package_changed"]
    subprocess.run(["git", "reset", "-q", "--hard"], cwd=package, check=True)
    assert not provenance.git_facts(package)["package_changed"]
    (package / "__init__.py").unlink()
    assert provenance.git_facts(package)["package_changed"]


def test_nothing_is_said_about_files_outside_the_package(package):
    (package.parent / "config.py").write_text("changed = True\n")
    (package.parent / "my_models.py").write_text("")
    assert provenance.git_facts(package)["package_changed"] is False


def test_an_installed_package_has_no_commit(tmp_path):
    assert provenance.git_facts(tmp_path / "site-packages" / "package") is None


def test_versions_are_those_of_the_modules_in_use(monkeypatch):
    installed = provenance.collect()["packages"]
    assert installed["jax"] == jax.__version__
    other = types.ModuleType("optax")
    other.__version__ = "0.0.local"
    monkeypatch.setitem(sys.modules, "optax", other)
    assert provenance.collect()["packages"] == {**installed, "optax": "0.0.local"}


def test_device_counts_are_of_what_is_there_and_of_what_is_used():
    assert "devices_used" not in provenance.collect()
    for given, used in ((2, 2), (0, jax.device_count())):
        found = provenance.of_run(None, given)
        assert (found["device_count"], found["devices_used"]) == (jax.device_count(), used)


def test_earlier_sessions_are_kept_where_they_differ():
    one, two, three = ({"device_kind": kind} for kind in ("cpu", "gpu", "tpu"))
    first = provenance.of_sessions({}, one)
    assert first == {"provenance": one}
    assert provenance.of_sessions(first, one) == first
    second = provenance.of_sessions(first, two)
    assert second == {"provenance": two, "earlier_provenance": [one]}
    third = provenance.of_sessions(second, three)
    assert third == {"provenance": three, "earlier_provenance": [one, two]}
    # Back on the first machine: reported once, in any order.
    assert provenance.of_sessions(third, one) == {"provenance": one, "earlier_provenance": [two, three]}


def test_a_run_records_its_config_file_and_the_devices_it_uses(run, tmp_path):
    file = tmp_path / "own.py"
    file.write_text((ROOT / "configs" / "softmax.py").read_text() + "\n# mine\n")
    folder = tmp_path / "run"
    flags = "--xla_force_host_platform_device_count=4"
    arguments = ["--config=own.py", *SOFTMAX[1:], "--config.parallel.devices=2", f"--workdir={folder}"]
    done = run(*arguments, cwd=tmp_path, env={"XLA_FLAGS": flags})
    assert done.code == 0, done.err
    origin = record(folder)["provenance"]
    assert origin["config_file"] == {"path": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert (origin["device_count"], origin["devices_used"]) == (4, 2)
    assert flags in origin["xla_flags"]


def test_a_killed_session_is_counted_and_its_time_up_to_its_last_record(run, killed):
    before = record(killed)
    assert before["status"] == "running" and before["wall_time_seconds"] > 0
    done = run(*TINY, f"--workdir={killed}")
    assert done.code == 0, done.err
    after = record(killed)
    assert (after["sessions"], after["killed_sessions"]) == (2, 1)
    assert after["started"] == before["started"]
    assert after["wall_time_seconds"] > before["wall_time_seconds"]


def test_a_report_says_what_an_earlier_session_had():
    git = {"commit": "abc", "package_changed": True}
    now = {"device_kind": "cpu", "device_count": 8, "devices_used": 2, "git": git}
    history = {"provenance": now, "earlier_provenance": [{**now, "backend": "x"}]}
    run = types.SimpleNamespace(folder=ROOT, record=history)
    page = facts.provenance(run)
    assert "2 × cpu, of 8" in page
    assert "abc, with uncommitted changes to the package" in page
    assert "<li>backend: x</li>" in page
    # What older versions recorded, of the whole repository.
    run.record = json.loads('{"provenance": {"git": {"commit": "abc", "changed": false}}}')
    assert "<td>abc</td>" in facts.provenance(run)
