"""Selects the examples worth looking at: mistakes, the hardest and easiest of each class, those of each confusion."""

from collections.abc import Callable
from pathlib import PurePath

import numpy as np

from imgclf_jax.report.markup import shorten
from imgclf_jax.report.predictions import Predictions
from imgclf_jax.report.thumbnails import LARGEST, Thumbnail, small, under

MISTAKES = 12
CLASSES = 50  # most classes to show examples of, to limit the length of the page
OF_CELL = 8  # most examples of a cell of the confusion matrix
OF_CELLS = 400  # and of all cells, to limit the size of the page
CELL_SIZE = 96  # pixels; larger images are scaled down to this in a cell
Explain = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # of `predict.heat_maps.explainer`


def mistakes(predictions: Predictions, explain: Explain | None = None) -> list[Thumbnail]:
    """The most confident mistakes first, each with its true class, predicted class and confidence.

    Args:
        predictions: all of them finite.
        explain: (images, classes) -> (probabilities, heat maps); if it is given, the thumbnails have heat maps for
            the predicted class.
    """
    predicted = predictions.predicted
    wrong = np.flatnonzero(predicted != predictions.labels)
    # Among equally confident mistakes, the one with the least likely true class comes first.
    order = np.lexsort((predictions.own_scores()[wrong], -predictions.scores[wrong, predicted[wrong]]))
    chosen = wrong[order[:MISTAKES]]
    shown = [
        _thumbnail(
            predictions,
            index,
            (
                f"is: {shorten(_name(predictions, predictions.labels[index]), 24)}",
                *_prediction(predictions, index),
                PurePath(str(predictions.ids[index])).name,
            ),
        )
        for index in chosen
    ]
    if explain is None or not shown:
        return shown
    images = np.stack([np.asarray(predictions.images[int(index)]) for index in chosen])
    _, maps = explain(images, predicted[chosen])
    covered = (small(under(image, heat)) for image, heat in zip(images, maps, strict=True))
    return [one._replace(heat=heat) for one, heat in zip(shown, covered, strict=True)]


def of_cells(predictions: Predictions) -> dict[tuple[int, int], list[Thumbnail]]:
    """Examples of the cells of the confusion matrix: (true class, predicted class) -> the most confident ones.

    Cells of mistakes come first if not all cells can have examples, and of these the most frequent ones.
    """
    predicted, classes = predictions.predicted, len(predictions.class_names)
    flat = predictions.labels.astype(np.int64) * classes + predicted
    counts = np.bincount(flat, minlength=classes * classes)
    wrong = np.arange(classes * classes) % (classes + 1) != 0
    cells = [int(cell) for cell in np.lexsort((-counts, ~wrong)) if counts[cell]][:OF_CELLS]
    each = next((n for n in range(OF_CELL, 1, -1) if np.minimum(counts[cells], n).sum() <= OF_CELLS), 1)
    confidence = predictions.scores[np.arange(len(flat)), predicted]
    found = {}
    for cell in sorted(cells):
        members = np.flatnonzero(flat == cell)
        chosen = members[np.argsort(-confidence[members], kind="stable")[:each]]
        found[divmod(cell, classes)] = [
            _thumbnail(predictions, index, (_percent(confidence[index]),), CELL_SIZE) for index in chosen
        ]
    return found


def hardest_and_easiest(predictions: Predictions) -> list[tuple[str, Thumbnail, Thumbnail]]:
    """(class, hardest, easiest): the examples of each class whose true class got the lowest and highest probability."""
    own, rows = predictions.own_scores(), []
    for label, name in enumerate(predictions.class_names[:CLASSES]):
        members = np.flatnonzero(predictions.labels == label)
        if len(members):
            hardest, easiest = members[own[members].argmin()], members[own[members].argmax()]
            both = (
                _thumbnail(
                    predictions,
                    index,
                    (*_prediction(predictions, index), f"{shorten(name, 18)}: {_percent(own[index])}"),
                )
                for index in (hardest, easiest)
            )
            rows.append((name, *both))
    return rows


def _thumbnail(predictions, index, caption, largest=LARGEST):
    true = _name(predictions, predictions.labels[index])
    guess = predictions.scores[index].argmax()
    probability = _percent(predictions.scores[index, guess])
    title = f"{predictions.ids[index]}, is {true}, guess: {_name(predictions, guess)}, {probability}"
    return Thumbnail(small(np.asarray(predictions.images[int(index)]), largest), caption, title)


def _name(predictions, label):
    return predictions.class_names[label]


def _prediction(predictions, index):
    guess = predictions.scores[index].argmax()
    return (f"guess: {shorten(_name(predictions, guess), 18)}, {_percent(predictions.scores[index, guess])}",)


def _percent(score):
    """Formats a log-probability. A probability below 1 is never shown as 100 %."""
    probability = float(np.exp(score))
    if 0.9995 <= probability < 1:
        return "> 99.9 %"
    return "< 0.1 %" if probability < 0.0005 else f"{probability:.1%}".replace("%", " %")
