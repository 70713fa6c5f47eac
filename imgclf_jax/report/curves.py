"""Learning curves from the rows of `metrics.jsonl`, and a verdict on them in words."""

import math
import statistics
from typing import NamedTuple

from imgclf_jax.workdir.rows import Row


class Point(NamedTuple):
    """A value at a point of training, given in epochs and in steps."""

    epoch: float
    step: int
    value: float


def points(rows: list[Row], split: str, field: str) -> list[Point]:
    """The curve of a field ("loss" or "accuracy"). Rows whose value was not finite are left out."""
    return [
        Point(row["epoch"], row["step"], row[field])
        for row in rows
        if row["split"] == split and row.get(field) is not None
    ]


def by_epoch(curve: list[Point], mean: bool) -> list[Point]:
    """One point per epoch, at its end: the last value, or the mean over its steps.

    Args:
        curve: the points. With `mean`, each is a mean over the steps since the previous one.
        mean: whether to average over the steps of the epoch.
    """
    groups: dict[int, list[tuple[Point, int]]] = {}
    previous = 0
    for point in curve:
        # Epochs are quotients, so allow for rounding: 2.0000000001 is the end of the second epoch.
        groups.setdefault(math.ceil(point.epoch - 1e-6), []).append((point, point.step - previous))
        previous = point.step
    ends = []
    for group in groups.values():
        last = group[-1][0]
        steps = sum(length for _, length in group)
        average = sum(point.value * length for point, length in group) / steps if steps else last.value
        ends.append(last._replace(value=average) if mean else last)
    return ends


def best(curve: list[Point], field: str) -> Point:
    """The first point with the highest accuracy or the lowest loss. The curve must not be empty."""
    return (max if field == "accuracy" else min)(curve, key=lambda point: point.value)


def verdict(rows: list[Row], valid_count: int) -> str:
    """Says in a few plain sentences whether the curves show overfitting.

    A difference counts if it exceeds the noise, which has two sources: the finite number of examples and unsteady
    training. The first is half the 95 % interval of an accuracy; for a loss, the same with a standard deviation equal
    to the loss, which is exact for exponentially distributed losses. Both are conservative, because all evaluations use
    the same examples. The second is the distance of evaluations from the line between their neighbors.

    Args:
        rows: of `metrics.jsonl`.
        valid_count: examples of the validation split; 0 if there is none.
    """
    if not valid_count:
        return (
            "The run has no validation split, so these curves cannot show whether, or when, it began to overfit. "
            "Training accuracy alone says nothing about new images."
        )
    losses, accuracies = points(rows, "valid", "loss"), points(rows, "valid", "accuracy")
    if not losses or not accuracies:
        return "The validation split has not been evaluated yet, so overfitting cannot be judged."
    if len(losses) == 1:
        return (
            f"The validation split was evaluated only once, at epoch {_number(losses[0].epoch)} (accuracy "
            f"{accuracies[0].value:.4f}, loss {losses[0].value:.4g}), so the curves cannot show when it stopped "
            "improving. Set eval.every_epochs to evaluate it more often."
        )
    return _verdict(rows, losses, accuracies, valid_count)


def _verdict(rows, losses, accuracies, count):
    lowest, highest = best(losses, "loss"), best(accuracies, "accuracy")
    last_loss, last_accuracy = losses[-1], accuracies[-1]
    noise_loss = max(1.96 * lowest.value / math.sqrt(count), _jitter(losses))
    chance = 1.96 * math.sqrt(highest.value * (1 - highest.value) / count)
    noise_accuracy = max(chance, 1 / count, _jitter(accuracies))
    sentences = [
        f"In {len(losses)} evaluations, validation accuracy was highest at epoch {_number(highest.epoch)} "
        f"({highest.value:.4f}) and validation loss was lowest at epoch {_number(lowest.epoch)} ({lowest.value:.4g}); "
        f"training ended at epoch {_number(last_loss.epoch)}."
    ]
    noise = f"differences below about {noise_accuracy:.2g} in accuracy and {noise_loss:.2g} in loss are noise"
    accuracy_fell = highest.value - last_accuracy.value > noise_accuracy
    if last_loss.value - lowest.value > noise_loss:
        sentences.append(_risen(rows, lowest, last_loss))
        if accuracy_fell:
            sentences.append(f"Accuracy fell as well, to {last_accuracy.value:.4f} at the end.")
        else:
            sentences.append(
                f"Accuracy held ({last_accuracy.value:.4f} at the end): the network made no more mistakes than before, "
                "but became too confident in them."
            )
    elif accuracy_fell:
        sentences.append(
            f"Validation accuracy had fallen to {last_accuracy.value:.4f} by the end, although the loss had not risen "
            "by more than noise."
        )
    else:
        # From here on, everything was within noise of the best.
        level = next(point for point in losses if point.value <= lowest.value + noise_loss)
        level = max(level, next(point for point in accuracies if point.value >= highest.value - noise_accuracy))
        if level.step == last_loss.step:
            sentences.append(
                "Validation was still improving when training ended: there is no sign of overfitting, and longer "
                "training may help."
            )
        else:
            sentences.append(
                f"After epoch {_number(level.epoch)}, it improved by no more than noise, but it did not get worse "
                "either: there is no clear sign of overfitting."
            )
    sentences.append(f"On {count:,} validation examples, {noise}.")
    return " ".join(sentences)


def _risen(rows, lowest, last):
    """The sentences for a validation loss that has risen: overfitting only if the training loss kept falling."""
    rise = f"Validation loss stopped improving there and had risen to {last.value:.4g} by the end"
    train = points(rows, "train", "loss")
    after = [point.value for point in train if point.step > lowest.step]
    until = [point.value for point in train if point.step <= lowest.step]
    if not after or not until:
        return f"{rise}."
    window = max(1, min(len(after), len(until)) // 3)
    then, now = sum(until[-window:]) / window, sum(after[-window:]) / window
    if now < then:
        return (
            f"{rise}, while training loss kept falling, from {then:.4g} to {now:.4g}: this is overfitting. From there "
            "on, the network learned its training images rather than the task."
        )
    return (
        f"{rise}; training loss did not keep falling either ({then:.4g}, then {now:.4g}), so this is unsteady "
        "training rather than overfitting. A lower or decaying learning rate may help."
    )


def _jitter(curve):
    """1.96 standard deviations of the deviation from the trend, from the median second difference; 0 for few points."""
    if len(curve) < 5:
        return 0.0
    values = [point.value for point in curve]
    bends = [abs(one - 2 * two + three) for one, two, three in zip(values, values[1:], values[2:], strict=False)]
    # The second difference of independent draws has 6 times their variance; a median is 0.6745 deviations.
    return 1.96 * statistics.median(bends) / (0.6745 * math.sqrt(6))


def _number(epoch):
    return f"{epoch:.3g}"
