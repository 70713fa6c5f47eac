"""Scores predictions of files whose folders are named like classes: accuracy and confusion."""

from collections.abc import Sequence

import numpy as np
from rich.cells import cell_len, set_cell_size

from imgclf_jax.terminal.output import printable

MOST_CLASSES = 20  # most classes in a confusion table; with more, only the worst pairs are shown
WORST = 10


class Score:
    """A confusion matrix that is filled file by file.

    Args:
        class_names: by label.
    """

    def __init__(self, class_names: Sequence[str]):
        self.class_names = [printable(name) for name in class_names]
        self.confusion = np.zeros((len(class_names), len(class_names)), np.int64)  # [true, predicted]

    def add(self, true: int, predicted: int) -> None:
        """Adds a file."""
        self.confusion[true, predicted] += 1

    @property
    def count(self) -> int:
        """Number of scored files."""
        return int(self.confusion.sum())

    def text(self, files: int, width: int) -> str:
        """The accuracy, as in "383 / 400 correct, 0.9575", and the confusions.

        Args:
            files: number of classified files, of which some may not be scored.
            width: of the terminal, in characters.
        """
        correct = int(self.confusion.trace())
        line = f"{correct} / {self.count} correct, {correct / self.count:.4f}"
        if files > self.count:
            line += (
                f"\n{files - self.count} of {files} files are not scored: none of their folders is named like a class"
            )
        details = self._table(width) if len(self.class_names) <= MOST_CLASSES else self._worst()
        return "\n".join([line, *(["", *details] if details else [])]) + "\n"

    def _table(self, width):
        """The lines of the confusion table, with a row for each true class that occurs.

        If the class names do not fit as column heads, the classes are numbered, and all of them have a row.
        """
        digits = len(str(self.confusion.max()))
        names, columns = self.class_names, self.class_names
        if _cells(names) + sum(2 + max(digits, cell_len(name)) for name in columns) > width:
            columns = [str(label) for label in range(len(names))]
            names = [f"{number:>{len(columns[-1])}} {name}" for number, name in zip(columns, names, strict=True)]
        sizes = [max(digits, cell_len(column)) for column in columns]
        first = max(_cells(names), len("true"))
        head = "true".ljust(first) + "".join(
            f"  {_right(name, size)}" for name, size in zip(columns, sizes, strict=True)
        )
        lines = [" " * first + "  predicted", head]
        for name, counts in zip(names, self.confusion, strict=True):
            if not counts.any() and columns is self.class_names:
                continue
            cells = (f"  {count or '.':>{size}}" for count, size in zip(counts.tolist(), sizes, strict=True))
            lines.append(set_cell_size(name, first) + "".join(cells))
        return lines

    def _worst(self):
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:WORST]
        pairs = [(int(wrong.flat[place]), *divmod(int(place), len(self.class_names))) for place in order]
        rows = [
            (str(count), self.class_names[true], self.class_names[predicted])
            for count, true, predicted in pairs
            if count
        ]
        if not rows:
            return []
        rows = [("files", "true", "predicted"), *rows]
        second = _cells([true for _, true, _ in rows])
        return [f"{count:>5}  {set_cell_size(true, second)}  {predicted}" for count, true, predicted in rows]


def _cells(names):
    return max(cell_len(name) for name in names)


def _right(text, size):
    return " " * (size - cell_len(text)) + text
