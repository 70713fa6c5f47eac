"""Writes a table: for a terminal, and as plain text, Markdown, CSV, LaTeX and JSON."""

import json
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from imgclf_jax.compare.columns import Column, columns, title
from imgclf_jax.compare.groups import Table
from imgclf_jax.terminal.output import csv_line, printable

WIDTH = 100  # of plain text
_GAP = 2
_SHORTEST_NAME = 12
_STYLES = {"better": "green", "worse": "red"}
_OWN = ("name", "n", "mean", "std", "low", "high")
_COMPARED = ("p", "p_holm", "p_superior", "p_superior_low", "p_superior_high", "correlation", "paired", "verdict")
_DIFFERENCE = ("difference", "difference_low", "difference_high")
_CSV = (*_OWN, *_DIFFERENCE, *_COMPARED, "seeds_needed", "images_seen", "seconds")


def write(table: Table, form: str) -> None:
    """Prints a table to standard output; with "csv", what is below the table goes to standard error.

    Args:
        table: the table.
        form: "table", "markdown", "csv", "latex" or "json".
    """
    if form == "table" and sys.stdout.isatty():
        _show(table, shutil.get_terminal_size().columns)
    else:
        print({"table": plain, "markdown": markdown, "csv": csv, "latex": latex, "json": to_json}[form](table), end="")
    if form == "csv":
        sys.stdout.flush()
        print(_below(table), end="", file=sys.stderr)


def plain(table: Table, width: int = WIDTH) -> str:
    """Aligned text, `width` columns wide if names can be shortened enough."""
    lines = [printable(title(table)), ""]
    for block in _blocks(table, width):
        sizes = [max(map(cell_len, (column.head, *column.cells))) for column in block]
        for row in zip(*([column.head, *column.cells] for column in block), strict=True):
            cells = [_align(*cell) for cell in zip(row, sizes, (column.left for column in block), strict=True)]
            lines.append((" " * _GAP).join(cells).rstrip())
        lines.append("")
    return "\n".join(lines) + "\n" + _below(table, width)


def markdown(table: Table) -> str:
    """A table of GitHub's Markdown, the sentence, and lists of missing runs and notes."""
    shown = columns(table)
    lines = [
        _row(_escape_markdown(column.head) for column in shown),
        _row(":---" if column.left else "---:" for column in shown),
        *(_row(map(_markdown_cell, shown, row)) for row in zip(*(column.cells for column in shown), strict=True)),
    ]
    parts = [_escape_markdown(printable(title(table))), "\n".join(lines), _escape_markdown(table.sentence)]
    if table.missing:
        lines = [f"- {_escape_markdown(line)}" for line in table.missing_lines]
        parts.append("\n".join(["Without a value:", "", *lines]))
    parts += [f"Note: {_escape_markdown(note)}." for note in table.notes]
    return "\n\n".join(parts) + "\n"


def csv(table: Table) -> str:
    """One row per group with all digits, in the units of the metric. A cell is empty if there is no value."""
    lines = [csv_line(_CSV)]
    for group in to_dict(table)["groups"]:
        flat = dict(group)
        for name in ("interval", "difference_interval", "p_superior_interval"):
            prefix = name.removesuffix("interval")
            flat[f"{prefix}low"], flat[f"{prefix}high"] = group[name] or (None, None)
        lines.append(csv_line("" if flat[name] is None else flat[name] for name in _CSV))
    return "".join(lines)


def latex(table: Table) -> str:
    r"""A tabular with the rules of booktabs. What belongs in the caption follows as comments."""
    shown = columns(table)
    heads = [_escape_latex(column.head).replace("±", r"$\pm$") for column in shown]
    rows = zip(*([_latex_cell(column, cell) for cell in column.cells] for column in shown), strict=True)
    below = [_escape_latex(line) for line in [title(table), *_below(table).splitlines()] if line]
    lines = [
        f"\\begin{{tabular}}{{{''.join('l' if column.left else 'r' for column in shown)}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(f"% {line}".replace("±", r"$\pm$").replace("√n", r"$\sqrt{n}$") for line in below),
    ]
    return "\n".join(lines) + "\n"


def to_json(table: Table) -> str:
    """`to_dict` as JSON."""
    return json.dumps(to_dict(table), indent=2, allow_nan=False) + "\n"


