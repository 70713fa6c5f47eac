"""Measures the time to an accuracy: trains a config with several seeds by the rules of the published speedruns.

    python scripts/speedrun.py --config=configs/speedrun94.py --runs=10
    python scripts/speedrun.py --config=configs/speedrun94.py --runs=200 --json=runs.json --plot=runs.png
    python scripts/speedrun.py --config=configs/speedrun94.py --runs=3 --split=valid --target=0.93

The clock of a run covers its initial parameters, also those that are computed from images (whitening), the order of the
examples, augmentation and all steps. It does not cover reading the data and copying it to the devices, compilation, and
the warm-up. All of these come before the first run and serve all runs. The evaluation of the split, with test-time
augmentation if the config asks for it (`eval.tta`), is a second time, and both together are a third. Published times of
airbench and Hiverge are the third, those of Fulcrum the first. Ours evaluates the plain images too, in the same pass.
The stricter time of the first run begins with the process: imports, reading, compilation and warm-up are in it.

A run is that of `python -m imgclf_jax.main` with `--config.seed`, but without a workdir and without evaluation on the
way. Seeds are --first_seed and those that follow. The split is evaluated after the last step. To choose
hyperparameters, hold out a part of the training split and use --split=valid: the test split is for the end. Accuracies
are those of all examples, and of those from --skip_first on, because one record is published for test[2000:].

The table gives means, standard deviations over the runs, 95 % t intervals of the means, and the p value of the
one-sided t test of a mean accuracy above --target. FLOPs are those of the products in the training steps, see
`imgclf_jax.models.cost`. MFU is their rate relative to that of a large matrix product in the config's dtype, which is
measured on this machine before the runs. On known accelerators, the rate relative to the data sheet is printed too.

--json is replaced after every run, so an interrupted measurement keeps what it has.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import speedrun_report as report
import unrecorded
from absl import flags
from bench_cases import Setup, product_case
from bench_step import describe_machine, limit_cores
from scaling import check_files
from scaling_peaks import of_this_process

from imgclf_jax import data
from imgclf_jax.config import to_json
from imgclf_jax.data.types import Split
from imgclf_jax.devices import xla
from imgclf_jax.errors import UserError
from imgclf_jax.storage import files
from imgclf_jax.terminal.cli import begin_work, parse, run_tool
from imgclf_jax.terminal.console import Console, duration
from imgclf_jax.training import loop

FLAGS = flags.FLAGS
PRODUCT_ROUNDS = 7


def define_flags() -> None:
    """Defines the flags of this tool. `imgclf_jax.terminal.cli` adds `--config` and its overrides."""
    flags.DEFINE_integer("runs", 10, "How many runs.", lower_bound=1)
    flags.DEFINE_integer("first_seed", 0, "Seed of the first run.", lower_bound=0)
    flags.DEFINE_float("target", 0.94, "Accuracy that the mean is tested against.", 0.0, 1.0)
    flags.DEFINE_enum("split", "test", ["test", "valid"], "The split to evaluate.")
    flags.DEFINE_integer("skip_first", 2000, "Examples that the second accuracy leaves out; 0: none.", lower_bound=0)
    flags.DEFINE_integer("warmup_steps", 3, "Steps of every program before the first run; -1: a whole run.", -1)
    flags.DEFINE_integer("threads", 0, "CPU cores to use. 0: all that this process may use.", lower_bound=0)
    flags.DEFINE_string("json", None, "File to write all numbers to.")
    flags.DEFINE_string("plot", None, "File for a plot of accuracies and times: .png, .svg or .pdf.")


def main(argv: list[str]) -> int:
    """Parses the command line, measures and prints. Returns the exit status."""
    define_flags()
    config = parse(argv)
    if config is None:
        raise UserError("--config is missing; for example --config=configs/speedrun94.py")
    check_files(FLAGS.json, FLAGS.plot)
    cores = limit_cores(FLAGS.threads)
    xla.configure_xla()
    begin_work()
    console = Console(config.log.progress, config.log.line_seconds)
    loaded = unrecorded.load(config, console)
    splits = evaluated(loaded.dataset, FLAGS.split, FLAGS.skip_first)
    ready = unrecorded.ready(loaded, console, splits)
    machine = describe_machine(cores, None)
    console.print(", ".join(machine.values()))
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > cores / 2:
        console.warn(f"load average {load:.1f} on {cores} cores: others compute too; do not trust the times")
    peak, arithmetic = of_this_process(config.model.dtype)
    record: dict[str, Any] = {
        "machine": machine,
        "config": to_json(config),
        "split": FLAGS.split,
        "data": loaded.dataset.facts(),
        "target": FLAGS.target,
        "steps": ready.plan.steps,
        "epochs": ready.plan.steps / ready.plan.steps_per_epoch,
        "flops": unrecorded.flops(ready),
        "product_rate": product_rate(ready),
        "peak": {"flops": peak and peak * loaded.strategy.devices, "arithmetic": arithmetic},
    }
    report.heading(console, config, record)
    console.print(f"warm-up: {duration(unrecorded.seconds_of(lambda: warm_up(ready, list(splits))))}")
    runs: list[dict[str, Any]] = []
    began = time.perf_counter()
    for seed in range(FLAGS.first_seed, FLAGS.first_seed + FLAGS.runs):
        runs.append(timed_run(ready, seed, list(splits), console))
        if len(runs) == 1:
            record["from_process_start"] = seconds_since_start()
        record |= {"runs": runs, "summary": report.summarize(runs, record)}
        if FLAGS.json:
            files.write_json(Path(FLAGS.json), record)
        left = (time.perf_counter() - began) / len(runs) * (FLAGS.runs - len(runs))
        console.print(f"run {len(runs)}/{FLAGS.runs}: {report.line(runs[-1])}  ETA {duration(left)}")
    report.report(console, record)
    if FLAGS.plot:
        report.plot(record, f"{config.model.name}, {machine['device']}", Path(FLAGS.plot))
    return 0


def evaluated(dataset: data.Dataset, name: str, skipped: int) -> dict[str, Split]:
    """Returns the splits to evaluate, by name: `name` and, if examples are left, the rest of it after the first ones.

    Raises:
        UserError: the config has no such split.
    """
    if name not in dataset.splits:
        how = "--config.data.valid_split='train[45000:]' --config.data.train_split='train[:45000]'"
        raise UserError(f"--split={name}: the config has no {name} split; for example {how}")
    split = dataset.splits[name]
    if not 0 < skipped < len(split):
        return {name: split}
    rest = Split(split.images[skipped:], split.labels[skipped:], split.ids[skipped:])
    return {name: split, f"{name}[{skipped}:]": rest}


def product_rate(ready: unrecorded.Ready) -> float:
    """Returns the FLOP/s of a large matrix product in the config's dtype: the fastest of several rounds."""
    session = ready.session
    with xla.quiet():
        case = product_case(Setup(session.experiment, session.normalization, session.feed(0, 1)[0]))
        case.run(2)
    return case.flops / min(unrecorded.seconds_of(lambda: case.run(1)) for _ in range(PRODUCT_ROUNDS))


