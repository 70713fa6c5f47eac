"""Builds the optimizer and the learning-rate schedule of a config with optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from imgclf_jax import components
from imgclf_jax.config import is_on
from imgclf_jax.errors import UserError
from imgclf_jax.training import freezing

NAME, SCHEDULE = "optim.name", "optim.schedule"
OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "muon")
NO_KERNELS = ("bias", "token", "positions")
DECOUPLED = ("adamw", "muon")  # whose weight decay is not part of the gradient
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
    if components.is_own(config.schedule):
        return _own_schedule(config, steps)
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

    For adamw and muon, the decay is decoupled from the scaling (Loshchilov and Hutter 2019). For the others, it is
    added to the gradient (L2 regularization).

    Args:
        config: the `optim` section.
        schedule: step -> learning rate.
        frozen: patterns of parameters without an update; see `imgclf_jax.training.freezing`.
    """
    mask = kernels if config.decay_mask == "kernels" else None
    parts = [optax.clip_by_global_norm(config.clip_norm)] if is_on(config.clip_norm) else []
    if is_on(config.weight_decay) and config.name not in DECOUPLED:
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
        case "muon":
            parts.append(_muon(config, schedule))
        case _:
            parts.append(_own_optimizer(config, schedule))
    return freezing.without(optax.chain(*parts), frozen)


def _muon(config, schedule):
    """Muon for the kernels of the hidden layers, and Adam for all else (https://kellerjordan.github.io/posts/muon/).

    A kernel is a matrix from the inputs of a unit to the units: that of a convolution is [kh · kw · C, features]. Its
    update is scaled to the size of Adam's (Liu et al. 2025, https://arxiv.org/abs/2502.16982, equation 4), so that one
    learning rate serves both. Nesterov momentum applies to both, and weight decay to what Muon
    updates or, if the mask is "all", to both.
    """
    return optax.contrib.muon(
        schedule,
        beta=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        adam_b1=config.b1,
        adam_b2=config.b2,
        adam_weight_decay=config.weight_decay if config.decay_mask == "all" else 0.0,
        muon_weight_dimension_numbers=lambda params: jax.tree.map_with_path(_as_matrix, params),
        consistent_rms=0.2,
    )


def _as_matrix(path, parameter):
    """How Muon sees a parameter; `None` leaves it to Adam."""
    *layers, name = (entry.key for entry in path)
    if name != "kernel" or layers[:1] == ["output"] or parameter.ndim < 2:
        return None
    # The kernel of an attention layer that joins the heads is [heads, features, outputs]; those before have the heads
    # among the outputs.
    inputs = 1 if parameter.ndim == 3 and layers[-1] != "out" else parameter.ndim - 1
    return optax.contrib.MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, parameter.ndim)))


def _own_schedule(config, steps):
    function = components.find(config.schedule, {}, SCHEDULE)
    known = components.parameters(function) or {}
    given = {"steps": steps, "peak": config.learning_rate}
    taken = {name: value for name, value in given.items() if name in known and name not in config.schedule_options}
    return function(**config.schedule_options, **taken)


def _own_optimizer(config, schedule):
    """Calls a function with the schedule, as `learning_rate` or otherwise as the first argument, and its options."""
    function = components.find(config.name, {}, NAME)
    if "learning_rate" in (components.parameters(function) or {}):
        return function(learning_rate=schedule, **config.options)
    return function(schedule, **config.options)


def kernels(params: Any) -> Any:
    """Returns which parameters are kernels, for weight decay.

    They have more than one axis, and are no biases (of attention), class tokens or position embeddings.
    """
    return jax.tree.map_with_path(lambda path, leaf: leaf.ndim > 1 and path[-1].key not in NO_KERNELS, params)


def problems(config: ConfigDict) -> list[str]:
    """Returns one line per problem with the names in `config.optim`; `ranges` checks the numbers."""
    lines = _own_problems(config)
    if config.name not in OPTIMIZERS and not components.is_own(config.name):
        lines.append(f"optim.name={config.name!r} is not an optimizer; choose one of {', '.join(OPTIMIZERS)}")
    if config.options and not components.is_own(config.name):
        lines.append(f"optim.options: {config.name} takes none; its settings are fields of optim")
    if config.schedule_options and not components.is_own(config.schedule):
        lines.append(f"optim.schedule_options: {config.schedule} takes none; its settings are fields of optim")
    if config.schedule not in SCHEDULES and not components.is_own(config.schedule):
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


def _own_problems(config):
    """Makes an optimizer and a schedule of one's own, and tries them on a parameter without computing anything."""
    schedule: Any = optax.constant_schedule(0.1)
    if components.is_own(config.schedule):
        call = components.Call(given=())
        try:
            known = components.parameters(components.find(config.schedule, {}, SCHEDULE)) or {}
        except UserError as error:
            return [str(error)]
        options: dict[str, Any] = dict(config.schedule_options)
        options.update((name, None) for name in ("steps", "peak") if name in known)
        if lines := components.problems(config.schedule, {}, SCHEDULE, options, call):
            return lines
        try:
            schedule = _own_schedule(config, 100)
            rate = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), "int32"))
        except Exception as error:
            return [f"{SCHEDULE}={config.schedule!r} fails: {components.explain(error)}"]
        if getattr(rate, "shape", ()) != ():
            return [f"{SCHEDULE}={config.schedule!r} returns {list(rate.shape)} for a step; it must be one number"]
    if not components.is_own(config.name):
        return []
    try:
        known = components.parameters(components.find(config.name, {}, NAME)) or {}
    except UserError as error:
        return [str(error)]
    named = "learning_rate" in known
    call = components.Call(positional=0 if named else 1, given=("learning_rate",) if named else ())
    if lines := components.problems(config.name, {}, NAME, config.options, call):
        return lines
    try:
        optimizer = _own_optimizer(config, schedule)
    except Exception as error:
        return [f"{NAME}={config.name!r} fails: {components.explain(error)}"]
    if not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
        return [f"{NAME}={config.name!r} returns {type(optimizer).__name__}, not an optax.GradientTransformation"]
    return []
