"""Learning curves out of the rows of `metrics.jsonl`, and what they say in words."""

import math
import statistics
from typing import NamedTuple

from imgclf_jax.workdir.rows import Row


class Point(NamedTuple):
    """A value at a time of training, in epochs and in steps."""

    epoch: float
    step: int
    value: float


def points(rows: list[Row], split: str, field: str) -> list[Point]:
    """The curve of a field ("loss", "accuracy"); rows whose value was not finite are left out."""
    return [
        Point(row["epoch"], row["step"], row[field])
        for row in rows
        if row["split"] == split and row.get(field) is not None
    ]


def by_epoch(curve: list[Point], mean: bool) -> list[Point]:
    """A point an epoch: at the end of it the last value, or the mean over its steps.

    Args:
        curve: points, of which each stands for the steps since the one before where `mean` is set.
        mean: which of the two.
    """
    groups: dict[int, list[tuple[Point, int]]] = {}
    before = 0
    for point in curve:
        # A hair less, for epochs are quotients: 2.0000000001 is the end of the second one.
        groups.setdefault(math.ceil(point.epoch - 1e-6), []).append((point, point.step - before))
        before = point.step
    found = []
    for group in groups.values():
        last = group[-1][0]
        steps = sum(length for _, length in group)
        average = sum(point.value * length for point, length in group) / steps if steps else last.value
        found.append(last._replace(value=average) if mean else last)
    return found


def best(curve: list[Point], field: str) -> Point:
    """The first point with the highest accuracy or the lowest loss, of at least one."""
    return (max if field == "accuracy" else min)(curve, key=lambda point: point.value)


def verdict(rows: list[Row], valid_count: int) -> str:
    """What the curves say about overfitting, in a few plain sentences.

    A difference counts where it is larger than noise, which comes from few examples and from unsteady training. The
    first is half the 95 % interval of an accuracy, and for a loss the same with a deviation as large as the loss, which
    is right for losses that are distributed exponentially; both are rather large, for all evaluations see the same
    examples. The second is how far evaluations lie off the line between their neighbours.

    Args:
        rows: of `metrics.jsonl`.
        valid_count: examples of the validation split; 0 without one.
    """
    if not valid_count:
        return (
            "The run has no validation split, so these curves cannot tell when, or whether, it began to overfit. "
            "Training accuracy alone says nothing about new images."
        )
    losses, accuracies = points(rows, "valid", "loss"), points(rows, "valid", "accuracy")
    if not losses or not accuracies:
        return "The validation split has not been evaluated yet, so nothing can be said about overfitting."
    if len(losses) == 1:
        return (
            f"The validation split was evaluated only once, at epoch {_number(losses[0].epoch)} (accuracy "
            f"{accuracies[0].value:.4f}, loss {losses[0].value:.4g}), so the curves cannot tell when it stopped "
            "improving. eval.every_epochs evaluates it more often."
        )
    return _verdict(rows, losses, accuracies, valid_count)


def _verdict(rows, losses, accuracies, count):
    lowest, highest = best(losses, "loss"), best(accuracies, "accuracy")
    last_loss, last_accuracy = losses[-1], accuracies[-1]
    noise_loss = max(1.96 * lowest.value / math.sqrt(count), _jitter(losses))
    chance = 1.96 * math.sqrt(highest.value * (1 - highest.value) / count)
    noise_accuracy = max(chance, 1 / count, _jitter(accuracies))
    said = [
        f"Of {len(losses)} evaluations, validation accuracy was highest at epoch {_number(highest.epoch)} "
        f"({highest.value:.4f}) and validation loss lowest at epoch {_number(lowest.epoch)} ({lowest.value:.4g}); "
        f"training ended at epoch {_number(last_loss.epoch)}."
    ]
    noise = f"differences below about {noise_accuracy:.2g} in accuracy and {noise_loss:.2g} in loss are noise"
    lost = highest.value - last_accuracy.value > noise_accuracy
    if last_loss.value - lowest.value > noise_loss:
        said.append(_risen(rows, lowest, last_loss))
        if lost:
            said.append(f"Accuracy fell as well, to {last_accuracy.value:.4f} at the end.")
        else:
            said.append(
                f"Accuracy held ({last_accuracy.value:.4f} at the end): the network did not choose worse, it only "
                "became too sure of its mistakes."
            )
    elif lost:
        said.append(
            f"Validation accuracy had fallen to {last_accuracy.value:.4f} by the end, though the loss had not risen "
            "beyond noise."
        )
    else:
        # From here on everything was as good as the best: what improved later improved by less than noise.
        level = next(point for point in losses if point.value <= lowest.value + noise_loss)
        level = max(level, next(point for point in accuracies if point.value >= highest.value - noise_accuracy))
        if level.step == last_loss.step:
            said.append(
                "Validation had not stopped improving when training ended: there is no sign of overfitting, and longer "
                "training may well help."
            )
        else:
            said.append(
                f"Since epoch {_number(level.epoch)} it has improved by no more than noise, and has not got worse "
                "either: there is no clear sign of overfitting."
            )
    said.append(f"On {count:,} validation examples {noise}.")
    return " ".join(said)


def _risen(rows, lowest, last):
    """The sentences for a validation loss that was lower once: overfitting only if training went on getting better."""
    begun = f"Validation loss stopped improving there and had risen to {last.value:.4g} by the end"
    train = points(rows, "train", "loss")
    after = [point.value for point in train if point.step > lowest.step]
    until = [point.value for point in train if point.step <= lowest.step]
    if not after or not until:
        return f"{begun}."
    few = max(1, min(len(after), len(until)) // 3)
    then, now = sum(until[-few:]) / few, sum(after[-few:]) / few
    if now < then:
        return (
            f"{begun}, while training loss went on falling, from {then:.4g} to {now:.4g}: this is overfitting. From "
            "there on the network learned its training images rather than the task."
        )
    return (
        f"{begun}; training loss did not go on falling either ({then:.4g}, then {now:.4g}), so this is unsteady "
        "training rather than overfitting. A lower learning rate, or one that falls, may help."
    )


def _jitter(curve):
    """1.96 standard deviations of what is no trend, from the median second difference; 0 for a few points."""
    if len(curve) < 5:
        return 0.0
    values = [point.value for point in curve]
    bends = [abs(one - 2 * two + three) for one, two, three in zip(values, values[1:], values[2:], strict=False)]
    # The second difference of independent draws has 6 times their variance; a median is 0.6745 deviations.
    return 1.96 * statistics.median(bends) / (0.6745 * math.sqrt(6))


def _number(epoch):
    return f"{epoch:.3g}"
