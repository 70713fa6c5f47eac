"""Runs the collectives of a compiled step on their own, for scripts/scaling.py to time."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_cases import touch
from hlo_collectives import Buffer, Collective
from jax import lax
from jax.sharding import PartitionSpec

from imgclf_jax.devices import parallel

# JAX's names for HLO's dtypes.
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "pred": "bool"} | {
    f"{letter}{bits}": f"{name}{bits}" for letter, name in (("s", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)
}


def collectives_alone(strategy: parallel.Parallel, collectives: list[Collective]) -> Callable[[int], None]:
    """Returns a function that runs the collectives of a number of steps; see `program`."""
    compiled = program(strategy, collectives)

    def run(steps: int) -> None:
        compiled(np.int32(steps)).block_until_ready()

    return run


def program(strategy: parallel.Parallel, collectives: list[Collective]) -> Any:
    """Makes count (int32) -> float32, which repeats a step's collectives on buffers of the same dtypes and sizes.

    Each collective waits for the one before, like those of a network's layers. So none are combined, and none overlap
    with anything. A real step waits less for them if the compiler lets it compute meanwhile.
    """
    chain = [one for one in collectives for _ in range(one.repeats)]
    start = [[before(one.kind, buffer, strategy.devices) for buffer in one.buffers] for one in chain]

    def turn(_, carry):
        token, sent = carry
        fresh = []
        for one, buffers in zip(chain, sent, strict=True):
            fresh.append(touch(buffers, token))
            token = sum(x[0].astype(jnp.float32) for x in exchange(one.kind, fresh[-1], strategy.devices))
        return token, fresh

    def loop(count):
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), start)
        return lax.fori_loop(0, count, turn, (jnp.zeros(()), zeros))[0]

    specs = PartitionSpec()
    return jax.jit(jax.shard_map(loop, mesh=strategy.mesh, in_specs=specs, out_specs=specs, check_vma=False))


def before(kind: str, buffer: Buffer, devices: int) -> jax.ShapeDtypeStruct:
    """Returns the flat input on each device of a collective whose result is `buffer`."""
    count = max(1, math.prod(buffer.shape))
    if kind == "reduce-scatter":
        count *= devices
    elif kind == "all-gather":
        count = -(-count // devices)
    elif kind == "all-to-all":
        count = -(-count // devices) * devices
    return jax.ShapeDtypeStruct((count,), jnp.dtype(DTYPES[buffer.dtype]))


def exchange(kind: str, buffers: list[jax.Array], devices: int) -> list[jax.Array]:
    """Runs one collective of flat arrays over all devices; several arrays if the compiler combined them."""
    if kind == "all-reduce":
        return lax.psum(buffers, parallel.AXES)
    axes: Any = parallel.AXES
    neighbors = [(index, (index + 1) % devices) for index in range(devices)]
    send: dict[str, Callable[[jax.Array], jax.Array]] = {
        "reduce-scatter": lambda x: lax.psum_scatter(x, axes, tiled=True),
        "all-gather": lambda x: lax.all_gather(x, axes, tiled=True),
        "all-to-all": lambda x: lax.all_to_all(x, axes, 0, 0, tiled=True),
        "collective-permute": lambda x: lax.ppermute(x, axes, neighbors),
    }
    return [send[kind](x) for x in buffers]
