"""Whole runs of airbench94_muon and of ours, for scripts/bench_peers.py: starts both, and reads what they print."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from speedrun_report import describe

from imgclf_jax import data
from imgclf_jax.errors import UserError
from imgclf_jax.terminal.console import Console

SCRIPTS = Path(__file__).resolve().parent
LOOP = re.compile(r"\bfor run in range\(\d+\)")
MEASURES = {"accuracy": "accuracy", "tta_accuracy": "accuracy, augmented", "seconds": "seconds, with evaluation"}
# Makes the files that their loader otherwise makes from a download.
CONVERT = """
import sys, numpy, torch
folder, *classes = sys.argv[1:]
for name in ("train", "test"):
    images, labels = (torch.tensor(numpy.load(f"{folder}/{name}_{kind}.npy")) for kind in ("images", "labels"))
    torch.save({"images": images, "labels": labels.long(), "classes": classes}, f"{folder}/{name}.pt")
"""


def shortened(path: Path, runs: int) -> str:
    """Returns the source of airbench94_muon with another number of runs.

    Raises:
        UserError: there is no such file, or it is another one.
    """
    try:
        source = path.read_text()
    except OSError as error:
        raise UserError(f"--airbench={path}: cannot be read: {error.strerror}") from error
    source, count = LOOP.subn(f"for run in range({runs})", source)
    if count != 1:
        raise UserError(f"--airbench={path}: it has no loop over runs; give the path of airbench94_muon.py")
    return source


def in_turns(
    source: str, python: str, dataset: data.Dataset, overrides: list[str], runs: int, rounds: int, console: Console
) -> dict[str, list[dict[str, float]]]:
    """Runs both sides in turns, each time in a process of its own.

    Args:
        source: from `shortened`.
        python: the Python that runs it.
        dataset: what it trains on: the splits "train", which must be all of it, and "test".
        overrides: `--config` and its overrides, for `speedrun.py`.
        runs: runs of each side in a round.
        rounds: how many rounds.
        console: where to print.

    Returns:
        The runs of both sides, "airbench" and "ours", each with some of `MEASURES`.

    Raises:
        UserError: a process has failed.
    """
    results: dict[str, list[dict[str, float]]] = {"airbench": [], "ours": []}
    with tempfile.TemporaryDirectory() as name:
        folder, file = Path(name), Path(name) / "ours.json"
        (folder / "airbench.py").write_text(source)
        provide_data(dataset, folder / "cifar10", python, console)
        for index in range(rounds):
            results["airbench"] += read(_output([python, "airbench.py"], folder, console))
            flags = [f"--runs={runs}", f"--first_seed={index * runs}", "--warmup_steps=-1", f"--json={file}"]
            _output([sys.executable, str(SCRIPTS / "speedrun.py"), *overrides, *flags], Path.cwd(), console)
            results["ours"] += read_ours(json.loads(file.read_text()))
            means = {side: describe([run["seconds"] for run in some])["mean"] for side, some in results.items()}
            shown = ", ".join(f"{side} {mean:.3f} s" for side, mean in means.items())
            console.print(f"round {index + 1}/{rounds}: mean so far: {shown}")
    return results


def provide_data(dataset: data.Dataset, folder: Path, python: str, console: Console) -> None:
    """Writes the data set as the loader of airbench keeps it: `train.pt` and `test.pt`."""
    folder.mkdir()
    for name in ("train", "test"):
        split = dataset.splits[name]
        np.save(folder / f"{name}_images.npy", np.asarray(split.images[:]))
        np.save(folder / f"{name}_labels.npy", split.labels)
    _output([python, "-c", CONVERT, str(folder), *dataset.class_names], folder, console)


def _output(command, folder, console):
    """Runs a process, prints what it prints, and returns it."""
    lines = []
    try:
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for line in process.stdout:
                lines.append(line)
                console.print(line.rstrip())
    except OSError as error:
        raise UserError(f"{command[0]} cannot be started: {error.strerror}; see --peer_python") from error
    if process.returncode:
        raise UserError(f"{' '.join(command[:2])} has ended with status {process.returncode}; see above")
    return "".join(lines)


def read(output: str) -> list[dict[str, float]]:
    """Reads the table that airbench94_muon prints.

    Each run has a row for every epoch and one of the end, whose epoch is "eval". Its number is in its first row. The
    run "warmup" is left out.

    Returns:
        `accuracy`, `tta_accuracy` and `seconds` of every run.

    Raises:
        UserError: there is no such table.
    """
    names: list[str] = []
    run, runs = "", []
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "tta_val_acc" in cells:
            names = cells
        elif names and len(cells) == len(names):
            row = dict(zip(names, cells, strict=True))
            run = row["run"] or run
            if row["epoch"] == "eval" and run != "warmup":
                accuracies = {"accuracy": float(row["val_acc"]), "tta_accuracy": float(row["tta_val_acc"])}
                runs.append({**accuracies, "seconds": float(row["time_seconds"])})
    if not runs:
        raise UserError("airbench94_muon has printed no table of runs; see its output above")
    return runs


def read_ours(record: dict[str, Any]) -> list[dict[str, float]]:
    """Reads the file that `speedrun.py` writes; see `read`. Without `eval.tta` there is no `tta_accuracy`."""
    runs = []
    for run in record["runs"]:
        result = run["results"]["test"]
        known = {name: result[name] for name in ("accuracy", "tta_accuracy") if name in result}
        runs.append({**known, "seconds": run["seconds"]})
    return runs


def summarize(results: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Returns the `runs` of both sides, and `summary`: by side and then by measure, see `speedrun_report.describe`."""
    summary = {
        side: {name: describe([run[name] for run in runs]) for name in MEASURES if name in runs[0]}
        for side, runs in results.items()
    }
    return {"runs": results, "summary": summary}


def report(console: Console, results: dict[str, Any]) -> None:
    """Prints the results of `summarize`."""
    rows = []
    for name, title in MEASURES.items():
        for side, one in results["summary"].items():
            if name in one:
                values = one[name]
                interval = values["interval"] or ()
                spread = "" if values["std"] is None else f"{values['std']:.4f}"
                cells = f"{values['mean']:.4f}", spread, " to ".join(f"{value:.4f}" for value in interval), values["n"]
                rows.append((f"{title}: {side}", *cells))
    console.print()
    console.table(("", "mean", "std", "95 % interval", "runs"), rows)
