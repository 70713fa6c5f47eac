"""Runs the published PyTorch training beside ours on the same machine, in turns.

    python scripts/bench_peers.py --config=configs/speedrun94.py --sizes=24,28,32
    python scripts/bench_peers.py --config=configs/speedrun94.py --sizes=32 --steps=5 --torch_compile --json=epochs.json

On a CPU: seconds per epoch of the same network at each image size, `torch_speednet.py` against ours. Both work on the
same uint8 images in memory, augment, and take the steps of an epoch; ours as training takes them. PyTorch is measured
with autocast to bfloat16 and with parameters in bfloat16 (with a float32 config: in float32), eagerly and, with
--torch_compile, compiled. With --steps, only so many steps are timed, and the seconds are scaled to an epoch; PyTorch's
augmentation, which is done at once, is timed apart. Medians over the rounds are compared. Needs PyTorch:
`pip install -e '.[bench]'`.

    git clone https://github.com/KellerJordan/cifar10-airbench
    python scripts/bench_peers.py --config=configs/speedrun94.py --airbench=cifar10-airbench/airbench94_muon.py

On a GPU: time and accuracy of whole runs of airbench94_muon, unchanged but for the number of its runs, against those of
`speedrun.py`, which has the same rules: whitening, augmentation, training and test-time augmentation are on the clock;
reading, compilation and a first run are not. Each round is a process of theirs and one of ours, with --runs runs each.
--peer_python names the Python of an environment that has what they need, PyTorch with CUDA and torchvision. They get
our copy of the data. This part has not been run on a GPU yet; the tests play their side.
"""

import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import peer_runs
import unrecorded
from absl import flags
from bench_step import describe_machine, import_torch, limit_cores
from ml_collections import ConfigDict

from imgclf_jax.config import to_json
from imgclf_jax.devices import xla
from imgclf_jax.errors import UserError
from imgclf_jax.terminal.cli import begin_work, parse, run_tool
from imgclf_jax.terminal.console import Console

FLAGS = flags.FLAGS
PAUSE_SECONDS = 0.5  # before a measurement: the other library's threads spin for a while before they sleep
Side = Callable[[int], float]  # steps -> the seconds of an epoch, scaled from those of so many steps


def define_flags() -> None:
    """Defines the flags of this tool. `imgclf_jax.terminal.cli` adds `--config` and its overrides."""
    flags.DEFINE_list("sizes", ["32"], "Rows and columns of the images that the network sees.")
    flags.DEFINE_integer("rounds", 3, "How often everything is measured, in turns.", lower_bound=1)
    flags.DEFINE_integer("steps", 0, "Steps that are timed; 0: a whole epoch.", lower_bound=0)
    flags.DEFINE_bool("torch_compile", False, "Also measure PyTorch through torch.compile.")
    flags.DEFINE_integer("threads", 0, "CPU cores to use. 0: all that this process may use.", lower_bound=0)
    flags.DEFINE_string("airbench", None, "Path of airbench94_muon.py: compares whole runs on a GPU.")
    flags.DEFINE_string("peer_python", sys.executable, "With --airbench: the Python that runs it.")
    flags.DEFINE_integer("runs", 10, "With --airbench: runs of each side in a round.", lower_bound=1)
    flags.DEFINE_string("json", None, "File to write all numbers to.")


def main(argv: list[str]) -> int:
    """Parses the command line, measures and prints. Returns the exit status."""
    define_flags()
    config = parse(argv)
    if config is None:
        raise UserError("--config is missing; for example --config=configs/speedrun94.py")
    if FLAGS.json and not Path(FLAGS.json).absolute().parent.is_dir():
        raise UserError(f"--json={FLAGS.json}: the folder does not exist")
    console = Console()
    if FLAGS.airbench:
        return _runs(config, argv, console)
    return _epochs(config, console)


def _runs(config: ConfigDict, argv: list[str], console: Console) -> int:
    """Compares whole runs."""
    source, python = peer_runs.shortened(Path(FLAGS.airbench), FLAGS.runs), shutil.which(FLAGS.peer_python)
    if python is None:
        raise UserError(f"--peer_python={FLAGS.peer_python}: there is no such program")
    # Only the processes of the two sides use the GPU.
    jax.config.update("jax_platforms", "cpu")
    begin_work()
    dataset = unrecorded.load(config, console).dataset
    overrides = [argument for argument in argv[1:] if argument.startswith(("--config", "-config"))]
    rounds = peer_runs.in_turns(source, python, dataset, overrides, FLAGS.runs, FLAGS.rounds, console)
    results = peer_runs.summarize(rounds)
    peer_runs.report(console, results)
    _write({"config": to_json(config), **results})
    return 0


