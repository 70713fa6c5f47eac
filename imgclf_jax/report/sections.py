"""The parts of a report on one run."""

from typing import NamedTuple

import numpy as np

from imgclf_jax.report import charts, curves, examples, facts, measures, weights
from imgclf_jax.report.drawing import Picture, inline
from imgclf_jax.report.markup import Markup, image, join, name, table, tag
from imgclf_jax.report.predictions import Predictions
from imgclf_jax.report.runs import Run
from imgclf_jax.report.thumbnails import Thumbnail, encode, grid, is_tiny

TOP = (1, 2, 3, 5)
PAIRS = 10  # of classes that are confused most


class Section(NamedTuple):
    """A part of a page.

    Attributes:
        anchor: its id on the page, without the run's prefix.
        title: its heading.
        body: all else.
        pictures: for files.
    """

    anchor: str
    title: str
    body: Markup
    pictures: tuple[Picture, ...] = ()


def of(run: Run, prefix: str) -> list[Section]:
    """All parts that there is something to say in.

    Args:
        run: the run.
        prefix: of the ids in its pictures.
    """
    found: list[Section | None] = [_curves(run, prefix)]
    if run.found is not None:
        found += _of_predictions(run.found, prefix)
    if run.network is not None:
        found.append(_weights(run))
    found += [_configuration(run), _provenance(run)]
    return [section for section in found if section is not None]


def _curves(run, prefix):
    rows = run.rows
    counts = (run.record.get("data") or {}).get("counts") or {}
    learning = [charts.learning_curves(rows, field) for field in ("accuracy", "loss")]
    epochs = [charts.evaluation_accuracy(rows), charts.accuracy_against_validation(rows)]
    pictures = tuple(picture for picture in learning + epochs if picture)
    if not pictures:
        return Section("curves", "Learning curves", tag("p", "No row has been written yet."))
    titles = (
        "Accuracy, each row of metrics.jsonl",
        "Loss, each row of metrics.jsonl",
        "Evaluation accuracy by epochs trained",
        "Accuracy against validation accuracy, by epoch",
    )
    shown = [
        tag("figure", inline(picture, prefix), tag("figcaption", title))
        for picture, title in zip(learning + epochs, titles, strict=True)
        if picture
    ]
    body = join(
        [
            tag("p", curves.verdict(rows, counts.get("valid", 0))),
            tag("div", *shown, css="pair"),
            tag(
                "p",
                "Training values are means since the row before, measured while the network learned: on augmented "
                "images and with dropout, where the run has them. So they may lie below those of validation.",
                css="small",
            ),
        ]
    )
    return Section("curves", "Learning curves", body, pictures)


def _of_predictions(found: Predictions, prefix):
    """Returns the parts that need probabilities; they are about the examples that have some."""
    finite = found.only_finite()
    if len(finite.labels):
        return [_quality(found, finite, prefix), _classes(finite, prefix), _examples(finite)]
    text = f"All {len(found.labels):,} predictions on the {found.split} split are NaN, so there is nothing to show."
    return [Section("quality", f"Accuracy, {found.split} split", tag("p", text))]


def _quality(every: Predictions, found: Predictions, prefix):
    """Returns accuracy over all examples, and top-k and calibration over those that have probabilities."""
    classes, count = len(found.class_names), len(every.labels)
    calibration = measures.calibration(found.probabilities, found.labels)
    picture = charts.reliability(calibration)
    low, high = measures.wilson(found.correct, count)
    ranks = [(f"top {k}", f"{measures.top_k(found.scores, found.labels, k):.4f}") for k in TOP if k < classes]
    confidence = float(found.probabilities.max(axis=1).mean())
    accuracy = found.correct / count
    side = "more" if confidence > found.correct / len(found.labels) else "less"
    left = join(
        [
            tag(
                "p",
                f"{found.correct:,} of {count:,} examples of the {found.split} split are right: accuracy "
                f"{accuracy:.4f}, with a 95 % interval from {low:.4f} to {high:.4f} (Wilson), which is what chance in "
                "the choice of the examples alone makes uncertain.",
            ),
            table(("the true class is in the", "accuracy"), ranks) if len(ranks) > 1 else "",
            tag(
                "p",
                f"Mean confidence is {confidence:.4f}, {side} than the accuracy. The expected calibration error, the "
                f"mean distance between confidence and accuracy over {measures.BINS} bins of equal width, is "
                f"{calibration.error:.4f}.",
            ),
        ]
    )
    figure = tag(
        "figure",
        inline(picture, prefix),
        tag("figcaption", "Reliability: a dot is a bin's mean confidence and accuracy"),
    )
    body = tag("div", tag("div", left), figure, css="pair")
    return Section("quality", f"Accuracy and calibration, {found.split} split", body, (picture,))


def _classes(found: Predictions, prefix):
    """Confusion matrix, precision and recall."""
    names = found.class_names
    matrix = measures.confusion(found.labels, found.predicted, len(names))
    picture = charts.confusion(matrix, names)
    numbered = len(names) <= charts.NUMBERED
    caption = "Confusion matrix: the shade is the root of the share of the true class, so that rare mistakes show"
    parts = [tag("figure", inline(picture, prefix, wide=6 < len(names) <= charts.NUMBERED), tag("figcaption", caption))]
    lists = [_by_class(matrix, names)]
    pairs = measures.most_confused(matrix, PAIRS)
    if pairs:
        head = ("true", "predicted", "times", "of the class")
        rows = [
            (name(names[a], 18), name(names[b], 18), f"{n:,}", f"{n / matrix[a].sum():.1%}".replace("%", " %"))
            for a, b, n in pairs
        ]
        lists.append(tag("div", tag("h3", "Most frequent mistakes"), table(head, rows, text=2)))
    # A list of many classes is closed at first, so what is short comes before it.
    parts.append(tag("div", *(lists if numbered else reversed(lists)), css="pair"))
    return Section("classes", "Classes", join(parts), (picture,))


