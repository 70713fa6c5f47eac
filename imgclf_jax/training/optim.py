"""Builds the optimizer and the learning-rate schedule of a config with optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from imgclf_jax.config import is_on
from imgclf_jax.training import freezing

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")
SCHEDULES = ("constant", "linear", "cosine", "exponential", "one_cycle", "step")


def create_schedule(config: ConfigDict, steps: int, warmup_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of steps taken.

    Args:
        config: the `optim` section. `learning_rate` is the peak; the schedule ends at `final_fraction` of it.
            "step" multiplies it by `decay_factor` at each of the `milestones` instead, as in He et al. 2016, section
            4.2 (https://arxiv.org/abs/1512.03385).
        steps: length of the run.
        warmup_steps: length of the linear rise from 0. With `one_cycle`, this is the rising part of the cycle, and 0
            means three tenths of the run, as in Smith 2018 (https://arxiv.org/abs/1803.09820).

    Returns:
        int32 step -> float32 learning rate.
    """
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    if config.schedule == "one_cycle":
        rise = warmup_steps or max(1, round(0.3 * steps))
        fall = optax.linear_schedule(peak, final, max(1, steps - rise))
        return optax.join_schedules([optax.linear_schedule(0.0, peak, rise), fall], [rise])
    decay = max(1, steps - warmup_steps)
    match config.schedule:
        case "constant":
            schedule = optax.constant_schedule(peak)
        case "linear":
            schedule = optax.linear_schedule(peak, final, decay)
        case "cosine":
            schedule = optax.cosine_decay_schedule(peak, decay, alpha=config.final_fraction)
        case "exponential":
            schedule = optax.exponential_decay(peak, decay, config.final_fraction)
        case "step":
            schedule = _steps(peak, config.decay_factor, [round(at * steps) - warmup_steps for at in config.milestones])
        case _:
            raise ValueError(config.schedule)
    if warmup_steps:
        schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), schedule], [warmup_steps])
    return schedule


def _steps(peak, factor, ends):
    """Piecewise constant; unlike `optax.piecewise_constant_schedule`, it allows several drops at the same step."""
    return lambda step: peak * factor ** sum((jnp.asarray(step >= end, jnp.float32) for end in ends), jnp.float32(0))


def create_optimizer(
    config: ConfigDict, schedule: optax.Schedule, frozen: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """Returns gradient clipping, weight decay and the optimizer of `config.optim` as one optax transformation.

    For adamw, the decay is decoupled from the adaptive scaling (Loshchilov and Hutter 2019). For the others, it is
    added to the gradient (L2 regularization).

    Args:
        config: the `optim` section.
        schedule: step -> learning rate.
        frozen: patterns of parameters without an update; see `imgclf_jax.training.freezing`.
    """
    mask = _kernels if config.decay_mask == "kernels" else None
    parts = [optax.clip_by_global_norm(config.clip_norm)] if is_on(config.clip_norm) else []
    if is_on(config.weight_decay) and config.name != "adamw":
        parts.append(optax.add_decayed_weights(config.weight_decay, mask))
    momentum: Any = config.momentum if is_on(config.momentum) else None
    match config.name:
        case "sgd":
            nesterov = config.nesterov and momentum is not None
            parts.append(optax.sgd(schedule, momentum=momentum, nesterov=nesterov))
        case "adam":
            parts.append(optax.adam(schedule, config.b1, config.b2, config.eps))
        case "adamw":
            parts.append(
                optax.adamw(schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=mask)
            )
        case "rmsprop":
            parts.append(optax.rmsprop(schedule, config.b2, config.eps, momentum=momentum, nesterov=config.nesterov))
        case _:
            raise ValueError(config.name)
    return freezing.without(optax.chain(*parts), frozen)


def _kernels(params):
    return jax.tree.map(lambda parameter: parameter.ndim > 1, params)


def problems(config: ConfigDict) -> list[str]:
    """Returns one line per problem with the names in `config.optim`; `ranges` checks the numbers."""
    lines = []
    if config.name not in OPTIMIZERS:
        lines.append(f"optim.name={config.name!r} is not an optimizer; choose one of {', '.join(OPTIMIZERS)}")
    if config.schedule not in SCHEDULES:
        lines.append(f"optim.schedule={config.schedule!r} is not a schedule; choose one of {', '.join(SCHEDULES)}")
    if config.decay_mask not in ("kernels", "all"):
        lines.append(f'optim.decay_mask={config.decay_mask!r} must be "kernels" or "all"')
    if config.schedule == "step" and not (config.milestones and list(config.milestones) == sorted(config.milestones)):
        lines.append(
            f"optim.milestones={tuple(config.milestones)!r} must be increasing fractions of the run for the schedule "
            '"step"; for example --config.optim.milestones="(0.5, 0.75)"'
        )
    if config.schedule == "exponential" and not config.final_fraction > 0:
        lines.append(
            f"optim.final_fraction={config.final_fraction} must be above 0 for the exponential schedule, which never "
            "reaches 0; for example --config.optim.final_fraction=0.01"
        )
    return lines
