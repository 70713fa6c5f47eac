"""The page of a report: one run, or a comparison of several runs followed by each of them."""

from typing import NamedTuple

import numpy as np

from imgclf_jax.report import grouping, measures, sections, side_by_side
from imgclf_jax.report.document import Section, contents, document, section
from imgclf_jax.report.drawing import Picture
from imgclf_jax.report.markup import Markup, join, name, shorten, tag
from imgclf_jax.report.runs import Run

MOST = 20  # most classes whose sizes are listed
_SPLITS = {"train": "training", "valid": "validation", "test": "test"}
DETAILED = 4  # most runs whose own sections are part of a comparison unless they are asked for


class Page(NamedTuple):
    """A page and the pictures on it.

    Attributes:
        html: the whole document.
        pictures: by the index of their run, from 0; `None` for those that compare runs.
    """

    html: str
    pictures: dict[int | None, tuple[Picture, ...]]


def build(runs: list[Run], details: bool | None = None) -> Page:
    """Builds the report on one or more runs.

    Args:
        runs: the runs.
        details: whether a comparison has all sections of each run. Default: if there are at most `DETAILED` runs.
    """
    if len(runs) == 1:
        run_sections = sections.of(runs[0], "run")
        body = [_header(runs[0]), contents(run_sections), *map(section, run_sections)]
        return Page(document(runs[0].name, body), {0: _pictures(run_sections)})
    details = has_details(len(runs), details)
    comparison = side_by_side.compare(runs, linked=details)
    pictures: dict[int | None, tuple[Picture, ...]] = {
        None: _pictures(comparison),
        **dict.fromkeys(range(len(runs)), ()),
    }
    title = f"{len(runs)} runs"
    names = (name(part.name, 60) for part in grouping.group(runs))
    top = tag("header", tag("h1", title), tag("p", join(names, ", "), css="what"))
    if not details:
        notes = [tag("li", name(run.name, 60), ": ", note) for run in runs for note in run.notes]
        end = [tag("h2", "Notes on runs"), tag("ul", *notes)] if notes else []
        end.append(tag("p", "The sections on each run are left out; --details shows them.", css="small"))
        body = [top, contents(comparison), *map(section, comparison), tag("section", *end)]
        return Page(document(title, body), pictures)
    shown: list[Markup] = []
    for index, run in enumerate(runs):
        run_sections = sections.of(run, f"run{index + 1}")
        pictures[index] = _pictures(run_sections)
        parts = (section(part, f"run{index + 1}-", "h3") for part in run_sections)
        summary = tag("summary", tag("span", name(run.name, 60), css="title"), " ", _accuracy(run))
        shown.append(tag("details", summary, _notes(run), *parts, css="run", id=f"run{index + 1}"))
    links = contents(comparison, [(f"run{i + 1}", name(run.name, 40)) for i, run in enumerate(runs)])
    each = tag("section", tag("h2", "Each run"), *shown, id="runs")
    return Page(document(title, [top, links, *map(section, comparison), each]), pictures)


def has_details(count: int, details: bool | None = None) -> bool:
    """Whether a report on `count` runs has all sections of each; `details` if that is given."""
    return count <= DETAILED if details is None else details


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
                f"{low:.4f} to {high:.4f}.{_guessing(run)}",
            ),
        ]
    model = f"model {run.config.model.name}"
    when = f"started {str(run.record.get('started', '?')).replace('T', ' ')[:16]} UTC"
    parts.append(tag("p", f"{data.get('name', 'unknown data')} · {model} · {when}", css="what"))
    if counts := _counts(run):
        parts.append(tag("p", counts, css="what"))
    return tag("header", *parts, _notes(run))


def _guessing(run):
    """What always guessing the most frequent class would give."""
    if run.predictions is None:
        return ""
    counts = np.bincount(run.predictions.labels, minlength=len(run.predictions.class_names))
    most = int(counts.argmax())
    equal = (counts == counts[most]).all()
    what = "one class" if equal else shorten(run.predictions.class_names[most])
    return f" Always guessing {what} would be right for {counts[most]:,}, which is {counts[most] / counts.sum():.4f}."


def _counts(run):
    """How many images there are, by split and by class."""
    data = run.record.get("data") or {}
    by_split = [
        f"{count:,} {_SPLITS[split]}" for split, count in (data.get("counts") or {}).items() if split in _SPLITS
    ]
    text = f"Images: {', '.join(by_split)}." if by_split else ""
    if run.predictions is None:
        return text
    names, labels = run.predictions.class_names, run.predictions.labels
    counts = np.bincount(labels, minlength=len(names))
    if (counts == counts[0]).all():
        return f"{text} {len(names)} classes with {counts[0]:,} {_SPLITS[run.split]} images each."
    order = np.argsort(-counts, kind="stable")
    shown = ", ".join(f"{shorten(names[label])} {counts[label]:,}" for label in order[:MOST])
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"{text} Classes of the {_SPLITS[run.split]} images: {shown}{more}."


def _split(run):
    return {"test": "Test", "valid": "Validation"}[run.split]


def _accuracy(run):
    result = run.result
    return f"{_split(run).lower()} accuracy {result['accuracy']:.4f}" if result else "no result"


def _notes(run: Run) -> Markup:
    return join(tag("p", note, css="note", role="note") for note in run.notes)


def _pictures(shown: list[Section]) -> tuple[Picture, ...]:
    return tuple(picture for part in shown for picture in part.pictures)
