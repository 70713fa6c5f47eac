"""Trains the published tutorials with several seeds and writes the README's tables from the runs' `run.json` files.

    python scripts/reproduce.py                       # all of CIFAR-10, three seeds each; about an hour on 2 cores
    python scripts/reproduce.py --configs cnn mlp --seeds 0 1 2 3 4
    python scripts/reproduce.py --photos=DIR          # also the photo tutorials, five seeds each
    python scripts/reproduce.py --table               # only the tables, from the runs that are there

DIR holds photos of cars and elephants: {train,validation,test}/{cars,elephants}. Each run is in `ROOT/CONFIG/seed-N`.
Complete runs are not repeated, interrupted ones are resumed. With `--table`, or when all runs are complete, the script
replaces the text between the marks in README.md, for each table that has runs. Runs on the bundled sample are left out.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
MARKS = "<!-- {}: begin -->", "<!-- {}: end -->"


class Published(NamedTuple):
    """A row of a table: the model of a published tutorial, or one to compare it with.

    Attributes:
        what: a short description of the model.
        accuracy: the published accuracy, as text; empty if there is none.
    """

    what: str
    accuracy: str = ""


CIFAR10 = {
    "softmax": Published("softmax classifier, 1000 steps of SGD", "0.25 to 0.31"),
    "softmax_tuned": Published("the same model, better trained"),
    "mlp": Published("one hidden layer"),
    "cnn": Published("three convolutions, strong augmentation", "0.7844"),
    "tutorial_cnn": Published("the Keras CIFAR-10 CNN, Adam, 10 epochs", "about 0.70"),
}
PHOTOS = {
    "elephants_cars_linear": Published("linear baseline: logistic regression on 16×16 pixels"),
    "elephants_cars": Published(
        "the Keras photo classifier: 3 convolutions, RMSprop, 50 epochs", "0.9375 validation, 0.96 new photos"
    ),
    "elephants_cars_best": Published("batch normalization, stronger augmentation, averaged weights"),
}
SEEDS = dict.fromkeys(CIFAR10, (0, 1, 2)) | dict.fromkeys(PHOTOS, (0, 1, 2, 3, 4))


def main() -> int:
    """Trains and writes the tables. Returns 0 if all runs are complete, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", choices=SEEDS, metavar="NAME", help="default: all that have data")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2; for photos 0 1 2 3 4")
    parser.add_argument("--photos", type=Path, help="folder of the photos of cars and elephants")
    parser.add_argument("--root", type=Path, default=PROJECT / "runs" / "reproduce")
    parser.add_argument("--table", action="store_true", help="only write the tables, from existing runs")
    options = parser.parse_args()
    names = options.configs or [*CIFAR10, *(PHOTOS if options.photos else ())]
    if not options.table and not options.photos and (without := [name for name in names if name in PHOTOS]):
        parser.error(f"{', '.join(without)} needs --photos=DIR")
    failed = [] if options.table else _run_all(names, options)
    tables = {"results": _cifar10_table(options.root), "photos": _photos_table(options.root)}
    print("\n\n".join("\n".join(lines) for lines in tables.values() if lines))
    if failed:
        print(f"not complete: {', '.join(failed)}; README.md is unchanged", file=sys.stderr)
        return 1
    readme = PROJECT / "README.md"
    text = readme.read_text()
    for name, lines in tables.items():
        begin, end = (mark.format(name) for mark in MARKS)
        before, rest = text.split(begin)
        if lines:
            text = "\n".join([before + begin, *lines, end + rest.split(end)[1]])
    readme.write_text(text)
    return 0


def _run_all(names: list[str], options: argparse.Namespace) -> list[str]:
    jobs = [(name, seed) for name in names for seed in options.seeds or SEEDS[name]]
    failed = []
    for index, (name, seed) in enumerate(jobs, start=1):
        workdir = options.root / name / f"seed-{seed}"
        print(f"[{index}/{len(jobs)}] {name}, seed {seed}", flush=True)
        if _read_record(workdir).get("status") == "complete":
            continue
        command = [sys.executable, "-m", "imgclf_jax.main", f"--config=configs/{name}.py", f"--config.seed={seed}"]
        command += [f"--workdir={workdir}", "--config.data.allow_sample=false"]
        command += [f"--config.data.dir={options.photos.absolute()}"] if name in PHOTOS else []
        if subprocess.run(command, cwd=PROJECT).returncode:
            failed.append(f"{name} seed {seed}")
    return failed


