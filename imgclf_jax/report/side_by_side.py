"""The sections of a report that compare several runs."""

import statistics
from typing import Any

import numpy as np

from imgclf_jax import config
from imgclf_jax.report import bands, curves, facts, grouping, measures
from imgclf_jax.report.document import Section
from imgclf_jax.report.drawing import inline
from imgclf_jax.report.grouping import Group
from imgclf_jax.report.markup import Markup, join, name, table, tag
from imgclf_jax.report.runs import Run
from imgclf_jax.terminal.console import duration
from imgclf_jax.workdir.record import own_seconds


def compare(runs: list[Run], linked: bool) -> list[Section]:
    """The sections that compare the runs; repetitions of an experiment are drawn as one.

    Args:
        runs: the runs.
        linked: whether the page has a section with the id "runN" for each run.
    """
    groups = grouping.group(runs)
    own = list(dict.fromkeys(metric for run in runs for metric in curves.own_metrics(run.rows)))
    rows: list[tuple[Any, ...]] = []
    for index, run in enumerate(runs):
        result = run.result
        rows.append(
            (
                tag("a", name(run.name, 40), href=f"#run{index + 1}") if linked else name(run.name, 40),
                f"{facts.accuracy_with_interval(result)}" + (" valid" if run.split == "valid" else "")
                if result
                else "–",
                f"{result['loss']:.4g}" if result else "–",
                *(_own_result(run, metric) for metric in own),
                _calibration_error(run.predictions),
                f"{facts.parameter_count(run):,}" if run.network else "–",
                facts.own_time(run),
                run.record.get("status", "?"),
            )
        )
    head = ("run", "accuracy (95 % interval)", "loss", *own, "ECE", "parameters", "time", "status")
    body = table(head, rows)
    if len(groups) < len(runs):
        body = join([_groups(groups), tag("h3", "Each run"), body])
    if different := different_data(runs):
        body = join(
            [tag("p", f"These accuracies are not comparable: the runs differ in {different}.", css="note"), body]
        )
    drawn = [
        (field, found)
        for field in ("accuracy", "loss", *own)
        if (found := bands.overlay([(part.name, [run.rows for run in part.runs]) for part in groups], field))
    ]
    pictures = tuple(picture for _, (picture, _) in drawn)
    shown = [
        tag(
            "figure",
            inline(picture, "all"),
            tag("figcaption", _caption(field, bands_are)),
        )
        for field, (picture, bands_are) in drawn
    ]
    parts = [Section("results", "Side by side", body)]
    if pictures:
        parts.append(Section("curves", "Learning curves", tag("div", *shown, css="pair"), pictures))
    return [*parts, Section("differences", "What differs in the configs", _config_differences(groups))]


def _own_result(run: Run, metric: str) -> str:
    value = ((run.record.get("results") or {}).get(run.split) or {}).get(metric)
    return f"{value:.4g}" if isinstance(value, int | float) else "–"


def _caption(field, bands_are):
    text = f"Validation {field}; dashed: training, for runs with fewer than two evaluations"
    return f"{text}. {bands_are.capitalize()}" if bands_are else text


def _groups(groups: list[Group]) -> Markup:
    """Means over the repetitions, with the standard deviation."""
    rows = []
    for part in groups:
        results = [run.result for run in part.runs if run.result]
        seconds = [share for run in part.runs if (share := own_seconds(run.record))]
        rows.append(
            (
                name(part.name, 48),
                str(len(results)),
                _mean([result["accuracy"] for result in results]),
                _mean([result["loss"] for result in results]),
                duration(statistics.fmean(seconds)) if seconds else "unknown",
            )
        )
    text = "Mean ± standard deviation over the runs of each group, which differ in the seed or fold alone."
    head = ("group", "results", "accuracy", "loss", "time of a run")
    return join([tag("p", text, css="small"), table(head, rows)])


def _mean(values):
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def _calibration_error(predictions):
    finite = predictions.only_finite() if predictions else None
    if finite is None or not len(finite.labels):
        return "–"
    return f"{measures.calibration(finite.probabilities, finite.labels).error:.4f}"


def different_data(runs: list[Run]) -> str:
    """What makes the accuracies of these runs not comparable; an empty string if they are comparable."""
    described = [run.record.get("data") or {} for run in runs]
    aspects: dict[str, list[Any]] = {
        "data set": [data.get("name") for data in described],
        "classes": [data.get("class_names") for data in described],
        "content of the images": [_has_other_images(runs[0], run) for run in runs],
        "reported split": [run.split for run in runs],
        "examples of that split": [
            [run.config.data.source, run.config.data[f"{run.split}_split"], (data.get("counts") or {}).get(run.split)]
            for run, data in zip(runs, described, strict=True)
        ],
    }
    return ", ".join(aspect for aspect, values in aspects.items() if any(value != values[0] for value in values))


def _has_other_images(first: Run, other: Run) -> bool:
    """Compares fingerprints if the images have the same size and are read the same way, otherwise ids and labels."""
    one, two = (run.record.get("data") or {} for run in (first, other))
    prints = [str(data.get("fingerprint")).rpartition(":") for data in (one, two)]
    if prints[0] == prints[1]:
        return False
    read_alike = one.get("image_shape") == two.get("image_shape") and prints[0][0] == prints[1][0]
    if read_alike and first.config.data.resize == other.config.data.resize:
        return True
    if first.predictions is None or other.predictions is None:
        return True
    pairs = (
        (first.predictions.ids, other.predictions.ids),
        (first.predictions.labels, other.predictions.labels),
    )
    return not all(np.array_equal(*pair) for pair in pairs)


def _config_differences(groups: list[Group]) -> Markup:
    """The fields that differ between the groups; the seed only if each group is one run."""
    flat = [config.flatten(config.to_json(part.runs[0].config)) for part in groups]
    repeated = config.REPETITION if any(len(part.runs) > 1 for part in groups) else ()
    rows = [
        (tag("code", key), *(facts.show(values.get(key, "")) for values in flat))
        for key in dict.fromkeys(key for values in flat for key in values)
        if key not in (*repeated, *config.FREE) and any(values.get(key) != flat[0].get(key) for values in flat)
    ]
    if not rows:
        what = "seed and fold" if repeated else ""
        return tag("p", f"Nothing but {what}." if what else "Nothing: the runs have the same config.")
    return table(("field", *(name(part.name, 32) for part in groups)), rows, text=1 + len(groups))
