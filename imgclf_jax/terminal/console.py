"""Console output of a run: a progress bar on a terminal, plain lines elsewhere, or JSON for other programs."""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table


class Console:
    """Prints to standard output; warnings go to standard error.

    Args:
        mode: "bar", "lines", "json" (only `emit` prints), "none" (only `result` prints), "auto" ("bar" on a terminal
            and "lines" elsewhere) or "silent" (nothing prints, not even warnings).
        line_seconds: least seconds between plain lines; 0 prints every row.
    """

    def __init__(self, mode: str = "auto", line_seconds: float = 10.0):
        self._rich = RichConsole(highlight=False, soft_wrap=True)
        self._mode = mode if mode != "auto" else "bar" if self._rich.is_terminal else "lines"
        self._line_seconds = line_seconds
        self._last_line = 0.0
        self._progress: Progress | None = None
        self._start = (0, 0.0)
        self._task = ("", 0, 0.0)  # description, units done at its start, time of its start

    def print(self, text: str = "") -> None:
        """Prints a line of text, above the progress bar if there is one."""
        if self._mode in ("bar", "lines"):
            self._rich.print(text, markup=False)

    def result(self, text: str) -> None:
        """Prints a line with what a command was started for, also in mode "none"."""
        if self._mode in ("bar", "lines", "none"):
            self._rich.print(text, markup=False)

    def emit(self, values: Mapping[str, Any]) -> None:
        """Prints an object as a line of JSON in mode "json", at once. Numbers that are not finite become null."""
        if self._mode == "json":
            sys.stdout.write(json.dumps(_finite(values), allow_nan=False) + "\n")
            sys.stdout.flush()

    def warn(self, text: str) -> None:
        """Prints a warning to standard error, in every mode but "silent"."""
        if self._mode != "silent":
            RichConsole(stderr=True, highlight=False, soft_wrap=True).print(text, style="bold yellow", markup=False)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], total: Sequence[str] = ()) -> None:
        """Prints a table; all columns but the first are right-aligned."""
        table = Table(box=None, pad_edge=False, show_footer=bool(total))
        footers = total or [""] * len(columns)
        for index, (column, footer) in enumerate(zip(columns, footers, strict=True)):
            table.add_column(column, footer=footer, justify="right" if index else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        if self._mode in ("bar", "lines"):
            # Wider than the terminal if need be: a number that is cut off is of no use.
            table.width = self._rich.measure(table, options=self._rich.options.update(width=10_000)).maximum
            self._rich.print(table, crop=False, no_wrap=True, overflow="ignore")

    def task(self, description: str, done: int, total: int) -> None:
        """Shows progress of work other than training, such as decoding or downloading, in units of the caller."""
        if description != self._task[0]:
            self._task = (description, done, time.monotonic())
        text = f"ETA {_left(*self._task[1:], done, total)}" if done < total else ""
        if self._mode == "bar":
            self._show(description, done, total, text)
            if done >= total:
                self.finish()
        elif self._mode == "lines" and (done >= total or self._line_is_due(least=5.0)):
            self.print(f"{description}: {done / max(total, 1):.0%}  {text}".rstrip())

    def start(self, step: int) -> None:
        """Training starts or resumes at `step`. Remaining times are estimated from here."""
        self._start = (step, time.monotonic())

    def train(self, step: int, steps: int, text: str, row: bool) -> None:
        """Shows progress of training.

        Args:
            step: steps done.
            steps: total steps of the run.
            text: epoch, loss and so on.
            row: whether a row of the metrics files was just written.
        """
        text = f"{text}  ETA {_left(*self._start, step, steps)}"
        if self._mode == "bar":
            self._show("train", step, steps, text)
        if row and (self._line_seconds == 0 or (self._mode == "lines" and (step == steps or self._line_is_due()))):
            self.print(f"step {step:>{len(str(steps))}}/{steps}  {text}")

    def finish(self) -> None:
        """Removes the progress bar."""
        if self._progress:
            self._progress.stop()
            self._progress = None

    def _show(self, description, done, total, text):
        if not self._progress:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
            self._progress = Progress(*columns, console=self._rich, transient=True)
            self._progress.add_task(description, total=total, text=text)
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], completed=done, total=total, text=text)

    def _line_is_due(self, least=0.0):
        now = time.monotonic()
        due = now - self._last_line >= max(self._line_seconds, least)
        if due:
            self._last_line = now
        return due


def _finite(value):
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def duration(seconds: float) -> str:
    """Formats a duration: "4.2 s", "3:07 min", "2:05:30 h"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def count(value: float) -> str:
    """Formats a large number with a prefix, to put before a unit: "1.23 M", "45.6 G"."""
    value = float(f"{value:.3g}")  # so that 999,999 becomes "1 M"
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} "


def _left(first, began, done, total):
    """The time that remains from `done` to `total`, at the average rate since `first` at time `began`."""
    if done <= first:
        return "?"
    return duration((time.monotonic() - began) / (done - first) * (total - done))
