"""What predictions are worth: confusion, precision and recall, calibration, intervals. Arrays in, arrays out."""

import math
from typing import NamedTuple

import numpy as np

BINS = 15


class PerClass(NamedTuple):
    """By class, float64 [C] each but for `support`; NaN where it is 0 / 0.

    Attributes:
        precision: of the examples predicted to be of the class, the fraction that are.
        recall: of the examples of the class, the fraction predicted to be.
        f1: their harmonic mean.
        support: int64, examples of the class.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


class Calibration(NamedTuple):
    """How far confidence can be taken at its word.

    Attributes:
        edges: float64 [bins + 1]; a bin holds confidences above its lower edge, up to its upper one.
        counts: int64 [bins].
        confidence: float64 [bins], the mean in each bin; NaN in empty ones.
        accuracy: float64 [bins], likewise.
        error: the expected calibration error: the mean of |accuracy - confidence| over the examples.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 [C, C]: how often each true class (row) was taken for each class (column).

    Args:
        labels: int [N].
        predicted: int [N].
        classes: C.
    """
    flat = labels.astype(np.int64) * classes + predicted
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def per_class(matrix: np.ndarray) -> PerClass:
    """Precision, recall and F1 from a confusion matrix int [C, C]."""
    right, support, taken = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    return PerClass(
        _divide(right, taken), _divide(right, support), _divide(2 * right, support + taken), support.astype(np.int64)
    )


def macro(found: PerClass) -> dict[str, float]:
    """Means of `precision`, `recall` and `f1` over the classes that have examples; what is 0 / 0 counts as 0."""
    present = found.support > 0
    return {name: float(np.nan_to_num(getattr(found, name)[present]).mean()) for name in ("precision", "recall", "f1")}


def most_confused(matrix: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """The most frequent mistakes, as (true class, predicted class, count), the most frequent first."""
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:most]
    rows, columns = np.unravel_index(order, matrix.shape)
    found = ((int(row), int(column), int(mistakes[row, column])) for row, column in zip(rows, columns, strict=True))
    return [mistake for mistake in found if mistake[2]]


def calibration(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Calibration:
    """The reliability diagram and the expected calibration error, with bins of equal width.

    Guo et al. 2017, «On Calibration of Modern Neural Networks» (https://arxiv.org/abs/1706.04599).

    Args:
        probabilities: float [N, C].
        labels: int [N].
        bins: how many.
    """
    confidences = probabilities.max(axis=1).astype(np.float64)
    hits = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    # Rounding may leave a probability a hair above 1.
    places = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    confidence = _divide(np.bincount(places, confidences, minlength=bins), counts)
    accuracy = _divide(np.bincount(places, hits, minlength=bins), counts)
    gaps = np.nan_to_num(np.abs(accuracy - confidence))
    return Calibration(edges, counts, confidence, accuracy, float((gaps * counts).sum() / max(len(labels), 1)))


def top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Fraction of the examples whose class is among the `k` with the highest scores; of equal ones the first count.

    Args:
        scores: float [N, C]: logits or log-probabilities. Probabilities will not do, where many of them round to 0.
        labels: int [N].
        k: how many.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    rank = ((scores > own) | ((scores == own) & before)).sum(axis=1)
    return float((rank < k).mean())


def wilson(correct: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval in which the accuracy on many more such examples lies, with 95 % confidence at `z` = 1.96.

    E. B. Wilson 1927, «Probable inference, the law of succession, and statistical inference».
    """
    rate = correct / count
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def _divide(numerator, denominator):
    numerator = np.asarray(numerator, np.float64)
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=np.asarray(denominator) > 0)
