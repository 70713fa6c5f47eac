"""report/measures.py and curves.py: against worked examples, explicit loops, and what must always hold."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf_jax.report import curves, measures
from imgclf_jax.report.curves import Point

CASES = st.integers(0, 2**32 - 1)


def draw(seed, classes=None):
    """(probabilities [N, C], labels [N]) of a network that is sometimes right."""
    draws = np.random.default_rng(seed)
    count, classes = int(draws.integers(1, 60)), classes or int(draws.integers(2, 7))
    probabilities = draws.dirichlet(np.full(classes, 0.4), count)
    return probabilities, draws.integers(0, classes, count)


def test_confusion_has_true_classes_as_rows():
    labels, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 0, 2, 2])
    assert measures.confusion(labels, predicted, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]


@given(CASES)
def test_confusion_counts_every_example_once(seed):
    probabilities, labels = draw(seed)
    classes, predicted = probabilities.shape[1], probabilities.argmax(axis=1)
    matrix = measures.confusion(labels, predicted, classes)
    expected = [[sum((labels == a) & (predicted == b)) for b in range(classes)] for a in range(classes)]
    assert matrix.tolist() == expected
    assert matrix.sum() == len(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    assert np.array_equal(matrix, measures.confusion(labels[order], predicted[order], classes))


def test_precision_and_recall_of_a_worked_example():
    # 3 of the 4 that are called «0» are; of the 5 that are «0» 3 are found.
    found = measures.per_class(np.array([[3, 2, 0], [1, 4, 0], [0, 0, 0]]))
    np.testing.assert_allclose(found.precision, [3 / 4, 4 / 6, math.nan])
    np.testing.assert_allclose(found.recall, [3 / 5, 4 / 5, math.nan])
    np.testing.assert_allclose(found.f1, [2 * 0.75 * 0.6 / 1.35, 2 * (2 / 3) * 0.8 / (2 / 3 + 0.8), math.nan])
    assert found.support.tolist() == [5, 5, 0]
    means = measures.macro(found)
    assert means["precision"] == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert means["recall"] == pytest.approx(0.7)


def test_a_class_that_is_never_predicted_counts_as_0_in_the_mean():
    found = measures.per_class(np.array([[2, 0], [2, 0]]))
    assert math.isnan(found.precision[1])
    assert measures.macro(found) == {
        "precision": pytest.approx(0.25),
        "recall": pytest.approx(0.5),
        "f1": pytest.approx(1 / 3),
    }


@given(CASES)
def test_precision_recall_and_f1_by_loops(seed):
    probabilities, labels = draw(seed)
    predicted = probabilities.argmax(axis=1)
    found = measures.per_class(measures.confusion(labels, predicted, probabilities.shape[1]))
    for label in range(probabilities.shape[1]):
        hits = sum(1 for a, b in zip(labels, predicted, strict=True) if a == b == label)
        taken, support = sum(predicted == label), sum(labels == label)
        assert found.support[label] == support
        if taken:
            assert found.precision[label] == pytest.approx(hits / taken)
        if support:
            assert found.recall[label] == pytest.approx(hits / support)
        if hits:
            precision, recall = hits / taken, hits / support
            assert found.f1[label] == pytest.approx(2 * precision * recall / (precision + recall))


def test_most_confused_are_mistakes_in_order():
    matrix = np.array([[9, 2, 0], [5, 9, 1], [0, 0, 9]])
    assert measures.most_confused(matrix, 2) == [(1, 0, 5), (0, 1, 2)]
    assert measures.most_confused(matrix, 10) == [(1, 0, 5), (0, 1, 2), (1, 2, 1)]
    assert matrix[0, 0] == 9


def test_expected_calibration_error_by_hand():
    # Two bins: 0.3 / 0.5 (one of two right, mean 0.4), and 0.8 / 0.9 / 1.0 (one of three right, mean 0.9).
    confidences = np.array([0.3, 0.5, 0.8, 0.9, 1.0])
    rest = (1 - confidences)[:, None] / 4
    probabilities = np.concatenate([confidences[:, None], np.repeat(rest, 4, axis=1)], axis=1)
    labels = np.array([0, 1, 0, 1, 1])
    found = measures.calibration(probabilities, labels, bins=2)
    assert found.counts.tolist() == [2, 3]
    np.testing.assert_allclose(found.confidence, [0.4, 0.9])
    np.testing.assert_allclose(found.accuracy, [1 / 2, 1 / 3])
    assert found.error == pytest.approx(2 / 5 * 0.1 + 3 / 5 * (0.9 - 1 / 3))


def test_sure_and_right_is_calibrated_sure_and_wrong_is_not():
    probabilities = np.eye(3)
    assert measures.calibration(probabilities, np.arange(3)).error == 0
    assert measures.calibration(probabilities, np.array([1, 2, 0])).error == 1


@given(CASES)
def test_expected_calibration_error_by_loops(seed):
    probabilities, labels = draw(seed)
    error = 0.0
    for index in range(15):
        low, high = index / 15, (index + 1) / 15
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, labels, strict=True)
            if low < row.max() <= high
        ]
        if inside:
            confidence = sum(value for value, _ in inside) / len(inside)
            accuracy = sum(hit for _, hit in inside) / len(inside)
            error += len(inside) / len(labels) * abs(confidence - accuracy)
    found = measures.calibration(probabilities, labels)
    assert found.error == pytest.approx(error)
    assert found.counts.sum() == len(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    assert measures.calibration(probabilities[order], labels[order]).error == pytest.approx(error)


@given(CASES)
def test_top_k_by_sorting(seed):
    probabilities, labels = draw(seed)
    classes = probabilities.shape[1]
    found = [measures.top_k(probabilities, labels, k) for k in range(1, classes + 1)]
    order = np.argsort(-probabilities, axis=1, kind="stable")
    expected = [
        np.mean([label in row[:k] for row, label in zip(order, labels, strict=True)]) for k in range(1, classes + 1)
    ]
    assert found == pytest.approx(expected)
    assert found[0] == pytest.approx(np.mean(probabilities.argmax(axis=1) == labels))
    assert found[-1] == 1


def test_top_k_of_equal_scores_agrees_with_argmax():
    scores = np.zeros((3, 3))
    assert [measures.top_k(scores, np.arange(3), k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_wilson_of_published_numbers():
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
    for correct, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert measures.wilson(correct, count) == pytest.approx((low, high), abs=5e-5)
    assert measures.wilson(29, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)


def test_metrics_of_ones_own_are_found_in_the_rows():
    at = {"step": 1, "epoch": 1.0, "learning_rate": 0.1, "images_per_second": 5.0, "grad_norm": 1.0}
    rows = [{**at, "split": "train", "loss": 1.0, "accuracy": 0.5, "brier": None, "top_2": 0.7}]
    rows.append({**at, "split": "valid", "loss": 1.0, "accuracy": 0.5, "brier": 0.3, "tta_loss": 1.0})
    assert curves.own_metrics(rows) == ["top_2", "brier"]
    assert curves.points(rows, "valid", "brier") == [Point(1.0, 1, 0.3)]
