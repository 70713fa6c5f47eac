"""The tables about the model and the closing lines that a run prints."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from imgclf_jax import data
from imgclf_jax.models.cost import parameter_table
from imgclf_jax.terminal.console import Console, count, duration
from imgclf_jax.training.validate import Plan

_LINE = 100  # characters of a list of classes
_UNEVEN = 2  # how many times as many examples a class must have for a warning


def show_model(console: Console, config: ConfigDict, plan: Plan, params: Any, flops: int) -> None:
    """Prints the parameter table, the FLOPs per step and the length of the run.

    Args:
        console: where to print.
        config: the config.
        plan: its durations.
        params: the parameters, or their shapes.
        flops: floating-point operations of the matrix products and convolutions of one training step.
    """
    table = parameter_table(params)
    rows = [(name, "×".join(map(str, shape)), f"{size:,}") for name, shape, size in table]
    console.table(("parameter", "shape", "values"), rows, ("total", "", f"{sum(size for *_, size in table):,}"))
    batch = config.train.batch_size
    console.print(
        f"{count(flops)}FLOP per step of {batch} images ({count(flops / batch)}FLOP per image, forward and backward)"
    )
    epochs = plan.steps / plan.steps_per_epoch
    console.print(f"{plan.steps:,} steps, {epochs:.4g} epochs of {plan.train_count:,} training examples")
    reached = plan.steps / (9 + plan.steps)
    if config.optim.ema_decay > reached:
        console.print(
            f"optim.ema_decay={config.optim.ema_decay} is never reached: the decay is at most "
            f"(1 + step) / (10 + step), which is {reached:.4g} at the last step"
        )
    if not plan.valid_count:
        console.print("no validation split: the last checkpoint is reported, without selection")


def show_classes(console: Console, dataset: data.Dataset, config: ConfigDict) -> None:
    """Prints how many examples each class has, and what to do if some classes have far more than others."""
    counts = np.bincount(dataset.splits["train"].labels, minlength=len(dataset.class_names))
    classes = [f"{name} {number:,}" for name, number in zip(dataset.class_names, counts, strict=True)]
    few, many = int(counts.argmin()), int(counts.argmax())
    listed = ", ".join(classes)
    if len(listed) > _LINE:
        listed = f"{len(classes)} classes, from {classes[few]} to {classes[many]}"
    others = ", ".join(f"{name} {size:,}" for name, size in dataset.counts.items() if name != "train")
    console.print(f"training examples: {listed}" + (f"; {others} in all" if others else ""))
    balanced = config.loss.class_weights or config.train.sampling == "balanced"
    # Few examples drawn at random are uneven by chance: by about the root of their number.
    chance = 3 * counts[many] ** 0.5
    if counts[many] >= _UNEVEN * counts[few] and counts[many] - counts[few] > chance and not balanced:
        most, least = dataset.class_names[many], dataset.class_names[few]
        times = f"{most} has {counts[many] / max(counts[few], 1):.1f} times as many training examples as {least}"
        console.warn(
            f"the classes are uneven: {times if counts[few] else f'{least} has none'}, and always answering {most} is "
            f"right for {counts[many] / counts.sum():.0%} of them; "
            "--config.loss.class_weights=balanced makes every class count the same"
        )


def show_results(
    console: Console, folder: Path, data_name: str, results: dict[str, dict[str, Any]], seconds: float
) -> None:
    """Prints the closing lines of a run, or an object with the same: the results, the time and the workdir."""
    for name, result in results.items():
        console.result(
            f"{name + ' accuracy':<15} {accuracy(result)}  loss {result['loss']:.4f}{own_metrics(result)}"
            f"  on {data_name}"
        )
    console.result(f"{'total time':<15} {duration(seconds)}")
    console.result(f"{'workdir':<15} {folder}")
    end = {"status": "complete", "results": results, "data": data_name, "wall_time_seconds": round(seconds, 3)}
    console.emit(end | {"workdir": str(folder)})


def own_metrics(result: dict[str, Any]) -> str:
    """Formats the values of metrics that are not ours; empty if there are none."""
    ours = ("accuracy", "loss", "correct", "count", "not_finite")
    return "".join(f"  {name} {value:.4f}" for name, value in result.items() if name not in ours)


def accuracy(result: dict[str, Any]) -> str:
    """Formats an accuracy, for example "0.7844 (7844 / 10000)", with the text of `not_finite`."""
    return f"{result['accuracy']:.4f} ({result['correct']} / {result['count']}){not_finite(result)}"


def not_finite(result: dict[str, Any]) -> str:
    """Returns a note on how many examples count as wrong because a logit is not finite; empty if there are none."""
    count = result.get("not_finite", 0)
    return f" ({count} with logits that are not finite, counted as wrong)" if count else ""
