"""Times the training step of a config on several numbers of devices, and says where the time goes.

    python scripts/scaling.py --config=configs/cnn.py --devices=1,2,4,8 --mode=weak --json=weak.json --plot=weak.png
    python scripts/scaling.py --config=configs/cnn.py --devices=1 --rounds=15   # what the strategies cost on one device

With `--mode=weak` each device gets a batch of the config's size, with `--mode=strong` they share one. Every strategy is
measured on every number of devices, in one process and in turns, so that whatever else the machine does hits all of
them; medians over the rounds are compared. The step is the one that training runs: many in one dispatch, on random
uint8 images that lie on the devices.

Efficiency is images/s a device, relative to the same strategy on the smallest number of devices. «Input» is gathering
and augmentation alone, «collectives» the step's collectives on buffers of the same sizes alone, one after the other;
«compute» is what is left. On one device, each strategy is also compared with plain `jax.jit` of a loop around the
training step, written by hand.

A machine with fewer accelerators than asked for runs all of this on its CPU, cut into that many devices. They share its
cores: such times show what the strategies cost, and no speed-up.
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
    """The flags of this tool; `--config` and its overrides are added by `imgclf_jax.terminal.cli`."""
    flags.DEFINE_list("devices", ["1", "2", "4", "8"], "Numbers of devices to measure.")
    flags.DEFINE_enum("mode", "weak", ("weak", "strong"), "Whether each device gets a batch, or all share one.")
    flags.DEFINE_list("strategies", list(STRATEGIES), f"Strategies to measure, of {', '.join(STRATEGIES)}.")
    flags.DEFINE_integer("rounds", 5, "Times that everything is measured, in turns.", lower_bound=1)
    flags.DEFINE_integer("steps", 5, "Least number of steps in a measurement.", lower_bound=1)
    flags.DEFINE_string("json", None, "File that all numbers are written to.")
    flags.DEFINE_string("plot", None, "Picture of throughput and efficiency: a .png, .svg or .pdf file.")


def main(argv: list[str]) -> int:
    """Parses the command line, measures, prints and draws. Returns the exit status."""
    define_flags()
    config = parse(argv)
    if config is None:
        raise UserError("--config is missing; for example --config=configs/cnn.py")
    counts, strategies = device_counts(FLAGS.devices), chosen_strategies(FLAGS.strategies)
    check_files(FLAGS.json, FLAGS.plot)
    forced = provide_devices(max(counts), argv)
    # From here on JAX is in memory: the number of its devices is settled.
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
        console.warn(f"load average {load:.1f} on {cores} cores: others compute too; trust no times")
    prepared = {}
    for done, (point, one) in enumerate(configs.items(), start=1):
        with xla.quiet():
            prepared[point] = cases.prepare(point, one, plans[point], info)
        console.task("compiling", done, len(points))
    with xla.quiet():
        extra = cases.references(prepared)
    timed = [extra["product"], *(case for one in prepared.values() for case in one.cases.values())]
    seconds = measure(timed, FLAGS.rounds, FLAGS.steps, console)
    # By themselves: what else is measured in between would be felt.
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
    """Different numbers above 0, in ascending order. Raises `UserError` for anything else."""
    text = ",".join(values)
    if not values or not all(re.fullmatch("[1-9][0-9]*", value) for value in values):
        raise UserError(f"--devices={text} must be whole numbers above 0, with commas; for example --devices=1,2,4,8")
    return sorted({int(value) for value in values})


def chosen_strategies(values: list[str]) -> list[str]:
    """Different strategies, in the order given. Raises `UserError` for anything else."""
    if not values or (unknown := [value for value in values if value not in STRATEGIES]):
        what = f"{unknown[0]!r} is none" if values else "none is given"
        raise UserError(f"--strategies={','.join(values)}: {what}; choose from {','.join(STRATEGIES)}")
    return list(dict.fromkeys(values))


def check_files(record: str | None, picture: str | None) -> None:
    """Finds out before anything is measured whether results can be written. Raises `UserError`."""
    for flag, name in (("json", record), ("plot", picture)):
        if name and not Path(name).absolute().parent.is_dir():
            raise UserError(f"--{flag}={name}: there is no such folder")
    if picture and Path(picture).suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot={picture} must end in .png, .svg or .pdf")
    if picture:
        try:
            import matplotlib  # noqa: F401
        except ModuleNotFoundError as error:
            raise UserError("--plot needs matplotlib: pip install -e '.[dev]'") from error


def provide_devices(count: int, argv: list[str]) -> bool:
    """Sees to it that JAX, which must not have been imported yet, has so many devices.

    With too few accelerators the process starts anew, on the CPU.

    Returns:
        Whether they are parts of the CPU that share its cores.
    """
    kept = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(FORCE)]
    # On a machine with accelerators this says nothing about them.
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
    """What times on parts of one CPU are not, so that nobody misses it."""
    bar = "!" * 80
    return (
        f"{bar}\nNO SPEED-UP CAN BE SEEN HERE: the {count} devices are parts of one CPU that share its cores.\n"
        f"These times show the overhead of splitting a step up, not how it scales.\n{bar}"
    )


if __name__ == "__main__":
    sys.exit(run_tool(main))
