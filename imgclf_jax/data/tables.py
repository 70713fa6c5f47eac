"""Reads .csv files with a header line, and names the lines that are wrong."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imgclf_jax.errors import UserError
from imgclf_jax.storage.files import reason_of

MOST_PROBLEMS = 50  # that are listed


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        line: the number of its line in the file; of the last one if there are several.
        values: the values of the columns that were asked for, without surrounding spaces. An optional column that the
            file lacks has the value None.
    """

    line: int
    values: tuple[str | None, ...]


def content_of(setting: str, path: Path) -> bytes:
    """Returns the content of a file.

    Args:
        setting: the setting that names the file, such as "data.dir='x.csv'", for messages.
        path: the file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if not path.exists():
            raise UserError(f"{setting}: there is no such file")
        if not path.is_file():
            raise UserError(f"{setting}: is not a file")
        return path.read_bytes()
    except OSError as e:
        raise UserError(f"{setting}: cannot be read ({reason_of(e)})") from e


def read(setting: str, content: bytes, needed: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """Returns the rows of a .csv file in UTF-8. Empty lines and other columns are ignored.

    Args:
        setting: see `content_of`.
        content: the content of the file.
        needed: the names of columns, in the order of the values.
        optional: more columns, whose values follow.

    Raises:
        UserError: columns are missing, or lines have other numbers of values than there are columns. One line each.
    """
    # File names may hold bytes that are not valid UTF-8.
    text = content.decode("utf-8-sig", "surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    problems = []
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        lacking = [name for name in needed if name not in header]
        if lacking:
            raise UserError(
                f"{setting}: its first line lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}; it has "
                f"{', '.join(map(ascii, header)) or 'none'}, and columns are separated by commas"
            )
        if twice := [name for name in (*needed, *optional) if header.count(name) > 1]:
            raise UserError(f"{setting}: the column {twice[0]} is there twice; keep one")
        places = [header.index(name) if name in header else None for name in (*needed, *optional)]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                problems.append(
                    f"{setting}: line {reader.line_num} has {len(row)} values instead of {len(header)}; put values "
                    "with commas in quotation marks"
                )
                continue
            values = tuple(None if place is None else row[place].strip() for place in places)
            rows.append(Row(reader.line_num, values))
    except csv.Error as e:
        problems.append(f"{setting}: line {reader.line_num} is not valid CSV ({e})")
    if problems:
        raise UserError(shorten(problems))
    return rows


def shorten(problems: Sequence[str]) -> str:
    """Returns one line for each problem, or for the first ones and how many more there are."""
    more = [f"... and {len(problems) - MOST_PROBLEMS} more problems"] if len(problems) > MOST_PROBLEMS else []
    return "\n".join([*problems[:MOST_PROBLEMS], *more])
