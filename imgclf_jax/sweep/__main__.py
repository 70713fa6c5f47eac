"""Run many variants of an experiment with many seeds: `python -m imgclf_jax.sweep --config=FILE --workdir=DIR`.

FILE defines get_sweep(), or get_config() together with --vary='optim.learning_rate=0.01,0.03,0.1'. Every run is an
ordinary run directory in DIR. The same command, after a crash or with more seeds or variants, does what is missing.
`python -m imgclf_jax.compare DIR` prints the table of the results.
"""

if __name__ == "__main__":  # Must come before the imports that swallow Ctrl-C.
    from imgclf_jax.terminal import interrupt

    interrupt.install()

import sys
import uuid
from pathlib import Path

from absl import flags

from imgclf_jax.errors import UserError
from imgclf_jax.sweep import folder as sweep_folder
from imgclf_jax.sweep import halving, loading, local, plan_file, resolving, slurm, states, status
from imgclf_jax.terminal import cli, streams, tools
from imgclf_jax.terminal.console import Console
from imgclf_jax.workdir import checkpoint_folder
from imgclf_jax.workdir.trained_step import trained_step

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this tool."""
    cli.define_parts()
    flags.DEFINE_string("workdir", None, "Folder of the sweep.")
    flags.DEFINE_string("seeds", "1", "How many seeds, or which: 5 means 0 to 4; 3,5,8; 5:10 means 5 to 9.")
    flags.DEFINE_multi_string("vary", [], "FIELD=VALUE,VALUE,...; several of them make the product.")
    flags.DEFINE_enum("launcher", "local", ["local", "slurm"], "Where the runs run.")
    flags.DEFINE_integer("max_parallel", 1, "How many runs at once; with slurm 0: no limit.", lower_bound=0)
    flags.DEFINE_integer("runs_per_job", 1, "With --launcher=slurm: how many runs a job takes.", lower_bound=1)
    flags.DEFINE_integer(
        "seeds_per_process",
        1,
        "How many runs train in one program, if they differ in the seed and in numbers such as the learning rate: as "
        "one batch if the network is dense, and otherwise one on each device.",
        lower_bound=1,
    )
    flags.DEFINE_string("slurm", "", "With --launcher=slurm: parameters of sbatch: partition=gpu,gres=gpu:1,time=600.")
    flags.DEFINE_string(
        "halving",
        "",
        "FACTOR or FACTOR,FIRST: successive halving. At FIRST of a run's length, and FACTOR times as far each time, "
        "only the best one in FACTOR continues, by validation accuracy. Without it, stopped runs are continued.",
    )
    flags.DEFINE_bool("fail_fast", False, "Stop at the first run that fails.")
    flags.DEFINE_bool("dry_run", False, "Check all configs and list the runs; write nothing.")
    flags.DEFINE_bool("status", False, "Print the states of the runs in --workdir.")


def main(argv: list[str]) -> int:
    """Parses the command line and dispatches. Returns the exit status."""
    define_flags()
    loaded = loading.load(argv) if cli.config_path(argv) is not None else cli.parse(argv)
    if not FLAGS.workdir:
        raise UserError("--workdir is missing, the folder for all runs of the sweep; for example --workdir=runs/sweep")
    folder, console = Path(FLAGS.workdir), Console("lines")
    if FLAGS.status:
        status.show(folder, console)
        return 0
    if loaded is None:
        raise UserError("--config is missing; for example --config=ablations/augmentation")
    if FLAGS.launcher == "local" and not FLAGS.max_parallel:
        raise UserError("--max_parallel=0 must be at least 1 with --launcher=local")
    options = slurm.parse_options(FLAGS.slurm)
    halving.parse(FLAGS.halving)
    cli.begin_work()
    study = resolving.resolve(loaded.sweep, resolving.parse_seeds(FLAGS.seeds))
    old = plan_file.check_folder(folder, study, loaded.config_file)
    study = plan_file.keep_folders(study, old)
    plan = plan_file.content(study, loaded.config_file, old)
    left = [run for run in study.runs if states.read(folder / run.folder).name not in states.FINAL]
    # A run that has begun no longer needs the network that it started from.
    for text in {run.config.init.run for run in left if not checkpoint_folder.exists(folder / run.folder)} - {""}:
        trained_step(text)
    parts = {"variant": len(study.groups), "seed": len(study.seeds), "fold": study.folds}
    size = " x ".join(_counted(number, name) for name, number in parts.items() if number)
    console.print(f"{_counted(len(study.runs), 'run')} ({size}), {len(study.runs) - len(left)} of them done")
    for line in plan_file.differences(old, plan) if old else []:
        console.print(f"changed: {line}")
    if FLAGS.dry_run:
        for run in study.runs:
            console.print(f"{states.read(folder / run.folder).name:12} {run.folder}")
        return 0
    if FLAGS.launcher == "slurm":
        slurm.check()
    streams.survive()
    sweep_folder.write(folder, study, plan)
    if FLAGS.launcher == "slurm":
        runs = max(FLAGS.runs_per_job, FLAGS.seeds_per_process)
        task = slurm.Task(folder.resolve(), uuid.uuid4().hex, runs, FLAGS.halving, FLAGS.seeds_per_process)
        jobs = -(-len(left) // runs)
        ids = slurm.submit(folder, task, jobs, FLAGS.max_parallel, options)
        console.print(f"submitted {len(ids)} jobs: {', '.join(ids)}")
        console.print(f"their states: {tools.command('sweep')} --status --workdir={folder}")
        return 0
    code = local.run(folder, FLAGS.max_parallel, FLAGS.fail_fast, console, FLAGS.halving, FLAGS.seeds_per_process)
    status.show(folder, console)
    console.print(f"the results: {tools.command('compare')} {folder}")
    return code


def _counted(number, name):
    return f"{number} {name}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    sys.exit(cli.run_tool(main))
