"""Where a result comes from: versions, commit, devices. Recorded in `run.json`. Unknown values are left out or null."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import imgclf_jax

# For each distribution, the module that holds its version.
PACKAGES = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "optax": "optax",
    "orbax-checkpoint": "orbax.checkpoint",
    "ml-collections": "ml_collections",
    "tensorflow-datasets": "tensorflow_datasets",
    "numpy": "numpy",
    "pillow": "PIL",
    "onednn-cpu-gomp": "",  # no module; see imgclf_jax.onednn
}


def collect() -> dict[str, Any]:
    """Returns everything besides config and data that the results of this job may depend on.

    `device_count`, `device_kind` and `process_count` are those of all processes; everything else describes this one.
    """
    import jax

    return {
        "imgclf_jax": imgclf_jax.__version__,
        "git": git_facts(Path(imgclf_jax.__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": {name: _version(name, module) for name, module in PACKAGES.items()},
        "device_kind": " + ".join(sorted({device.device_kind for device in jax.devices()})),
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "backend": jax.default_backend(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def of_run(
    config_file: dict[str, str] | None, devices: int, parts: dict[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Returns `collect()` plus what only a training run knows: its config file, its parts and its number of devices.

    Args:
        config_file: from `describe_file`; `None` if there is none. Its text is left out.
        devices: `config.parallel.devices`; 0 stands for all.
        parts: see `imgclf_jax.components.sources`; left out if there are none.
    """
    origin = collect()
    file = config_file and {name: value for name, value in config_file.items() if name != "text"}
    known = {"config_file": file, "devices_used": devices or origin["device_count"]}
    return origin | known | ({"parts": parts} if parts else {})


def parts_of(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the parts that a `run.json` names; empty if it names none."""
    return dict((record.get("provenance") or {}).get("parts") or {})


def of_sessions(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Returns the provenance of the session that begins, and of the earlier sessions whose provenance differs from it.

    Args:
        before: the `run.json` so far, which may be empty.
        now: from `of_run`.

    Returns:
        `provenance`, which is `now`, and `earlier_provenance`, a list. The latter is omitted if it would be empty.
    """
    last = before.get("provenance")
    earlier = [origin for origin in before.get("earlier_provenance") or [] if origin not in (now, last)]
    if last and last != now:
        earlier.append(last)
    return {"provenance": now} | ({"earlier_provenance": earlier} if earlier else {})


def describe_file(path: Path) -> dict[str, str]:
    """Returns the absolute `path` of a file, the `sha256` (hex) of its content and its `text`. Raises `OSError`."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return {"path": str(path.resolve()), "sha256": digest, "text": content.decode("utf-8", "replace")}


def _version(name, module):
    """Returns the version of the imported module; if none is imported, that of the installed distribution.

    The two may differ, because the module may have been imported from elsewhere.
    """
    used = getattr(sys.modules.get(module), "__version__", None)
    if isinstance(used, str):
        return used
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_facts(package: Path) -> dict[str, Any] | None:
    """Returns the commit of the source tree that contains `package`, and whether the package's files differ from it.

    `package_changed` covers every file of the package that git tracks and every other Python file in its folder. It
    says nothing about files elsewhere. `None` is returned for an installed package, which has no commit.
    """
    root = package.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _run(root, "rev-parse", "HEAD")
        changed = _run(root, "diff", "--name-only", "HEAD", "--", package.name)
        untracked = _run(root, "ls-files", "--others", "--", f"{package.name}/*.py")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "package_changed": bool(changed or untracked)}


def _run(root, *command):
    done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
