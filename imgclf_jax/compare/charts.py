"""The charts of a comparison: intervals, cost, and the fields of a search."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import NullFormatter

from imgclf_jax.compare import labels
from imgclf_jax.compare.columns import unit
from imgclf_jax.compare.groups import Group, Table
from imgclf_jax.compare.short import shorten
from imgclf_jax.report import drawing
from imgclf_jax.report.drawing import BLUE, GREEN, INK, MUTED, ORANGE, PAPER, Picture
from imgclf_jax.report.markup import clean

WIDE_SPAN = 20  # the largest value over the smallest, from which an axis is logarithmic
FEW = 20  # most points of a chart that all get names; of more, the Pareto front and the baseline
_FOR_QUARTILES = 8
_TICKED = 8  # most different values that are all ticks
_COLUMNS = 3
_COLORS = {"better": GREEN, "worse": ORANGE}


def metric_label(table: Table) -> str:
    """The metric with its unit."""
    name = unit(table).name
    return table.metric + (f" in {name}" if name else "")


def visible(table: Table) -> tuple[float, float]:
    """The lowest and highest mean that charts show, in the unit of the metric.

    A search often has some variants that did not learn. If there are at least `_FOR_QUARTILES` means, those that are
    worse than the worse quartile by more than 4 interquartile ranges are left out, so that the others can be
    distinguished. The baseline is always visible.
    """
    sign = 1 if table.higher_is_better else -1
    means = [sign * group.mean for group in table.groups if group.mean is not None]
    lowest, highest = min(means), max(means)
    first, third = (float(end) for end in np.quantile(means, (0.25, 0.75)))
    if len(means) >= _FOR_QUARTILES and third > first:
        base = [sign * group.mean for group in table.groups if group.name == table.baseline and group.mean is not None]
        lowest = min(mean for mean in [*means, *base] if mean >= first - 4 * (third - first) or mean in base)
    low, high = sorted((sign * lowest, sign * highest))
    return low, high


def outside(table: Table) -> list[Group]:
    """The groups whose means are not in the visible range."""
    low, high = visible(table)
    return [group for group in table.groups if group.mean is not None and not low <= group.mean <= high]


def intervals(table: Table, shown: Sequence[Group]) -> Picture:
    """Mean, 95 % interval and single values of each group, from top to bottom; the mean of the baseline is a line.

    Args:
        table: the table.
        shown: groups with values, at least one.
    """
    scale = unit(table).scale
    with drawing.drawing(7.6, 1.25 + (0.34 if len(shown) <= FEW else 0.27) * len(shown)) as figure:
        axes = figure.subplots()
        base = next(group for group in table.groups if group.name == table.baseline)
        if base.mean is not None and len(table.groups) > 1:
            axes.axvline(scale * base.mean, ls="--", lw=1.2, color=MUTED, label="mean of the baseline")
        for place, group in enumerate(shown):
            values = [scale * value for value in group.values.values()]
            verdict = group.comparison.verdict if group.comparison else ""
            color = _COLORS.get(verdict, BLUE)
            if group.interval is not None:
                ends = [scale * end for end in group.interval]
                axes.plot(ends, [place, place], "-", color=color, lw=2.2)
            axes.plot([scale * float(group.mean or 0)], [place], "D", ms=5.5, color=color, mec=PAPER, mew=0.6)
            axes.plot(values, [place + 0.24] * len(values), "o", ms=3.6, mfc="none", mec=INK, mew=0.9)
        for text, color in (("mean", BLUE), ("better", GREEN), ("worse", ORANGE)):
            if text == "mean" or any(group.comparison and group.comparison.verdict == text for group in shown):
                own = "mean and 95 % interval" if any(group.interval for group in shown) else "mean"
                label = own if text == "mean" else f'the same, "{text}"'
                axes.plot([], [], "-D", ms=5.5, color=color, label=label)
        axes.plot([], [], "o", ms=3.6, mfc="none", mec=INK, mew=0.9, label="single run")
        left, right = (scale * end for end in _range(table, shown, base.mean))
        for place, group in enumerate(shown):
            if group in outside(table):
                below = scale * float(group.mean or 0) < right
                text = unit(table).number(float(group.mean or 0))
                at, aligned = (left, "left") if below else (right, "right")
                axes.text(at, place, f" ◂ {text}" if below else f"{text} ▸ ", ha=aligned, va="center", color=MUTED)
        axes.set(xlabel=metric_label(table), ylim=(len(shown) - 0.4, -0.6), xlim=(left, right))
        tooltips = _name_rows(axes, [group.name for group in shown])
        axes.grid(False, axis="y")
        figure.legend(loc="outside lower left", ncols=3)
        alt = f"mean {table.metric} with 95 % intervals and single values of {_names(shown)}"
        return drawing.finish(figure, "intervals", alt, tooltips)


def _range(table, shown, base):
    """The range of the values, with the intervals as far as they are not longer than that again on either side."""
    hidden = outside(table)
    known = [group for group in shown if group not in hidden] or shown
    values = [value for group in known for value in group.values.values()]
    low, high = min(values), max(values)
    if base is not None and visible(table)[0] <= base <= visible(table)[1]:
        low, high = min(low, base), max(high, base)
    size = (high - low) or abs(high) * 0.02 or 1.0
    edges = [edge for group in known if group.interval for edge in group.interval]
    low, high = max(low - size, min([low, *edges])), min(high + size, max([high, *edges]))
    margin = 0.05 * ((high - low) or size)
    return low - margin, high + margin


def _limit(axes, table, scale):
    """Sets the vertical range of the metric if some groups are outside."""
    if outside(table):
        low, high = (scale * end for end in visible(table))
        margin = 0.12 * (high - low)
        axes.set_ylim(low - margin, high + margin)


def _name_rows(axes, names):
    short = [shorten(name, 36) for name in names]
    axes.set_yticks(range(len(names)), short)
    axes.tick_params(axis="y", length=0)
    tooltips = {}
    for index, label in enumerate(axes.get_yticklabels()):
        if short[index] != clean(names[index]):
            label.set_gid(f"y{index}")
            tooltips[f"y{index}"] = clean(names[index])
    return tooltips


def front(costs: Sequence[float], values: Sequence[float], higher_is_better: bool) -> list[int]:
    """The indices of the Pareto front, cheapest first: no other point is at least as good in both and better in one."""
    sign = -1 if higher_is_better else 1
    order = sorted(range(len(costs)), key=lambda index: (costs[index], sign * values[index]))
    chosen: list[int] = []
    for index in order:
        last = chosen[-1] if chosen else index
        equal = (costs[index], values[index]) == (costs[last], values[last])
        if equal or sign * values[index] < sign * values[last]:
            chosen.append(index)
    return chosen


def cost(table: Table, of: Callable[[Group], float | None], name: str, label: str) -> Picture | None:
    """The mean metric by a mean cost, with the Pareto front.

    Args:
        table: the table.
        of: the cost of a group.
        name: of the picture.
        label: of the cost.

    Returns:
        The chart; `None` if no group has a value and a cost, or several have the same cost.
    """
    shown = [group for group in table.groups if group.mean is not None and of(group) is not None]
    costs = [float(of(group) or 0) for group in shown]
    if not shown or (len(shown) > 1 and len(set(costs)) == 1):
        return None
    means = [unit(table).scale * float(group.mean or 0) for group in shown]
    best = front(costs, means, table.higher_is_better)
    with drawing.drawing(5.6, 4.2) as figure:
        axes = figure.subplots()
        axes.plot(costs, means, "o", ms=5, color=MUTED)
        at = [costs[index] for index in best], [means[index] for index in best]
        axes.plot(*at, "-", color=ORANGE, lw=1.2, drawstyle="steps-post")
        axes.plot(*at, "o", ms=7, color=ORANGE, label="Pareto front: none is better and cheaper")
        axes.margins(0.12)
        _limit(axes, table, unit(table).scale)
        axes.set(xlabel=label, ylabel=metric_label(table))
        if min(costs) > 0 and max(costs) > WIDE_SPAN * min(costs):
            _logarithmic(axes, "x")
        figure.legend(loc="outside lower left")
        # Names of the front come first: if there is no room, others remain without a name.
        base = [index for index, group in enumerate(shown) if group.name == table.baseline]
        order = list(dict.fromkeys([*best, *base, *(range(len(shown)) if len(shown) <= FEW else ())]))
        order = [index for index in order if shown[index] not in outside(table)]
        texts = [(costs[index], means[index], shorten(shown[index].name, 26)) for index in order]
        labels.place(figure, axes, texts, list(zip(*at, strict=True)), list(zip(costs, means, strict=True)))
        alt = f"mean {table.metric} by {label} of {_names(shown)}; on the Pareto front: "
        return drawing.finish(figure, name, alt + _names([shown[index] for index in best]))


def slices(table: Table, fields: Sequence[str]) -> Picture:
    """The metric by each field of a search: every run, and the means of groups.

    Args:
        table: the table; the fields are in `changes` of its groups.
        fields: at least one.
    """
    shown = [group for group in table.groups if group.values]
    scale, columns = unit(table).scale, min(_COLUMNS, len(fields))
    rows = math.ceil(len(fields) / columns)
    with drawing.drawing((5.0, 7.6, 9.2)[columns - 1], 0.4 + 2.9 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
        for axes in grid[len(fields) :]:
            axes.remove()
        alone = all(len(group.changes) == 1 for group in shown)
        for place, (axes, field) in enumerate(zip(grid, fields, strict=False)):
            known = [group for group in shown if is_number(group.changes.get(field))]
            at = [float(group.changes[field]) for group in known]
            for value, group in zip(at, known, strict=True):
                own = [scale * item for item in group.values.values()]
                axes.plot([value] * len(own), own, "o", ms=3.6, mfc="none", mec=MUTED, mew=0.9)
            order = np.argsort(at, kind="stable")
            means = [scale * float(known[index].mean or 0) for index in order]
            style = "D-" if alone else "D"
            axes.plot([at[index] for index in order], means, style, ms=5, lw=1.2, color=BLUE, mec=PAPER, mew=0.6)
            axes.set_xlabel(shorten(field, 34))
            _field_axis(axes, at)
            if place % columns == 0:
                axes.set_ylabel(metric_label(table))
        first = grid[0]
        _limit(first, table, scale)
        first.plot([], [], "D", ms=5, color=BLUE, label="mean of a variant")
        first.plot([], [], "o", ms=3.6, mfc="none", mec=MUTED, mew=0.9, label="single run")
        figure.legend(*first.get_legend_handles_labels(), loc="outside lower left", ncols=2)
        return drawing.finish(figure, "slices", f"{table.metric} by {', '.join(map(clean, fields))}")


def parallel(table: Table, fields: Sequence[str]) -> Picture:
    """Parallel coordinates: a line for each variant through its value of each field and its mean.

    Args:
        table: the table.
        fields: at least two; variants without a number in one of them are left out.
    """
    shown = [g for g in table.groups if g.values and all(is_number(g.changes.get(field)) for field in fields)]
    means = [unit(table).scale * float(group.mean or 0) for group in shown]
    low, high = (unit(table).scale * end for end in visible(table))
    seen = [min(max(mean, low), high) for mean in means]
    order = sorted(range(len(shown)), key=lambda index: means[index] if table.higher_is_better else -means[index])
    top = max(1, len(shown) // 4)
    width = max(5.0, 1.5 * (len(fields) + 1))
    with drawing.drawing(min(width, 10.0), 3.7) as figure:
        axes = figure.subplots()
        axis_values = [[float(group.changes[field]) for group in shown] for field in fields]
        placed = [_positions(values) for values in axis_values] + [_linear(seen)]
        for rank, index in enumerate(order):
            color, thick = (MUTED, 1.0) if rank < len(order) - top else (BLUE, 1.8)
            color, thick = (ORANGE, 2.4) if rank == len(order) - 1 else (color, thick)
            line = [column[index] for column in placed]
            axes.plot(range(len(placed)), line, "-o", ms=3, color=color, lw=thick)
        decimals = unit(table).decimals
        for place, (values, positions) in enumerate(zip([*axis_values, seen], placed, strict=True)):
            axes.axvline(place, color=INK, lw=0.8)
            for value, at in _marks(values, positions):
                right = place == len(fields)
                text = f"{value:.{decimals}f}" if right else f"{value:g}"
                if right and (min(means) < value == low or max(means) > value == high):
                    text = ("≤ " if value == low else "≥ ") + text
                axes.annotate(
                    text,
                    (place, at),
                    (6 if right else -6, 0),
                    textcoords="offset points",
                    ha="left" if right else "right",
                    va="center",
                    fontsize=8.5,
                    bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
                )
        names = [shorten(field.rpartition(".")[2], 18) for field in fields] + [shorten(table.metric, 18)]
        axes.set_xticks(range(len(names)), names)
        axes.set(yticks=[], ylim=(-0.06, 1.06), xlim=(-0.45, len(names) - 0.55))
        axes.grid(False)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(axis="x", length=0)
        for text, color, thick in (("best", ORANGE, 2.4), (f"best {top}", BLUE, 1.8), ("others", MUTED, 1.0)):
            if (color == BLUE and top < 2) or (color == MUTED and len(shown) <= top):
                continue
            axes.plot([], [], color=color, lw=thick, label=text)
        figure.legend(loc="outside lower left", ncols=3)
        alt = f"parallel coordinates of {', '.join(map(clean, fields))} and {table.metric} for {len(shown)} variants"
        return drawing.finish(figure, "parallel", alt)


def is_number(value: Any) -> bool:
    """Whether a value of a field can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_wide(values: Sequence[float]) -> bool:
    """Whether values, none of which is negative, span more than a factor of `WIDE_SPAN`, zeros left out."""
    positive = [value for value in values if value > 0]
    return len(positive) > 1 and min(values) >= 0 and max(positive) > WIDE_SPAN * min(positive)


