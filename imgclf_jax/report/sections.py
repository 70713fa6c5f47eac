"""The sections of a report on one run."""

import numpy as np

from imgclf_jax.predict import heat_maps
from imgclf_jax.report import charts, confusion, curves, examples, facts, measures, verdict, weights
from imgclf_jax.report.document import Section
from imgclf_jax.report.drawing import Picture, inline
from imgclf_jax.report.markup import Markup, image, join, name, table, tag
from imgclf_jax.report.predictions import Predictions
from imgclf_jax.report.runs import Run
from imgclf_jax.report.thumbnails import Thumbnail, encode, grid, is_tiny

TOP = (1, 2, 3, 5)
PAIRS = 10  # most confused pairs of classes to list
_METHOD = (
    "The map is that of Grad-CAM, with the gradient at each place, or gradient times input if the network has no "
    "convolutions. It is coarse, and says where the evidence was, not why it counted."
)
_CLICK = "Click a number to see its images."


def of(run: Run, prefix: str) -> list[Section]:
    """All sections that the run has content for.

    Args:
        run: the run.
        prefix: of the ids in its pictures.
    """
    sections: list[Section | None] = []
    if run.predictions is not None:
        sections += _of_predictions(run, prefix)
    sections.append(_curves(run, prefix))
    if run.network is not None:
        sections.append(_weights(run))
    sections += [_configuration(run), _provenance(run)]
    return [section for section in sections if section is not None]


def _curves(run, prefix):
    rows = run.rows
    fields = ["accuracy", "loss", *curves.own_metrics(rows)]
    drawn = [(field, picture) for field in fields if (picture := charts.learning_curves(rows, field))]
    if not drawn:
        return Section("curves", "Learning curves", tag("p", "The metrics files have no rows yet."))
    shown = [
        tag("figure", inline(picture, prefix), tag("figcaption", f"{field[0].upper()}{field[1:]} while training"))
        for field, picture in drawn
    ]
    text = (
        "Training values are means since the previous row, measured during training: with augmentation and dropout, if "
        "the run uses them. Training accuracy can therefore be below validation accuracy."
    )
    body = join([_verdict(run), tag("div", *shown, css="pair"), tag("p", text, css="small")])
    return Section("curves", "Learning curves", body, tuple(picture for _, picture in drawn))


def _verdict(run):
    """What the curves and the results say, and what to try next."""
    counts = (run.record.get("data") or {}).get("counts") or {}
    recall, support, names = None, None, ()
    if run.predictions is not None and len((finite := run.predictions.only_finite()).labels):
        names = finite.class_names
        by_class = measures.per_class(measures.confusion(finite.labels, finite.predicted, len(names)))
        recall, support = by_class.recall, by_class.support
    results = run.record.get("results") or {}
    found = verdict.judge(run.rows, run.config, counts.get("valid", 0), results, recall, support, names)
    parts = [tag("p", found.text)]
    if found.advice:
        advice = (tag("li", one.reason, " ", tag("code", one.flags) if one.flags else "") for one in found.advice)
        parts += [tag("h3", "What to try next"), tag("ul", *advice)]
    return join(parts)


def _of_predictions(run, prefix):
    """The sections that need probabilities, about the examples that have finite ones."""
    predictions = run.predictions
    finite = predictions.only_finite()
    if len(finite.labels):
        shown = [_examples(finite, run.network)] if len(finite.images) else []
        return [*shown, _classes(finite, prefix), _quality(predictions, finite, prefix)]
    split, count = predictions.split, len(predictions.labels)
    text = f"All {count:,} predictions on the {split} split are NaN, so there is nothing to show."
    return [Section("quality", f"Accuracy, {split} split", tag("p", text))]


