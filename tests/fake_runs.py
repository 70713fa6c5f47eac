"""Writes run directories by hand, for tests that need many runs and no training."""

from pathlib import Path
from typing import Any

from imgclf_jax import config as configs
from imgclf_jax.storage.files import write_json
from imgclf_jax.workdir.saved_config import save_config

COUNT = 10_000
DATA = {
    "name": "cifar10",
    "location": "/data",
    "fingerprint": "0" * 64,
    "class_names": ["cat", "dog"],
    "image_shape": [32, 32, 3],
    "counts": {"train": 45_000, "valid": 5_000, "test": COUNT},
}


def make_config(changes: dict[str, Any] | None = None, seed: int = 0) -> Any:
    """The default config with changed fields, by path."""
    config = configs.default()
    config.update_from_flattened_dict({"seed": seed, **(changes or {})})
    return config


def result(accuracy: float, loss: float | None = None, count: int = COUNT) -> dict[str, Any]:
    """The result of an evaluation, as in `run.json`."""
    correct = round(accuracy * count)
    return {
        "accuracy": correct / count,
        "loss": 2 * (1 - accuracy) if loss is None else loss,
        "correct": correct,
        "count": count,
    }


def write_run(
    folder: Path,
    changes: dict[str, Any] | None = None,
    seed: int = 0,
    accuracy: float = 0.8,
    status: str = "complete",
    **fields: Any,
) -> Path:
    """Writes the config.json and run.json of a run.

    Args:
        folder: its workdir.
        changes: config fields by path that differ from the default.
        seed: of the run.
        accuracy: on the test split; on the validation split it is the same, if the run is complete.
        status: of the run.
        fields: other fields of run.json, which replace those written by default. None: the field is left out.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_config(folder, make_config(changes, seed))
    content: dict[str, Any] = {"status": status, "seed": seed, "step": 100, "wall_time_seconds": 60.0, "data": DATA}
    if status == "complete":
        results = {"test": result(accuracy), "valid": result(accuracy, count=5_000)}
        content |= {"results": results, "reported_step": 100, "images_per_second": 1000.0}
    content |= fields
    write_json(folder / "run.json", {name: value for name, value in content.items() if value is not None})
    return folder


def write_sweep(folder: Path, variants: dict[str, dict[str, Any]], seeds: list[int], folds: int = 0) -> dict[str, Path]:
    """Writes the sweep.json of a sweep.

    Args:
        folder: of the sweep.
        variants: name -> its changed config fields.
        seeds: of each variant.
        folds: the number of folds.

    Returns:
        name -> the folder of its runs, which is not created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups = []
    for name, changes in variants.items():
        identity = configs.identity(make_config(changes))
        groups.append({"name": name, "identity": identity, "changes": changes, "folder": f"{name}-{identity[:8]}"})
    content = {"version": 1, "config": "configs/study.py", "groups": groups, "seeds": seeds, "folds": folds}
    write_json(folder / "sweep.json", content)
    return {str(group["name"]): folder / str(group["folder"]) for group in groups}
