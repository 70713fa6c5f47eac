"""Builds the optimizer and the learning-rate schedule of a config with optax."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from imgclf_jax import components
from imgclf_jax.config import is_on
from imgclf_jax.errors import UserError, flag, unknown
from imgclf_jax.training import freezing, groups, muon_sgd
from imgclf_jax.training.plan import Plan

NAME, SCHEDULE = "optim.name", "optim.schedule"
OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "muon", "muon_sgd")
NO_KERNELS = ("bias", "token", "positions")
OWN_DECAY = ("adamw", "muon", "muon_sgd")  # which get the weight decay as an argument
SCHEDULES = ("constant", "linear", "cosine", "exponential", "one_cycle", "step", "knots")


def create_schedule(config: ConfigDict, steps: int, warmup_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of steps taken.

    Args:
        config: the `optim` section. `learning_rate` is the peak; the schedule ends at `final_fraction` of it.
            "step" multiplies it by `decay_factor` at each of the `milestones` instead, as in He et al. 2016, section
            4.2 (https://arxiv.org/abs/1512.03385). "knots" is linear between the pairs (fraction of the run, factor) of
            `knots`, and constant before the first and after the last; it has no warm-up besides.
        steps: length of the run.
        warmup_steps: length of the linear rise from 0. With `one_cycle`, this is the rising part of the cycle, and 0
            means three tenths of the run, as in Smith 2018 (https://arxiv.org/abs/1803.09820).

    Returns:
        int32 step -> float32 learning rate.
    """
    if components.is_own(config.schedule):
        return _own_schedule(config, steps)
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    if config.schedule == "knots":
        return _knots(peak, config.knots, steps)
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


def _knots(peak, knots, steps):
    at, factors = (jnp.asarray(np.array(column, np.float32)) for column in zip(*knots, strict=True))
    return lambda step: peak * jnp.interp(jnp.asarray(step, jnp.float32), at * steps, factors)


def create_optimizer(
    config: ConfigDict, schedule: optax.Schedule, frozen: tuple[str, ...] = (), plan: Plan | None = None
) -> optax.GradientTransformation:
    """Returns gradient clipping, weight decay and the optimizer of `config.optim` as one optax transformation.

    For adamw and muon, the decay is decoupled from the scaling (Loshchilov and Hutter 2019). For the others, it is
    added to the gradient (L2 regularization).

    Args:
        config: the `optim` section.
        schedule: step -> learning rate.
        frozen: patterns of parameters without an update; see `imgclf_jax.training.freezing`.
        plan: the durations; `freeze_after` and the option `norm_growth` of "muon_sgd" need them.

    Raises:
        ValueError: the plan is missing, but needed.
    """
    if plan is None and (config.freeze_after or config.options.get("norm_growth")):
        raise ValueError("optim.freeze_after and optim.options.norm_growth need a plan")
    clip = [optax.clip_by_global_norm(config.clip_norm)] if is_on(config.clip_norm) else []
    if config.factors or config.freeze_after:
        rates = schedule, config.learning_rate, config.weight_decay
        ends = freezing.ends(config, plan) if plan else ()
        parts = [groups.grouped(functools.partial(_group, config, plan), *rates, config.factors, ends)]
    else:
        parts = _parts(config, schedule, config.weight_decay, plan)
    return freezing.without(optax.chain(*clip, *parts), frozen)


def _group(config, plan, schedule, decay):
    return optax.chain(*_parts(config, schedule, decay, plan))


def _parts(config, schedule, decay, plan):
    """Returns weight decay and the optimizer, with a learning rate and a decay that may be those of a group."""
    mask = kernels if config.decay_mask == "kernels" else None
    parts = []
    if is_on(config.weight_decay) and config.name not in OWN_DECAY:
        parts.append(optax.add_decayed_weights(decay, mask))
    momentum: Any = config.momentum if is_on(config.momentum) else None
    match config.name:
        case "sgd":
            nesterov = config.nesterov and momentum is not None
            parts.append(optax.sgd(schedule, momentum=momentum, nesterov=nesterov))
        case "adam":
            parts.append(optax.adam(schedule, config.b1, config.b2, config.eps))
        case "adamw":
            parts.append(optax.adamw(schedule, config.b1, config.b2, config.eps, weight_decay=decay, mask=mask))
        case "rmsprop":
            parts.append(optax.rmsprop(schedule, config.b2, config.eps, momentum=momentum, nesterov=config.nesterov))
        case "muon":
            parts.append(_muon(config, schedule, decay))
        case "muon_sgd":
            momenta = config.momentum, config.nesterov
            steps = plan.steps if plan else 1
            parts.append(muon_sgd.muon_sgd(schedule, steps, *momenta, decay, mask, **config.options))
        case _:
            parts.append(_own_optimizer(config, schedule))
    return parts


