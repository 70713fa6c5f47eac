"""Checkpoints that earlier versions of this package wrote: what they lack, and what takes its place.

The averages of the running statistics, `TrainState.ema_stats`, were added later than the rest. A checkpoint without
them is read with a template that does not ask for them, and is completed afterwards.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from imgclf_jax.training.state import TrainState

ADDED = "ema_stats"


def template(wanted: Any, saved: Any) -> Any:
    """Returns the template to read a checkpoint with.

    Args:
        wanted: the template of current checkpoints; see `imgclf_jax.training.experiment.template`.
        saved: the nested dicts that the checkpoint holds.

    Returns:
        `wanted`, with the state as a dict without `ema_stats` if the checkpoint has a state without them.
    """
    state = wanted.get("state") if isinstance(wanted, dict) else None
    found = saved.get("state") if isinstance(saved, dict) else None
    if not isinstance(state, TrainState) or not isinstance(found, dict) or ADDED in found:
        return wanted
    names = [field.name for field in dataclasses.fields(state) if field.name != ADDED]
    return {**wanted, "state": {name: getattr(state, name) for name in names}}


def complete(content: Any, wanted: Any) -> Any:
    """Returns what was read with `template(wanted, ...)` in the form that `wanted` describes.

    The saved statistics, those of the raw parameters, take the place of the missing averages. Evaluation used them when
    the checkpoint was written, and with more training they are soon forgotten.

    Args:
        content: what was read.
        wanted: the template of current checkpoints.
    """
    state = content.get("state") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not isinstance(wanted["state"], TrainState):
        return content
    like = wanted["state"].ema_stats
    # A copy, because both are donated to the next step. It is empty if there is no average or there are no statistics.
    stats: Any = {}
    if like:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
        stats = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)(state["batch_stats"])
    return {**content, "state": TrainState(**state, ema_stats=stats)}