def _epochs(config: ConfigDict, console: Console) -> int:
    """Compares the seconds of an epoch."""
    sizes = numbers(FLAGS.sizes)
    cores = limit_cores(FLAGS.threads)
    torch_networks = import_torch()
    xla.configure_xla()
    if jax.default_backend() != "cpu":
        raise UserError("epochs are compared on CPUs; set JAX_PLATFORMS=cpu, or give --airbench to compare whole runs")
    torch_networks.configure("cpu", cores)
    begin_work()
    machine = describe_machine(cores, torch_networks)
    console.print(", ".join(machine.values()))
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > cores / 2:
        console.warn(f"load average {load:.1f} on {cores} cores: others compute too; do not trust the times")
    results: dict[str, Any] = {}
    for size in sizes:
        sides = {"ours": ours(config, size, console), **theirs(config, size, FLAGS.torch_compile, console)}
        results[str(size)] = summarize(measure(sides, FLAGS.rounds, FLAGS.steps, f"{size} pixels", console))
    report(console, config, results)
    _write({"machine": machine, "config": to_json(config), "sizes": results})
    return 0


def numbers(values: list[str]) -> list[int]:
    """Returns image sizes. Raises `UserError` if one is not a whole number above 0."""
    if not values or not all(value.isdecimal() and int(value) for value in values):
        raise UserError(f"--sizes={','.join(values)} must be whole numbers above 0; for example --sizes=24,28,32")
    return [int(value) for value in values]


def at_size(config: ConfigDict, size: int) -> ConfigDict:
    """Returns the config of the same training on images of one size."""
    config = config.copy_and_resolve_references()
    config.augment.sizes = (size,)
    return config


def ours(config: ConfigDict, size: int, console: Console) -> Side:
    """Compiles our training."""
    ready = unrecorded.ready(unrecorded.load(at_size(config, size), console), console)
    epoch = ready.plan.steps_per_epoch

    def run(steps: int) -> float:
        steps = min(steps, epoch) or epoch
        training = unrecorded.begin(ready, 0)
        return unrecorded.seconds_of(lambda: unrecorded.take(ready, training, steps)) * epoch / steps

    return run


def theirs(config: ConfigDict, size: int, compiled: bool, console: Console) -> dict[str, Side]:
    """Makes the PyTorch trainings of the same network.

    Raises:
        UserError: the config's model is another one.
    """
    import torch_speednet

    loaded = unrecorded.load(config, console)
    experiment = unrecorded.build(*loaded[:2], loaded.dataset.image_shape, loaded.dataset.class_names, loaded.strategy)
    split, shape = loaded.dataset.splits["train"], torch_speednet.of(experiment.model)
    recipe = torch_speednet.Recipe(batch_size=config.train.batch_size)
    names = ("autocast", "half") if config.model.dtype == "bfloat16" else ("float32",)

    def side(precision: str, compiled: bool) -> Side:
        options: dict[str, Any] = {"shape": shape, "recipe": recipe, "precision": precision, "compiled": compiled}
        training = torch_speednet.Training(split.images[:], split.labels, **options)
        epoch = training.steps_per_epoch

        def run(steps: int) -> float:
            steps = min(steps, epoch) or epoch
            augmenting = unrecorded.seconds_of(training.begin_epoch)
            return augmenting + unrecorded.seconds_of(lambda: training.take(steps, size)) * epoch / steps

        return run

    return {
        f"PyTorch {precision}{' compiled' * compile_it}": side(precision, compile_it)
        for compile_it in ((False, True) if compiled else (False,))
        for precision in names
    }


def measure(
    sides: dict[str, Side], rounds: int, steps: int, description: str, console: Console
) -> dict[str, list[float]]:
    """Returns the seconds of an epoch of each side in each round; every other round runs backwards."""
    for done, run in enumerate(sides.values(), start=1):
        with xla.quiet():
            run(steps)  # compiles, also the later programs of a schedule with stages
        console.task(f"{description}, warm-up", done, len(sides))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds):
        for name in list(sides) if index % 2 == 0 else reversed(sides):
            time.sleep(PAUSE_SECONDS)
            seconds[name].append(sides[name](steps))
            console.print(f"{description}, round {index + 1}/{rounds}: {name}: {seconds[name][-1]:.1f} s an epoch")
    return seconds


def summarize(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Returns, by the name of a side, `seconds` of every round, their `median`, and `ours`: our throughput / theirs."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: {"seconds": values, "median": medians[name], "ours": medians[name] / medians["ours"]}
        for name, values in seconds.items()
    }


def report(console: Console, config: ConfigDict, results: dict[str, Any]) -> None:
    """Prints the results of `summarize` for each size."""
    rows = []
    for size, sides in results.items():
        for name, side in sides.items():
            ratio = "" if name == "ours" else f"{side['ours']:.2f} ×"
            values = side["median"], min(side["seconds"]), max(side["seconds"])
            rows.append((f"{size} pixels, {name}", *(f"{value:.1f}" for value in values), ratio))
    console.print()
    console.print(f"{config.model.name}, {config.model.dtype}, {config.train.batch_size} images per step")
    console.table(("seconds per epoch", "median", "lowest", "highest", "our throughput"), rows)


def _write(record):
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_tool(main))
