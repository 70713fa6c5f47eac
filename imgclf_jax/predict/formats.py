"""Rows as text: a table for people, CSV and JSON Lines for programs. Each is written row by row."""

import abc
import json
from collections.abc import Sequence

import numpy as np
from rich.cells import cell_len, set_cell_size

from imgclf_jax.predict.reading import Row, best
from imgclf_jax.terminal.output import csv_line


class Format(abc.ABC):
    """How rows are written.

    Args:
        class_names: by label.
        top_k: how many classes of a file are shown.
    """

    def __init__(self, class_names: Sequence[str], top_k: int):
        self.class_names = class_names
        self.top_k = min(top_k, len(class_names))

    def head(self) -> str:
        """What comes before the first row."""
        return ""

    @abc.abstractmethod
    def row(self, row: Row) -> str:
        """A row, with the end of its line."""

    def top(self, row: Row) -> list[tuple[str, np.float32]]:
        """Returns (class name, its probability), most probable first; an empty list for a file without a prediction."""
        if row.probabilities is None:
            return []
        return [(self.class_names[label], row.probabilities[label]) for label in best(row.probabilities, self.top_k)]


class Csv(Format):
    """Columns: file, class_1, probability_1 and so on, error (empty for a file that has a prediction).

    Names that a spreadsheet would take for formulas are escaped, see `imgclf_jax.terminal.output.csv_line`.
    """

    def head(self) -> str:
        """The names of the columns."""
        pairs = [f"{column}_{place + 1}" for place in range(self.top_k) for column in ("class", "probability")]
        return csv_line(["file", *pairs, "error"])

    def row(self, row: Row) -> str:
        """A file without a prediction has empty classes."""
        pairs = [cell for pair in self.top(row) for cell in pair] or [""] * (2 * self.top_k)
        return csv_line([row.file, *pairs, row.reason])


class JsonLines(Format):
    """An object a line: file, class, probability and the probabilities of all classes, most probable first.

    Also `true`, the class that its folder is named after, where it is. A file that could not be read has `error`.
    """

    def __init__(self, class_names: Sequence[str]):
        super().__init__(class_names, len(class_names))

    def row(self, row: Row) -> str:
        """Names of files that are not UTF-8 keep their bytes as Python's surrogate escapes."""
        content: dict[str, object] = {"file": row.file}
        if row.probabilities is None:
            content["error"] = row.reason
        else:
            # Through the shortest text that gives the float32 back, which has fewer digits.
            probabilities = {name: float(str(number)) for name, number in self.top(row)}
            name = next(iter(probabilities))
            content |= {"class": name, "probability": probabilities[name], "probabilities": probabilities}
        if row.label is not None:
            content["true"] = self.class_names[row.label]
        return json.dumps(content) + "\n"


class Table(Format):
    """Aligned columns, cut to fit where that is possible.

    Args:
        class_names: by label.
        top_k: how many classes of a file are shown.
        files: the names that will come, so that the first row knows the width of the longest.
        width: of the terminal, in characters; 0: nothing is cut.
    """

    _GAP = 2
    _LEAST = 20, 8  # what is left of a file's and of a class's name, however narrow the terminal is

    def __init__(self, class_names: Sequence[str], top_k: int, files: Sequence[str], width: int):
        super().__init__(class_names, top_k)
        self._file = max(4, *(cell_len(printable(file)) for file in files))
        self._class = max(cell_len(printable(name)) for name in class_names)
        columns = self.top_k * (self._GAP + len(" 0.1234"))
        if width:
            file, name = self._LEAST
            self._class = min(self._class, max(name, (width - columns - min(self._file, file)) // self.top_k))
            self._file = min(self._file, max(file, width - columns - self.top_k * self._class))

    def head(self) -> str:
        """The names of the columns."""
        size = max(self._class, len("class")) + len(" 0.1234")
        return self._line("file", *(set_cell_size(f"class {place + 1}", size) for place in range(self.top_k)))

    def row(self, row: Row) -> str:
        """The reason stands where the classes of a file would, which could not be read."""
        cells = [f"{_fit(name, max(self._class, len('class')))} {number:.4f}" for name, number in self.top(row)]
        return self._line(row.file, *(cells or [row.reason]))

    def _line(self, file, *cells):
        return (" " * self._GAP).join((_fit(file, self._file, keep_end=True), *cells)).rstrip() + "\n"


def printable(text: str) -> str:
    """`text` without what would move the cursor or could not be encoded."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _fit(text, size, keep_end=False):
    """`text` in exactly `size` cells of the terminal, at the cost of its start or its end."""
    text = printable(text)
    if cell_len(text) <= size:
        return set_cell_size(text, size)
    if not keep_end:
        return set_cell_size(text, size - 1) + "…"
    while cell_len(text) > size - 1:
        text = text[1:]
    return set_cell_size("…" + text, size)
