"""The mean learning curve of repetitions with a band, and charts of several such curves."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from imgclf_jax.report import charts, curves, drawing
from imgclf_jax.report.curves import Point
from imgclf_jax.report.drawing import SERIES, Picture
from imgclf_jax.report.markup import clean, shorten
from imgclf_jax.workdir.rows import Row

LONGEST = 150  # most points of a band, which limits the size of the page
FOR_DEVIATION = 3  # fewest runs whose standard deviation is drawn; of two runs, the band is their range
_STYLES = ("-", "-.", ":")


class Band(NamedTuple):
    """The mean curve of some runs.

    Attributes:
        mean: its points.
        low: lower edge of the band, by point.
        high: upper edge of the band.
        runs: the number of runs.
    """

    mean: list[Point]
    low: list[float]
    high: list[float]
    runs: int


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        name: in the legend.
        band: what is drawn.
        dashed: whether it is dashed.
        detail: what follows the name.
    """

    name: str
    band: Band
    dashed: bool = False
    detail: str = ""


def band(repetitions: Sequence[list[Point]], average: bool = False) -> Band | None:
    """The mean of the curves of several runs over the steps that all of them have.

    The band is the mean ± one standard deviation (with n - 1), the range of two runs, or the curve itself of one run.

    Args:
        repetitions: a curve for each run; empty ones are left out. If the others share no step, the longest is taken.
        average: of more than `LONGEST` points, draws means over consecutive ones instead of every second or third one.

    Returns:
        The band; `None` if all curves are empty.
    """
    filled = [curve for curve in repetitions if curve]
    if not filled:
        return None
    shared = sorted(set.intersection(*({point.step for point in curve} for curve in filled)))
    if not shared:
        filled = [max(filled, key=len)]
        shared = [point.step for point in filled[0]]
    by_step = [{point.step: point for point in curve} for curve in filled]
    size = math.ceil(len(shared) / LONGEST)
    mean, low, high = [], [], []
    # From the end, so that the last point is kept.
    windows = [shared[max(0, end - size) : end] for end in range(len(shared), 0, -size)][::-1]
    for window in windows:
        used = window if average else window[-1:]
        values = [statistics.fmean(points[step].value for step in used) for points in by_step]
        center = statistics.fmean(values)
        deviation = statistics.stdev(values) if len(values) >= FOR_DEVIATION else 0.0
        end = by_step[0][window[-1]]
        mean.append(end._replace(value=center))
        low.append(center - deviation if deviation else min(values))
        high.append(center + deviation if deviation else max(values))
    return Band(mean, low, high, len(filled))


def second_half(lines: Sequence[Line], fewest: int = 4) -> list[Line]:
    """The lines without their first half; an empty list if one would keep fewer than `fewest` points."""
    middle = max(line.band.mean[-1].step for line in lines) / 2
    kept = []
    for line in lines:
        start = sum(point.step < middle for point in line.band.mean)
        mean, low, high, runs = line.band
        kept.append(line._replace(band=Band(mean[start:], low[start:], high[start:], runs)))
    return kept if min(len(line.band.mean) for line in kept) >= fewest else []


def explain(lines: Sequence[Line]) -> str:
    """What the bands of a chart are, as a clause for its caption; an empty string if there are none."""
    sizes = {line.band.runs for line in lines}
    parts = []
    if any(size >= FOR_DEVIATION for size in sizes):
        parts.append("mean ± standard deviation")
    if 2 in sizes:
        parts.append("mean and range of two runs" if not parts else "for two runs their range")
    return "; ".join(parts)


def chart(lines: Sequence[Line], field: str, name: str, by: str = "epoch", label: str | None = None) -> Picture:
    """Draws lines with their bands; a single point is a marker with a bar.

    Args:
        lines: at least one.
        field: "loss" or "accuracy".
        name: of the picture.
        by: "epoch" or "step".
        label: of the vertical axis. Default: `field`.
    """
    labels = [shorten(line.name, 48) + line.detail for line in lines]
    columns = 2 if len(lines) > 4 and max(map(len, labels)) <= 26 else 1
    with drawing.drawing(5.0, 3.3 + 0.2 * math.ceil(len(lines) / columns)) as figure:
        last = max(getattr(point, by) for line in lines for point in line.band.mean)
        axes = charts.make_axes(figure, label or field, last or 1, by)
        for index, (line, text) in enumerate(zip(lines, labels, strict=True)):
            # Matplotlib leaves labels that begin with an underscore out of the legend.
            _draw(axes, line, by, index, f" {text}")
        first = min(getattr(point, by) for line in lines for point in line.band.mean)
        if first > 0.4 * last and len(lines[0].band.mean) > 1:  # of `second_half`
            axes.set_xlim(first - 0.03 * (last - first), last + 0.03 * (last - first))
        values = [point for line in lines for point in line.band.mean]
        if field == "loss" and charts.spread(values) > 30:
            charts.set_logarithmic(axes)
        figure.legend(loc="outside lower left", ncols=columns)
        names = ", ".join(clean(line.name) for line in lines)
        alt = f"{label or field} by {by} for {names}"
        return drawing.finish(figure, name, alt)


def overlay(groups: Sequence[tuple[str, Sequence[list[Row]]]], field: str) -> tuple[Picture, str] | None:
    """The validation curves of groups of runs in one chart; for a group without them, its training curve, dashed.

    Args:
        groups: (name, the rows of each run).
        field: "loss", "accuracy" or a metric of one's own.

    Returns:
        The chart and what its bands are; `None` if there is nothing to draw.
    """
    lines = []
    for name, runs in groups:
        valid, train = ([curves.points(rows, split, field) for rows in runs] for split in ("valid", "train"))
        has_curves = max(map(len, valid)) > 1 or not any(train)
        shown = band(valid) if has_curves else band(train, average=True)
        if shown is not None:
            detail = f" (n = {shown.runs})" if len(runs) > 1 else ""
            lines.append(Line(name, shown, not has_curves, detail + ("" if has_curves else " (training)")))
    return (chart(lines, field, f"compare_{charts.file_name(field)}"), explain(lines)) if lines else None


def _draw(axes, line, by, index, label):
    color, style = SERIES[index % len(SERIES)], _STYLES[index // len(SERIES) % len(_STYLES)]
    at, values = [getattr(point, by) for point in line.band.mean], [point.value for point in line.band.mean]
    size = 4 if len(at) == 1 else 3 if len(at) < 40 else 0
    axes.plot(at, values, "--" if line.dashed else style, marker="o", ms=size, color=color, label=label)
    if line.band.runs > 1 and len(at) > 1:
        axes.fill_between(at, line.band.low, line.band.high, color=color, alpha=0.16, lw=0)
    elif line.band.runs > 1:
        axes.vlines(at, line.band.low, line.band.high, color=color, lw=1.2)
