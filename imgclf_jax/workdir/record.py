"""`run.json`: its fields, its reader and its writer. A truncated or edited file is reported, never trusted."""

import datetime
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imgclf_jax.errors import UserError
from imgclf_jax.storage.files import read_json, write_json
from imgclf_jax.terminal import streams

NAME = "run.json"
ADVICE = (
    "; the file can be deleted: everything except results, times and versions is kept elsewhere, and training with the "
    "same command writes it again"
)


class _Kind:
    """A kind of value: its name in messages, and its test."""

    def __init__(self, name: str, test: Callable[[Any], bool]):
        self.name, self.test = name, test

    def or_null(self) -> "_Kind":
        """This kind or `null`."""
        return _Kind(f"{self.name} or null", lambda value: value is None or self.test(value))


def is_number(value: Any) -> bool:
    """Whether a value is a finite number. Booleans are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def is_natural(value: Any) -> bool:
    """Whether a value is an integer from 0 to 2**63 - 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_shape(value):
    return isinstance(value, list) and len(value) == 3 and all(is_natural(size) and size for size in value)


def _are_texts(value):
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _are_names(value):
    return _are_texts(value) and bool(value)


def _are_origins(value):
    return isinstance(value, list) and all(isinstance(origin, dict) for origin in value)


TEXT = _Kind("a string", lambda value: isinstance(value, str))
NATURAL = _Kind("a non-negative integer", is_natural)
POSITIVE = _Kind("a positive integer", lambda value: is_natural(value) and value > 0)
NUMBER = _Kind("a number", is_number)
LOSS = _Kind("a number", lambda value: isinstance(value, float) or is_number(value))  # It may be infinite or NaN.

