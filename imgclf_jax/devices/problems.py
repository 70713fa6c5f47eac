"""Finds what is wrong with `config.parallel` before anything is put on a device."""

import math

import jax
from ml_collections import ConfigDict

from imgclf_jax.devices.parallel import AXES, EXPLICIT, PLACEMENTS, STRATEGIES
from imgclf_jax.errors import flag, unknown


def problems(config: ConfigDict, batch_size: int = 0, accumulate: int = 1) -> list[str]:
    """Returns the problems with `config.parallel`, one line each.

    Args:
        config: the `parallel` section.
        batch_size: `train.batch_size`, which the devices must share evenly; 0 if there is no training.
        accumulate: `train.accumulate`, the number of parts of the batch; the devices must share each part evenly.
    """
    uneven = _division(batch_size, accumulate, 1)
    lines = list(uneven)
    for field, choices in (("strategy", STRATEGIES), ("data", PLACEMENTS)):
        if config[field] not in choices:
            lines.append(unknown(f"parallel.{field}", config[field], choices))
    available = jax.device_count()
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    if not 0 <= config.devices <= available:
        return [
            *lines,
            f"parallel.devices={config.devices}: there are {available}{processes}; --config.parallel.devices=0 "
            "uses all of them",
        ]
    used = config.devices or available
    if processes and used != available:
        lines.append(
            f"parallel.devices={config.devices}: {processes.strip()} all {available} devices must be used; give "
            "--config.parallel.devices=0"
        )
    mesh = tuple(config.mesh)
    if mesh:
        whole = all(isinstance(size, int) and size > 0 for size in mesh)
        if len(mesh) != len(AXES) or not whole:
            return [
                *lines,
                f"parallel.mesh={mesh} must be two positive whole numbers, ({', '.join(AXES)}); give "
                f"{flag('parallel.mesh', (used, 1))}",
            ]
        if math.prod(mesh) != used:
            return [
                *lines,
                f"parallel.mesh={mesh} needs {math.prod(mesh)} devices but {used} are used; give "
                f"{flag('parallel.mesh', (used, 1))}, or {flag('parallel.devices', math.prod(mesh))} if there are "
                "so many",
            ]
        if mesh[1] > 1 and config.strategy in EXPLICIT:
            lines.append(
                f"parallel.mesh={mesh}: strategy {config.strategy} has no model axis; give "
                f"{flag('parallel.mesh', (used, 1))} or --config.parallel.strategy=jit"
            )
    if config.strategy == "pmap" and processes:
        lines.append(
            "parallel.strategy='pmap' works in one process; give --config.parallel.strategy=jit (or shard_map)"
        )
    if config.strategy == "pmap" and config.data == "sharded":
        lines.append(
            "parallel.data='sharded': strategy pmap holds the data set whole; give --config.parallel.strategy=jit (or "
            "shard_map)"
        )
    return lines if uneven else lines + _division(batch_size, accumulate, used)


def _division(batch_size, accumulate, devices):
    """Returns a line if a batch cannot be cut into `accumulate` parts that are divisible among `devices`."""
    if batch_size < 1 or accumulate < 1 or batch_size % (accumulate * devices) == 0:
        return []
    parts = f" in train.accumulate={accumulate} parts" if accumulate > 1 else ""
    lower = batch_size // (accumulate * devices) * accumulate * devices
    sizes = [size for size in (lower, lower + accumulate * devices) if size]
    flags = " or ".join(f"--config.train.batch_size={size}" for size in sizes)
    if devices > 1:
        return [
            f"train.batch_size={batch_size}{parts} cannot be divided evenly among the {devices} devices; use {flags}"
        ]
    divisor = next(parts for parts in range(min(accumulate, batch_size), 0, -1) if batch_size % parts == 0)
    return [
        f"train.batch_size={batch_size} is not divisible by train.accumulate={accumulate}; use {flags}, or "
        f"--config.train.accumulate={divisor}"
    ]
