"""Times the three convolutions of each layer of speednet alone, with the kernel's gradient in several forms.

    python scripts/bench_convolutions.py --batch=500 --dtype=bfloat16
    python scripts/bench_convolutions.py --layers=32x3x64,16x64x128 --rounds=9

A layer is written side x inputs x outputs, and has 3×3 kernels and SAME padding. All contenders take turns, and the
medians over the rounds are printed. The forms of the kernel's gradient, the sum over all pixels of an image's
neighborhood times the gradient of the output:

- one: a convolution with channels and examples swapped, `imgclf_jax.models.conv`;
- taps: nine matrix products, one for each position in the kernel;
- rows: a convolution over rows, columns and channels, `imgclf_jax.models.onednn`, with the whole batch;
- parts: the same in parts of the batch whose operand stays in the cache. This is what training uses with oneDNN.
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

from imgclf_jax.devices import xla
from imgclf_jax.errors import UserError
from imgclf_jax.models import conv, onednn
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
    rows = []
    for side, inputs, outputs in layers:
        runs, flops = contenders(side, inputs, outputs)
        medians = measure(runs, FLAGS.rounds)
        shown = [f"{1e3 * seconds:.1f} ({flops / seconds / 1e9:.0f})" for seconds in medians.values()]
        rows.append((f"{side}×{side}, {inputs} to {outputs}", *shown))
        console.task("layers", len(rows), len(layers))
    console.finish()
    console.print(f"batch {FLAGS.batch}, {FLAGS.dtype}; milliseconds (GFLOP/s, padding included):")
    console.table(("layer", "forward", "to images", "one", "taps", "rows", "parts"), rows)
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
    forms = {
        "forward": (lambda x, k: conv._conv(x, k, WINDOWS), images, kernel),
        "to images": (lambda g, k: conv._image_gradient(images.shape, k, g, WINDOWS), gradient, kernel),
        "one": (lambda x, g: _one(x, g, kernel), images, gradient),
        "taps": (_taps, images, gradient),
        "rows": (lambda x, g: _parts(x, g, 2**60), images, gradient),
        "parts": (lambda x, g: _parts(x, g, onednn.MOST_BYTES), images, gradient),
    }
    runs = {name: _compiled(*form) for name, form in forms.items()}
    return runs, 2 * FLAGS.batch * side**2 * 9 * inputs * outputs


def _compiled(function, *operands):
    program = jax.jit(function).lower(*operands).compile()
    return lambda: jax.block_until_ready(program(*operands))


def _one(images, gradient, kernel):
    pads = ((1, 1), (1, 1))
    swapped = conv._cropped(images.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), conv.Windows(pads))
    return swapped.transpose(1, 2, 0, 3)


def _taps(images, gradient):
    height, width, outputs = gradient.shape[1:]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    right = gradient.reshape(-1, outputs)
    seen = [padded[:, row : row + height, column : column + width] for row in range(3) for column in range(3)]
    return jnp.stack([x.reshape(len(right), -1).T @ right for x in seen])


def _parts(images, gradient, most):
    before, onednn.MOST_BYTES = onednn.MOST_BYTES, most
    try:
        return onednn.kernel_gradient(images, gradient, ((1, 1), (1, 1)), (1, 1), (1, 1))
    finally:
        onednn.MOST_BYTES = before


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
