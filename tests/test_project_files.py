"""The lock files, the Dockerfile and the files about the project agree with pyproject.toml."""

import json
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from runs import ROOT, environment

import imgclf_jax
from imgclf_jax.terminal import cli

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCKS = {"3.11": "py311.txt", "3.13": "py313.txt"}


def locked(name):
    lines = [line for line in (ROOT / "requirements" / name).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", line) for line in lines)  # no URLs, no options
    versions = dict(line.split("==") for line in lines)
    assert list(versions) == sorted(versions)
    return versions


@pytest.mark.parametrize("python", LOCKS)
def test_a_lock_has_every_dependency_within_its_bounds(python):
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    versions = locked(LOCKS[python])
    wanted = [*PROJECT["dependencies"], *EXTRAS["test"], *EXTRAS["slurm"]]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name != "imgclf-jax" and (requirement.marker is None or requirement.marker.evaluate()):
            assert requirement.specifier.contains(versions[name]), requirement
    assert "torch" not in versions and versions["jax"] == versions["jaxlib"]


def steps():
    """[(instruction, its words)] of the Dockerfile."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def copied():
    return {source for name, words in steps() if name == "COPY" for source in words.split()[:-1]}


def test_the_image_has_the_python_and_the_versions_of_a_lock():
    (image,) = [words for name, words in steps() if name == "FROM"]
    python = re.fullmatch(r"python:(3\.\d+)-slim", image)
    (install,) = [words for name, words in steps() if "pip install" in words]
    assert python and f"--constraint=requirements/{LOCKS[python[1]]}" in install


def test_what_the_image_copies_is_there_and_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in ignored
    for source in copied():
        assert (ROOT / source).exists() and f"!{source}" in ignored, source
    assert {f"!{source}" for source in copied()} == {line for line in ignored if line.startswith("!")}


def test_what_the_build_of_the_package_needs_is_copied():
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "imgclf_jax", "configs"} <= copied()


@pytest.mark.parametrize("extra", ["", "cpu", "cuda", "tpu", "slurm"])
def test_the_command_that_installs_is_one_that_pip_understands(extra):
    (install,) = [words for name, words in steps() if "pip install" in words]
    assert ("ARG", "EXTRA=cpu") in steps() and (not extra or extra in EXTRAS)
    shown = subprocess.run(["sh", "-c", f"printf '%s\\n' {install}"], env={"EXTRA": extra}, capture_output=True)
    *_, what = shown.stdout.decode().splitlines()
    assert what == (f".[{extra}]" if extra else ".")


def test_the_image_runs_as_a_user_and_its_command_runs():
    names = [name for name, _ in steps()]
    assert dict(steps())["USER"] not in ("", "root", "0") and names.index("USER") > names.index("RUN")
    python, *arguments = json.loads(dict(steps())["CMD"])
    assert python == "python"
    done = subprocess.run([sys.executable, *arguments, "--help"], cwd=ROOT, env=environment(), capture_output=True)
    assert done.returncode == 0 and b"--copy" in done.stdout
    # The command in its first lines.
    typed = shlex.split(re.search(r"docker run (.*)", (ROOT / "Dockerfile").read_text())[1])
    assert any(word in PROJECT["scripts"] for word in typed)


def test_citation_and_changelog_have_the_version_and_the_license():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {imgclf_jax.__version__}\n" in citation and f"license: {PROJECT['license']}\n" in citation
    assert imgclf_jax.__version__ in (ROOT / "CHANGELOG.md").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text() and PROJECT["license"] == "Apache-2.0"


def test_links_of_the_pages_lead_somewhere():
    for page in ("CONTRIBUTING.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text()):
            assert (ROOT / link).exists(), link


def test_readme_and_help_have_the_same_exit_statuses():
    table = (ROOT / "README.md").read_text().partition("| exit status | |\n")[2].partition("\n\n")[0]
    codes = re.findall(r"^\| (\d+(?: \+ N)?) \|", table, re.MULTILINE)
    assert codes == re.findall(r"^    (\d+(?: \+ N)?)  ", cli.EXIT_STATUS, re.MULTILINE)
