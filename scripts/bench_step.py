"""Times the training step of a config, the same network in PyTorch, and the machine's matrix product.

    python scripts/bench_step.py --config=configs/tutorial_cnn.py --torch
    python scripts/bench_step.py --config=configs/cnn.py --config.train.batch_size=128 --rounds=7 --json=step.json

All contenders run in one process and take turns, so other load on the machine affects all of them. Medians over the
rounds are compared. "Whole step" is the step as training runs it: many in one dispatch, on uint8 images on the device,
with gathering, augmentation and metrics. "Network step" is the same on images that already have the network's size,
without augmentation. PyTorch is compared with the network step: its images are ready-made floats in the memory format
that is measured, and it computes no metrics and follows no schedule. Images and labels are random, and no data is read.
The learning rate is a thousandth of the config's; this affects no time, and nothing diverges. Everything runs on one
device. PyTorch (`pip install -e '.[bench]'`) runs eagerly, on the device that JAX uses.

FLOPs count only the necessary work: each layer's products, as many again for the gradient of its parameters, and,
except in the first layer, as many again for the gradient of its input.
"""

import datetime
import json
import math
import os
import platform
import sys
import time
from pathlib import Path
from types import ModuleType

from absl import flags
from bench_cases import Case, on_one_device, our_cases, set_up, torch_cases, without_augmentation
from bench_report import report, summarize

from imgclf_jax.config import to_json
from imgclf_jax.devices import xla
from imgclf_jax.errors import UserError
from imgclf_jax.terminal.cli import parse, run_tool
from imgclf_jax.terminal.console import Console
from imgclf_jax.training.validate import validate
from imgclf_jax.workdir import provenance

FLAGS = flags.FLAGS
LEAST_SECONDS = 0.2  # of one measurement; shorter ones take more steps
PAUSE_SECONDS = 0.05  # before a measurement: the other library's threads spin for a while before they sleep


def define_flags() -> None:
    """Defines the flags of this tool. `imgclf_jax.terminal.cli` adds `--config` and its overrides."""
    flags.DEFINE_integer("rounds", 7, "How often everything is measured, in turns.", lower_bound=1)
    flags.DEFINE_integer("steps", 20, "Least number of steps in a measurement.", lower_bound=1)
    flags.DEFINE_bool("torch", False, "Also measure the same network in PyTorch.")
    flags.DEFINE_bool("torch_compile", False, "With --torch: also through torch.compile.")
    flags.DEFINE_integer("threads", 0, "CPU cores to use. 0: all that this process may use.", lower_bound=0)
    flags.DEFINE_string("json", None, "File to write all numbers to.")


def main(argv: list[str]) -> int:
    """Parses the command line, measures and prints. Returns the exit status."""
    define_flags()
    config = parse(argv)
    if config is None:
        raise UserError("--config is missing; for example --config=configs/tutorial_cnn.py")
    if FLAGS.torch_compile and not FLAGS.torch:
        raise UserError("--torch_compile needs --torch")
    if FLAGS.json and not Path(FLAGS.json).absolute().parent.is_dir():
        raise UserError(f"--json={FLAGS.json}: the folder does not exist")
    cores = limit_cores(FLAGS.threads)
    torch_networks = import_torch() if FLAGS.torch else None
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves GPU memory for PyTorch
    xla.configure_xla()

    console = Console()
    config = on_one_device(config)
    plan, info = validate(config)
    with xla.quiet():
        whole = set_up(config, plan, info.image_shape, len(info.class_names))
        network = set_up(without_augmentation(config), plan, whole.experiment.input_shape, len(info.class_names))
        cases = our_cases(whole, network)
    machine = describe_machine(cores, torch_networks)
    console.print(", ".join(machine.values()))
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > cores / 2:
        console.warn(
            f"load average {os.getloadavg()[0]:.1f} on {cores} cores: others compute too; do not trust the times"
        )
    if torch_networks:
        cases += torch_cases(network, torch_networks, cores, FLAGS.torch_compile, console)
    results = summarize(cases, measure(cases, FLAGS.rounds, FLAGS.steps, console))
    report(console, config, results)
    if FLAGS.json:
        record = {"machine": machine, "config": to_json(config), **results}
        Path(FLAGS.json).write_text(json.dumps(record, indent=2) + "\n")
    return 0


def limit_cores(threads: int) -> int:
    """Restricts this process to `threads` CPU cores, or not at all with 0; returns how many it may use.

    JAX and PyTorch both start as many threads as there are cores available when they start.

    Raises:
        UserError: more cores than there are, or a system that cannot restrict them.
    """
    if not hasattr(os, "sched_setaffinity"):
        if threads:
            raise UserError("--threads needs Linux")
        return os.cpu_count() or 1
    available = sorted(os.sched_getaffinity(0))
    if threads > len(available):
        raise UserError(f"--threads={threads}: this process may use {len(available)} cores")
    if threads:
        os.sched_setaffinity(0, available[:threads])
    return threads or len(available)


def import_torch() -> ModuleType:
    """Imports `torch_networks`. Raises `UserError` if PyTorch, an optional extra, is missing."""
    try:
        import torch_networks
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UserError("--torch needs PyTorch: pip install -e '.[bench]'") from error
    return torch_networks


def describe_machine(cores: int, torch_networks: ModuleType | None) -> dict[str, str]:
    """Describes the hardware and software that the times depend on."""
    origin = provenance.collect()
    kind = origin["device_kind"]
    if origin["backend"] == "cpu" and Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), kind)
    versions = {name: f"{name} {origin['packages'][name]}" for name in ("jax", "jaxlib", "flax", "optax")}
    if torch_networks:
        versions["torch"] = f"torch {torch_networks.torch.__version__}"
    return {
        "device": kind,
        "cores": f"{cores} CPU cores",
        **versions,
        "python": f"Python {platform.python_version()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def measure(cases: list[Case], rounds: int, steps: int, console: Console) -> dict[str, list[float]]:
    """Measures every case in every round, with at least `steps` steps each time.

    Returns:
        Seconds per step in every round, by the case's name.
    """
    lengths = {}
    for done, case in enumerate(cases, start=1):
        with xla.quiet():
            case.run(1)  # compiles
        seconds = _seconds_per_step(case, steps)
        lengths[case.name] = max(steps, math.ceil(LEAST_SECONDS / seconds))
        console.task("warm-up", done, len(cases))
    times: dict[str, list[float]] = {case.name: [] for case in cases}
    for index in range(rounds):
        # Every other round runs backwards, so that no case always follows the same one.
        for case in cases if index % 2 == 0 else reversed(cases):
            time.sleep(PAUSE_SECONDS)
            times[case.name].append(_seconds_per_step(case, lengths[case.name]))
        console.task("rounds", index + 1, rounds)
    return times


def _seconds_per_step(case, steps):
    begin = time.perf_counter()
    case.run(steps)
    return (time.perf_counter() - begin) / steps


if __name__ == "__main__":
    sys.exit(run_tool(main))
