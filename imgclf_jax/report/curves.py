"""Learning curves from the rows of `metrics.jsonl`."""

from typing import NamedTuple

from imgclf_jax.workdir.rows import FIRST, LAST, METRICS, Row


class Point(NamedTuple):
    """A value at a point of training, given in epochs and in steps."""

    epoch: float
    step: int
    value: float


def points(rows: list[Row], split: str, field: str) -> list[Point]:
    """The curve of a field ("loss" or "accuracy"). Rows whose value was not finite are left out."""
    return [
        Point(row["epoch"], row["step"], row[field])
        for row in rows
        if row["split"] == split and row.get(field) is not None
    ]


def own_metrics(rows: list[Row]) -> list[str]:
    """The names of the metrics of one's own in the rows, in their order."""
    known = {*FIRST, *METRICS, "grad_norm", *LAST}
    found = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
    return [name for name in found if name not in known and not name.startswith("tta_")]


def best(curve: list[Point], field: str) -> Point:
    """The first point with the highest accuracy or the lowest loss. The curve must not be empty."""
    return (max if field == "accuracy" else min)(curve, key=lambda point: point.value)
