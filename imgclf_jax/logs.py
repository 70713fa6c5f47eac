"""The metrics files of a run: JSONL and CSV always, TensorBoard where wanted."""

import contextlib
import csv
import json
import math
from pathlib import Path
from typing import Any

COLUMNS = ("step", "epoch", "split", "loss", "accuracy", "learning_rate", "images_per_second")
Row = dict[str, Any]


class MetricsFiles:
    """Writes `metrics.jsonl`, `metrics.csv` and `tensorboard/` in a workdir, a row an event."""

    def __init__(self, workdir: Path, resume_step: int = 0, tensorboard: bool = True):
        """Opens the files. Rows past `resume_step` are dropped: training is about to write them again."""
        workdir = Path(workdir)
        rows = [row for row in read_rows(workdir) if row["step"] <= resume_step and row["split"] != "test"]
        self._jsonl = _rewrite(workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        self._csv = _rewrite(workdir / "metrics.csv", "")
        self._table = csv.DictWriter(self._csv, COLUMNS, lineterminator="\n")
        self._table.writeheader()
        self._table.writerows(rows)
        self._tensorboard = None
        if tensorboard:
            from tensorboardX import SummaryWriter  # 0.2 s to import, more where PyTorch is installed

            self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)
        self.flush()

    def write(self, **values: Any) -> Row:
        """Adds a row; columns that are not given stay empty, numbers that are not finite become empty too."""
        row = {name: _finite(values.get(name)) for name in COLUMNS}
        self._jsonl.write(json.dumps(row) + "\n")
        self._table.writerow(row)
        if self._tensorboard:
            for name in COLUMNS[3:]:
                if row[name] is not None:
                    self._tensorboard.add_scalar(f"{row['split']}/{name}", row[name], row["step"])
        return row

    def flush(self) -> None:
        """Hands everything to the operating system, so that a killed process loses no row."""
        for file in (self._jsonl, self._csv):
            file.flush()
        if self._tensorboard:
            self._tensorboard.flush()

    def close(self) -> None:
        """Flushes and closes; closes all of them even if one cannot be written."""
        with contextlib.ExitStack() as stack:
            for file in (self._jsonl, self._csv, self._tensorboard):
                if file:
                    stack.callback(file.close)


class NoFiles:
    """Stands in for `MetricsFiles` in processes that write none."""

    def write(self, **values: Any) -> None:
        """Does nothing, like the others."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def read_rows(workdir: Path) -> list[Row]:
    """The rows of `metrics.jsonl`; a last line that a killed process left unfinished is ignored."""
    path = Path(workdir) / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_json(path: Path, content: Any) -> None:
    """Replaces a JSON file in one move, so that no reader ever sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


def _rewrite(path, text):
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
    return path.open("a", newline="")


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value