# A field that is not listed may hold anything; ANY stands for the names of splits and packages.
ANY = "*"
DATA = {
    "name": TEXT,
    "location": TEXT,
    "fingerprint": TEXT,
    "class_names": _Kind("a list of names", _are_names),
    "image_shape": _Kind("a list of three sizes", _is_shape),
    "counts": {ANY: NATURAL},
    "labels": {"file": TEXT, "sha256": TEXT, "changed": NATURAL},
}
ACCURACY = _Kind("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
RESULT = {
    "accuracy": ACCURACY,
    "tta_accuracy": ACCURACY,
    "tta_loss": LOSS.or_null(),
    "loss": LOSS.or_null(),
    "correct": NATURAL,
    "count": NATURAL,
    "not_finite": NATURAL,
}
PROVENANCE = {
    "git": {"commit": TEXT},
    "packages": {ANY: TEXT.or_null()},
    "process_count": NATURAL,
    "devices_used": NATURAL,
    "config_file": {"path": TEXT, "sha256": TEXT},
    "parts": {ANY: {"path": TEXT, "sha256": TEXT, "distribution": TEXT, "version": TEXT.or_null()}},
}
FIELDS = {
    "status": TEXT,
    "started": TEXT,
    "error": TEXT,
    "sessions": NATURAL,
    "killed_sessions": NATURAL,
    "seed": NATURAL,
    "step": NATURAL,
    "reported_step": NATURAL,
    "diverged_at_step": NATURAL,
    "wall_time_seconds": NUMBER,
    "head": TEXT,  # of the network: softmax or sigmoid
    "together": POSITIVE,  # How many runs shared the program, and so the time; it is left out for a run by itself.
    "flops_per_step": NUMBER.or_null(),
    "images_per_second": NUMBER.or_null(),
    "data": DATA,
    "results": {ANY: RESULT},
    "provenance": PROVENANCE,
    "earlier_provenance": _Kind("a list of objects", _are_origins),
    "stopped_early": {"step": NATURAL, "patience": POSITIVE},
    "ancestor": {
        "workdir": TEXT,
        "step": NATURAL,
        "sha256": TEXT,
        "data_fingerprint": TEXT.or_null(),
        "config_identity": TEXT.or_null(),
    },
    "rerun_of": {
        "folder": TEXT,
        "agrees": _Kind("true or false", lambda value: isinstance(value, bool)),
        "differences": _Kind("a list of strings", _are_texts),
    },
}
# The fields that a part must have if it is present at all.
REQUIRED = {
    "results.*": ("accuracy", "loss", "correct", "count"),
    "provenance.git": ("commit",),
    "rerun_of": ("folder", "agrees", "differences"),
    "stopped_early": ("step", "patience"),
    "ancestor": ("workdir", "step", "sha256"),
    "provenance.config_file": ("path", "sha256"),
}
NULLABLE = ("provenance.git", "provenance.packages", "provenance.config_file", "provenance", "data", "results")


def read(workdir: Path) -> dict[str, Any] | None:
    """The `run.json` of a workdir, or `None` if there is none.

    Raises:
        UserError: the file cannot be read, or a field holds an impossible value. The message says that the file can be
            deleted.
    """
    path = Path(workdir) / NAME
    content = read_json(path, ADVICE)
    if content is not None and (problem := find_problem(content, FIELDS)):
        raise UserError(f"cannot read {path}: {problem}{ADVICE}")
    return content


def find_problem(content: dict[str, Any], fields: dict[str, Any], path: str = "", pattern: str = "") -> str | None:
    """The first problem with the values of an object, or `None`.

    Args:
        content: the object.
        fields: the kinds of its fields, in the form of `FIELDS`.
        path: the path of the object, for the message.
        pattern: the same path, with `ANY` in place of names that are not fixed.
    """
    for name in REQUIRED.get(pattern, ()):
        if name not in content:
            return f"{path} lacks {name}"
    for name, value in content.items():
        key = name if name in fields else ANY
        if key not in fields:
            continue
        here, there = (f"{prefix}.{last}".lstrip(".") for prefix, last in ((path, name), (pattern, key)))
        kind = fields[key]
        if isinstance(kind, _Kind):
            if not kind.test(value):
                return f"{here} is {_short(value)}, not {kind.name}"
        elif value is None and there in NULLABLE:
            continue
        elif not isinstance(value, dict):
            return f"{here} is {_short(value)}, not an object"
        elif problem := find_problem(value, kind, here, there):
            return problem
    if pattern == "results.*" and not 0 < content["count"] >= content["correct"]:
        return f"{path} says that {content['correct']} of {content['count']} are correct"
    return None


def own_seconds(content: dict[str, Any]) -> float | None:
    """The share of a run in its wall time, in seconds: all of it, or 1 / `together`; `None` if it is not recorded."""
    seconds = content.get("wall_time_seconds")
    return None if seconds is None else seconds / content.get("together", 1)


def is_described(data: Any) -> bool:
    """Whether the recorded facts of a data set include everything that is needed to use a network."""
    return (
        isinstance(data, dict)
        and find_problem(data, DATA) is None
        and all(data.get(name) for name in ("class_names", "image_shape", "counts"))
        and data["counts"].get("train", 0) > 0
    )


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class RunRecord:
    """Rewrites all of `run.json` whenever something changes, so the file is always up to date.

    Attributes:
        content: the content of the file, or what it would be if this process wrote it.
    """

    def __init__(self, workdir: Path, before: dict[str, Any] | None = None, writes: bool = True):
        """Prepares the record; writes nothing yet.

        Args:
            workdir: the folder of the run.
            before: the record that earlier sessions of the same run have written; see `read`.
            writes: whether this process writes the file.
        """
        self._path = workdir / NAME
        self._writes = writes
        self._lock = threading.Lock()
        self.content = dict(before or {})
        self._spent = self.content.get("wall_time_seconds", 0.0)
        self._started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._clock = time.monotonic()  # The time of day may be changed during a run.

    def begin(self, **content: Any) -> None:
        """Starts a session with the status "running". How an earlier one ended is dropped; its time is carried over."""
        before = self.content
        self.content = {
            "status": "running",
            "started": before.get("started", self._started),
            "sessions": before.get("sessions", 0) + 1,
            **content,
        }
        # The time that a killed session spent after it last wrote this record is unknown, and is not counted.
        if killed := before.get("killed_sessions", 0) + (before.get("status") == "running"):
            self.content["killed_sessions"] = killed
        self.update()

    @property
    def wall_time(self) -> float:
        """Seconds that this run has taken, over all its sessions."""
        return self._spent + time.monotonic() - self._clock

    def update(self, **content: Any) -> None:
        """Adds fields to the record and writes it. May be called from any thread."""
        with self._lock:
            self._update(content)

    def _update(self, content):
        self.content |= content
        self.content["wall_time_seconds"] = round(self.wall_time, 3)
        if streams.lost() and "console" not in self.content:
            self.content["console"] = f"lost, as noticed at step {self.content.get('step', 0)}: {streams.lost()}"
        if self._writes:
            write_json(self._path, self.content)