def _quality(predictions: Predictions, finite: Predictions, prefix):
    """Accuracy over all examples, and top-k accuracy and calibration over those with finite probabilities."""
    classes, count = len(finite.class_names), len(predictions.labels)
    calibration = measures.calibration(finite.probabilities, finite.labels)
    picture = charts.reliability(calibration)
    low, high = measures.wilson(finite.correct, count)
    ranks = [(f"top {k}", f"{measures.top_k(finite.scores, finite.labels, k):.4f}") for k in TOP if k < classes]
    confidence = float(finite.probabilities.max(axis=1).mean())
    accuracy = finite.correct / count
    side = "above" if confidence > finite.correct / len(finite.labels) else "below"
    left = join(
        [
            tag(
                "p",
                f"{finite.correct:,} of {count:,} examples of the {finite.split} split are classified correctly: "
                f"accuracy {accuracy:.4f}, with a 95 % interval from {low:.4f} to {high:.4f} (Wilson). The interval "
                "covers only the uncertainty from the choice of the examples.",
            ),
            table(("the true class is in the", "accuracy"), ranks) if len(ranks) > 1 else "",
            tag(
                "p",
                f"Mean confidence is {confidence:.4f}, {side} the accuracy. The expected calibration error, the mean "
                f"difference between confidence and accuracy over {measures.BINS} bins of equal width, is "
                f"{calibration.error:.4f}.",
            ),
        ]
    )
    figure = tag(
        "figure",
        inline(picture, prefix),
        tag("figcaption", "Reliability: each dot is the mean confidence and the accuracy of a bin"),
    )
    body = tag("div", tag("div", left), figure, css="pair")
    return Section("quality", f"Accuracy and calibration, {finite.split} split", body, (picture,))


def _classes(predictions: Predictions, prefix):
    """Confusion matrix with the images of its cells, precision and recall."""
    names = predictions.class_names
    matrix = measures.confusion(predictions.labels, predictions.predicted, len(names))
    picture = charts.confusion(matrix, names)
    numbered = len(names) <= charts.NUMBERED
    cells = examples.of_cells(predictions) if len(predictions.images) else {}
    anchors = {cell: f"{prefix}-cell-{cell[0]}-{cell[1]}" for cell in cells}
    if numbered:
        parts = [
            tag(
                "p",
                "Rows are true classes, columns what the network said; the stronger the color, the more often. ",
                _CLICK,
            ),
            confusion.table(matrix, names, anchors),
        ]
    else:
        caption = tag(
            "figcaption",
            "Confusion matrix: rows are true classes, columns predicted ones; the stronger the color, the more often",
        )
        parts = [tag("figure", inline(picture, prefix), caption)]
    lists = [_by_class(matrix, names)]
    pairs = measures.most_confused(matrix, PAIRS)
    if pairs:
        head = ("true", "predicted", "count", "of the class")
        rows = [
            (
                name(names[a], 18),
                name(names[b], 18),
                confusion.link(f"{n:,}", anchors.get((a, b))),
                f"{n / matrix[a].sum():.1%}".replace("%", " %"),
            )
            for a, b, n in pairs
        ]
        lists.append(tag("div", tag("h3", "Most frequent mistakes"), table(head, rows, text=2)))
    shown = [
        confusion.panel(anchors[cell], names, cell, int(matrix[cell]), [_thumbnail(one) for one in images])
        for cell, images in cells.items()
    ]
    parts.append(tag("div", *shown, css="cells"))
    # With many classes the list is collapsed, so the shorter list comes first.
    parts.append(tag("div", *(lists if numbered else reversed(lists)), css="pair"))
    return Section("classes", "Which classes are confused", join(parts), (picture,))


def _by_class(matrix, names):
    by_class = measures.per_class(matrix)
    means = measures.macro(by_class)
    rows = [
        (name(label, 18), *(_fraction(values[index]) for values in by_class[:3]), f"{by_class.support[index]:,}")
        for index, label in enumerate(names)
    ]
    foot = ("macro mean", *(f"{means[key]:.4f}" for key in means), f"{matrix.sum():,}")
    listing = table(("class", "precision", "recall", "F1", "examples"), rows, foot)
    if len(names) > charts.NUMBERED:
        listing = tag("details", tag("summary", f"All {len(names)} classes"), listing)
    parts = [tag("h3", "By class"), listing]
    if np.isnan(by_class.precision).any():
        text = "A class that was never predicted has no precision, which counts as 0 in the macro mean."
        parts.append(tag("p", text, css="small"))
    return tag("div", *parts)


