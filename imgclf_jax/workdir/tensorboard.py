"""What the TensorBoard files of a run hold besides its rows: hyperparameters and pictures. Needs no TensorFlow."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imgclf_jax.config import flatten

NAME = "tensorboard"


def add_hyperparameters(workdir: Path, config: dict[str, Any], results: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds the config and the results of a run, for the tab HParams.

    Args:
        workdir: the folder of the run, which has TensorBoard files.
        config: as in `config.json`.
        results: as in `run.json`; accuracy and loss by split become the metrics "result/SPLIT_accuracy" and so on.
    """
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    values = {
        name: value if isinstance(value, bool | int | float | str) else repr(value)
        for name, value in flatten(config).items()
        if value is not None
    }
    metrics = {
        f"result/{split}_{name}": float(result[name])
        for split, result in results.items()
        for name in ("accuracy", "loss")
        if isinstance(result.get(name), int | float)
    }
    with SummaryWriter(str(Path(workdir) / NAME), filename_suffix=".hparams") as writer:
        for summary in hparams(values, metrics):
            writer.file_writer.add_summary(summary)
        for name, value in metrics.items():
            writer.add_scalar(name, value, 0)


def add_pictures(workdir: Path, step: int, pictures: Mapping[str, bytes]) -> None:
    """Adds PNG pictures by name, for the tab Images; nothing if the run has no TensorBoard files."""
    from PIL import Image
    from tensorboardX import SummaryWriter

    folder = Path(workdir) / NAME
    if not folder.is_dir():
        return
    for old in folder.glob("*.pictures"):  # of an earlier report
        old.unlink()
    with SummaryWriter(str(folder), filename_suffix=".pictures") as writer:
        for name, png in pictures.items():
            pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
            writer.add_image(name, pixels, step, dataformats="HWC")