def _read_record(workdir: Path) -> dict:
    path = workdir / "run.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _complete_runs(root: Path, name: str) -> list[dict]:
    runs = [_read_record(path.parent) for path in sorted((root / name).glob("seed-*/run.json"))]
    return [
        run
        for run in runs
        if run["status"] == "complete" and "test" in run["results"] and "sample" not in run["data"]["name"]
    ]


def _cifar10_table(root: Path) -> list[str]:
    runs = [run for name in CIFAR10 for run in _complete_runs(root, name)]
    if not runs:
        return []
    head = [
        "CIFAR-10: accuracy on the 10,000 test images, mean ± standard deviation over the seeds. The time is the "
        f"median over whole runs, from command to result. {_where(runs)} Written by `python scripts/reproduce.py`.",
        "",
        "| config | what it is | published | test accuracy | seeds | time |",
        "|---|---|---|---|---|---|",
    ]
    return _table(root, CIFAR10, head, lambda runs: [_accuracy(runs, "test")])


def _photos_table(root: Path) -> list[str]:
    runs = [run for name in PHOTOS for run in _complete_runs(root, name)]
    if not runs:
        return []
    counts = runs[0]["data"]["counts"]
    head = [
        f"Cars and elephants: {counts['train']} training, {counts['valid']} validation and {counts['test']} test "
        "photographs. They are not the tutorial's photographs, and they are easy, as the linear baseline shows: "
        "compare our accuracies with the baseline's, not with the published ones. The accuracies are measured after "
        f"the last epoch, mean ± standard deviation over the seeds. {_where(runs)} Written by `python "
        "scripts/reproduce.py --photos=DIR`.",
        "",
        "| config | what it is | published | validation accuracy | test accuracy | seeds | time |",
        "|---|---|---|---|---|---|---|",
    ]
    return _table(root, PHOTOS, head, lambda runs: [_accuracy(runs, "valid"), _accuracy(runs, "test")])


def _table(
    root: Path, rows: dict[str, Published], head: list[str], accuracies: Callable[[list[dict]], list[str]]
) -> list[str]:
    lines = list(head)
    for name, published in rows.items():
        if not (runs := _complete_runs(root, name)):
            continue
        seeds = " ".join(sorted(str(run["seed"]) for run in runs))
        seconds = statistics.median(run["wall_time_seconds"] for run in runs)
        time = f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
        cells = [f"`configs/{name}.py`", published.what, published.accuracy, *accuracies(runs), seeds, time]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _accuracy(runs: list[dict], split: str) -> str:
    accuracies = [run["results"][split]["accuracy"] for run in runs]
    spread = f" ± {statistics.stdev(accuracies):.4f}" if len(accuracies) > 1 else ""
    return f"{statistics.mean(accuracies):.4f}{spread}"


def _where(runs: list[dict]) -> str:
    """The machines, versions and dates of runs, for example "2 CPU cores, JAX 0.10.1, 2026-11-22."."""
    machines = sorted({f"{run['provenance']['cpu_count']} CPU cores" for run in runs if _on_cpu(run)})
    machines += sorted({f"{run['provenance']['device_count']}× {_kind(run)}" for run in runs if not _on_cpu(run)})
    jax = sorted({run["provenance"]["packages"]["jax"] for run in runs})
    days = sorted({datetime.datetime.fromisoformat(run["started"]).date().isoformat() for run in runs})
    return f"{', '.join(machines)}, JAX {', '.join(jax)}, {' to '.join(sorted({days[0], days[-1]}) if days else [])}."


def _on_cpu(run: dict) -> bool:
    return run["provenance"]["backend"] == "cpu"


def _kind(run: dict) -> str:
    return run["provenance"]["device_kind"]


if __name__ == "__main__":
    sys.exit(main())
