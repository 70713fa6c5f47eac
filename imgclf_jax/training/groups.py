"""Groups of parameters with their own learning rates: the fields `optim.factors` and `optim.freeze_after`.

A group has the learning rate times its factor, and the weight decay divided by it, so that the factor scales the
gradient's part of an update and not the decay: without momentum, w -= rate · (factor · g + decay · w). For SGD these
are PyTorch's parameter groups with `lr * factor` and `weight_decay / factor`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from imgclf_jax.training import freezing


class Group(NamedTuple):
    """A factor on the learning rate, and the step at which the parameters freeze; `None`: never."""

    factor: float
    end: int | None


def of(path: str, factors: Sequence[tuple[str, float]], ends: Sequence[tuple[str, int]]) -> Group:
    """Returns the group of a parameter.

    Args:
        path: that of the parameter; see `imgclf_jax.training.freezing`.
        factors: pairs (pattern, factor); the first one that matches counts.
        ends: pairs (pattern, step); the earliest step counts.
    """
    factor = next((factor for pattern, factor in factors if freezing.matches([pattern], path)), 1.0)
    steps = [step for pattern, step in ends if freezing.matches([pattern], path)]
    return Group(factor, min(steps, default=None))


def grouped(
    make: Callable[[optax.Schedule, Any], optax.GradientTransformation],
    schedule: optax.Schedule,
    peak: Any,
    decay: Any,
    factors: Sequence[tuple[str, float]],
    ends: Sequence[tuple[str, int]],
) -> optax.GradientTransformation:
    """Returns an optimizer that treats each group of parameters by itself.

    The learning rate of parameters that freeze at a step does not follow the schedule: it falls linearly from `peak`
    (times the factor) to 0 at that step. From then on their updates are 0, whatever momentum and decay say.

    Args:
        make: (schedule, weight decay) -> the optimizer of a group.
        schedule: step -> learning rate.
        peak: the learning rate that `schedule` is a part of.
        decay: the weight decay.
        factors: see `of`.
        ends: see `of`.
    """

    def one(group):
        def rate(step):
            whole = schedule(step) if group.end is None else peak * jnp.maximum(0.0, 1 - step / group.end)
            return group.factor * whole

        optimizer = make(rate, decay / group.factor)
        return optimizer if group.end is None else _until(optimizer, group.end)

    def split(params):
        found = freezing.map_paths(lambda path, _: of(path, factors, ends), params)
        is_group = lambda leaf: isinstance(leaf, Group)  # noqa: E731
        distinct = sorted(set(jax.tree.leaves(found, is_leaf=is_group)), key=lambda group: (group[0], group[1] or 0))
        names = {group: f"group{number}" for number, group in enumerate(distinct)}
        labels = jax.tree.map(names.__getitem__, found, is_leaf=is_group)
        return optax.multi_transform({name: one(group) for group, name in names.items()}, labels)

    def update(updates, state, params=None):
        return split(params).update(updates, state, params)

    return optax.GradientTransformation(lambda params: split(params).init(params), update)


class _UntilState(NamedTuple):
    taken: jax.Array
    inner: Any


def _until(optimizer, end):
    """Returns an optimizer whose updates are 0 from a step on."""

    def init(params):
        return _UntilState(jnp.zeros((), jnp.int32), optimizer.init(params))

    def update(updates, state, params=None):
        updates, inner = optimizer.update(updates, state.inner, params)
        updates = jax.tree.map(lambda leaf: jnp.where(state.taken < end, leaf, 0), updates)
        return updates, _UntilState(state.taken + 1, inner)

    return optax.GradientTransformation(init, update)
