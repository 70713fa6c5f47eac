"""`--rerun`: trains a recorded run again from its own files, and compares the numbers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from imgclf_jax.data.tfds import sample
from imgclf_jax.errors import UserError
from imgclf_jax.terminal.console import Console
from imgclf_jax.workdir import record as records
from imgclf_jax.workdir.claim import default_path
from imgclf_jax.workdir.rows import LAST, Row, read_rows
from imgclf_jax.workdir.saved_config import load_config

_CLOCK = "images_per_second"  # the column that no two runs share


class Recorded(NamedTuple):
    """The run to repeat, as it was when the command began.

    Attributes:
        folder: its workdir.
        config: its config.
        record: the content of its `run.json`.
        rows: the rows of its metrics files.
    """

    folder: Path
    config: ConfigDict
    record: dict[str, Any]
    rows: list[Row]

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended by itself. Otherwise it has no results, and only its first rows."""
        return self.record.get("status") in ("complete", "diverged")


def read(text: str, workdir: str | None) -> Recorded:
    """Reads the run to repeat. Writes nothing.

    Args:
        text: the value of `--rerun`: a workdir or its `run.json`.
        workdir: the value of `--workdir`, the folder for the new run.

    Raises:
        UserError: there is no such run, its files are damaged, or the new run would be in its folder.
    """
    path = Path(text)
    folder = path.parent if path.name == records.NAME else path
    if not folder.is_dir():
        raise UserError(f"--rerun={text}: there is no folder {folder}; give the workdir of a run, or its run.json")
    try:
        content = records.read(folder)
    except UserError as error:
        reason = str(error).removesuffix(records.ADVICE)
        raise UserError(f"{reason}; a rerun needs this file: restore it, or rerun another run") from error
    if content is None:
        raise UserError(f"--rerun={text}: {folder} holds no {records.NAME}; give the workdir that training printed")
    new = None if workdir is None else Path(workdir).resolve()
    if new and folder.resolve() in (new, *new.parents):
        raise UserError(f"--workdir={workdir} is in the folder of the run to repeat; choose another --workdir")
    config = load_config(folder)
    if (content.get("data") or {}).get("name") not in (None, sample.NAME):
        config.data.allow_sample = False  # The numbers of a sample cannot be compared with those of the whole.
    return Recorded(folder, config, content, read_rows(folder))


def rerun(recorded: Recorded, folder: Path | None, resume_command: Callable[[Path], str]) -> int:
    """Trains the run again in another workdir, and says what differs. `run.json` keeps it as `rerun_of`.

    Args:
        recorded: the run to repeat.
        folder: the workdir; `None` for a new one, `runs/NAME-rerun/YYYYmmdd-HHMMSS`. If it holds an unfinished rerun,
            that is continued.
        resume_command: see `imgclf_jax.train.Calls`.

    Returns:
        The exit status of training, whether or not the numbers agree.

    Raises:
        UserError: as `imgclf_jax.train.train`.
    """
    from imgclf_jax.devices import processes
    from imgclf_jax.train import train
    from imgclf_jax.training.run import Calls
    from imgclf_jax.workdir import provenance, resume

    config, content = recorded.config, recorded.record
    mode = "json" if config.log.progress == "json" else "lines"
    console = Console(mode if processes.is_first() else "silent")
    config_file = (content.get("provenance") or {}).get("config_file")
    here = provenance.of_run(config_file, config.parallel.devices)
    differences = environment(content.get("provenance") or {}, here)
    if content.get("seed", config.seed) != config.seed:
        differences.append(f"seed: {content['seed']} in run.json, {config.seed} in config.json, which is used")
    console.print(f"rerun of {recorded.folder}, recorded {content.get('started', 'at an unknown time')}")
    for line in differences or ["same versions, git commit, Python and devices"]:
        console.print(f"  {line}")

    def on_data(facts: dict[str, Any]) -> None:
        known = content.get("data") or {}
        changes: list[str] = []
        if "fingerprint" in known:
            resume.check_data(known, facts, recorded.folder, changes.append, allow_change=True)
        else:
            changes.append(f"data: {records.NAME} has no fingerprint of the recorded ones")
        differences.extend(changes)
        console.print(f"  {changes[0] if changes else 'same data'}")

    def conclude(new: Path) -> dict[str, Any]:
        ours = records.read(new) or {}
        if change := _other_ancestor(content.get("ancestor") or {}, ours.get("ancestor") or {}):
            differences.append(change)
            console.print(f"  {change}")
        found = compare(recorded, ours, read_rows(new))
        console.print(f"compared with {recorded.folder}:")
        for line in found.lines:
            console.print(f"  {line}")
        console.print(f"the numbers {'agree' if not found.differences else 'do not agree'}")
        rerun_of = {
            "folder": str(recorded.folder.resolve()),
            "agrees": not found.differences,
            "differences": differences + found.differences,
        }
        console.emit({"rerun_of": rerun_of})
        return {"rerun_of": rerun_of}

    name = Path(config_file["path"]).stem if config_file else config.model.name
    return train(
        config,
        folder or default_path(f"{name}-rerun"),
        new=folder is None,
        config_file=config_file,
        calls=Calls(resume_command=resume_command, on_data=on_data, conclude=conclude),
    )


