"""Which GPU a worker of this machine gets.

Nothing is set on a CPU: there, every worker uses all cores, and the operating system divides them. Giving each worker
its own cores would change the results: the CPU backend splits sums by the number of its threads, so the bits of a run
would depend on how many others ran beside it, and an interrupted one could not be continued exactly by another number
of workers.
"""

import os
import re
import shutil
import subprocess

VISIBLE = "CUDA_VISIBLE_DEVICES"
FRACTION = "XLA_CLIENT_MEM_FRACTION"
FRACTIONS = (FRACTION, "XLA_PYTHON_CLIENT_MEM_FRACTION")  # JAX refuses to start with both.
PLATFORMS = "JAX_PLATFORMS"
_SHARED = 0.9  # of the memory of a GPU that several workers share
_LONGEST_WAIT = 60.0  # seconds, for nvidia-smi
_LINE = re.compile(r"^(?P<kind>GPU (?P<index>\d+)|\s+MIG )[^\n]*?(?:\(UUID: (?P<uuid>[^)\s]+)\))?\s*$", re.MULTILINE)


def environment(worker: int, workers: int) -> dict[str, str]:
    """The environment variables that give a worker its GPU, if there are several workers, and GPUs.

    Workers take GPUs in turn. Workers that have to share one share its memory, unless the user has set how much of it a
    process takes.

    Args:
        worker: number of the worker, from 0.
        workers: how many there are.
    """
    gpus = visible() if workers > 1 else []
    if not gpus:
        return {}
    sharing = len(range(worker % len(gpus), workers, len(gpus)))
    chosen = {VISIBLE: gpus[worker % len(gpus)]}
    if sharing > 1 and not any(os.environ.get(name) for name in FRACTIONS):
        chosen[FRACTION] = f"{_SHARED / sharing:.3f}"
    return chosen


def visible() -> list[str]:
    """The GPUs (or MIG instances) that a process would see, as `CUDA_VISIBLE_DEVICES` names them."""
    platforms = os.environ.get(PLATFORMS, "")
    if platforms and not {"cuda", "gpu"} & set(platforms.lower().split(",")):
        return []
    names = os.environ.get(VISIBLE)
    return _listed() if names is None else named(names)


def named(names: str) -> list[str]:
    """The GPUs in a value of `CUDA_VISIBLE_DEVICES`. CUDA ignores the first invalid name and all after it."""
    found: list[str] = []
    for name in map(str.strip, names.split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-\S+", name):
            break
        if name not in found:
            found.append(name)
    return found


def _listed() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, errors="replace", timeout=_LONGEST_WAIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse(done.stdout)


def parse(text: str) -> list[str]:
    """The GPUs in the output of `nvidia-smi -L`, or their MIG instances.

    They are named by UUID where there is one: nvidia-smi numbers GPUs by their place on the bus, and CUDA the fastest
    first.
    """
    found: list[list[str]] = []
    for line in _LINE.finditer(text):
        if line["index"]:
            found.append([line["uuid"] or line["index"]])
        elif line["uuid"] and found:
            found[-1].append(line["uuid"])
    return [name for own in found for name in (own[1:] or own)]
