"""Compares the trees in checkpoints: by their shapes and dtypes, and by a checksum of their bits."""

from typing import Any

import jax
import jax.numpy as jnp


def difference(saved: Any, template: Any) -> str:
    """Describes briefly how the shapes and dtypes in a checkpoint differ from a template; empty if they do not."""
    theirs, ours = _shapes(saved), _shapes({"tree": template})
    theirs.pop("checksum", None)
    differing = [path for path in ours | theirs if ours.get(path) != theirs.get(path)]
    if not differing:
        return ""
    # Parameters come first: if they differ, so do the arrays of the optimizer and of the averages.
    path = min(differing, key=lambda path: ("/params/" not in path, "/batch_stats/" not in path))
    name = path.removeprefix("tree/").removeprefix("state/")
    name = f"parameter {name.removeprefix('params/')}" if name.startswith("params/") else name
    there, here = (f"is {shapes[path]}" if path in shapes else "is missing" for shapes in (theirs, ours))
    more = f", and {len(differing) - 1} more differ" if len(differing) > 1 else ""
    return f"{name} {there} there and {here} in this config{more}"


def _shapes(tree):
    """{path: description} for every array. A description looks like "float32 (3, 5)"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{jnp.dtype(leaf.dtype).name} {tuple(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def checksum(tree: Any) -> jax.Array:
    """A position-weighted sum, modulo 2**32, of the bits of every leaf: a uint32 scalar."""
    total = jnp.zeros((), jnp.uint32)
    # Ordered by name, not as in the tree: without a template, the tree is read back as dicts, which are sorted.
    leaves = jax.tree.leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    for index, (_, leaf) in enumerate(sorted(named.items())):
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32).ravel()
        # Odd weights are invertible modulo 2**32, so no change of a single element goes unnoticed.
        weights = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
        total = total * jnp.uint32(0x9E3779B1) + jnp.sum(bits * weights, dtype=jnp.uint32) + jnp.uint32(index)
    return total
