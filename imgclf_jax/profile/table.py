"""The table of the slowest operations of a program, per training step."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from imgclf_jax.profile import trace
from imgclf_jax.profile.hlo import CONTAINERS, Program
from imgclf_jax.terminal.console import count
from imgclf_jax.terminal.output import csv_line

HEADS = ("operation", "ms", "share", "runs", "bytes", "GB/s", "FLOP", "GFLOP/s", "kind", "source")
FIELDS = ("operation", "seconds", "share", "runs", "bytes", "flops", "kind", "source")
_LEFT = (0, 8, 9)  # the columns of names
_LONGEST = 72  # characters of a source in the printed table; operations that the compiler has joined name all of theirs


class Row(NamedTuple):
    """An operation, per training step and device.

    Attributes:
        operation: its name in the compiled program.
        seconds: how long it ran; see `imgclf_jax.profile.trace.Ran`.
        share: of the seconds of all operations.
        runs: how often it ran.
        bytes: what it read and wrote; see `imgclf_jax.profile.hlo.Operation`, as for the others.
        flops: of its convolutions and matrix products.
        kind: what it is.
        source: where it comes from.
    """

    operation: str
    seconds: float
    share: float
    runs: float
    bytes: float
    flops: float
    kind: str
    source: str


def rows(program: Program, path: Path, steps: int) -> list[Row]:
    """Returns the operations that ran, the slowest first.

    Args:
        program: the compiled training program.
        path: the trace.
        steps: the number of steps in it.
    """

    def is_leaf(name):
        found = program.operation(name)
        return found is None or found.kind not in CONTAINERS

    ran = trace.read(path, program.module, is_leaf)
    total = sum(each.seconds for each in ran.values()) or 1.0
    found = []
    for name, (seconds, times) in ran.items():
        one, runs = program.operation(name), times / steps
        costs = (0, 0, "", "") if one is None else (one.bytes * runs, one.flops * runs, one.kind, one.source)
        found.append(Row(name, seconds / steps, seconds / total, runs, *costs))
    return sorted(found, key=lambda row: -row.seconds)


def lines(found: list[Row], most: int = 20) -> list[str]:
    """Returns the table as lines of text: the `most` slowest operations, all others together, and the sum."""
    shown = found[:most]
    cells = [_cells(row) for row in shown]
    if rest := found[most:]:
        cells.append(_cells(_sum(f"{len(rest):,} others", rest)))
    cells.append(_cells(_sum("all", found)))
    columns = list(zip(HEADS, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            cell.ljust(width) if index in _LEFT else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (HEADS, *cells)
    ]


def csv(found: Iterable[Row]) -> str:
    """Returns all rows as a CSV table, with all digits."""
    return csv_line(FIELDS) + "".join(csv_line(row) for row in found)


def _sum(name, found):
    seconds, share, _, size, flops = (sum(row[index] for row in found) for index in (1, 2, 3, 4, 5))
    return Row(name, seconds, share, 0, size, flops, "", "")


def _cells(row):
    seconds = row.seconds or float("inf")
    return (
        row.operation,
        f"{1e3 * row.seconds:.3f}",
        f"{100 * row.share:.1f} %",
        f"{row.runs:.4g}" if row.runs else "",
        f"{count(row.bytes)}B" if row.bytes else "",
        f"{row.bytes / seconds / 1e9:.1f}" if row.bytes else "",
        count(row.flops).strip() if row.flops else "",
        f"{row.flops / seconds / 1e9:.1f}" if row.flops else "",
        row.kind,
        row.source if len(row.source) <= _LONGEST else f"{row.source[: _LONGEST - 1]}…",
    )
