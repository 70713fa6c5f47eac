"""The metrics files of a run: always JSONL and CSV, and TensorBoard on request."""

import contextlib
import csv
import io
import itertools
import json
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imgclf_jax.storage.files import write_text
from imgclf_jax.workdir import rows
from imgclf_jax.workdir.rows import CSV, FIRST, JSONL, Row


class MetricsFiles:
    """Writes `metrics.jsonl`, `metrics.csv` and `tensorboard/` in a workdir, one row per event."""

    def __init__(self, workdir: Path, columns: Sequence[str], resume_step: int = 0, tensorboard: bool = True):
        """Opens the files and drops rows after `resume_step`, which training is about to write again.

        Damaged lines are dropped as well. In that case a copy of the file is kept, and a warning is given.

        Args:
            workdir: the folder of the run.
            columns: the columns of the metrics, in order; see `imgclf_jax.workdir.rows.columns` for the others. If
                earlier rows have other columns, `metrics.csv` has all of them, empty in the rows that lack them.
            resume_step: the step that the run continues from.
            tensorboard: whether to write `tensorboard/`.
        """
        workdir = Path(workdir)
        before = rows.read(workdir)
        _keep_damaged(workdir, before, resume_step)
        kept = [row for row in before.rows if row["step"] <= resume_step and row["split"] != "test"]
        self._columns = rows.columns(columns)
        self._jsonl = _rewrite(workdir / JSONL, _lines(kept))
        self._csv = _rewrite(workdir / CSV, "")
        self._table = _table(self._csv, columns, kept)
        self._tensorboard = None
        if tensorboard:
            from tensorboardX import SummaryWriter  # 0.2 s to import, more if PyTorch is installed

            # From this step on, TensorBoard hides what earlier sessions wrote. An evaluation of the test split may have
            # been written at this very step and will be written again, so this step is hidden too. Its other rows
            # are written again here.
            self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step)
            for row in kept:
                if row["step"] == resume_step:
                    self._add_scalars(row)
        self.flush()

    def write(self, **values: Any) -> Row:
        """Adds a row. Columns without a value, and numbers that are not finite, are left empty."""
        row = {name: _finite(values.get(name)) for name in self._columns}
        self._jsonl.write(json.dumps(row) + "\n")
        self._table.writerow(row)
        self._add_scalars(row)
        return row

    def _add_scalars(self, row):
        if self._tensorboard:
            for name, value in row.items():
                if name not in FIRST and value is not None:
                    self._tensorboard.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def flush(self) -> None:
        """Makes everything durable: no row is lost if the process is killed or the machine stops."""
        for file in (self._jsonl, self._csv):
            file.flush()
            os.fsync(file.fileno())
        if self._tensorboard:
            self._tensorboard.flush()

    def close(self) -> None:
        """Flushes and closes all files, even if one cannot be written."""
        with contextlib.ExitStack() as stack:
            for file in (self._jsonl, self._csv, self._tensorboard):
                if file:
                    stack.callback(file.close)


class NoFiles:
    """Stands in for `MetricsFiles` in processes that do not write."""

    def write(self, **values: Any) -> Row:
        """Does nothing."""
        return {}

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def repair(workdir: Path) -> None:
    """Writes the metrics files of a complete run again, with a warning, if one of them is damaged."""
    content = rows.read(workdir)
    if not (content.damaged or content.recovered or content.missing or content.differing):
        return
    if content.missing:
        warnings.warn(
            f"{workdir / CSV} lacked {len(content.missing)} rows, which were taken from {JSONL}", stacklevel=2
        )
    _keep_damaged(workdir, content, max((row["step"] for row in content.rows), default=0))
    write_text(workdir / JSONL, _lines(content.rows))
    table = io.StringIO()
    _table(table, () if content.rows else rows.METRICS, content.rows)
    write_text(workdir / CSV, table.getvalue())


def _keep_damaged(workdir, content, last_step):
    """Copies metrics files that are damaged in rows up to `last_step`, and warns about them."""
    recovered = sum(row["step"] <= last_step for row in content.recovered)
    if content.damaged:
        copy = _copy(workdir / JSONL)
        lines = ", ".join(map(str, content.damaged[:10])) + (", ..." if len(content.damaged) > 10 else "")
        warnings.warn(
            f"{workdir / JSONL} is damaged in line {lines}; the original is kept as {copy.name}, and {recovered} rows "
            f"were taken from {CSV}",
            stacklevel=3,
        )
    elif recovered:
        warnings.warn(f"{workdir / JSONL} lacked {recovered} rows, which were taken from {CSV}", stacklevel=3)
    if steps := [row["step"] for row in content.differing if row["step"] <= last_step]:
        copies = _copy(workdir / JSONL).name, _copy(workdir / CSV).name
        warnings.warn(
            f"{workdir}: {JSONL} and {CSV} differ in the rows of step {', '.join(map(str, steps[:10]))}, so one of "
            f"them is damaged; both are kept as {' and '.join(copies)}, and the run continues with the rows of {JSONL}",
            stacklevel=3,
        )


def _copy(path):
    """Copies a file to `metrics.damaged-N` with its suffix, and returns the path of the copy."""
    for number in itertools.count(1):
        copy = path.with_name(f"{path.stem}.damaged-{number}{path.suffix}")
        with contextlib.suppress(FileExistsError), copy.open("xb") as file:
            file.write(path.read_bytes())
            return copy
    raise AssertionError


def _lines(kept):
    return "".join(json.dumps(row) + "\n" for row in kept)


def _table(file, metrics, kept):
    """Writes a CSV table with its header, and returns its writer."""
    table = csv.DictWriter(file, rows.columns(metrics, kept), lineterminator="\n")
    table.writeheader()
    table.writerows(kept)
    return table


def _rewrite(path, text):
    write_text(path, text)
    return path.open("a", encoding="utf-8", newline="")


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value
