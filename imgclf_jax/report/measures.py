"""Measures of predictions: confusion, precision and recall, calibration, intervals. Arrays in, arrays out."""

import math
from typing import NamedTuple

import numpy as np

BINS = 15


class PerClass(NamedTuple):
    """Measures by class, float64 [C] except for `support`; 0 / 0 is NaN.

    Attributes:
        precision: fraction of the examples predicted as the class that belong to it.
        recall: fraction of the examples of the class that are predicted as it.
        f1: harmonic mean of precision and recall.
        support: int64 [C], number of examples of the class.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


class Calibration(NamedTuple):
    """How well confidence matches accuracy, in bins of confidence.

    Attributes:
        edges: float64 [bins + 1]. A bin excludes its lower edge and includes its upper one.
        counts: int64 [bins], examples in each bin.
        confidence: float64 [bins], mean confidence of each bin; NaN for empty bins.
        accuracy: float64 [bins], accuracy of each bin; NaN for empty bins.
        error: expected calibration error, the mean over the examples of |accuracy - confidence| of their bins.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """The confusion matrix: how often each true class (row) was predicted as each class (column).

    Args:
        labels: int [N].
        predicted: int [N].
        classes: C, the number of classes.

    Returns:
        int64 [C, C].
    """
    flat = labels.astype(np.int64) * classes + predicted
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def per_class(matrix: np.ndarray) -> PerClass:
    """Precision, recall and F1 from a confusion matrix int [C, C]."""
    correct, support, predicted = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    return PerClass(
        _divide(correct, predicted),
        _divide(correct, support),
        _divide(2 * correct, support + predicted),
        support.astype(np.int64),
    )


def macro(by_class: PerClass) -> dict[str, float]:
    """Means of `precision`, `recall` and `f1` over the classes that have examples; 0 / 0 counts as 0."""
    present = by_class.support > 0
    return {
        name: float(np.nan_to_num(getattr(by_class, name)[present]).mean()) for name in ("precision", "recall", "f1")
    }


def most_confused(matrix: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """At most `most` pairs of classes as (true class, predicted class, count), the most frequent mistakes first."""
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:most]
    rows, columns = np.unravel_index(order, matrix.shape)
    pairs = ((int(row), int(column), int(mistakes[row, column])) for row, column in zip(rows, columns, strict=True))
    return [pair for pair in pairs if pair[2]]


def calibration(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Calibration:
    """The reliability diagram and the expected calibration error, with bins of equal width.

    Guo et al. 2017, "On Calibration of Modern Neural Networks" (https://arxiv.org/abs/1706.04599).

    Args:
        probabilities: float [N, C].
        labels: int [N].
        bins: number of bins.
    """
    confidences = probabilities.max(axis=1).astype(np.float64)
    hits = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    # Rounding may make a probability slightly larger than 1.
    places = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    confidence = _divide(np.bincount(places, confidences, minlength=bins), counts)
    accuracy = _divide(np.bincount(places, hits, minlength=bins), counts)
    gaps = np.nan_to_num(np.abs(accuracy - confidence))
    return Calibration(edges, counts, confidence, accuracy, float((gaps * counts).sum() / max(len(labels), 1)))


def top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Fraction of the examples whose class is among the `k` with the highest scores. Ties go to the lower label.

    Args:
        scores: float [N, C], logits or log-probabilities; not probabilities, because many of them may round to 0.
        labels: int [N].
        k: number of classes that count.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    rank = ((scores > own) | ((scores == own) & before)).sum(axis=1)
    return float((rank < k).mean())


def wilson(correct: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson interval of an accuracy, with 95 % confidence at the default `z`.

    E. B. Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    rate = correct / count
    center = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return max(0.0, center - half), min(1.0, center + half)


def _divide(numerator, denominator):
    numerator = np.asarray(numerator, np.float64)
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=np.asarray(denominator) > 0)
