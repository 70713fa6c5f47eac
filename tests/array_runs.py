"""Runs on small arrays, in this process."""

from pathlib import Path
from typing import Any

from array_files import make, write_npz
from synthetic import make_config

from imgclf_jax.train import train
from imgclf_jax.training.run import Calls

STEPS = 12
SMALL = {
    "data.source": "arrays",
    "data.pixels": "standardized",
    "augment.flip": True,
    "model.name": "cnn",
    "model.widths": (4, 6),
    "model.hidden": (8,),
    "model.norm": "batch",
    "train.epochs": 0.0,
    "train.steps": STEPS,
    "train.steps_per_dispatch": 2,
    "train.last_batch": "wrap",
    "eval.every_steps": 3,
    "log.every_steps": 3,
    "log.tensorboard": False,
    "log.progress": "lines",
}


def data_of(root: Path, classes: int, seed: int = 0) -> Path:
    """Writes images of noise of three splits. Returns the file."""
    root.mkdir(parents=True, exist_ok=True)
    named = {}
    for number, (role, count) in enumerate({"train": 30, "valid": 12, "test": 9}.items()):
        named[f"{role}_images"], named[f"{role}_labels"] = make(count, 10 * seed + number, (8, 8, 3), classes)
    return write_npz(root, named)


def config_of(place: Path, changes: dict[str, Any] | None = None):
    """The config of a small run on the data of a file."""
    return make_config(SMALL, {"data.dir": str(place)}, changes or {})


def run(config, folder: Path, until: int = 0) -> Path:
    """Trains in a folder, to the end or only to an evaluation. Returns the folder."""
    stop = (lambda step, steps, accuracy: step >= until) if until else (lambda step, steps, accuracy: False)
    assert train(config, folder, calls=Calls(prune=stop)) == 0
    return folder