def _field_axis(axes, values):
    distinct = sorted(set(values))
    if is_wide(values):
        if distinct[0] > 0:
            axes.set_xscale("log")
        else:  # Zero has a place of its own, left of the smallest value.
            axes.set_xscale("symlog", linthresh=distinct[1], linscale=0.5)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    texts = [f"{value:g}" for value in distinct]
    if len(distinct) <= _TICKED:
        crowded = sum(map(len, texts)) > 22
        axes.set_xticks(
            distinct, texts, **({"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if crowded else {})
        )
        axes.minorticks_off()
    axes.margins(x=0.1)


def _logarithmic(axes, which):
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _positions(values):
    """Values between 0 and 1; logarithmic if they are wide, with zeros at the lower end."""
    if not is_wide(values):
        return _linear(values)
    positive = [value for value in values if value > 0]
    below = 0.0 if min(values) > 0 else 0.15 * math.log(max(positive) / min(positive))
    lowest = math.log(min(positive)) - below
    logs = [math.log(value) if value > 0 else lowest for value in values]
    return _linear(logs)


def _linear(values):
    low, high = min(values), max(values)
    return [0.5 if high == low else (value - low) / (high - low) for value in values]


def _marks(values, positions):
    """(value, position) to write at an axis: all if they are few and apart, else lowest and highest."""
    marks = sorted(dict(zip(values, positions, strict=True)).items(), key=lambda mark: mark[1])
    kept = marks[:1]
    for mark in marks[1:-1]:
        if mark[1] - kept[-1][1] >= 0.09 and marks[-1][1] - mark[1] >= 0.09:
            kept.append(mark)
    return kept + (marks[-1:] if len(marks) > 1 else [])


def _names(groups):
    return ", ".join(clean(group.name) for group in groups)
