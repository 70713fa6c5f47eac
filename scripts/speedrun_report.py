"""The statistics, tables and plot of scripts/speedrun.py."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from scipy import stats

from imgclf_jax.compare.statistics import mean_interval
from imgclf_jax.terminal.console import Console, count, duration

KINDS = {"accuracy": "", "tta_accuracy": " with test-time augmentation"}
TIMES = {"train_seconds": "training", "evaluate_seconds": "evaluation", "seconds": "both"}


def describe(values: Sequence[float]) -> dict[str, Any]:
    """Returns `n`, `mean`, `std` (of a sample), `interval` (95 % t interval of the mean), `least` and `most`.

    With a single value, `std` and `interval` are `None`.
    """
    interval = mean_interval(values)
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "interval": list(interval) if interval else None,
        "least": min(values),
        "most": max(values),
    }


def p_above(values: Sequence[float], target: float) -> float | None:
    """Returns the p value of the one-sided t test: the probability of such a mean if the true one were the target.

    `None` if there are fewer than two values or if they do not vary.
    """
    if len(values) < 2 or len(set(values)) == 1:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return float(stats.t.sf((statistics.fmean(values) - target) / error, len(values) - 1))


def summarize(runs: list[dict[str, Any]], record: dict[str, Any]) -> dict[str, Any]:
    """Returns what the tables show.

    Args:
        runs: results of `speedrun.timed_run`.
        record: `target`, `flops` of a run, `product_rate` and `peak` (`flops` per second, or `None`).

    Returns:
        `accuracies`: by the name of a split, and then by that of an accuracy, the result of `describe`, with `p_above`;
        `times`: the result of `describe` for each time in seconds; `rate`, the mean FLOP/s of training; `mfu`, relative
        to the matrix product; and `of_peak`, relative to the data sheet or `None`.
    """
    accuracies: dict[str, dict[str, Any]] = {}
    for split, result in runs[0]["results"].items():
        accuracies[split] = {}
        for kind in [kind for kind in KINDS if kind in result]:
            values = [run["results"][split][kind] for run in runs]
            accuracies[split][kind] = {**describe(values), "p_above": p_above(values, record["target"])}
    times = {name: describe([run[name] for run in runs]) for name in TIMES}
    rate, peak = record["flops"] / times["train_seconds"]["mean"], record["peak"]["flops"]
    of_peak = rate / peak if peak else None
    return {
        "accuracies": accuracies,
        "times": times,
        "rate": rate,
        "mfu": rate / record["product_rate"],
        "of_peak": of_peak,
    }


def heading(console: Console, config: ConfigDict, record: dict[str, Any]) -> None:
    """Prints what is trained."""
    console.print(
        f"{config.model.name}, {config.model.dtype}, {config.optim.name}; {record['epochs']:.4g} epochs, "
        f"{record['steps']:,} steps of {config.train.batch_size:,} images, {count(record['flops'])}FLOP a run; "
        f"matrix product {count(record['product_rate'])}FLOP/s"
    )


def line(run: dict[str, Any]) -> str:
    """Formats a run in one line."""
    split, result = next(iter(run["results"].items()))
    shown = f"seed {run['seed']}  {split} accuracy {result['accuracy']:.4f}"
    if "tta_accuracy" in result:
        shown += f" (augmented {result['tta_accuracy']:.4f})"
    times = f"training {seconds(run['train_seconds'])}, with evaluation {seconds(run['seconds'])}"
    return f"{shown}  {times}  {run['images_per_second']:,.0f} images/s"


def report(console: Console, record: dict[str, Any]) -> None:
    """Prints the tables of a record of `speedrun.py`."""
    runs, summary, target = record["runs"], record["summary"], record["target"]
    console.print()
    _runs(console, runs)
    console.print()
    columns = ("mean", "std", "95 % interval", "least", "most")
    test = f"p (mean > {target:g})"
    console.table(("accuracy", *columns, test), list(_accuracy_rows(summary["accuracies"])))
    console.print()
    rows = [(TIMES[name], *_cells(one, seconds)) for name, one in summary["times"].items()]
    console.table(("time", *columns), rows)
    console.print()
    sheet = "" if summary["of_peak"] is None else f", {summary['of_peak']:.1%} of the data sheet's peak"
    console.print(
        f"{count(record['flops'])}FLOP a run at {count(summary['rate'])}FLOP/s: MFU {summary['mfu']:.1%} of the matrix "
        f"product measured here, {count(record['product_rate'])}FLOP/s{sheet}"
    )
    if record.get("from_process_start") is not None:
        console.print(
            f"first result {duration(record['from_process_start'])} after the start of the process, with imports, "
            "reading, compilation and warm-up"
        )


def _runs(console, runs):
    results = runs[0]["results"]
    kinds = [(split, kind) for split, result in results.items() for kind in KINDS if kind in result]
    names = [f"{split}{' augmented' if kind.startswith('tta') else ''}" for split, kind in kinds]
    rows = [
        (
            run["seed"],
            *(f"{run['results'][split][kind]:.4f}" for split, kind in kinds),
            *(seconds(run[name]) for name in TIMES),
            f"{run['images_per_second']:,.0f}",
        )
        for run in runs
    ]
    console.table(("seed", *names, *TIMES.values(), "images/s"), rows)


def _accuracy_rows(accuracies):
    for split, kinds in accuracies.items():
        for kind, one in kinds.items():
            p = "" if one["p_above"] is None else f"{one['p_above']:.2g}"
            yield f"{split}{KINDS[kind]}", *_cells(one, lambda value: f"{value:.4f}"), p


def _cells(one, text):
    interval = "" if one["interval"] is None else " to ".join(map(text, one["interval"]))
    spread = "" if one["std"] is None else text(one["std"])
    return text(one["mean"]), spread, interval, text(one["least"]), text(one["most"])


def seconds(value: float) -> str:
    """Formats seconds with three digits or more."""
    return f"{value:.3f} s" if value < 10 else f"{value:.1f} s"


def plot(record: dict[str, Any], title: str, path: Path) -> None:
    """Draws the accuracies of the runs, with the interval of their mean and the target, and their times."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    runs, split = record["runs"], record["split"]
    for index, (kind, one) in enumerate(record["summary"]["accuracies"][split].items()):
        values, color = [run["results"][split][kind] for run in runs], f"C{index}"
        left.plot([run["seed"] for run in runs], values, ".", color=color, label=f"{split}{KINDS[kind]}")
        left.axhline(one["mean"], color=color, linewidth=1)
        if one["interval"]:
            left.axhspan(*one["interval"], color=color, alpha=0.15)
    left.axhline(record["target"], color="black", linestyle=":", label="target")
    left.set(xlabel="seed", ylabel="accuracy", title=f"Accuracy, mean and its 95 % interval, n = {len(runs)}")
    for name in ("train_seconds", "seconds"):
        label = {"train_seconds": "training", "seconds": "with evaluation"}[name]
        right.plot([run["seed"] for run in runs], [run[name] for run in runs], ".", label=label)
    right.set(xlabel="seed", ylabel="seconds", title="Time", ylim=(0, None))
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
