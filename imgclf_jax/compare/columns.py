"""The columns of the table, as text for people: units, digits, and which columns have anything to show."""

import math
from collections.abc import Callable
from typing import NamedTuple

from imgclf_jax.compare.groups import Group, Table
from imgclf_jax.compare.statistics import Interval
from imgclf_jax.terminal.console import count, duration

PERCENT = ("accuracy", "tta_accuracy", "error")


class Column(NamedTuple):
    """A column of the table.

    Attributes:
        head: its name.
        cells: one per group; empty if there is nothing to show.
        compares: whether it is about the difference to the baseline.
        numeric: whether the cells are numbers with signs, brackets and ±, and nothing else.
        left: whether the cells are aligned on the left.
    """

    head: str
    cells: list[str]
    compares: bool = False
    numeric: bool = True
    left: bool = False


class Unit(NamedTuple):
    """How values of a metric are shown.

    Attributes:
        scale: what they are multiplied by.
        decimals: digits after the point.
        name: of the unit, or an empty string.
    """

    scale: float
    decimals: int
    name: str

    def number(self, value: float, sign: str = "") -> str:
        """A value; with `sign="+"`, positive ones have a sign too."""
        text = f"{value * self.scale:{sign}.{self.decimals}f}"
        return text.replace("-", "+" if sign else "") if float(text) == 0 else text

    def interval(self, value: Interval | None, sign: str = "") -> str:
        """An interval in brackets, or an empty string."""
        return "" if value is None else f"[{self.number(value.low, sign)}, {self.number(value.high, sign)}]"


def unit(table: Table) -> Unit:
    """The unit of the table: percent with two decimals, or as many decimals as give four significant digits."""
    if table.metric.rpartition(".")[2] in PERCENT:
        return Unit(100.0, 2, "%")
    largest = max((abs(group.mean) for group in table.groups if group.mean), default=1.0)
    name = "s" if table.metric == "wall_time_seconds" else ""
    return Unit(1.0, max(0, 3 - math.floor(math.log10(largest))), name)


def title(table: Table) -> str:
    """The metric, its unit, and the baseline."""
    name = unit(table).name
    text = table.metric + (f" in {name}" if name else "")
    return f"{text}; baseline: {table.baseline}" if len(table.groups) > 1 else text


def columns(table: Table) -> list[Column]:
    """The columns that have something to show; the first has the names."""
    own, plain = unit(table), Unit(1.0, 2, "")

    def each(show: Callable[[Group], str]) -> list[str]:
        return [show(group) for group in table.groups]

    def compared(show: Callable[..., str]) -> list[str]:
        return ["" if group.comparison is None else show(group.comparison) for group in table.groups]

    every = [
        Column("group", each(lambda group: group.name), numeric=False, left=True),
        Column("n", each(lambda group: str(len(group.values)))),
        Column("mean ± std", each(lambda group: _mean(group, own))),
        Column("95 % interval", each(lambda group: own.interval(group.interval))),
        Column("images", each(lambda group: _images(group.images)), numeric=False),
        Column("time", each(lambda group: "" if group.seconds is None else duration(group.seconds)), numeric=False),
        Column(
            "difference",
            compared(lambda one: f"{own.number(one.difference, '+')} {own.interval(one.interval, '+')}".strip()),
            compares=True,
        ),
        Column("p", compared(lambda one: _p(one.p)), compares=True),
        Column("p (Holm)", compared(lambda one: _p(one.p_holm)), compares=True),
        Column(
            "P(A > B)",
            compared(lambda one: f"{one.p_superior:.2f} {plain.interval(one.p_superior_interval)}".strip()),
            compares=True,
        ),
        Column(
            "r",
            compared(lambda one: "" if one.correlation is None else plain.number(one.correlation)),
            compares=True,
        ),
        Column("verdict", compared(_verdict), compares=True, numeric=False, left=True),
    ]
    return [column for column in every if any(column.cells)]


def _mean(group, own):
    if group.mean is None:
        return ""
    return own.number(group.mean) + ("" if group.std is None else f" ± {own.number(group.std)}")


def _images(value):
    return "" if value is None else count(value).strip()


def _p(value):
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _verdict(one):
    if one.verdict != "not shown" or one.seeds_needed is None:
        return one.verdict
    return f"not shown ({one.seeds_needed:,} seeds)"