def _muon(config, schedule, decay):
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
        weight_decay=decay,
        adam_b1=config.b1,
        adam_b2=config.b2,
        adam_weight_decay=decay if config.decay_mask == "all" else 0.0,
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


def averages(config: ConfigDict) -> bool:
    """Returns whether the state has averages of the parameters, which evaluation uses."""
    return bool(config.lookahead_every) or is_on(config.ema_decay)


def problems(config: ConfigDict) -> list[str]:
    """Returns one line per problem with the names in `config.optim`; `ranges` checks the numbers."""
    lines = _own_problems(config)
    if config.name not in OPTIMIZERS and not components.is_own(config.name):
        lines.append(unknown("optim.name", config.name, OPTIMIZERS, components.OWN))
    if config.name == "muon_sgd":
        lines += _option_problems(config.options)
    elif config.options and not components.is_own(config.name):
        lines.append(f"optim.options: {config.name} takes none; its settings are fields of optim")
    lines += [
        f"optim.{name}={tuple(config[name])!r} is for our optimizers, and {config.name} is not one; give "
        f"{flag(f'optim.{name}', ())}"
        for name in ("factors", "freeze_after")
        if config[name] and components.is_own(config.name)
    ]
    if config.lookahead_every and config.ema_decay:
        lines.append(
            f"optim.lookahead_every={config.lookahead_every} and optim.ema_decay={config.ema_decay} both average the "
            "parameters; give --config.optim.lookahead_every=0 or --config.optim.ema_decay=0"
        )
    if config.schedule_options and not components.is_own(config.schedule):
        lines.append(f"optim.schedule_options: {config.schedule} takes none; its settings are fields of optim")
    if config.schedule not in SCHEDULES and not components.is_own(config.schedule):
        lines.append(unknown("optim.schedule", config.schedule, SCHEDULES, components.OWN))
    if config.decay_mask not in ("kernels", "all"):
        lines.append(unknown("optim.decay_mask", config.decay_mask, ("kernels", "all")))
    if config.schedule == "step" and not (config.milestones and list(config.milestones) == sorted(config.milestones)):
        lines.append(
            f"optim.milestones={tuple(config.milestones)!r} must be increasing fractions of the run for the schedule "
            '"step"; for example --config.optim.milestones="(0.5, 0.75)"'
        )
    if config.schedule == "knots":
        lines += _knot_problems(config)
    if config.schedule == "exponential" and not config.final_fraction > 0:
        lines.append(
            f"optim.final_fraction={config.final_fraction} must be above 0 for the exponential schedule, which never "
            "reaches 0; for example --config.optim.final_fraction=0.01"
        )
    return lines


def parameter_problems(config: ConfigDict, params: Any) -> list[str]:
    """Returns one line per problem with the `optim` section of an otherwise valid config and the parameters.

    Args:
        config: the section.
        params: the parameters of the network, or their shapes.
    """
    paths = freezing.paths(params)
    lines = []
    for name in ("factors", "freeze_after"):
        lines += freezing.unmatched(f"optim.{name}", [pattern for pattern, _ in config[name]], paths)
    if config.name == "muon_sgd" and not muon_sgd.has_kernels(params):
        lines.append("optim.name='muon_sgd' is for networks with convolutions; give --config.optim.name=muon")
    return lines


def _option_problems(options):
    wrong = components.known_option_problems("muon_sgd", "optim.options", options, muon_sgd.defaults())
    return wrong or muon_sgd.problems(options)


def _knot_problems(config):
    places = [place for place, _ in config.knots]
    lines = []
    if len(places) < 2 or any(later <= place for place, later in itertools.pairwise(places)):
        lines.append(
            f"optim.knots={tuple(config.knots)!r} must be two or more pairs with increasing fractions of the run for "
            'the schedule "knots"; for example --config.optim.knots="((0, 0.2), (0.25, 1.0), (1, 0.0))"'
        )
    lines += [
        f'optim.{name}={config[name]}: the schedule "knots" has no warm-up; give --config.optim.{name}=0'
        for name in ("warmup_steps", "warmup_epochs")
        if config[name]
    ]
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
