"""training/summary.py: what is said about the classes before training."""

import numpy as np
import pytest
from synthetic import make_config

from imgclf_jax.data.types import Dataset, Split
from imgclf_jax.terminal.console import Console
from imgclf_jax.training.summary import show_classes


def said(capsys, counts, config=None, others=()):
    names = [f"class{label}" for label in range(len(counts))]

    def split(counts):
        labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        return Split(np.zeros((len(labels), 1, 1, 3), np.uint8), labels, labels.astype(str))

    parts = {"train": split(counts), **{role: split([count]) for role, count in others}}
    dataset = Dataset("pets", tuple(names), (1, 1, 3), parts, "", False, "", "")
    show_classes(Console("lines"), dataset, make_config(config or {}))
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err.splitlines()


def test_the_classes_are_listed_with_their_counts(capsys):
    out, warned = said(capsys, [12, 20], others=[("valid", 6), ("test", 1500)])
    assert out == ["training examples: class0 12, class1 20; valid 6, test 1,500 in all"]
    assert warned == []


def test_many_classes_are_summarized(capsys):
    out, warned = said(capsys, [50] * 98 + [30, 59])
    assert out == ["training examples: 100 classes, from class98 30 to class99 59"]
    assert warned == []


def test_few_examples_that_are_uneven_by_chance_are_not_said(capsys):
    assert said(capsys, [1, 4, 8, 5])[1] == []


def test_uneven_classes_are_said_with_the_flag_that_helps(capsys):
    _, (line,) = said(capsys, [9, 30, 12])
    assert "class1 has 3.3 times as many training examples as class0" in line
    assert "is right for 59% of them; --config.loss.class_weights=balanced" in line
    _, (line,) = said(capsys, [0, 30])
    assert "class0 has none" in line


@pytest.mark.parametrize("config", [{"loss.class_weights": "balanced"}, {"train.sampling": "balanced"}])
def test_who_has_balanced_them_is_not_told(capsys, config):
    assert said(capsys, [9, 30], config)[1] == []
