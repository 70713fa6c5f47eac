"""Writers of your own, named in `log.writers`, which get the rows that the metrics files get."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from imgclf_jax import components
from imgclf_jax.workdir.metrics import MetricsFiles
from imgclf_jax.workdir.rows import FIRST, Row

SLOT = "log.writers"


class OwnWriters:
    """The metrics files, and writers of one's own. An exception in a writer ends that writer alone, with a warning."""

    def __init__(self, files: MetricsFiles, names: Sequence[str], workdir: Path, config: dict[str, Any]):
        """Makes the writers: each is called with (workdir, config), and has scalars(step, values) and close()."""
        self._files = files
        self._writers: dict[str, Any] = {}
        for name in names:
            self._call(name, self._make, name, workdir, config)

    def write(self, **values: Any) -> Row:
        """Adds a row to the files, passes its numbers on as "split/name" -> value, and returns the row."""
        row = self._files.write(**values)
        named = {f"{row['split']}/{key}": value for key, value in row.items() if key not in FIRST and value is not None}
        for name, writer in list(self._writers.items()):
            self._call(name, writer.scalars, row["step"], dict(named))
        return row

    def flush(self) -> None:
        """Makes the files durable."""
        self._files.flush()

    def close(self) -> None:
        """Closes the writers and the files."""
        for name, writer in list(self._writers.items()):
            self._call(name, writer.close)
        self._files.close()

    def _make(self, name: str, workdir: Path, config: dict[str, Any]) -> None:
        self._writers[name] = components.find(name, {}, SLOT)(workdir, config)

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception as error:
            self._writers.pop(name, None)
            warnings.warn(f"{SLOT}={name!r} is switched off: {components.explain(error)}", stacklevel=3)
