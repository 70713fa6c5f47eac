"""Starts a run from a trained network, its ancestor: reads it, fits it to the new network, and says where they differ.

The parameters are those that the ancestor evaluates with, so moving averages if it kept them. The optimizer, the step
and the random streams are those of a new run, and the inputs are normalized by the new training data.
"""

import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from imgclf_jax import config as configs
from imgclf_jax.devices import processes
from imgclf_jax.errors import UserError
from imgclf_jax.training.experiment import Experiment
from imgclf_jax.workdir import saved_config
from imgclf_jax.workdir.checkpoint import Checkpoints
from imgclf_jax.workdir.trained_step import trained_step

HEAD = "output"  # the output layer of our networks


class Ancestor(NamedTuple):
    """A trained network, fitted to another one.

    Attributes:
        known: the variables that the new network takes over, by path: "params/conv1/kernel", "batch_stats/norm1/mean".
        line: one line about what was taken over.
        facts: for `run.json`: workdir, step, sha256 of the ancestor's parameters and statistics, the fingerprint of its
            data and the identity of its config, if they are known.
    """

    known: dict[str, np.ndarray]
    line: str
    facts: dict[str, Any]


class _Saved(NamedTuple):
    """A checkpoint for evaluation: variables by path, and what is known about it."""

    variables: dict[str, np.ndarray]
    facts: dict[str, Any]
    classes: int | None


def load(experiment: Experiment) -> Ancestor | None:
    """Returns the ancestor of `init.run`, fitted to the network of an experiment; `None` if the field is empty.

    Raises:
        UserError: there is no such run or checkpoint, it is damaged, or its network is another one.
    """
    text = experiment.config.init.run
    if not text:
        return None
    found = _read(text, *processes.together(lambda: trained_step(text)))
    state, classes = experiment.state_shapes(), len(experiment.class_names)
    ours = _flat({"params": state.params, "batch_stats": state.batch_stats})
    anew = _heads(found, ours, classes)
    kept = ours.keys() - anew
    if wrong := _differences(found.variables, ours, kept):
        more = f", and {len(wrong) - 3} more differ" if len(wrong) > 3 else ""
        raise UserError(f"init.run={text}: the network there is another one: {'; '.join(wrong[:3])}{more}")
    if not any(path.startswith("params/") for path in kept):
        raise UserError(f"init.run={text}: nothing of that network can be kept: it is one layer, for other classes")
    known = {path: np.asarray(found.variables[path], ours[path].dtype) for path in kept}
    line = f"starts from step {found.facts['step']} of {found.facts['workdir']}"
    if anew:
        line += f"; new for {classes} classes: {', '.join(sorted(_short(path) for path in anew))}"
    return Ancestor(known, line, found.facts)


def field_problems(config: ConfigDict) -> list[str]:
    """Returns one line per problem with the section `init` that can be seen without the ancestor and the network."""
    wrong = [pattern for pattern in config.freeze if not isinstance(pattern, str) or not pattern]
    return [
        f"init.freeze={tuple(config.freeze)!r} must hold patterns of parameters; for example "
        "--config.init.freeze=\"('conv*', 'norm*')\""
    ] * bool(wrong)


def _read(text, folder, step, content):
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        state = checkpoints.restore(step)["state"]
        notes = checkpoints.notes(step)
    except UserError as error:
        raise UserError(f"init.run={text}: {error}") from error
    finally:
        checkpoints.close()
    averaged = bool(state.get("ema"))
    params = state["ema"] if averaged else state["params"]
    stats = (averaged and state.get("ema_stats")) or state.get("batch_stats") or {}
    variables = {
        path: np.asarray(jax.device_get(leaf)) for path, leaf in _flat({"params": params, "batch_stats": stats}).items()
    }
    data = content.get("data") or notes.get("data") or {}
    names = notes.get("class_names") or data.get("class_names")
    facts = {
        "workdir": str(folder.resolve()),
        "step": step,
        "sha256": _digest(variables),
        "data_fingerprint": data.get("fingerprint"),
        "config_identity": _identity(folder),
    }
    return _Saved(variables, facts, len(names) if isinstance(names, list) else None)


def _identity(folder):
    try:
        return configs.identity(saved_config.load_config(folder))
    except UserError:  # It was deleted, or is of another version. The network can be used all the same.
        return None


def _digest(variables):
    """SHA-256 (hex) over the path, the dtype, the shape and the bytes of each array."""
    total = hashlib.sha256()
    for path, array in sorted(variables.items()):
        total.update(f"{path} {array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _heads(found, ours, classes):
    """Returns the paths of the output layer if it is for another number of classes."""
    return {
        path
        for path, leaf in ours.items()
        if path in found.variables and _is_head(path, found.variables[path].shape, leaf.shape, found.classes, classes)
    }


def _is_head(path, theirs, ours, their_classes, our_classes):
    if not ours or theirs[:-1] != ours[:-1] or len(theirs) != len(ours) or theirs == ours:
        return False
    # A sigmoid head has one unit.
    sizes = theirs[-1] in (1, their_classes) and ours[-1] in (1, our_classes)
    return path.startswith(f"params/{HEAD}/") or sizes


def _differences(theirs, ours, kept):
    """Returns how the variables of two networks differ, one text for each, parameters first."""
    lines = []
    for path in sorted(kept | (theirs.keys() - ours.keys()), key=lambda path: (not path.startswith("params/"), path)):
        there, here = (_shape(tree[path]) if path in tree else "missing" for tree in (theirs, ours))
        if there != here:
            lines.append(f"{_short(path)} is {there} there and {here} here")
    return lines


def _shape(leaf):
    return "×".join(map(str, leaf.shape)) or "one value"


def _short(path):
    return path.partition("/")[2]


def _flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }
