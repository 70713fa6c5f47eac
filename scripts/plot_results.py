"""Draws the README's picture from the runs of `scripts/reproduce.py`: learning curves, and the softmax weights.

    python scripts/plot_results.py

Reads `ROOT/CONFIG/seed-*`, writes `docs/results.png`.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from absl import logging as absl_logging

from imgclf_jax.workdir import record
from imgclf_jax.workdir.checkpoint import Checkpoints
from imgclf_jax.workdir.rows import read_rows

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PROJECT = Path(__file__).resolve().parent.parent
CONFIGS = ("cnn", "mlp", "softmax_tuned")  # tutorial_cnn has no validation split


def main() -> None:
    """Draws the picture from the complete runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=PROJECT / "runs" / "reproduce")
    parser.add_argument("--output", type=Path, default=PROJECT / "docs" / "results.png")
    options = parser.parse_args()
    figure = plt.figure(figsize=(11, 3.7), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.25, 1))
    _curves(parts[0].subplots(), options.root)
    _templates(parts[1], options.root / "softmax_tuned" / "seed-0")
    options.output.parent.mkdir(exist_ok=True)
    figure.savefig(options.output, dpi=110)
    print(options.output)


def _curves(axes, root: Path) -> None:
    """Plots validation accuracy by epoch, one line per seed, labeled with the mean test accuracy."""
    for index, name in enumerate(CONFIGS):
        runs = [path.parent for path in sorted((root / name).glob("seed-*/run.json"))]
        runs = [run for run in runs if (record.read(run) or {}).get("status") == "complete"]
        tests = [(record.read(run) or {})["results"]["test"]["accuracy"] for run in runs]
        for run in runs:
            rows = [row for row in read_rows(run) if row["split"] == "valid"]
            epochs, accuracies = [row["epoch"] for row in rows], [row["accuracy"] for row in rows]
            axes.plot(epochs, accuracies, color=f"C{index}", linewidth=1.4, alpha=0.85)
        if runs:
            text = f"{name}\ntest {statistics.mean(tests):.3f}"
            axes.annotate(
                text, (epochs[-1], accuracies[-1]), (6, 0), textcoords="offset points", color=f"C{index}", va="center"
            )
    axes.set(xlabel="epoch", ylabel="accuracy", title="Validation accuracy, one line per seed", xlim=(0, 24))
    axes.margins(y=0.1)
    axes.grid(alpha=0.3)


def _templates(figure, workdir: Path) -> None:
    """Draws the weights of the softmax classifier, one image per class."""
    run = record.read(workdir) or {}
    names, shape = run["data"]["class_names"], run["data"]["image_shape"]
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax logs many lines about reading only.
    checkpoints = Checkpoints(workdir, read_only=True)
    saved = checkpoints.restore(checkpoints.steps()[-1])
    kernel = np.asarray(saved["state"]["params"]["output"]["kernel"])
    figure.suptitle("What softmax looks for")
    for index, axes in enumerate(figure.subplots(2, 5).flat):
        template = kernel[:, index].reshape(shape)
        low, high = np.percentile(template, (1, 99))
        axes.imshow(np.clip((template - low) / (high - low), 0, 1))
        axes.set_title(names[index], fontsize=9)
        axes.set_axis_off()


if __name__ == "__main__":
    main()
