"""The durations of a config, in steps."""

from typing import NamedTuple

from ml_collections import ConfigDict

from imgclf_jax.errors import UserError
from imgclf_jax.training import sampling


class Plan(NamedTuple):
    """A config's durations in steps. `eval_every` and `checkpoint_every`: 0 means at the end only.

    Attributes:
        steps: length of the run.
        steps_per_epoch: see `imgclf_jax.training.sampling.steps_per_epoch`.
        warmup_steps: of the learning rate.
        eval_every: between evaluations of the validation split.
        checkpoint_every: between checkpoints.
        log_every: between rows of the metrics files.
        train_count: examples of the training split.
        valid_count: examples of the validation split; 0 without one.
    """

    steps: int
    steps_per_epoch: int
    warmup_steps: int
    eval_every: int
    checkpoint_every: int
    log_every: int
    train_count: int
    valid_count: int


def plan(config: ConfigDict, counts: dict[str, int]) -> Plan:
    """Returns the durations in steps, for splits ("train", "valid", ...) of `counts` examples.

    Args:
        config: a valid config.
        counts: the number of examples in each split.

    Raises:
        UserError: the training split turned out to be smaller than a batch, because photos were left out or because it
            is that of the sample.
    """
    train_count = counts["train"]
    if problems := epoch_problems(config, train_count):
        raise UserError(problems[0])
    epoch = sampling.steps_per_epoch(train_count, config.train.batch_size, config.train.last_batch)
    every = _steps(config.eval.every_steps, config.eval.every_epochs, epoch)
    return Plan(
        steps=_steps(config.train.steps, config.train.epochs, epoch),
        steps_per_epoch=epoch,
        warmup_steps=_steps(config.optim.warmup_steps, config.optim.warmup_epochs, epoch),
        eval_every=every,
        checkpoint_every=_steps(config.checkpoint.every_steps, config.checkpoint.every_epochs, epoch) or every,
        log_every=config.log.every_steps,
        train_count=train_count,
        valid_count=counts.get("valid", 0),
    )


def _steps(steps, epochs, epoch):
    """Returns a duration in steps, at least one; 0 if none is given."""
    if steps:
        return steps
    return max(1, round(epochs * epoch)) if epochs else 0


def epoch_problems(config: ConfigDict, count: int) -> list[str]:
    """Returns what is wrong with the batches of an epoch of `count` training examples, a line each."""
    epoch = sampling.steps_per_epoch(count, config.train.batch_size, config.train.last_batch)
    if not epoch:
        return [
            f"train.batch_size={config.train.batch_size} is larger than the training split ({count} examples); "
            'make it smaller or set train.last_batch="wrap"'
        ]
    return []