def to_dict(table: Table) -> dict[str, Any]:
    """The table for programs: values in the units of the metric, None where there is none, and no NaN."""
    groups = []
    for group in table.groups:
        one = group.comparison
        groups.append(
            {
                "name": group.name,
                "identity": group.identity,
                "n": len(group.values),
                "mean": group.mean,
                "std": group.std,
                "interval": group.interval,
                "difference": one and one.difference,
                "difference_interval": one and one.interval,
                "p": one and one.p,
                "p_holm": one and one.p_holm,
                "p_superior": one and one.p_superior,
                "p_superior_interval": one and one.p_superior_interval,
                "correlation": one and one.correlation,
                "paired": one and one.paired,
                "verdict": one and one.verdict,
                "seeds_needed": one and one.seeds_needed,
                "images_seen": group.images,
                "seconds": group.seconds,
                "values": list(group.values.values()),
                "runs": [
                    {"seed": run.key[0], "fold": run.key[1] if run.folds else None, "folder": str(run.folder)}
                    for run in group.runs
                ],
                "changes": group.changes,
            }
        )
    return _finite(
        {
            "metric": table.metric,
            "baseline": table.baseline,
            "higher_is_better": table.higher_is_better,
            "groups": groups,
            "missing": [{**one._asdict(), "folder": str(one.folder)} for one in table.missing],
            "notes": list(table.notes),
            "sentence": table.sentence,
        }
    )


def _finite(value):
    """The value in types of JSON, with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _below(table: Table, width: int = 0) -> str:
    """The text below the table: its paragraphs are wrapped at `width` unless it is 0; a run has one line."""
    lines: list[str] = []
    for text in (table.sentence, *(f"Note: {note}." for note in table.notes)):
        lines += _wrap(text, width) if width else [text]
    if table.missing:
        lines += ["", "Without a value:", *(f"  {line}" for line in table.missing_lines)]
    return "".join(printable(line) + "\n" for line in lines)


def _wrap(text: str, width: int) -> list[str]:
    """The lines of a paragraph. A number and its percent sign are not separated."""
    lines = textwrap.wrap(text.replace(" %", "\0%"), width, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def _show(table: Table, width: int) -> None:
    """Prints to a terminal. Only names are shortened to fit; the terminal wraps what is still too long."""
    Console(highlight=False, soft_wrap=True).print(Text(printable(title(table)), style="bold"), end="\n\n")
    for block in _blocks(table, width):
        console = Console(highlight=False, width=max(width, _total(block) + _GAP))  # rich would shorten numbers
        drawn = RichTable(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
        for column in block:
            drawn.add_column(column.head, justify="left" if column.left else "right", no_wrap=True)
        for row in zip(*(column.cells for column in block), strict=True):
            drawn.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        console.print(drawn)
        console.print()
    print(_below(table), end="")


def _blocks(table: Table, width: int) -> list[list[Column]]:
    """One table if it fits, otherwise two: the groups, and their comparisons with the baseline."""
    names, *others = columns(table)
    names = names._replace(cells=list(map(printable, names.cells)))
    whole = [names, *others]
    if _total(whole) <= width or not any(column.compares for column in others):
        return [_fit(whole, width)]
    groups = [names, *(column for column in others if not column.compares)]
    compared = [column for column in others if column.compares]
    rows = [place for place in range(len(names.cells)) if any(column.cells[place] for column in compared)]
    second = [column._replace(cells=[column.cells[row] for row in rows]) for column in (names, *compared)]
    return [_fit(groups, width), _fit(second, width)]


def _fit(block: list[Column], width: int) -> list[Column]:
    """Shortens names if the block is wider than `width`, keeping their ends."""
    names, *others = block
    excess = _total(block) - width
    longest = max(map(cell_len, names.cells))
    if excess <= 0:
        return block
    size = max(_SHORTEST_NAME, longest - excess)
    return [names._replace(cells=[_shorten(name, size) for name in names.cells]), *others]


def _shorten(name, size):
    if cell_len(name) <= size:
        return name
    while cell_len(name) > size - 1:
        name = name[1:]
    return f"…{name}"


def _total(block: Sequence[Column]) -> int:
    sizes = [max(map(cell_len, (column.head, *column.cells))) for column in block]
    return sum(sizes) + _GAP * (len(sizes) - 1)


def _align(cell: str, size: int, left: bool) -> str:
    return set_cell_size(cell, size) if left else " " * (size - cell_len(cell)) + cell


def _row(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(column: Column, cell: str) -> str:
    return cell.replace("<", r"\<") if column.numeric else _escape_markdown(cell)


def _escape_markdown(text: str) -> str:
    # An underscore between letters or digits does not begin emphasis.
    return re.sub(r"([\\`*<|\[\]]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", printable(text))


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # After \\, a bracket would begin an optional argument.
    "]": "{]}",
}


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in printable(text))


def _latex_cell(column: Column, cell: str) -> str:
    if not column.numeric or not cell:
        return _escape_latex(cell)
    # Math mode ignores spaces.
    return "$" + cell.replace(" ± ", r" \pm ").replace(" [", r"\ [") + "$"
