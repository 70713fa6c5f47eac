"""The durations of a config, in steps."""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from imgclf_jax.errors import UserError, flag
from imgclf_jax.training import sampling
from imgclf_jax.training.stages import WHOLE, Stage, stages


class Plan(NamedTuple):
    """The durations of a config in steps. If `eval_every` or `checkpoint_every` is 0, it happens only at the end.

    Attributes:
        steps: length of the run.
        steps_per_epoch: see `imgclf_jax.training.sampling.steps_per_epoch`.
        warmup_steps: length of the learning rate's warm-up.
        eval_every: steps between evaluations of the validation split.
        checkpoint_every: steps between checkpoints.
        log_every: steps between rows of the metrics files.
        train_count: examples in the training split.
        valid_count: examples in the validation split; 0 if there is none.
        stages: parts of the run with programs of their own, at least one.
        labels: the bytes of the training labels, int32, if training depends on all of them; see `with_labels`.
    """

    steps: int
    steps_per_epoch: int
    warmup_steps: int
    eval_every: int
    checkpoint_every: int
    log_every: int
    train_count: int
    valid_count: int
    labels: bytes = b""
    stages: tuple[Stage, ...] = (WHOLE,)


def with_labels(plan: Plan, config: ConfigDict, labels: np.ndarray) -> Plan:
    """Returns a plan with the labels int32 [N] of the training split, if the config balances classes."""
    if config.train.sampling != "balanced" and config.loss.class_weights != "balanced":
        return plan
    return plan._replace(labels=np.asarray(labels, np.int32).tobytes())


def plan(config: ConfigDict, counts: dict[str, int]) -> Plan:
    """Converts the durations of a config to steps.

    Args:
        config: a valid config.
        counts: the number of examples in each split ("train", "valid", ...).

    Raises:
        UserError: the training split is smaller than a batch. This can still happen after validation, if photos were
            skipped or the bundled sample is used instead of the full data set.
    """
    train_count = counts["train"]
    if problems := epoch_problems(config, train_count):
        raise UserError(problems[0])
    epoch = sampling.steps_per_epoch(train_count, config.train.batch_size, config.train.last_batch)
    every = _steps(config.eval.every_steps, config.eval.every_epochs, epoch)
    steps = _steps(config.train.steps, config.train.epochs, epoch)
    return Plan(
        steps=steps,
        steps_per_epoch=epoch,
        warmup_steps=_steps(config.optim.warmup_steps, config.optim.warmup_epochs, epoch),
        eval_every=every,
        checkpoint_every=_steps(config.checkpoint.every_steps, config.checkpoint.every_epochs, epoch) or every,
        log_every=config.log.every_steps,
        train_count=train_count,
        valid_count=counts.get("valid", 0),
        stages=stages(config, steps, [(in_steps(end, epoch), pattern) for pattern, end in config.optim.freeze_after]),
    )


def _steps(steps, epochs, epoch):
    """Returns a duration in steps, at least 1, or 0 if it is not given."""
    if steps:
        return steps
    return in_steps(epochs, epoch) if epochs else 0


def in_steps(epochs: float, steps_per_epoch: int) -> int:
    """Returns a duration of more than 0 epochs in steps, at least 1."""
    return max(1, round(epochs * steps_per_epoch))


def epoch_problems(config: ConfigDict, count: int) -> list[str]:
    """Returns one line if an epoch of `count` training examples has no batch, or an empty list."""
    epoch = sampling.steps_per_epoch(count, config.train.batch_size, config.train.last_batch)
    if not epoch:
        return [
            f"train.batch_size={config.train.batch_size} is larger than the training split ({count} examples); "
            f"give {flag('train.batch_size', count)} or less, or --config.train.last_batch=wrap"
        ]
    return []
