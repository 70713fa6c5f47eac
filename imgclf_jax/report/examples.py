"""Which examples are worth looking at: confident mistakes, and the hardest and easiest of each class."""

import numpy as np

from imgclf_jax.report.predictions import Predictions
from imgclf_jax.report.thumbnails import Thumbnail, small

MISTAKES = 25
CLASSES = 50  # Of more classes than these the page would grow too long.


def mistakes(found: Predictions) -> list[Thumbnail]:
    """The most confident mistakes, the most confident first: true class, predicted class, confidence."""
    predicted = found.predicted
    wrong = np.flatnonzero(predicted != found.labels)
    # Where several are certain to the last bit, the one whose true class is the least likely comes first.
    order = np.lexsort((found.own_scores()[wrong], -found.scores[wrong, predicted[wrong]]))
    return [
        _thumbnail(found, index, (f"true: {_name(found, found.labels[index])}", *_said(found, index)))
        for index in wrong[order[:MISTAKES]]
    ]


def hardest_and_easiest(found: Predictions) -> list[tuple[str, Thumbnail, Thumbnail]]:
    """(class, hardest, easiest): its examples with the lowest and the highest probability of being what they are."""
    own, rows = found.own_scores(), []
    for label, name in enumerate(found.class_names[:CLASSES]):
        members = np.flatnonzero(found.labels == label)
        if len(members):
            hardest, easiest = members[own[members].argmin()], members[own[members].argmax()]
            both = (
                _thumbnail(found, index, (*_said(found, index), f"true: {_percent(own[index])}"))
                for index in (hardest, easiest)
            )
            rows.append((name, *both))
    return rows


def _thumbnail(found, index, caption):
    title = f"{found.ids[index]}, true class {_name(found, found.labels[index])}, {', '.join(_said(found, index))}"
    return Thumbnail(small(np.asarray(found.images[int(index)])), caption, title)


def _name(found, label):
    return found.class_names[label]


def _said(found, index):
    guess = found.scores[index].argmax()
    return f"said: {_name(found, guess)}", _percent(found.scores[index, guess])


def _percent(score):
    """A log-probability for people; what is not quite certain is not called 100 %."""
    probability = float(np.exp(score))
    if 0.9995 <= probability < 1:
        return "> 99.9 %"
    return "< 0.1 %" if probability < 0.0005 else f"{probability:.1%}".replace("%", " %")
