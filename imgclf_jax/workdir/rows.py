"""Reads `metrics.jsonl`. Rows whose lines are damaged are taken from `metrics.csv`, which holds the same rows.

The columns are data: they depend on the metrics of the run. Files with columns other than the current ones can be read.
"""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from imgclf_jax.storage.files import read_bytes
from imgclf_jax.workdir.record import is_natural, is_number

JSONL, CSV = "metrics.jsonl", "metrics.csv"
# The columns of a run are FIRST, those of its metrics, and LAST. Every row has METRICS, which the reports need.
FIRST, LAST = ("step", "epoch", "split"), ("learning_rate", "images_per_second")
METRICS = ("loss", "accuracy")
# Rows of the same step are written in this order.
ORDER = {"train": 0, "valid": 1, "test": 2}
Row = dict[str, Any]


class Rows(NamedTuple):
    """The rows in the metrics files of a workdir.

    Attributes:
        rows: all rows that can be read, in order. Every row has at least `columns(METRICS)`; in rows of older versions,
            `LAST` may be `None`.
        damaged: the numbers, from 1, of the lines of `metrics.jsonl` that do not hold a row. A last line that a killed
            process left unfinished does not count as damaged.
        recovered: the rows that only `metrics.csv` has.
        missing: the rows that `metrics.csv` lacks.
        differing: the rows whose values differ in `metrics.csv`, in the columns that it has; `rows` has the values from
            `metrics.jsonl`.
    """

    rows: list[Row]
    damaged: list[int]
    recovered: list[Row]
    missing: list[Row]
    differing: list[Row]


def columns(metrics: Iterable[str], rows: Iterable[Row] = ()) -> tuple[str, ...]:
    """The columns of a table: `FIRST`, then those of metrics, then `LAST`.

    Args:
        metrics: the columns of the run's metrics, in order.
        rows: rows of earlier sessions; their additional columns follow those of `metrics`.
    """
    names = dict.fromkeys([*metrics, *(name for row in rows for name in row)])
    return (*FIRST, *(name for name in names if name not in FIRST + LAST), *LAST)


def read_rows(workdir: Path) -> list[Row]:
    """All rows in the metrics files of a workdir, in order; see `read`."""
    return read(workdir).rows


def read(workdir: Path) -> Rows:
    """Reads the metrics files. Content that is not a row is skipped.

    Raises:
        UserError: a file exists but cannot be read: it is a folder, or permissions are missing.
    """
    advice = "; move it away"
    raw = read_bytes(Path(workdir) / JSONL, advice) or b""
    table = read_bytes(Path(workdir) / CSV, advice) or b""
    *lines, last = raw.split(b"\n")
    while lines and not last.strip():
        last = lines.pop()
    # A complete last row counts even without its line break; an incomplete row is dropped.
    unfinished = _row(last) is None and not raw.rstrip(b" \r\t").endswith(b"\n")
    if not unfinished and last.strip():
        lines.append(last)
    parsed = [_row(line) for line in lines]
    rows = [row for row in parsed if row is not None]
    damaged = [number for number, row in enumerate(parsed, 1) if row is None]
    header, table_rows = _table(table)
    known, tabled = {_key(row) for row in rows}, {_key(row): row for row in table_rows}
    missing = [row for row in rows if _key(row) not in tabled]
    differing = [row for row in rows if any(row.get(name) != tabled.get(_key(row), row).get(name) for name in header)]
    recovered = [row for key, row in tabled.items() if key not in known]
    if recovered:
        rows = sorted(rows + recovered, key=lambda row: (row["step"], ORDER.get(row["split"], 3)))
    return Rows(rows, damaged, recovered, missing, differing)


def _row(line: bytes) -> Row | None:
    """The row in a line of JSON, or `None` if the line does not hold one."""
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return _checked(value)


def _table(raw: bytes) -> tuple[list[str], list[Row]]:
    """(columns, complete rows) of a CSV file."""
    text = raw.decode("utf-8", errors="replace")
    if not text.endswith("\n"):  # The last line may lack digits.
        text = text[: text.rfind("\n") + 1]
    lines = csv.reader(io.StringIO(text.replace("\0", "")))
    header: list[str] | None = None
    rows: list[Row] = []
    while True:
        try:
            line = next(lines, None)
        except csv.Error:
            continue
        if line is None:
            return header or [], rows
        if header is None:
            header = line
            continue
        try:
            row = _checked({name: _value(name, text) for name, text in zip(header, line, strict=False) if name})
        except ValueError:
            continue
        if row is not None:
            rows.append(row)


def _value(name, text):
    if name == "split":
        return text
    return None if text == "" else int(text) if name == "step" else float(text)


def _checked(value):
    """A row with its columns in order, made from a value that was read, or `None` if the value is not a row."""
    if not isinstance(value, dict) or any(name not in value for name in FIRST + METRICS):
        return None
    numbers = (number for name, number in value.items() if name not in ("step", "split"))
    if not is_natural(value["step"]) or not all(number is None or is_number(number) for number in numbers):
        return None
    if not isinstance(value["split"], str) or not value["split"]:
        return None
    return {name: value.get(name) for name in columns((), [value])}


def _key(row):
    return row["step"], row["split"]