def warm_up(ready: unrecorded.Ready, splits: list[str]) -> None:
    """Runs every program on a state that is thrown away. Their first executions are slower."""
    last, whole = ready.plan.steps, FLAGS.warmup_steps < 0
    with xla.quiet():
        for start in [0] if whole else unrecorded.stages(ready):
            training = unrecorded.at_step(ready, unrecorded.begin(ready, FLAGS.first_seed), start)
            state = unrecorded.take(ready, training, last if whole else min(start + max(FLAGS.warmup_steps, 1), last))
        for split in splits:
            unrecorded.evaluate(ready, split, state)


def timed_run(ready: unrecorded.Ready, seed: int, splits: list[str], console: Console) -> dict[str, Any]:
    """Trains a seed and evaluates it.

    Returns:
        `seed`; `train_seconds`, `evaluate_seconds` (of the first split) and `seconds`, their sum; `epoch_ends`, the
        seconds at which the epochs ended; `images_per_second` of training; and `results`, by split.
    """
    plan, size = ready.plan, ready.session.experiment.config.train.batch_size
    ends: list[float] = []
    console.start(0)
    began = time.perf_counter()

    def progress(now: loop.Progress) -> None:
        if now.row:
            ends.append(time.perf_counter() - began)
        rate = "" if now.images_per_second is None else f"  {now.images_per_second:,.0f} images/s"
        shown = f"epoch {now.step / plan.steps_per_epoch:.2f}  loss {now.means['loss']:.4f}{rate}"
        console.train(now.step, plan.steps, shown, now.row)

    try:
        state = unrecorded.take(ready, unrecorded.begin(ready, seed), plan.steps, progress)
    except UserError as error:
        raise UserError(f"seed {seed} {error}") from error
    trained = time.perf_counter() - began
    results = {splits[0]: unrecorded.evaluate(ready, splits[0], state)}
    seconds = time.perf_counter() - began
    console.finish()
    results |= {split: unrecorded.evaluate(ready, split, state) for split in splits[1:]}
    return {
        "seed": seed,
        "train_seconds": trained,
        "evaluate_seconds": seconds - trained,
        "seconds": seconds,
        "epoch_ends": ends,
        "images_per_second": plan.steps * size / trained,
        "results": results,
    }


def seconds_since_start() -> float | None:
    """Returns the seconds since this process was started; `None` where the system does not say."""
    try:
        # The name of the program, in brackets, may contain spaces. Field 22 counts from the boot of the machine.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return None


if __name__ == "__main__":
    sys.exit(run_tool(main))