def environment(recorded: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Returns one line for each version, commit or device that differs.

    Args:
        recorded: the `provenance` of the recorded run; see `imgclf_jax.workdir.provenance.of_run`.
        here: that of this job.
    """
    if not recorded:
        return [f"versions, git commit and devices: {records.NAME} does not have the recorded ones"]
    old, new = _facts(recorded), _facts(here)
    lines = [f"{name}: {_shown(old.get(name))} -> {_shown(new[name])}" for name in new if old.get(name) != new[name]]
    if all((origin.get("git") or {}).get("package_changed") for origin in (recorded, here)):
        lines.append("git: both runs have changes that are not committed, which may differ")
    return lines


def _other_ancestor(old, new):
    """Returns a line if the two runs started from different parameters, or ""."""
    if old.get("sha256") == new.get("sha256"):
        return ""
    digests = " -> ".join(str(each.get("sha256", "none"))[:12] for each in (old, new))
    return f"init.run: another network than that of the recorded run; SHA-256 {digests}"


def _facts(origin):
    git = origin.get("git") or {}
    return {
        "imgclf_jax": origin.get("imgclf_jax"),
        **{name: version for name, version in (origin.get("packages") or {}).items()},
        "git commit": git.get("commit"),
        "changes that are not committed": git.get("package_changed"),
        "python": origin.get("python"),
        "kind of device": origin.get("device_kind"),
        "devices used": origin.get("devices_used"),
        "processes": origin.get("process_count"),
        "XLA flags": origin.get("xla_flags"),
    }


def _shown(value):
    return "unknown" if value is None else repr(value) if value == "" else str(value)


class Found(NamedTuple):
    """How the numbers of two runs compare.

    Attributes:
        lines: what was compared, one line each.
        differences: the lines about numbers that are not identical.
    """

    lines: list[str]
    differences: list[str]


def compare(recorded: Recorded, record: dict[str, Any], rows: list[Row]) -> Found:
    """Compares the numbers of a recorded run with those of its rerun.

    Numbers agree if they are identical: as many examples of each split are classified correctly, and all metrics are
    the same to the last digit. Of a run that did not end by itself, only the rows that it has are compared.

    Args:
        recorded: the recorded run.
        record: the content of `run.json` of the rerun.
        rows: the rows of its metrics files.
    """
    old_status, status = recorded.record.get("status"), record.get("status")
    if recorded.is_complete:
        lines = [] if old_status == status else [(f"status: {old_status} -> {status}", True)]
        old, new = (content.get("results") or {} for content in (recorded.record, record))
        lines += [_result(name, old.get(name), new.get(name)) for name in dict.fromkeys([*old, *new])]
    else:
        lines = [(f"the recorded run is not complete ({old_status or 'no status'}): only its rows are compared", False)]
    lines += _rows(recorded.rows, rows, recorded.is_complete)
    return Found([line for line, _ in lines], [line for line, differs in lines if differs])


def _result(name: str, old: dict[str, Any] | None, new: dict[str, Any] | None) -> tuple[str, bool]:
    """Returns a line about the results for a split, and whether they differ.

    The standard error is that of one accuracy on the examples of the split, sqrt(p (1 - p) / n), with the share p of
    correct answers of both runs together.
    """
    if old is None or new is None:
        return f"{name} accuracy: only {'the rerun' if old is None else 'the recorded run'} has it", True
    counts = [f"{result['correct']} / {result['count']}" for result in (old, new)]
    if counts[0] == counts[1]:
        return f"{name} accuracy: identical, {old['accuracy']:.4f} ({counts[0]})", False
    points = 100 * (new["correct"] / new["count"] - old["correct"] / old["count"])
    both = (old["correct"] + new["correct"]) / (old["count"] + new["count"])
    error = 100 * math.sqrt(both * (1 - both) / old["count"])
    size = f"{abs(points) / error:.2g} standard errors" if error else "no difference in accuracy"
    return (
        f"{name} accuracy: {old['accuracy']:.4f} ({counts[0]}) -> {new['accuracy']:.4f} ({counts[1]}): "
        f"{points:+.2f} points, {size}",
        True,
    )


def _rows(old: list[Row], new: list[Row], whole: bool) -> list[tuple[str, bool]]:
    """Returns lines about the rows of two runs, and for each whether it is about a difference.

    Args:
        old: the rows of the recorded run.
        new: the rows of the rerun.
        whole: whether the recorded run has all of its rows.
    """
    known = {(row["step"], row["split"]): row for row in new}
    shared = [(row, known.pop(key)) for row in old if (key := (row["step"], row["split"])) in known]
    changes = [(row, changed) for row, other in shared if (changed := _changed(row, other))]
    lines = []
    if shared and not changes:
        lines.append((f"rows of the metrics: all {len(shared)} identical to the last digit", False))
    if changes:
        row, changed = changes[0]
        lines.append(
            (
                f"rows of the metrics: {len(changes)} of {len(shared)} differ, from step {row['step']} "
                f"({row['split']}) on: {', '.join(changed)}",
                True,
            )
        )
    if lost := len(old) - len(shared):
        lines.append((f"rows of the metrics: the rerun lacks {lost} of the {len(old)} recorded ones", True))
    if known and whole:
        lines.append((f"rows of the metrics: the recorded run lacks {len(known)} of the {len(new)} of the rerun", True))
    return lines or [("rows of the metrics: there are none to compare", True)]


def _changed(old, new):
    """Returns how the values of two rows differ. Rows of older versions may lack the columns of `LAST`."""
    return [
        f"{name} {value} -> {new.get(name)}"
        for name, value in old.items()
        if name != _CLOCK and value != new.get(name) and not (value is None and name in LAST)
    ]
