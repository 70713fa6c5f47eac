"""Times the training step of a config on several numbers of devices, and reports where the time goes.

    python scripts/scaling.py --config=configs/cnn.py --devices=1,2,4,8 --mode=weak --json=weak.json --plot=weak.png
    python scripts/scaling.py --config=configs/cnn.py --devices=1 --rounds=15   # cost of the strategies on one device

With `--mode=weak` each device gets a batch of the config's size, with `--mode=strong` they share one. Every strategy is
measured on every number of devices, in one process and in turns, so other load on the machine affects all of them.
Medians over the rounds are compared. The step is the one that training runs: many in one dispatch, on random uint8
images on the devices.

Efficiency is images/s per device, relative to the same strategy on the smallest number of devices. "Input" is gathering
and augmentation alone. "Collectives" are the step's collectives alone, one after the other, on buffers of the same
sizes. "Compute" is the rest. On one device, each strategy is also compared with a hand-written loop around the training
step under plain `jax.jit`.

A machine with too few accelerators runs all of this on its CPU, split into the requested number of devices. They share
its cores: such times show what the strategies cost, but no speed-up.
"""

import json
import os
import re
import sys
from pathlib import Path

from absl import flags

from imgclf_jax.config import to_json
from imgclf_jax.errors import UserError
from imgclf_jax.terminal.cli import parse, run_tool
from imgclf_jax.terminal.console import Console

FLAGS = flags.FLAGS
STRATEGIES = ("jit", "shard_map", "pmap")
FORCE = "--xla_force_host_platform_device_count"


def define_flags() -> None:
    """Defines the flags of this tool. `imgclf_jax.terminal.cli` adds `--config` and its overrides."""
    flags.DEFINE_list("devices", ["1", "2", "4", "8"], "Numbers of devices to measure.")
    flags.DEFINE_enum("mode", "weak", ("weak", "strong"), "Whether each device gets a batch, or all share one.")
    flags.DEFINE_list("strategies", list(STRATEGIES), f"Strategies to measure, out of {', '.join(STRATEGIES)}.")
    flags.DEFINE_integer("rounds", 5, "How often everything is measured, in turns.", lower_bound=1)
    flags.DEFINE_integer("steps", 5, "Least number of steps in a measurement.", lower_bound=1)
    flags.DEFINE_string("json", None, "File to write all numbers to.")
    flags.DEFINE_string("plot", None, "File for a plot of throughput and efficiency: .png, .svg or .pdf.")


def main(argv: list[str]) -> int:
    """Parses the command line, measures, prints and draws. Returns the exit status."""
    define_flags()
    config = parse(argv)
    if config is None:
        raise UserError("--config is missing; for example --config=configs/cnn.py")
    counts, strategies = device_counts(FLAGS.devices), chosen_strategies(FLAGS.strategies)
    check_files(FLAGS.json, FLAGS.plot)
    forced = provide_devices(max(counts), argv)
    # JAX is imported from here on: the number of its devices is fixed.
    import scaling_cases as cases
    import scaling_report as report
    from bench_step import describe_machine, limit_cores, measure

    from imgclf_jax.devices import xla

    console = Console()
    points = [cases.Point(strategy, count) for count in counts for strategy in strategies]
    configs = {point: cases.at_point(config, point, FLAGS.mode) for point in points}
    plans, info = cases.validated(configs)
    cores = limit_cores(0)
    machine = describe_machine(cores, None)
    console.print(", ".join(machine.values()))
    if forced:
        console.warn(shared_cores(max(counts)))
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > cores / 2:
        console.warn(f"load average {load:.1f} on {cores} cores: others compute too; do not trust the times")
    prepared = {}
    for done, (point, one) in enumerate(configs.items(), start=1):
        with xla.quiet():
            prepared[point] = cases.prepare(point, one, plans[point], info)
        console.task("compiling", done, len(points))
    with xla.quiet():
        extra = cases.references(prepared)
    timed = [extra["product"], *(case for one in prepared.values() for case in one.cases.values())]
    seconds = measure(timed, FLAGS.rounds, FLAGS.steps, console)
    # Measured separately, because other measurements in between would affect the times.
    alone = [extra["plain"], *cases.on_one_device(prepared)] if "plain" in extra else []
    layer = measure(alone, FLAGS.rounds, FLAGS.steps, console)
    results = report.summarize(prepared, extra, seconds, layer, FLAGS.mode, forced)
    report.report(console, config, results)
    if forced:
        console.print(f"\n{shared_cores(max(counts))}")
    if FLAGS.json:
        record = {"machine": machine, "config": to_json(config), **results}
        Path(FLAGS.json).write_text(json.dumps(record, indent=2) + "\n")
    if FLAGS.plot:
        report.plot(results, f"{config.model.name}, {machine['device']}", Path(FLAGS.plot))
    return 0


def device_counts(values: list[str]) -> list[int]:
    """Returns the different numbers in ascending order. Raises `UserError` if any is not a whole number above 0."""
    text = ",".join(values)
    if not values or not all(re.fullmatch("[1-9][0-9]*", value) for value in values):
        raise UserError(f"--devices={text} must be whole numbers above 0; for example --devices=1,2,4,8")
    return sorted({int(value) for value in values})


def chosen_strategies(values: list[str]) -> list[str]:
    """Returns the different strategies in the order given. Raises `UserError` if any is unknown."""
    if not values or (unknown := [value for value in values if value not in STRATEGIES]):
        problem = f"{unknown[0]!r} is not a strategy" if values else "the list is empty"
        raise UserError(f"--strategies={','.join(values)}: {problem}; choose from {','.join(STRATEGIES)}")
    return list(dict.fromkeys(values))


def check_files(record: str | None, picture: str | None) -> None:
    """Checks, before anything is measured, whether results can be written. Raises `UserError` if they cannot."""
    for flag, name in (("json", record), ("plot", picture)):
        if name and not Path(name).absolute().parent.is_dir():
            raise UserError(f"--{flag}={name}: the folder does not exist")
    if picture and Path(picture).suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot={picture} must end in .png, .svg or .pdf")
    if picture:
        try:
            import matplotlib  # noqa: F401
        except ModuleNotFoundError as error:
            raise UserError("--plot needs matplotlib: pip install matplotlib") from error


def provide_devices(count: int, argv: list[str]) -> bool:
    """Makes sure that JAX, which must not have been imported yet, has at least `count` devices.

    If there are too few accelerators, the process restarts itself on the CPU.

    Args:
        count: the number of devices.
        argv: the command line for the restart.

    Returns:
        Whether the devices are parts of one CPU that share its cores.
    """
    kept = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(FORCE)]
    # This flag does not affect accelerators.
    os.environ["XLA_FLAGS"] = " ".join([*kept, f"{FORCE}={count}"] if count > 1 else kept)
    import jax

    from imgclf_jax.devices import xla

    xla.configure_xla()
    if jax.default_backend() == "cpu":
        return count > 1
    if jax.device_count() < count:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.execv(sys.executable, [sys.executable, *argv])
    return False


def shared_cores(count: int) -> str:
    """Returns a warning, hard to miss, that times on parts of one CPU show no speed-up."""
    bar = "!" * 80
    return (
        f"{bar}\nNO SPEED-UP CAN BE SEEN HERE: the {count} devices are parts of one CPU that share its cores.\n"
        f"These times show the overhead of splitting a step, not how it scales.\n{bar}"
    )


if __name__ == "__main__":
    sys.exit(run_tool(main))
