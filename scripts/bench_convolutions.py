"""Times the three convolutions of each layer of speednet alone: by oneDNN, as training computes them, and by XLA.

    python scripts/bench_convolutions.py --batch=500 --dtype=bfloat16
    python scripts/bench_convolutions.py --layers=32x3x64,16x64x128 --rounds=9

A layer is written side x inputs x outputs, and has 3×3 kernels and SAME padding. All contenders take turns, and the
medians over the rounds are printed. Without oneDNN (`pip install onednn-cpu-gomp`), XLA's alone are timed.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from bench_step import describe_machine, limit_cores

from imgclf_jax import onednn
from imgclf_jax.devices import xla
from imgclf_jax.errors import UserError
from imgclf_jax.models import conv
from imgclf_jax.terminal.cli import parse_flags, run_tool
from imgclf_jax.terminal.console import Console

FLAGS = flags.FLAGS
SPEEDNET = "31x24x64", "15x64x64", "15x64x256", "7x256x256", "3x256x256"
WINDOWS = conv.Windows(((1, 1), (1, 1)))


def define_flags() -> None:
    """Defines the flags of this tool."""
    flags.DEFINE_integer("batch", 500, "Images.", lower_bound=1)
    flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Precision.")
    flags.DEFINE_list("layers", list(SPEEDNET), "Layers, each as side x inputs x outputs.")
    flags.DEFINE_integer("rounds", 5, "How often everything is measured, in turns.", lower_bound=1)


def main(argv: list[str]) -> int:
    """Parses the command line, measures and prints. Returns the exit status."""
    define_flags()
    parse_flags(argv)
    layers = [_layer(text) for text in FLAGS.layers]
    cores = limit_cores(0)
    xla.configure_xla()
    console = Console()
    console.print(", ".join(describe_machine(cores, None).values()))
    rows, names = [], []
    for side, inputs, outputs in layers:
        runs, flops = contenders(side, inputs, outputs)
        medians = measure(runs, FLAGS.rounds)
        names = list(medians)
        shown = [f"{1e3 * seconds:.1f} ({flops / seconds / 1e9:.0f})" for seconds in medians.values()]
        rows.append((f"{side}×{side}, {inputs} to {outputs}", *shown))
        console.task("layers", len(rows), len(layers))
    console.finish()
    console.print(f"batch {FLAGS.batch}, {FLAGS.dtype}; milliseconds (GFLOP/s, padding included):")
    console.table(("layer", *names), rows)
    return 0


def _layer(text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"--layers: {text} is not side x inputs x outputs; for example 15x64x256")
    side, inputs, outputs = map(int, parts)
    return side, inputs, outputs


def contenders(side: int, inputs: int, outputs: int) -> tuple[dict[str, Callable[[], Any]], int]:
    """Returns the computations of a layer, compiled, by name; and the FLOPs of each."""
    random = np.random.default_rng(0)
    shapes = (FLAGS.batch, side, side, inputs), (3, 3, inputs, outputs), (FLAGS.batch, side, side, outputs)
    draws = (random.standard_normal(shape, np.float32) for shape in shapes)
    images, kernel, gradient = (jnp.asarray(draw).astype(FLAGS.dtype) for draw in draws)
    runs = {}
    libraries = {"oneDNN": conv._conv_onednn, "XLA": conv._conv_cpu}
    if not onednn.serves(images):
        del libraries["oneDNN"]
    for library, convolve in libraries.items():

        def value(images, kernel, convolve=convolve):
            return convolve(images, kernel, WINDOWS)

        def to_images(images, kernel, gradient, value=value):
            return jax.vjp(lambda x: value(x, kernel), images)[1](gradient)

        def to_kernel(images, kernel, gradient, value=value):
            return jax.vjp(lambda k: value(images, k), kernel)[1](gradient)

        runs[f"forward, {library}"] = _compiled(value, images, kernel)
        runs[f"to images, {library}"] = _compiled(to_images, images, kernel, gradient)
        runs[f"to kernel, {library}"] = _compiled(to_kernel, images, kernel, gradient)
    return runs, 2 * FLAGS.batch * side**2 * 9 * inputs * outputs


def _compiled(function, *operands):
    program = jax.jit(function).lower(*operands).compile()
    return lambda: jax.block_until_ready(program(*operands))


def measure(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each, which take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):  # The first one warms up.
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(each[1:]) for name, each in times.items()}


if __name__ == "__main__":
    sys.exit(run_tool(main))
