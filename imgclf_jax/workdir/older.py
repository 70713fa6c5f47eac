"""Reads checkpoints that earlier versions of this package wrote, and converts them to the current form.

A checkpoint is a dict. Two of its entries have changed over time:

* "state", a dataclass: its field `ema_stats`, the averages of the running statistics, was added later.
* "meter", a flat dict of scalars: an entry was renamed, and entries come and go with the metrics.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

ADDED = "ema_stats"
# Entries of the meter: current name -> earlier name.
RENAMED = {"accuracy": "correct"}


def template(wanted: Any, saved: Any) -> Any:
    """Returns the template to read a checkpoint with: `wanted`, changed to match an older checkpoint.

    Args:
        wanted: the template of current checkpoints, with a `jax.ShapeDtypeStruct` with a sharding for each array.
        saved: the shapes and dtypes in the checkpoint, as nested dicts.

    Returns:
        `wanted` itself if the checkpoint has the current form. Otherwise a copy: a state without `ema_stats` is a dict,
        and the meter has the entries of the checkpoint with their dtypes.
    """
    if not isinstance(wanted, dict) or not isinstance(saved, dict):
        return wanted
    changes: dict[str, Any] = {}
    state: Any = wanted.get("state")
    if isinstance(state, dict) and ADDED in state and ADDED not in (saved.get("state") or {ADDED}):
        changes["state"] = {name: leaf for name, leaf in state.items() if name != ADDED}
    if _has_averages(state) and isinstance(saved.get("state"), dict) and ADDED not in saved["state"]:
        names = [field.name for field in dataclasses.fields(state) if field.name != ADDED]
        changes["state"] = {name: getattr(state, name) for name in names}
    meter, old = wanted.get("meter"), saved.get("meter")
    if _is_flat(meter) and _is_flat(old) and not _are_alike(meter, old):
        changes["meter"] = _meter_template(meter, old)
    return {**wanted, **changes} if changes else wanted


def complete(content: Any, wanted: Any) -> Any:
    """Returns what was read with `template(wanted, ...)` in the form that `wanted` describes.

    If the averaged statistics are missing, the saved statistics take their place. Those belong to the raw parameters.
    Evaluation used them when the checkpoint was written, and further training soon averages them out.

    Entries that the meter lacks start at zero. Entries that are no longer wanted are dropped.

    Args:
        content: what was read.
        wanted: the template of current checkpoints.
    """
    if not isinstance(content, dict) or not isinstance(wanted, dict):
        return content
    changes: dict[str, Any] = {}
    state, meter = wanted.get("state"), wanted.get("meter")
    if _has_averages(state) and isinstance(content.get("state"), dict):
        changes["state"] = _complete_state(content["state"], state)
    if _is_flat(meter) and _is_flat(content.get("meter")) and not _are_alike(meter, content["meter"]):
        changes["meter"] = _complete_meter(content["meter"], meter)
    return {**content, **changes} if changes else content


def _complete_state(fields, wanted):
    like = getattr(wanted, ADDED)
    # A copy, because both are donated to the next step. It is empty if there is no average or there are no statistics.
    stats: Any = {}
    if like:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
        stats = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)(fields["batch_stats"])
    return type(wanted)(**fields, **{ADDED: stats})


def _meter_template(wanted, saved):
    """The template of the entries in the checkpoint.

    An entry with a different shape keeps the wanted template, so that the difference is noticed.
    """
    sharding = next(iter(wanted.values())).sharding
    sources = {name: wanted[today] for today, name in _sources(wanted, saved).items()}
    return {
        name: sources[name]
        if name in sources and sources[name].shape != leaf.shape
        else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for name, leaf in saved.items()
    }


def _complete_meter(saved, wanted):
    values = {name: saved[source] for name, source in _sources(wanted, saved).items()}

    def build(values):
        return {
            name: values[name].astype(leaf.dtype) if name in values else jnp.zeros(leaf.shape, leaf.dtype)
            for name, leaf in wanted.items()
        }

    return jax.jit(build, out_shardings={name: leaf.sharding for name, leaf in wanted.items()})(values)


def _sources(wanted, saved):
    """Wanted entry of the meter -> the saved entry that it is read from; without those that the checkpoint lacks."""
    names = {name: name if name in saved else RENAMED.get(name) for name in wanted}
    return {name: source for name, source in names.items() if source in saved}


def _are_alike(wanted, saved):
    return wanted.keys() == saved.keys() and all(wanted[name].dtype == saved[name].dtype for name in wanted)


def _is_flat(tree):
    return isinstance(tree, dict) and bool(tree) and all(hasattr(leaf, "dtype") for leaf in tree.values())


def _has_averages(state):
    return dataclasses.is_dataclass(state) and any(field.name == ADDED for field in dataclasses.fields(state))
