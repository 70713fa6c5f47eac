"""Whether the processor computes in bfloat16, or XLA emulates it."""

from pathlib import Path

import jax

from imgclf_jax.onednn import clib

CPUINFO = Path("/proc/cpuinfo")
INSTRUCTIONS = {"amx_bf16", "avx512_bf16", "bf16"}  # as they are called there, on x86 and on ARM
FIRST = (0, 11)  # the first version of JAX whose own convolutions use them


def emulated() -> str | None:
    """Returns that bfloat16 is emulated here, and what it costs; `None` if it is not, or if that is not known."""
    if jax.default_backend() != "cpu" or "bfloat16" in clib.dtypes():
        return None
    flags = _flags()
    if flags and not flags & INSTRUCTIONS:
        return "this processor emulates bfloat16: a step is no faster than in float32"
    if jax.version.__version_info__ < FIRST:
        return f"JAX {jax.__version__} emulates bfloat16 on CPUs: a step is no faster than in float32"
    return None


def _flags():
    """The instruction sets of the first core; empty on other systems than Linux."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return set()
    for line in lines:
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(values.split())
    return set()
