"""Reads `metrics.jsonl`. Rows whose lines are damaged are taken from `metrics.csv`, which holds the same rows."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from imgclf_jax.storage.files import read_bytes
from imgclf_jax.workdir.record import is_natural, is_number

JSONL, CSV = "metrics.jsonl", "metrics.csv"
COLUMNS = ("step", "epoch", "split", "loss", "accuracy", "learning_rate", "images_per_second")
REQUIRED = ("step", "epoch", "split", "loss", "accuracy")
# Rows of the same step are written in this order.
ORDER = {"train": 0, "valid": 1, "test": 2}
Row = dict[str, Any]


class Rows(NamedTuple):
    """What the metrics files of a workdir hold.

    Attributes:
        rows: all rows that can be read, in order.
        damaged: the numbers, from 1, of the lines of `metrics.jsonl` that do not hold a row. A last line that a killed
            process left unfinished does not count as damaged.
        recovered: the rows that only `metrics.csv` has.
        missing: the rows that `metrics.csv` lacks.
        differing: the rows that have other values in `metrics.csv`; `rows` has those of `metrics.jsonl`.
    """

    rows: list[Row]
    damaged: list[int]
    recovered: list[Row]
    missing: list[Row]
    differing: list[Row]


def read_rows(workdir: Path) -> list[Row]:
    """All rows that the metrics files of a workdir hold, in order; see `read`."""
    return read(workdir).rows


def read(workdir: Path) -> Rows:
    """Reads the metrics files, whatever they contain.

    Raises:
        UserError: one of them exists but cannot be read: it is a folder, or permissions are missing.
    """
    advice = "; move it away"
    raw = read_bytes(Path(workdir) / JSONL, advice) or b""
    table = read_bytes(Path(workdir) / CSV, advice) or b""
    *lines, last = raw.split(b"\n")
    while lines and not last.strip():
        last = lines.pop()
    # Whether or not the last line ends in a line break, a whole row is taken and the beginning of one is dropped.
    unfinished = _row(last) is None and not raw.rstrip(b" \r\t").endswith(b"\n")
    if not unfinished and last.strip():
        lines.append(last)
    parsed = [_row(line) for line in lines]
    rows = [row for row in parsed if row is not None]
    damaged = [number for number, row in enumerate(parsed, 1) if row is None]
    known, tabled = {_key(row) for row in rows}, {_key(row): row for row in _table(table)}
    missing = [row for row in rows if _key(row) not in tabled]
    differing = [row for row in rows if any(row[name] != tabled.get(_key(row), row)[name] for name in COLUMNS)]
    recovered = [row for key, row in tabled.items() if key not in known]
    if recovered:
        rows = sorted(rows + recovered, key=lambda row: (row["step"], ORDER.get(row["split"], 3)))
    return Rows(rows, damaged, recovered, missing, differing)


def _row(line: bytes) -> Row | None:
    """The row in a line of JSON, or `None` if there is none."""
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return _checked(value)


def _table(raw: bytes) -> Iterator[Row]:
    """The complete rows of a CSV file."""
    text = raw.decode("utf-8", errors="replace")
    if not text.endswith("\n"):  # The last line may lack digits.
        text = text[: text.rfind("\n") + 1]
    lines = csv.DictReader(io.StringIO(text.replace("\0", "")))
    while True:
        try:
            line = next(lines, None)
        except csv.Error:
            continue
        if line is None:
            return
        try:
            value = {name: _value(name, line[name]) for name in COLUMNS if line.get(name) is not None}
        except ValueError:
            continue
        if (row := _checked(value)) is not None:
            yield row


def _value(name, text):
    if name == "split":
        return text
    return None if text == "" else int(text) if name == "step" else float(text)


def _checked(value):
    """A row with all columns, made from a value that was read, or `None` if the value is not a row."""
    if not isinstance(value, dict) or any(name not in value for name in REQUIRED):
        return None
    numbers = (value.get(name) for name in COLUMNS if name not in ("step", "split"))
    if not is_natural(value["step"]) or not all(number is None or is_number(number) for number in numbers):
        return None
    if not isinstance(value["split"], str) or not value["split"]:
        return None
    return {name: value.get(name) for name in COLUMNS} | value


def _key(row):
    return row["step"], row["split"]