def _by_class(matrix, names):
    by_class = measures.per_class(matrix)
    means = measures.macro(by_class)
    rows = [
        (name(label, 18), *(_fraction(values[index]) for values in by_class[:3]), f"{by_class.support[index]:,}")
        for index, label in enumerate(names)
    ]
    foot = ("macro mean", *(f"{means[key]:.4f}" for key in means), f"{matrix.sum():,}")
    found = table(("class", "precision", "recall", "F1", "examples"), rows, foot)
    if len(names) > charts.NUMBERED:
        found = tag("details", tag("summary", f"All {len(names)} classes"), found)
    parts = [tag("h3", "By class"), found]
    if np.isnan(by_class.precision).any():
        text = "A class that was never predicted has no precision; in the macro mean that counts as 0."
        parts.append(tag("p", text, css="small"))
    return tag("div", *parts)


def _examples(found: Predictions):
    """Mistakes, and the extremes of each class."""
    wrong, extremes = examples.mistakes(found), examples.hardest_and_easiest(found)
    pictures: list[Picture] = []
    parts: list[Markup] = []
    if wrong:
        every = len(found.labels) - found.correct
        which = f"{len(wrong)} of {every:,} mistakes" if every > len(wrong) else f"All {every} mistakes"
        alt = f"the {len(wrong)} most confident mistakes"
        pictures.append(grid(wrong, "mistakes", alt, columns=min(5, len(wrong))))
        parts += [
            tag("p", f"{which}, the most confident first: true class, what the network said, how sure it was."),
            tag("div", *map(_thumbnail, wrong), css="grid"),
        ]
    else:
        parts.append(tag("p", f"None of the {len(found.labels):,} predictions is wrong."))
    if extremes:
        cells = [
            tag("div", tag("h4", name(label)), _thumbnail(hardest), _thumbnail(easiest), css="extremes")
            for label, hardest, easiest in extremes
        ]
        flat = [picture._replace(caption=(label, *picture.caption)) for label, *both in extremes for picture in both]
        pictures.append(
            grid(flat, "hardest_and_easiest", "hardest and easiest example of each class", min(4, len(flat)))
        )
        left_out = len(found.class_names) - len(extremes)
        more = f" These are {len(extremes)} of {len(found.class_names)} classes." if left_out else ""
        parts += [
            tag("h3", "Hardest and easiest of each class"),
            tag(
                "p",
                "Left the example whose true class got the lowest probability, right the one where it got the highest; "
                f"under each what the network said, how sure it was, and that probability.{more}",
            ),
            tag("div", *cells, css="classes"),
        ]
    return Section("examples", "Examples", join(parts), tuple(pictures))


def _weights(run):
    """What the first layer looks for."""
    templates = weights.templates(run.network)
    if templates:
        shown = [Thumbnail(picture, (label,)) for label, picture in templates.items()]
        text = (
            "The weights of a softmax classifier are an image for each class, each scaled for itself. Mid-grey is no "
            "influence; where a template is bright in a colour, more of that colour there speaks for the class, where "
            "it is dark, against it. A template shows what tells the class from the others, not what it looks like."
        )
        picture = grid(shown, "templates", "the weights of the classes as images", columns=min(5, len(shown)))
        body = join([tag("p", text), tag("div", *map(_thumbnail, shown), css="grid")])
        return Section("weights", "What the classes look like to the network", body, (picture,))
    found = weights.filters(run.network)
    if found is None:
        return None
    shown = [
        Thumbnail(kernel, (), f"length of the weights {norm:.3g}")
        for kernel, norm in zip(found.images, found.norms, strict=True)
    ]
    kind = (
        "in their three colours, from those that see light and dark alone to those that see colour alone"
        if found.channels == 3
        else "as grey, the strongest first" + ("" if found.channels == 1 else f", means over {found.channels} channels")
    )
    height, width = found.images.shape[1:3]
    text = (
        f"The {len(shown)} kernels of {height}×{width} pixels of the first convolution ({found.layer}), {kind}. Each "
        "is scaled for itself; mid-grey is a weight of 0."
    )
    picture = grid(shown, "filters", "the kernels of the first convolution", columns=min(8, len(shown)))
    body = join([tag("p", text), tag("div", *map(_thumbnail, shown), css="grid filters")])
    return Section("weights", "First-layer filters", body, (picture,))


def _configuration(run):
    return Section("configuration", "Configuration", facts.settings(run))


def _provenance(run):
    parts = [tag("h3", "Results by split"), facts.results(run), tag("h3", "Time"), facts.time(run)]
    if (table_of_parameters := facts.parameters(run)) is not None:
        parts += [tag("h3", "Parameters"), table_of_parameters]
    parts += [tag("h3", "Provenance"), facts.provenance(run)]
    return Section("record", "Record of the run", join(parts))


def _thumbnail(shown: Thumbnail) -> Markup:
    lines = [tag("span", name(line, 30)) for line in shown.caption]
    picture = image(
        encode(shown.image), shown.title or ", ".join(shown.caption), is_tiny(shown.image), shown.title or None
    )
    return tag("figure", picture, tag("figcaption", *lines) if lines else "", css="thumbnail")


def _fraction(value):
    return "–" if np.isnan(value) else f"{value:.4f}"
