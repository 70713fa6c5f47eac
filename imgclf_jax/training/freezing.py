"""Frozen parameters and statistics: those whose paths match the patterns of `init.freeze` keep their values.

A path is that of a parameter or of a statistic, such as "conv1/kernel" or "norm1/mean". A pattern in the syntax of
`fnmatch`, in which "*" also stands for "/", matches a path if it matches all of it or a beginning that ends before a
"/": "conv1" and "conv*" match "conv1/kernel".

Parameters of `optim.freeze_after` freeze in the course of a run. `ends` says when; `imgclf_jax.training.groups` has the
part of the optimizer.
"""

import contextlib
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict

from imgclf_jax.models.norm import BatchNorm
from imgclf_jax.training.plan import Plan, in_steps


def matches(patterns: Sequence[str], path: str) -> bool:
    """Whether one of the patterns matches a path or a beginning of it."""
    parts = path.split("/")
    beginnings = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    return any(fnmatch.fnmatchcase(beginning, pattern) for pattern in patterns for beginning in beginnings)


def ends(config: ConfigDict, plan: Plan) -> tuple[tuple[str, int], ...]:
    """Returns the pairs (pattern, step) of parameters that freeze during the run, in the order of the steps.

    From that step on, counted from 0, parameters that match have no update. Of several matching patterns, the earliest
    counts, so that at any step all patterns up to it are frozen. A step may come after the end of the run.

    Args:
        config: the `optim` section.
        plan: the durations.
    """
    found = [(pattern, in_steps(epochs, plan.steps_per_epoch)) for pattern, epochs in config.freeze_after]
    return tuple(sorted(found, key=lambda pair: pair[1]))


def paths(tree: Any) -> list[str]:
    """Returns the path of each leaf of a tree of parameters or statistics, in the order of its leaves."""
    return [_name(path) for path, _ in jax.tree.leaves_with_path(tree)]


def without(optimizer: optax.GradientTransformation, patterns: Sequence[str]) -> optax.GradientTransformation:
    """Returns an optimizer that neither updates nor decays the frozen parameters, and keeps no state for them."""
    if not patterns:
        return optimizer

    def labels(params):
        return map_paths(lambda path, _: "frozen" if matches(patterns, path) else "trained", params)

    return optax.multi_transform({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


class _Frozen:
    """Stands in for a network in a training step. The gradients of frozen parameters are 0 and cost no time."""

    def __init__(self, model, patterns):
        self._model, self._patterns = model, patterns

    def __getattr__(self, name):
        return getattr(self._model, name)

    def apply(self, variables, *arguments, **options):
        fixed = map_paths(lambda path, leaf: self._stop(path, leaf), variables["params"])
        with nn.intercept_methods(self._normalize):
            return self._model.apply({**variables, "params": fixed}, *arguments, **options)

    def _stop(self, path, leaf):
        return jax.lax.stop_gradient(leaf) if matches(self._patterns, path) else leaf

    def _normalize(self, call, arguments, options, context):
        layer = context.module
        ours, stock = isinstance(layer, BatchNorm), isinstance(layer, nn.BatchNorm)
        if not (ours or stock) or context.method_name != "__call__" or not self._keeps(layer):
            return call(*arguments, **options)
        if ours:
            return call(*arguments[:1], **{**options, "train": False})
        options.pop("use_running_average", None)
        with _changed(layer, "use_running_average", True):
            return call(*arguments[:1], **options)

    def _keeps(self, layer):
        return all(matches(self._patterns, "/".join((*layer.path, name))) for name in ("mean", "var"))


@contextlib.contextmanager
def _changed(layer, name, value):
    # Modules are frozen, and a clone would not have this module's scope.
    before = getattr(layer, name)
    object.__setattr__(layer, name, value)
    try:
        yield
    finally:
        object.__setattr__(layer, name, before)


def network(model: nn.Module, patterns: Sequence[str]) -> Any:
    """Returns what a training step applies instead of a network of which something is frozen."""
    return _Frozen(model, tuple(patterns)) if patterns else model


def step(train_step: Callable[..., Any], patterns: Sequence[str]) -> Callable[..., Any]:
    """Returns a training step after which the frozen statistics are what they were before, to the last bit.

    Layers that are neither our batch normalization nor Flax's have updated them, and means over parts of a batch round.
    """
    if not patterns:
        return train_step

    def kept(state, *arguments):
        after, sums = train_step(state, *arguments)
        stats = map_paths(
            lambda path, new, old: old if matches(patterns, path) else new, after.batch_stats, state.batch_stats
        )
        return after.replace(batch_stats=stats), sums

    return kept


def problems(patterns: Sequence[str], variables: dict[str, Any]) -> list[str]:
    """Returns one line for each pattern without a match, or one if nothing is left to train.

    Args:
        patterns: the field `init.freeze`.
        variables: the variables of the network, or their shapes.
    """
    params, stats = paths(variables["params"]), paths(variables.get("batch_stats", {}))
    lines = unmatched("init.freeze", patterns, params, stats)
    if not lines and all(matches(patterns, path) for path in params):
        lines.append(f"init.freeze={tuple(patterns)!r} leaves nothing to train; {_layers(params)}")
    return lines


def unmatched(field: str, patterns: Sequence[str], params: Sequence[str], others: Sequence[str] = ()) -> list[str]:
    """Returns one line for each pattern of a config field that matches no path of a parameter, or of the others."""
    return [
        f"{field}={pattern!r} matches no parameter; {_layers(params)}"
        for pattern in patterns
        if not any(matches([pattern], path) for path in (*params, *others))
    ]


def _layers(params):
    return f"the network has {', '.join(dict.fromkeys(path.partition('/')[0] for path in params))}"


def map_paths(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Returns a tree of `function(path, leaf, ...)`, with the leaves of all trees."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(_name(path), *leaves), tree, *others)


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")
