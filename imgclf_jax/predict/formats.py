"""Output formats: a table for people, CSV and JSON Lines for programs. Each is written row by row."""

import abc
import json
from collections.abc import Sequence

import numpy as np
from rich.cells import cell_len, set_cell_size

from imgclf_jax.predict.reading import Row, best
from imgclf_jax.terminal.output import csv_line, printable


class Format(abc.ABC):
    """A format of rows.

    Args:
        class_names: by label.
        top_k: number of classes shown per file.
    """

    def __init__(self, class_names: Sequence[str], top_k: int):
        self.class_names = class_names
        self.top_k = min(top_k, len(class_names))

    def head(self) -> str:
        """Text before the first row."""
        return ""

    @abc.abstractmethod
    def row(self, row: Row) -> str:
        """A row, including its line end."""

    def top(self, row: Row) -> list[tuple[str, np.float32]]:
        """(class name, probability), most probable first; an empty list for a file without a prediction."""
        if row.probabilities is None:
            return []
        return [(self.class_names[label], row.probabilities[label]) for label in best(row.probabilities, self.top_k)]


class Csv(Format):
    """CSV with the columns file, class_1, probability_1, ..., error (empty for a file with a prediction).

    Names that a spreadsheet would evaluate are escaped, see `imgclf_jax.terminal.output.csv_line`.
    """

    def head(self) -> str:
        """The names of the columns."""
        pairs = [f"{column}_{place + 1}" for place in range(self.top_k) for column in ("class", "probability")]
        return csv_line(["file", *pairs, "error"])

    def row(self, row: Row) -> str:
        """A row. The classes and probabilities are empty for a file without a prediction."""
        pairs = [cell for pair in self.top(row) for cell in pair] or [""] * (2 * self.top_k)
        return csv_line([row.file, *pairs, row.reason])


class JsonLines(Format):
    """One JSON object per line: file, class, probability and the probabilities of all classes, most probable first.

    `true` is the class that a folder of the file is named like, if there is one. A file without a prediction has
    `error` instead.
    """

    def __init__(self, class_names: Sequence[str]):
        super().__init__(class_names, len(class_names))

    def row(self, row: Row) -> str:
        """An object. Bytes of file names that are not valid UTF-8 are kept as Python's surrogate escapes."""
        content: dict[str, object] = {"file": row.file}
        if row.probabilities is None:
            content["error"] = row.reason
        else:
            # str() gives the shortest text that restores the float32, with fewer digits than its float64 value.
            probabilities = {name: float(str(number)) for name, number in self.top(row)}
            name = next(iter(probabilities))
            content |= {"class": name, "probability": probabilities[name], "probabilities": probabilities}
        if row.label is not None:
            content["true"] = self.class_names[row.label]
        return json.dumps(content) + "\n"


class Table(Format):
    """Aligned columns, truncated to the width of the terminal if possible.

    Args:
        class_names: by label.
        top_k: number of classes shown per file.
        files: all file names, which determine the width of the first column.
        width: of the terminal, in characters; 0: nothing is truncated.
    """

    _GAP = 2
    _LEAST = 20, 8  # smallest width of a file name and of a class name, even on a narrow terminal

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
        """A row. A file without a prediction has the reason in place of the classes."""
        cells = [f"{_fit(name, max(self._class, len('class')))} {number:.4f}" for name, number in self.top(row)]
        return self._line(row.file, *(cells or [row.reason]))

    def _line(self, file, *cells):
        return (" " * self._GAP).join((_fit(file, self._file, keep_end=True), *cells)).rstrip() + "\n"


def _fit(text, size, keep_end=False):
    """The text in exactly `size` terminal cells: padded, or truncated at its end or, with `keep_end`, at its start."""
    text = printable(text)
    if cell_len(text) <= size:
        return set_cell_size(text, size)
    if not keep_end:
        return set_cell_size(text, size - 1) + "…"
    while cell_len(text) > size - 1:
        text = text[1:]
    return set_cell_size("…" + text, size)
