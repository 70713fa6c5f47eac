"""The tables that a run prints about its model, and its last lines."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imgclf_jax.models.cost import parameter_table
from imgclf_jax.terminal.console import Console, count, duration
from imgclf_jax.training.validate import Plan


def show_model(console: Console, config: ConfigDict, plan: Plan, params: Any, flops: int) -> None:
    """The parameter table, FLOPs a step and the length of the run.

    Args:
        console: where to print.
        config: the config.
        plan: its durations.
        params: the parameters, or their shapes.
        flops: of the matrix products and convolutions of one training step.
    """
    table = parameter_table(params)
    rows = [(name, "×".join(map(str, shape)), f"{size:,}") for name, shape, size in table]
    console.table(("parameter", "shape", "values"), rows, ("total", "", f"{sum(size for *_, size in table):,}"))
    batch = config.train.batch_size
    console.print(
        f"{count(flops)}FLOP a step of {batch} images ({count(flops / batch)}FLOP an image, forward and backward)"
    )
    epochs = plan.steps / plan.steps_per_epoch
    console.print(f"{plan.steps:,} steps, {epochs:.4g} epochs of {plan.train_count:,} training examples")
    reached = plan.steps / (9 + plan.steps)
    if config.optim.ema_decay > reached:
        console.print(
            f"optim.ema_decay={config.optim.ema_decay} is not reached: the decay is at most (1 + step) / (10 + step), "
            f"{reached:.4g} at the last step"
        )
    if not plan.valid_count:
        console.print("no validation split: nothing is selected, the last checkpoint is the one reported")


def show_results(
    console: Console, folder: Path, data_name: str, results: dict[str, dict[str, Any]], seconds: float
) -> None:
    """The last lines of a run: accuracy a split, time, and where things are."""
    for name, result in results.items():
        console.print(f"{name + ' accuracy':<15} {accuracy(result)}  loss {result['loss']:.4f}  on {data_name}")
    console.print(f"{'total time':<15} {duration(seconds)}")
    console.print(f"{'workdir':<15} {folder}")


def accuracy(result: dict[str, Any]) -> str:
    """For instance "0.7844 (7844 / 10000)", and how many examples have no finite logits, if there are any."""
    return f"{result['accuracy']:.4f} ({result['correct']} / {result['count']}){not_finite(result)}"


def not_finite(result: dict[str, Any]) -> str:
    """Says how many examples count as wrong because a logit is not finite; empty if there are none."""
    count = result.get("not_finite", 0)
    return f" ({count} with logits that are not finite, counted as wrong)" if count else ""
