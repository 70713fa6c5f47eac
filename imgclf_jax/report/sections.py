"""The sections of a report on one run."""

import numpy as np

from imgclf_jax.report import charts, curves, examples, facts, measures, weights
from imgclf_jax.report.document import Section
from imgclf_jax.report.drawing import Picture, inline
from imgclf_jax.report.markup import Markup, image, join, name, table, tag
from imgclf_jax.report.predictions import Predictions
from imgclf_jax.report.runs import Run
from imgclf_jax.report.thumbnails import Thumbnail, encode, grid, is_tiny

TOP = (1, 2, 3, 5)
PAIRS = 10  # most confused pairs of classes to list


def of(run: Run, prefix: str) -> list[Section]:
    """All sections that the run has content for.

    Args:
        run: the run.
        prefix: of the ids in its pictures.
    """
    sections: list[Section | None] = [_curves(run, prefix)]
    if run.predictions is not None:
        sections += _of_predictions(run.predictions, prefix)
    if run.network is not None:
        sections.append(_weights(run))
    sections += [_configuration(run), _provenance(run)]
    return [section for section in sections if section is not None]


def _curves(run, prefix):
    rows = run.rows
    counts = (run.record.get("data") or {}).get("counts") or {}
    learning = [charts.learning_curves(rows, field) for field in ("accuracy", "loss")]
    epochs = [charts.evaluation_accuracy(rows), charts.accuracy_against_validation(rows)]
    pictures = tuple(picture for picture in learning + epochs if picture)
    if not pictures:
        return Section("curves", "Learning curves", tag("p", "The metrics files have no rows yet."))
    titles = (
        "Accuracy, every row of metrics.jsonl",
        "Loss, every row of metrics.jsonl",
        "Evaluation accuracy by epochs trained",
        "Training and validation accuracy, by epoch",
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
                "Training values are means since the previous row, measured during training: with augmentation and "
                "dropout, if the run uses them. Training accuracy can therefore be below validation accuracy.",
                css="small",
            ),
        ]
    )
    return Section("curves", "Learning curves", body, pictures)


def _of_predictions(predictions: Predictions, prefix):
    """The sections that need probabilities, about the examples that have finite ones."""
    finite = predictions.only_finite()
    if len(finite.labels):
        return [_quality(predictions, finite, prefix), _classes(finite, prefix), _examples(finite)]
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
    """Confusion matrix, precision and recall."""
    names = predictions.class_names
    matrix = measures.confusion(predictions.labels, predictions.predicted, len(names))
    picture = charts.confusion(matrix, names)
    numbered = len(names) <= charts.NUMBERED
    caption = "Confusion matrix, shaded by the square root of the share of the true class to show rare mistakes"
    parts = [tag("figure", inline(picture, prefix, wide=6 < len(names) <= charts.NUMBERED), tag("figcaption", caption))]
    lists = [_by_class(matrix, names)]
    pairs = measures.most_confused(matrix, PAIRS)
    if pairs:
        head = ("true", "predicted", "count", "of the class")
        rows = [
            (name(names[a], 18), name(names[b], 18), f"{n:,}", f"{n / matrix[a].sum():.1%}".replace("%", " %"))
            for a, b, n in pairs
        ]
        lists.append(tag("div", tag("h3", "Most frequent mistakes"), table(head, rows, text=2)))
    # With many classes the list is collapsed, so the shorter list comes first.
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
    listing = table(("class", "precision", "recall", "F1", "examples"), rows, foot)
    if len(names) > charts.NUMBERED:
        listing = tag("details", tag("summary", f"All {len(names)} classes"), listing)
    parts = [tag("h3", "By class"), listing]
    if np.isnan(by_class.precision).any():
        text = "A class that was never predicted has no precision, which counts as 0 in the macro mean."
        parts.append(tag("p", text, css="small"))
    return tag("div", *parts)


def _examples(predictions: Predictions):
    """Mistakes, and the hardest and easiest examples of each class."""
    wrong, extremes = examples.mistakes(predictions), examples.hardest_and_easiest(predictions)
    pictures: list[Picture] = []
    parts: list[Markup] = []
    if wrong:
        total = len(predictions.labels) - predictions.correct
        shown = f"{len(wrong)} of {total:,} mistakes" if total > len(wrong) else f"All {total} mistakes"
        alt = f"the {len(wrong)} most confident mistakes"
        pictures.append(grid(wrong, "mistakes", alt, columns=min(5, len(wrong))))
        parts += [
            tag("p", f"{shown}, the most confident first: true class, predicted class (guess) and its probability."),
            tag("div", *map(_thumbnail, wrong), css="grid"),
        ]
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
                f" each, the predicted class (guess), its probability, and that of the true class.{more}",
            ),
            tag("div", *cells, css="classes"),
        ]
    return Section("examples", "Examples", join(parts), tuple(pictures))


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
    lines = [tag("span", name(line, 30)) for line in thumbnail.caption]
    alt = thumbnail.title or ", ".join(thumbnail.caption)
    picture = image(encode(thumbnail.image), alt, is_tiny(thumbnail.image), thumbnail.title or None)
    return tag("figure", picture, tag("figcaption", *lines) if lines else "", css="thumbnail")


def _fraction(value):
    return "–" if np.isnan(value) else f"{value:.4f}"
