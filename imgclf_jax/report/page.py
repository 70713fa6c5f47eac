"""The page of a report: one run, or a comparison of several runs followed by each of them."""

from typing import Any, NamedTuple

import numpy as np

from imgclf_jax import config
from imgclf_jax.report import bands, facts, measures, sections
from imgclf_jax.report.document import Section, contents, document, section
from imgclf_jax.report.drawing import Picture, inline
from imgclf_jax.report.markup import Markup, join, name, shorten, table, tag
from imgclf_jax.report.runs import Run


class Page(NamedTuple):
    """A page and the pictures on it.

    Attributes:
        html: the whole document.
        pictures: by the index of their run, from 0; `None` for those that compare runs.
    """

    html: str
    pictures: dict[int | None, tuple[Picture, ...]]


def build(runs: list[Run]) -> Page:
    """Builds the report on one or more runs."""
    if len(runs) == 1:
        run_sections = sections.of(runs[0], "run")
        body = [_header(runs[0]), contents(run_sections), *map(section, run_sections)]
        return Page(document(runs[0].name, body), {0: _pictures(run_sections)})
    comparison = _comparison(runs)
    details: list[Markup] = []
    pictures: dict[int | None, tuple[Picture, ...]] = {None: _pictures(comparison)}
    for index, run in enumerate(runs):
        run_sections = sections.of(run, f"run{index + 1}")
        pictures[index] = _pictures(run_sections)
        parts = (section(part, f"run{index + 1}-", "h3") for part in run_sections)
        summary = tag("summary", tag("span", name(run.name, 60), css="title"), " ", _accuracy(run))
        details.append(tag("details", summary, _notes(run), *parts, css="run", id=f"run{index + 1}"))
    title = f"{len(runs)} runs"
    top = tag("header", tag("h1", title), tag("p", join((name(run.name, 60) for run in runs), ", "), css="what"))
    links = contents(comparison, [(f"run{i + 1}", name(run.name, 40)) for i, run in enumerate(runs)])
    each = tag("section", tag("h2", "Each run"), *details, id="runs")
    return Page(document(title, [top, links, *map(section, comparison), each]), pictures)


def _header(run: Run) -> Markup:
    data, result = run.record.get("data") or {}, run.result
    parts = [tag("h1", name(run.name, 80))]
    if result:
        low, high = measures.wilson(result["correct"], result["count"])
        parts += [
            tag("p", f"{result['accuracy']:.4f}", css="accuracy"),
            tag(
                "p",
                f"{_split(run)} accuracy: {result['correct']:,} of {result['count']:,} correct, 95 % interval "
                f"{low:.4f} to {high:.4f}",
            ),
        ]
    model = f"model {run.config.model.name}"
    when = f"started {str(run.record.get('started', '?')).replace('T', ' ')[:16]} UTC"
    parts.append(tag("p", f"{data.get('name', 'unknown data')} · {model} · {when}", css="what"))
    return tag("header", *parts, _notes(run))


def _split(run):
    return {"test": "Test", "valid": "Validation"}[run.split]


def _accuracy(run):
    result = run.result
    return f"{_split(run).lower()} accuracy {result['accuracy']:.4f}" if result else "no result"


def _notes(run: Run) -> Markup:
    return join(tag("p", note, css="note", role="note") for note in run.notes)


def _pictures(shown: list[Section]) -> tuple[Picture, ...]:
    return tuple(picture for part in shown for picture in part.pictures)


def _comparison(runs: list[Run]) -> list[Section]:
    """The sections that compare the runs."""
    rows: list[tuple[Any, ...]] = []
    for index, run in enumerate(runs):
        result = run.result
        rows.append(
            (
                tag("a", name(run.name, 40), href=f"#run{index + 1}"),
                f"{facts.accuracy_with_interval(result)}" + (" valid" if run.split == "valid" else "")
                if result
                else "–",
                f"{result['loss']:.4g}" if result else "–",
                _calibration_error(run.predictions),
                f"{facts.parameter_count(run):,}" if run.network else "–",
                facts.total_time(run),
                run.record.get("status", "?"),
            )
        )
    head = ("run", "accuracy (95 % interval)", "loss", "ECE", "parameters", "time", "status")
    body = table(head, rows)
    if different := different_data(runs):
        body = join(
            [tag("p", f"These accuracies are not comparable: the runs differ in {different}.", css="note"), body]
        )
    drawn = [
        (field, found)
        for field in ("accuracy", "loss")
        if (found := bands.overlay([(run.name, [run.rows]) for run in runs], field))
    ]
    pictures = tuple(picture for _, (picture, _) in drawn)
    shown = [
        tag(
            "figure",
            inline(picture, "all"),
            tag("figcaption", f"Validation {field}; dashed: training, for runs with fewer than two evaluations"),
        )
        for field, (picture, _) in drawn
    ]
    parts = [Section("results", "Side by side", body)]
    if pictures:
        parts.append(Section("curves", "Learning curves", tag("div", *shown, css="pair"), pictures))
    return [*parts, Section("differences", "What differs in the configs", _config_differences(runs))]


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


def _config_differences(runs: list[Run]) -> Markup:
    flat = [config.flatten(config.to_json(run.config)) for run in runs]
    rows = [
        (tag("code", key), *(facts.show(values[key]) for values in flat))
        for key in flat[0]
        if any(values[key] != flat[0][key] for values in flat)
    ]
    if not rows:
        return tag("p", "Nothing: the runs have the same config.")
    return table(("field", *(shorten(run.name, 32) for run in runs)), rows, text=1 + len(runs))