def _examples(predictions: Predictions, network):
    """Mistakes with heat maps, and the hardest and easiest examples of each class."""
    explain = None if network is None else heat_maps.explainer(network, batch_size=16)
    wrong, extremes = examples.mistakes(predictions, explain), examples.hardest_and_easiest(predictions)
    pictures: list[Picture] = []
    parts: list[Markup] = []
    if wrong:
        total = len(predictions.labels) - predictions.correct
        shown = f"{len(wrong)} of {total:,} mistakes" if total > len(wrong) else f"All {total} mistakes"
        alt = f"the {len(wrong)} most confident mistakes"
        pictures.append(grid(wrong, "mistakes", alt, columns=min(4, len(wrong))))
        looked = (
            " Beside each photo is what the network looked at: the brighter, the more that place spoke for its guess."
            if explain
            else ""
        )
        parts += [
            tag(
                "p",
                f"{shown}, those it was most sure of first: what it is, and the guess with its probability.{looked}",
            ),
            tag("div", *map(_thumbnail, wrong), css="grid looked" if explain else "grid"),
        ]
        if explain:
            parts.append(tag("p", _METHOD, css="small"))
    else:
        parts.append(tag("p", f"None of the {len(predictions.labels):,} predictions is wrong."))
    if extremes:
        cells = [
            tag("div", tag("h4", name(label)), _thumbnail(hardest), _thumbnail(easiest), css="extremes")
            for label, hardest, easiest in extremes
        ]
        flat = [picture._replace(caption=(label, *picture.caption)) for label, *both in extremes for picture in both]
        pictures.append(
            grid(flat, "hardest_and_easiest", "hardest and easiest example of each class", min(4, len(flat)))
        )
        classes = len(predictions.class_names)
        more = f" These are {len(extremes)} of {classes} classes." if classes > len(extremes) else ""
        parts += [
            tag("h3", "Hardest and easiest of each class"),
            tag(
                "p",
                "On the left, the example whose true class got the lowest probability; on the right, the highest. Under"
                f" each, the guess with its probability, and the probability of the true class.{more}",
            ),
            tag("div", *cells, css="classes"),
        ]
    return Section(
        "examples", "Mistakes, and what the network looked at" if explain else "Mistakes", join(parts), tuple(pictures)
    )


def _weights(run):
    """The weights of the first layer."""
    templates = weights.templates(run.network)
    if templates:
        thumbnails = [Thumbnail(picture, (label,)) for label, picture in templates.items()]
        text = (
            "The weights of a softmax classifier form one image (template) per class, each scaled separately. Mid-gray "
            "has no influence. A template that is bright in a color takes it as evidence for the class, a dark one as "
            "evidence against it. Templates show what separates a class from the others, not what the class looks like."
        )
        picture = grid(thumbnails, "templates", "the weights of the classes as images", columns=min(5, len(thumbnails)))
        body = join([tag("p", text), tag("div", *map(_thumbnail, thumbnails), css="grid")])
        return Section("weights", "What the classes look like to the network", body, (picture,))
    filters = weights.filters(run.network)
    if filters is None:
        return None
    thumbnails = [
        Thumbnail(kernel, (), f"norm of the weights: {norm:.3g}")
        for kernel, norm in zip(filters.images, filters.norms, strict=True)
    ]
    if filters.channels == 3:
        kind = "in color, from pure brightness to pure color"
    else:
        averaged = "" if filters.channels == 1 else f", averaged over {filters.channels} channels"
        kind = f"in gray, the strongest first{averaged}"
    height, width = filters.images.shape[1:3]
    text = (
        f"The {len(thumbnails)} kernels ({height}×{width} pixels) of the first convolution ({filters.layer}), {kind}. "
        "Each is scaled separately; mid-gray is a weight of 0."
    )
    picture = grid(thumbnails, "filters", "the kernels of the first convolution", columns=min(8, len(thumbnails)))
    body = join([tag("p", text), tag("div", *map(_thumbnail, thumbnails), css="grid filters")])
    return Section("weights", "First-layer filters", body, (picture,))


def _configuration(run):
    return Section("configuration", "Configuration", facts.settings(run))


def _provenance(run):
    parts = [tag("h3", "Results by split"), facts.results(run), tag("h3", "Time"), facts.time(run)]
    if (table_of_parameters := facts.parameters(run)) is not None:
        parts += [tag("h3", "Parameters"), table_of_parameters]
    parts += [tag("h3", "Provenance"), facts.provenance(run)]
    return Section("record", "Record of the run", join(parts))


def _thumbnail(thumbnail: Thumbnail) -> Markup:
    lines = [tag("span", name(line, 28)) for line in thumbnail.caption]
    alt = thumbnail.title or ", ".join(thumbnail.caption)
    pictures = [image(encode(thumbnail.image), alt, is_tiny(thumbnail.image))]
    if thumbnail.heat is not None:
        alt = "what the network looked at, as a heat map over the same image"
        pictures.append(image(encode(thumbnail.heat), alt, is_tiny(thumbnail.heat)))
    both = tag("div", *pictures, css="both") if len(pictures) > 1 else pictures[0]
    return tag("figure", both, tag("figcaption", *lines) if lines else "", css="thumbnail")


def _fraction(value):
    return "–" if np.isnan(value) else f"{value:.4f}"
