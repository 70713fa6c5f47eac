"""What the curves and results of a run say in words: overfitting, imbalance, and what to try next."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from imgclf_jax.report.curves import Point, best, points
from imgclf_jax.report.markup import shorten
from imgclf_jax.workdir.rows import Row

GAP = 0.05  # least difference of training and validation accuracy that is mentioned as overfitting
STEADY = 3  # falls in a row that are no accident: 4 values in random order fall throughout with probability 1 / 24
UNEQUAL = 3  # ratio of the largest and the smallest class from which on classes are called unequal


class Advice(NamedTuple):
    """What to try next.

    Attributes:
        reason: a sentence.
        flags: to add to the training command.
    """

    reason: str
    flags: str


class Verdict(NamedTuple):
    """What there is to say about a run.

    Attributes:
        text: plain sentences.
        kinds: the situations that were recognized, some of "unknown", "overfitting", "improving", "unsteady", "level",
            "chance" and "unequal".
        advice: the most useful first.
    """

    text: str
    kinds: frozenset[str]
    advice: tuple[Advice, ...]


def judge(
    rows: list[Row],
    config: ConfigDict,
    valid_count: int,
    results: dict[str, Any] | None = None,
    recall: np.ndarray | None = None,
    support: np.ndarray | None = None,
    names: Sequence[str] = (),
) -> Verdict:
    """Judges a run.

    All evaluations are of the same validation images, so two of them differ less than evaluations of different images
    would. A change counts if it exceeds the noise, which has two sources. The first is the finite number of images. Its
    bound is 1.96 standard errors of a difference of which half of the mistakes are shared: that of one accuracy, and
    for a loss, that with a standard deviation equal to the loss. The second is unsteady training: the distance of
    evaluations from the line between their neighbors. Apart from that, a loss that falls at each of the last `STEADY`
    evaluations, or at all, is called falling, by however little.

    Args:
        rows: of `metrics.jsonl`.
        config: of the run.
        valid_count: examples of the validation split; 0 if there is none.
        results: by split, as in `run.json`; if the training split is in it, its accuracy was measured on images that
            were not augmented.
        recall: float [C], accuracy by class on the reported split, NaN for classes without examples.
        support: int [C], examples of each class there.
        names: of the classes.
    """
    losses, accuracies = points(rows, "valid", "loss"), points(rows, "valid", "accuracy")
    if not valid_count:
        text = (
            "The run has no validation split, so these curves cannot show whether, or when, it began to overfit. "
            "Training accuracy alone says nothing about new images."
        )
        found = Verdict(text, frozenset({"unknown"}), (_hold_out(config),))
    elif not losses or not accuracies:
        text = "The validation split has not been evaluated yet, so overfitting cannot be judged."
        found = Verdict(text, frozenset({"unknown"}), (_evaluate_more(),))
    else:
        found = _judge(rows, config, losses, accuracies, valid_count, results or {}, support)
    unequal = _unequal(config, recall, support, names)
    if unequal is None:
        return found
    text, more = unequal
    return Verdict(f"{found.text} {text}", found.kinds | {"unequal"}, (*found.advice, *more))


def _judge(rows, config, losses, accuracies, count, results, support):
    kinds: set[str] = set()
    sentences = [_summary(losses, accuracies)]
    advice: list[Advice] = []
    share = float(support.max() / support.sum()) if support is not None and support.sum() else None
    highest = best(accuracies, "accuracy")
    if share is not None and highest.value <= share + _of_accuracy(highest.value, count):
        text = f"It learned next to nothing: always guessing the most frequent class is right for {share:.4f}."
        kinds.add("chance")
        rate = float(config.optim.learning_rate)
        advice += [
            Advice("The learning rate may be too high", f"--config.optim.learning_rate={rate / 10:g}"),
            Advice("or too low.", f"--config.optim.learning_rate={rate * 10:g}"),
        ]
        sentences.append(text)
    elif len(losses) > 1:
        kind, more = _course(rows, losses, accuracies, count)
        sentences += more
        kinds.add(kind)
    else:
        sentences.append("The curves cannot show when it stopped improving.")
        kinds.add("unknown")
    if "chance" not in kinds and (gap := _gap(rows, results, accuracies[-1], count)):
        train, valid, measured = gap
        sentences.append(
            f"At the end, the network is right on {train:.2f} of the training images{measured} but on {valid:.2f} of "
            f"the validation images, a gap of {train - valid:.2f}: this is overfitting."
        )
        kinds.add("overfitting")
    elif kinds == {"level"}:
        sentences.append("There is no clear sign of overfitting.")
    return Verdict(" ".join(sentences), frozenset(kinds), (*advice, *_advise(config, kinds, losses, accuracies)))


def _summary(losses, accuracies):
    if len(losses) == 1:
        return (
            f"The validation split was evaluated only once, at epoch {_number(losses[0].epoch)} (accuracy "
            f"{accuracies[0].value:.4f}, loss {losses[0].value:.4g})."
        )
    lowest, highest = best(losses, "loss"), best(accuracies, "accuracy")
    return (
        f"In {len(losses)} evaluations of the same validation images, accuracy was highest at epoch "
        f"{_number(highest.epoch)} ({highest.value:.4f}) and loss was lowest at epoch {_number(lowest.epoch)} "
        f"({lowest.value:.4g}); training ended at epoch {_number(losses[-1].epoch)}."
    )


def _course(rows, losses, accuracies, count):
    """The kind of the course of validation, and sentences about it."""
    lowest, highest = best(losses, "loss"), best(accuracies, "accuracy")
    last_loss, last_accuracy = losses[-1], accuracies[-1]
    noise_loss = max(1.96 * lowest.value / math.sqrt(count), _jitter(losses))
    noise_accuracy = max(_of_accuracy(highest.value, count), 1 / count, _jitter(accuracies))
    noise = (
        f"On {count:,} validation examples, differences below about {noise_accuracy:.2g} in accuracy and "
        f"{noise_loss:.2g} in loss are noise."
    )
    accuracy_fell = highest.value - last_accuracy.value > noise_accuracy
    if last_loss.value - lowest.value > noise_loss:
        kind, text = _risen(rows, lowest, last_loss)
        if accuracy_fell:
            more = f"Accuracy fell as well, to {last_accuracy.value:.4f} at the end."
        else:
            more = (
                f"Accuracy held ({last_accuracy.value:.4f} at the end): the network made no more mistakes than before, "
                "but became too confident in them."
            )
        return kind, [text, more, noise]
    if accuracy_fell:
        text = f"Validation accuracy had fallen to {last_accuracy.value:.4f} by the end, although the loss had not "
        return "unsteady", [f"{text}risen by more than noise.", noise]
    falls = _falls(losses)
    if falls >= min(STEADY, len(losses) - 1):
        always = falls == len(losses) - 1
        text = f"Validation loss fell at {'every evaluation' if always else f'each of the last {falls} evaluations'}"
        return "improving", [f"{text} and was still improving when training ended: longer training may help."]
    # From here on, everything was within noise of the best.
    level = next(point for point in losses if point.value <= lowest.value + noise_loss)
    level = max(level, next(point for point in accuracies if point.value >= highest.value - noise_accuracy))
    if level.step == last_loss.step:
        return "improving", ["Validation was still improving when training ended: longer training may help."]
    text = f"After epoch {_number(level.epoch)}, it improved by no more than noise, but it did not get worse either."
    return "level", [text, noise]


def _risen(rows, lowest, last):
    """The kind and the sentences for a validation loss that has risen."""
    rise = f"Validation loss stopped improving there and had risen to {last.value:.4g} by the end"
    train = points(rows, "train", "loss")
    after = [point.value for point in train if point.step > lowest.step]
    until = [point.value for point in train if point.step <= lowest.step]
    if not after or not until:
        return "unsteady", f"{rise}."
    window = max(1, min(len(after), len(until)) // 3)
    then, now = sum(until[-window:]) / window, sum(after[-window:]) / window
    if now < then:
        return "overfitting", (
            f"{rise}, while training loss kept falling, from {then:.4g} to {now:.4g}: this is overfitting. From there "
            "on, the network learned its training images rather than the task."
        )
    return "unsteady", (
        f"{rise}; training loss did not keep falling either ({then:.4g}, then {now:.4g}), so this is unsteady "
        "training rather than overfitting."
    )


def _gap(rows, results, last: Point, count: int):
    """(training accuracy, validation accuracy, how it was measured) if they differ by much, otherwise `None`."""
    both: list[Any] = [(results.get(split) or {}).get("accuracy") for split in ("train", "valid")]
    measured = ""
    if any(not isinstance(value, int | float) for value in both):
        # Means over the last epoch of training, with augmentation: the true gap is larger.
        train = [point for point in points(rows, "train", "accuracy") if point.epoch > last.epoch - 1]
        if not train:
            return None
        both = [statistics.fmean(point.value for point in train), last.value]
        measured = " (as they were seen in training)"
    train_accuracy, valid = map(float, both)
    enough = train_accuracy - valid > max(GAP, _of_accuracy(valid, count))
    return (train_accuracy, valid, measured) if enough else None


def _advise(config, kinds, losses, accuracies):
    if "overfitting" in kinds:
        if not config.augment.flip:
            yield Advice(
                "Show the network mirror images too, unless left and right matter, as in writing.",
                "--config.augment.flip=true",
            )
        if config.augment.policy == "none":
            yield Advice("Vary the training images more.", "--config.augment.policy=trivial_augment")
        if not config.optim.weight_decay:
            yield Advice("Keep the weights small.", "--config.optim.weight_decay=0.0005")
        if len(accuracies) > 1 and best(losses, "loss").step < losses[-1].step and not config.train.patience:
            yield Advice(
                "Stop when validation no longer improves, and report the best checkpoint.",
                "--config.train.patience=5 --config.eval.report=best",
            )
        yield Advice("More training images help most, if you can get them.", "")
    if "unsteady" in kinds:
        rate = float(config.optim.learning_rate)
        if config.optim.schedule == "constant":
            yield Advice("Let the learning rate fall to zero.", "--config.optim.schedule=cosine")
        yield Advice("Take a lower learning rate.", f"--config.optim.learning_rate={rate / 3:.2g}")
    if "improving" in kinds and "overfitting" not in kinds:
        yield _longer(config)
    if kinds == {"level"}:
        if config.optim.schedule == "constant":
            yield Advice("Let the learning rate fall to zero.", "--config.optim.schedule=cosine")
        if config.model.name in ("softmax", "mlp"):
            yield Advice("A network with convolutions sees more in images.", "--config.model.name=cnn")
        elif config.model.name in ("cnn", "tutorial_cnn", "small_cnn"):
            yield Advice("A larger network may learn more.", "--config.model.name=resnet18")
        else:
            yield _longer(config)
    if len(losses) == 1:
        yield _evaluate_more()


def _longer(config):
    train = config.train
    flag = f"steps={2 * train.steps}" if train.steps else f"epochs={2 * (train.epochs or 1):g}"
    return Advice("Train twice as long, in a new workdir.", f"--config.train.{flag}")


def _evaluate_more():
    return Advice("Evaluate validation in every epoch.", "--config.eval.every_epochs=1")


def _hold_out(config):
    own = config.data.source not in ("tfds", "sample")
    flags = (
        "--config.data.split='(0.7, 0.15, 0.15)'"
        if own
        else "--config.data.train_split='train[:90%]' --config.data.valid_split='train[90%:]'"
    )
    return Advice("Keep a part of the training images for validation.", flags)


def _unequal(config, recall, support, names):
    """A sentence about classes of very different sizes and advice, or `None`."""
    if support is None or recall is None or not support.any():
        return None
    present = np.flatnonzero(support)
    most, least = (int(present[place]) for place in (support[present].argmax(), support[present].argmin()))
    if len(present) < 2 or support[most] < UNEQUAL * support[least]:
        return None
    mean = float(np.nanmean(recall[present]))
    worst = int(present[np.nanargmin(recall[present])])
    text = (
        f"The classes are of unequal size: {shorten(names[most])} has {support[most]:,} of the {support.sum():,} "
        f"examples, {shorten(names[least])} {support[least]:,}. The accuracy is mostly about the large classes; the "
        f"mean of the accuracies of the classes is {mean:.4f}, and that of {shorten(names[worst])} is "
        f"{recall[worst]:.4f}."
    )
    if config.train.sampling == "balanced" or config.loss.class_weights:
        return text, ()
    return text, (Advice("Let every class count the same.", "--config.loss.class_weights=balanced"),)


def _of_accuracy(value, count):
    return 1.96 * math.sqrt(value * (1 - value) / count)


def _falls(curve):
    """How many times in a row the curve has fallen at its end."""
    values = [point.value for point in curve]
    falls = 0
    while falls + 1 < len(values) and values[-1 - falls] < values[-2 - falls]:
        falls += 1
    return falls


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
