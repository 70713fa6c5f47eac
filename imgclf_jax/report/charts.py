"""The charts of a report."""

import math
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from imgclf_jax.report import curves, drawing
from imgclf_jax.report.curves import Point
from imgclf_jax.report.drawing import BLUE, GREEN, GRID, INK, MUTED, ORANGE, PAPER, Picture
from imgclf_jax.report.markup import clean, shorten
from imgclf_jax.report.measures import Calibration
from imgclf_jax.workdir.rows import METRICS, Row

NUMBERED = 20  # most classes for which a confusion matrix shows numbers and names
DEEPEST = 0.55  # opacity of a full cell: its number stays readable on the white and on the black page
_SIZE = (5.0, 3.3)


def learning_curves(rows: list[Row], field: str) -> Picture | None:
    """Training and validation curves by epoch, from every row of the metrics files; at the end, the test split.

    The best evaluation is marked in the curves of the accuracy and the loss.

    Args:
        rows: of `metrics.jsonl`.
        field: "accuracy", "loss", or a metric of one's own.

    Returns:
        The chart; `None` if there are no rows to draw.
    """
    train, valid, test = (curves.points(rows, split, field) for split in ("train", "valid", "test"))
    if not train and not valid and not test:
        return None
    with drawing.drawing(*_SIZE) as figure:
        axes = make_axes(figure, field, _last(train, valid, test))
        _line(axes, train, BLUE, "training")
        _line(axes, valid, ORANGE, "validation", "o-" if len(valid) < 40 else "-")
        if len(valid) > 1 and field in METRICS:
            best = curves.best(valid, field)
            label = f"best: {best.value:.4f}, epoch {best.epoch:.3g}"
            axes.plot([best.epoch], [best.value], "o", ms=11, mec=INK, mfc="none", mew=1.4, label=label)
        if test:
            axes.plot([test[-1].epoch], [test[-1].value], "D", color=GREEN, label=f"test: {test[-1].value:.4f}")
        if field == "loss" and spread(train + valid) > 100:
            set_logarithmic(axes)
        axes.legend()
        return drawing.finish(figure, f"learning_{file_name(field)}", f"{field} by epoch for training and validation")


def file_name(field: str) -> str:
    """The name of a metric, for a file."""
    return "".join(c if c.isalnum() and c.isascii() else "_" for c in field)


def reliability(calibration: Calibration) -> Picture:
    """Accuracy by confidence, above a histogram of the confidences."""
    centers, width = (calibration.edges[:-1] + calibration.edges[1:]) / 2, calibration.edges[1] - calibration.edges[0]
    with drawing.drawing(5.0, 4.6) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.2))
        filled = calibration.counts > 0
        upper.bar(centers[filled], calibration.accuracy[filled], width * 0.92, color=BLUE, label="accuracy")
        upper.plot([0, 1], [0, 1], "--", color=MUTED, lw=1.2, label="perfect calibration")
        upper.plot(
            calibration.confidence[filled],
            calibration.accuracy[filled],
            "o",
            ms=4.5,
            mfc=ORANGE,
            mec=PAPER,
            mew=0.8,
            clip_on=False,
            zorder=3,
        )
        upper.set(
            xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy", title=f"Expected calibration error {calibration.error:.4f}"
        )
        lower.bar(centers, calibration.counts, width * 0.92, color=MUTED)
        lower.set(xlabel="confidence", ylabel="examples")
        lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        figure.legend(loc="outside lower left", ncols=2)
        bins, error = len(calibration.counts), f"{calibration.error:.4f}"
        alt = f"accuracy by confidence in {bins} bins; the expected calibration error is {error}"
        return drawing.finish(figure, "reliability", alt)


def confusion(matrix: np.ndarray, names: tuple[str, ...]) -> Picture:
    """True classes by predicted classes: correct predictions blue, mistakes orange, shaded by share of the true class.

    Args:
        matrix: int [C, C], rows are true classes.
        names: of the classes.
    """
    classes = len(names)
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.0 + 0.47 * classes if classes <= NUMBERED else 6.4
    with drawing.drawing(side + 0.5, side) as figure:
        axes = figure.subplots()
        tooltips: dict[str, str] = {}
        if classes <= NUMBERED:
            _cells(axes, matrix, fractions)
            tooltips = _name_axes(axes, names)
        else:
            _pixels(axes, fractions)
        axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5), xlabel="predicted", ylabel="true", aspect=1)
        axes.grid(False)
        alt = f"confusion matrix of {classes} classes: {np.trace(matrix)} of {matrix.sum()} predictions are correct"
        return drawing.finish(figure, "confusion", alt, tooltips)


def _cells(axes, matrix, fractions):
    for row, column in np.ndindex(*matrix.shape):
        color = BLUE if row == column else ORANGE
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=PAPER, edgecolor=GRID, lw=0.6))
        shade = DEEPEST * float(fractions[row, column]) ** 0.5
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=color, edgecolor="none", alpha=shade))
        weight = "bold" if row == column else "normal"
        size = 8.5 if matrix.max() < 10_000 else 7
        text = f"{matrix[row, column]}"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, fontweight=weight)


def _name_axes(axes, names):
    short_names = [shorten(name, 18) for name in names]
    axes.set_xticks(range(len(names)), short_names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), short_names)
    axes.tick_params(length=0)
    tooltips = {}
    for axis, labels in (("x", axes.get_xticklabels()), ("y", axes.get_yticklabels())):
        for index, label in enumerate(labels):
            if short_names[index] != clean(names[index]):
                label.set_gid(f"{axis}{index}")
                tooltips[f"{axis}{index}"] = clean(names[index])
    return tooltips


def _pixels(axes, fractions):
    """One pixel per cell. These colors are part of an image, so they must suit light and dark pages."""
    classes = len(fractions)
    image = np.zeros((classes, classes, 4), np.float32)
    image[..., :3] = to_rgb("#d9691e")
    image[np.arange(classes), np.arange(classes), :3] = to_rgb("#2a86c8")
    image[..., 3] = np.sqrt(fractions)
    axes.imshow(image, interpolation="none")


def make_axes(figure: Figure, field: str, last: float, xlabel: str = "epoch") -> Any:
    """Axes for `field` by epoch or step, from 0 to the last one; longer runs have ticks at whole numbers only."""
    axes = figure.subplots()
    whole = last >= 4
    axes.set_xlim(0, 1.04 * last)
    axes.set(xlabel=xlabel, ylabel=field)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10), integer=whole, min_n_ticks=1))
    return axes


def _line(axes, curve, color, label, style="-"):
    if curve:
        # A line through a single point would be invisible.
        axes.plot(*_xy(curve), "o" if len(curve) == 1 else style, ms=4, color=color, label=label)


def set_logarithmic(axes: Any) -> None:
    """Makes the vertical axis logarithmic, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")  # By default it writes math text, which is not parsed here.
    axes.yaxis.set_minor_formatter("")


def _last(*all_curves: list[Point]) -> float:
    return max(point.epoch for curve in all_curves for point in curve)


def _xy(curve: list[Point]):
    return [point.epoch for point in curve], [point.value for point in curve]


def spread(curve: list[Point]) -> float:
    """The ratio of the largest and the smallest positive value; NaN if there is none."""
    values = [point.value for point in curve if point.value > 0]
    return max(values) / min(values) if values else math.nan
