"""Times networks of stock Flax layers in a loop of training steps, with our convolutions and without.

    python scripts/bench_stock.py
    python scripts/bench_stock.py --networks=resnet18 --rounds=7 --threads=1 --jax_loop

Each network takes steps of SGD in two ways, which take turns: one jitted step after another ("plain"), and many steps
in one `lax.while_loop` with `imgclf_jax.models.stock.fast_convolutions` ("loop"), which is how training runs them. The
ratio of the medians is the rate of the loop relative to the plain steps; below 0.9, something in the loop falls into
XLA's slow path (https://github.com/jax-ml/jax/issues/12868). `--jax_loop` adds the loop with JAX's own gradients, which
can take 20 times as long on the CPU. Images are random, and no data is read.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from bench_step import limit_cores
from stock_networks import NETWORKS

from imgclf_jax.devices import xla
from imgclf_jax.models.stock import fast_convolutions

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this tool."""
    flags.DEFINE_list("networks", list(NETWORKS), "Which to measure.")
    flags.DEFINE_integer("batch_size", 32, "Images per step.", lower_bound=1)
    flags.DEFINE_integer("side", 32, "Rows and columns of an image.", lower_bound=1)
    flags.DEFINE_integer("rounds", 7, "How often everything is measured, in turns.", lower_bound=1)
    flags.DEFINE_integer("steps", 8, "Steps in a measurement.", lower_bound=1)
    flags.DEFINE_integer("threads", 0, "CPU cores to use. 0: all that this process may use.", lower_bound=0)
    flags.DEFINE_bool("jax_loop", False, "Also measure the loop with JAX's own gradients.")


def main(_: list[str]) -> None:
    """Measures and prints one line per network."""
    cores = limit_cores(FLAGS.threads)
    xla.configure_xla()
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"JAX {jax.__version__}, {jax.devices()[0].device_kind}, {cores} CPU cores{load}")
    shape = (FLAGS.batch_size, FLAGS.side, FLAGS.side, 3)
    images = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
    labels = jnp.arange(FLAGS.batch_size) % 10
    for name in FLAGS.networks:
        network = NETWORKS[name]()
        variables = jax.jit(network.init)(jax.random.key(0), images[:1])
        cases = {"plain": plain(network, images, labels), "loop": looped(network, images, labels, fast_convolutions)}
        if FLAGS.jax_loop:
            cases["JAX's loop"] = looped(network, images, labels, nullcontext)
        times = measure(cases, variables, FLAGS.rounds, FLAGS.steps)
        medians = {case: statistics.median(values) for case, values in times.items()}
        parts = [f"{case} {1e3 * seconds:.1f} ms" for case, seconds in medians.items()]
        print(
            f"{name}: {', '.join(parts)}; loop at {medians['plain'] / medians['loop']:.2f} of the plain rate",
            flush=True,
        )


def make_step(network: nn.Module, images: jax.Array, labels: jax.Array) -> Callable[[Any], Any]:
    """Makes variables -> variables, one step of SGD with a small learning rate."""

    def loss(params, others):
        logits, changed = network.apply({"params": params, **others}, images, train=True, mutable=list(others))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), changed

    def step(variables):
        params, others = variables["params"], {k: v for k, v in variables.items() if k != "params"}
        gradients, changed = jax.grad(loss, has_aux=True)(params, others)
        return {"params": jax.tree.map(lambda p, g: p - 1e-4 * g, params, gradients), **changed}

    return step


def plain(network: nn.Module, images: jax.Array, labels: jax.Array) -> Callable[[Any, int], Any]:
    """Takes steps in one dispatch each, with JAX's own gradients."""
    step = jax.jit(make_step(network, images, labels))

    def run(variables: Any, steps: int) -> Any:
        for _ in range(steps):
            variables = step(variables)
        return variables

    return run


def looped(
    network: nn.Module, images: jax.Array, labels: jax.Array, convolutions: Callable[[], Any]
) -> Callable[[Any, int], Any]:
    """Takes all steps in one dispatch."""
    step = make_step(network, images, labels)

    @jax.jit
    def run(variables, steps):
        with convolutions():
            return jax.lax.fori_loop(0, steps, lambda _, variables: step(variables), variables)

    return run


def measure(
    cases: dict[str, Callable[[Any, int], Any]], variables: Any, rounds: int, steps: int
) -> dict[str, list[float]]:
    """Seconds per step of every case in every round; every other round runs backwards."""
    for run in cases.values():
        jax.block_until_ready(run(variables, 1))
    times: dict[str, list[float]] = {name: [] for name in cases}
    for index in range(rounds):
        for name in list(cases) if index % 2 == 0 else reversed(cases):
            begin = time.perf_counter()
            jax.block_until_ready(cases[name](variables, steps))
            times[name].append((time.perf_counter() - begin) / steps)
    return times


if __name__ == "__main__":
    define_flags()
    sys.exit(app.run(main))
