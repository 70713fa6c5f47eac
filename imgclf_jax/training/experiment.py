"""Puts the pure functions of an experiment together: config in, compiled-to-be functions out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from imgclf_jax import augment, models
from imgclf_jax.augment import normalize as inputs
from imgclf_jax.augment.normalize import Normalization
from imgclf_jax.devices import parallel
from imgclf_jax.training import multistep, optim
from imgclf_jax.training.exact_evaluation import make_evaluate
from imgclf_jax.training.state import TrainState, init_state
from imgclf_jax.training.steps import make_eval_step, make_train_step
from imgclf_jax.training.validate import Plan


class Experiment(NamedTuple):
    """The functions of one experiment, not yet compiled, and what they are made of.

    Attributes:
        model: the network.
        schedule: step -> learning rate.
        key: the experiment's PRNG key.
        input_shape: (H, W, C) of what the network sees.
        init: key -> the state before the first step.
        train_step: see `imgclf_jax.training.steps`.
        run_steps: see `imgclf_jax.training.multistep`.
        evaluate: see `imgclf_jax.training.exact_evaluation`.
    """

    model: nn.Module
    schedule: optax.Schedule
    key: jax.Array
    input_shape: tuple[int, int, int]
    init: Callable[[jax.Array], TrainState]
    train_step: Callable[..., Any]
    run_steps: Callable[..., Any]
    evaluate: Callable[..., Any]


def build(
    config: ConfigDict,
    plan: Plan,
    image_shape: tuple[int, int, int],
    num_classes: int,
    normalize: Normalization,
    strategy: parallel.Parallel,
) -> Experiment:
    """All functions of a valid config.

    Args:
        config: the whole config.
        plan: its durations.
        image_shape: (H, W, C) of the data set's images.
        num_classes: of the data set.
        normalize: from [0, 1] to what the network sees.
        strategy: where batches live.
    """
    model = models.create(config.model, num_classes, strategy.axis_name)
    schedule = optim.create_schedule(config.optim, plan.steps, plan.warmup_steps)
    optimizer = optim.create_optimizer(config.optim, schedule)
    key = jax.random.key(config.seed)
    input_shape = inputs.shape(config, image_shape)

    def prepare(key, images, positions):
        return normalize(augment.augment(config.augment, key, images, positions))

    def prepare_for_evaluation(images):
        return normalize(augment.central(config.augment, images))

    train_step = make_train_step(
        model,
        optimizer,
        prepare,
        label_smoothing=config.optim.label_smoothing,
        ema_decay=config.optim.ema_decay,
        accumulate=config.train.accumulate,
        all_sum=strategy.all_sum,
    )
    run_steps = multistep.make_run_steps(
        train_step,
        batch_size=config.train.batch_size,
        examples=plan.train_count,
        steps_per_epoch=plan.steps_per_epoch,
        replacement=config.train.sampling == "replacement",
        accumulate=config.train.accumulate,
        strategy=strategy,
    )
    eval_step = make_eval_step(model, prepare_for_evaluation)
    return Experiment(
        model=model,
        schedule=schedule,
        key=key,
        input_shape=input_shape,
        init=lambda key: init_state(model, optimizer, key, input_shape, config.optim.ema_decay > 0),
        train_step=train_step,
        run_steps=run_steps,
        evaluate=make_evaluate(eval_step, config.eval.batch_size, strategy),
    )


def compile_run_steps(experiment: Experiment, strategy: parallel.Parallel) -> Any:
    """`experiment.run_steps`, not yet lowered; the buffers of the state are reused."""
    sharding = strategy.state_sharding(jax.eval_shape(experiment.init, experiment.key))
    shardings = sharding, strategy.replicated
    return strategy.compile(experiment.run_steps, donate=(0,), examples=(2, 3), out_shardings=shardings)


def compile_init(experiment: Experiment, strategy: parallel.Parallel) -> Any:
    """`experiment.init`, not yet lowered."""
    state = jax.eval_shape(experiment.init, experiment.key)
    return strategy.jit(experiment.init, strategy.state_sharding(state))


def compile_evaluate(experiment: Experiment, strategy: parallel.Parallel) -> Any:
    """`experiment.evaluate`, not yet lowered."""
    return strategy.compile(experiment.evaluate, examples=(1, 2))


def template(experiment: Experiment, normalize: Normalization, strategy: parallel.Parallel) -> dict[str, Any]:
    """Shapes, dtypes and places of what a checkpoint holds: `state`, `meter` and `inputs`, the normalisation."""
    content = {
        "state": jax.eval_shape(experiment.init, experiment.key),
        "meter": multistep.empty_meter(),
        "inputs": normalize._asdict(),
    }
    return strategy.describe(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), content))
