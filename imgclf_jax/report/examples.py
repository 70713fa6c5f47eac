"""Selects the examples worth looking at: confident mistakes, and the hardest and easiest example of each class."""

import numpy as np

from imgclf_jax.report.predictions import Predictions
from imgclf_jax.report.thumbnails import Thumbnail, small

MISTAKES = 25
CLASSES = 50  # most classes to show examples of, to limit the length of the page


def mistakes(predictions: Predictions) -> list[Thumbnail]:
    """The most confident mistakes first, each with its true class, predicted class and confidence."""
    predicted = predictions.predicted
    wrong = np.flatnonzero(predicted != predictions.labels)
    # Among equally confident mistakes, the one with the least likely true class comes first.
    order = np.lexsort((predictions.own_scores()[wrong], -predictions.scores[wrong, predicted[wrong]]))
    return [
        _thumbnail(
            predictions,
            index,
            (f"true: {_name(predictions, predictions.labels[index])}", *_prediction(predictions, index)),
        )
        for index in wrong[order[:MISTAKES]]
    ]


def hardest_and_easiest(predictions: Predictions) -> list[tuple[str, Thumbnail, Thumbnail]]:
    """(class, hardest, easiest): the examples of each class whose true class got the lowest and highest probability."""
    own, rows = predictions.own_scores(), []
    for label, name in enumerate(predictions.class_names[:CLASSES]):
        members = np.flatnonzero(predictions.labels == label)
        if len(members):
            hardest, easiest = members[own[members].argmin()], members[own[members].argmax()]
            both = (
                _thumbnail(predictions, index, (*_prediction(predictions, index), f"true: {_percent(own[index])}"))
                for index in (hardest, easiest)
            )
            rows.append((name, *both))
    return rows


def _thumbnail(predictions, index, caption):
    true = _name(predictions, predictions.labels[index])
    title = f"{predictions.ids[index]}, true class {true}, {', '.join(_prediction(predictions, index))}"
    return Thumbnail(small(np.asarray(predictions.images[int(index)])), caption, title)


def _name(predictions, label):
    return predictions.class_names[label]


def _prediction(predictions, index):
    guess = predictions.scores[index].argmax()
    return f"guess: {_name(predictions, guess)}", _percent(predictions.scores[index, guess])


def _percent(score):
    """Formats a log-probability. A probability below 1 is never shown as 100 %."""
    probability = float(np.exp(score))
    if 0.9995 <= probability < 1:
        return "> 99.9 %"
    return "< 0.1 %" if probability < 0.0005 else f"{probability:.1%}".replace("%", " %")
