"""A progress bar for many files, on standard error if it is a terminal."""

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from imgclf_jax.terminal.console import duration


class Bar:
    """A progress bar that does not mix with text written to another stream.

    Args:
        description: of the work.
        total: number of files.
    """

    def __init__(self, description: str, total: int):
        console = Console(stderr=True)
        columns = (TextColumn(description), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
        self._bar = Progress(*columns, console=console, transient=True, auto_refresh=False, redirect_stdout=False)
        self._task = self._bar.add_task(description, total=total, text=f"0/{total:,}")
        self._total = total
        self._shown = console.is_terminal
        self._began = 0.0
        if self._shown:
            self._bar.start()

    def write(self, text: str, stream: TextIO) -> None:
        """Writes and flushes the text; on a terminal, above the bar."""
        if self._shown and stream.isatty():
            self._bar.stop()
        stream.write(text)
        stream.flush()
        if self._shown and stream.isatty():
            self._bar.start()

    def update(self, done: int) -> None:
        """Sets the number of files done. Times are estimated from the first call, which compile time precedes."""
        began, now = self._began, time.monotonic()
        if not began:
            self._began, self._first = now, done
            left = "?"
        else:
            left = duration((now - began) / max(1, done - self._first) * (self._total - done))
        if self._shown:
            self._bar.update(self._task, completed=done, text=f"{done:,}/{self._total:,}  ETA {left}", refresh=True)

    def close(self) -> None:
        """Removes the bar."""
        if self._shown:
            self._bar.stop()
        sys.stderr.flush()
