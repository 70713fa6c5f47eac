"""Train, evaluate or check: `python -m imgclf_jax.main --config=configs/NAME.py [--workdir=DIR] [--mode=MODE]`.

MODE is train (the default), eval or check. `--rerun=DIR` trains the run in DIR again and compares the numbers.
"""

if __name__ == "__main__":  # Must come before the imports that swallow Ctrl-C.
    from imgclf_jax.terminal import interrupt

    interrupt.install()

import shlex
import sys
from pathlib import Path

from absl import flags

from imgclf_jax.errors import UserError
from imgclf_jax.terminal import cli, output, streams, tools
from imgclf_jax.workdir import provenance

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this tool. `imgclf_jax.terminal.cli` adds `--config` and its overrides."""
    cli.define_parts()
    flags.DEFINE_string(
        "workdir", None, "Folder of the run. Default: runs/NAME/YYYYmmdd-HHMMSS. If it holds a run, the run is resumed."
    )
    flags.DEFINE_enum("mode", "train", ["train", "eval", "check"], "What to do.")
    flags.DEFINE_string(
        "rerun", None, "Train a recorded run again, in a new workdir, and compare: its workdir, or the run.json in it."
    )
    flags.DEFINE_bool("allow_config_change", False, "Resume even if the config has changed.")
    flags.DEFINE_string(
        "profile",
        None,
        "Trace a few training steps into this folder, for Perfetto and XProf, and print the slowest operations.",
    )
    flags.DEFINE_string("split", "test", "With --mode=eval: train, valid, test, or a split in TFDS syntax.")
    flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "With --mode=eval: the checkpoint to evaluate.")
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0 if several processes train together, or auto on Kubernetes and Cloud TPU. Not needed "
        "under srun and mpirun.",
    )
    flags.DEFINE_integer("num_processes", None, "With --coordinator: the number of processes.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "With --coordinator: the index of this process, from 0.", lower_bound=0)
    flags.DEFINE_integer("connect_seconds", 120, "How long to wait for the other processes.", lower_bound=1)


def main(argv: list[str]) -> int:
    """Parses the command line and dispatches. Returns the exit status."""
    define_flags()
    if config_flag := _config_with_rerun(argv):
        raise UserError(f"{config_flag} cannot be combined with --rerun, which takes the config of the recorded run")
    config = cli.parse(argv)
    if problems := _unused(config):
        raise UserError("\n".join(problems))
    if FLAGS.mode == "eval" and not FLAGS.workdir:
        raise UserError("--mode=eval needs --workdir, the folder that training printed")
    if FLAGS.rerun is None and config is None and FLAGS.mode != "eval":
        raise UserError("--config is missing; for example --config=cnn")
    if FLAGS.profile and (problems := output.folder_problems(Path(FLAGS.profile), "--profile", missing=True)):
        raise UserError("\n".join(problems))

    file = cli.config_path(argv)
    config_file = provenance.describe_file(Path(file)) if file else None  # Read it now, before somebody edits it.
    recorded = None
    if FLAGS.rerun is not None:
        from imgclf_jax import rerun

        recorded = rerun.read(FLAGS.rerun, FLAGS.workdir)
    from imgclf_jax.devices import processes, xla  # JAX is slow to import: report the mistakes above first.

    xla.configure_xla()
    cli.begin_work()
    with processes.session(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.connect_seconds):
        return _dispatch(config, argv, config_file, recorded)


def _config_with_rerun(argv):
    """Returns the name of the first flag about the config if `--rerun` is given too, else an empty string."""
    names = [argument.lstrip("-").partition("=")[0] for argument in argv[1:] if argument.startswith("-")]
    given = [f"--{name}" for name in names if name.partition(".")[0] == "config"]
    return given[0] if given and "rerun" in names else ""


def _unused(config) -> list[str]:
    """One line for each flag that was given but has no effect."""
    problems = [
        f"--{name} has no effect with --mode={FLAGS.mode}; use it with --mode=eval"
        for name in ("split", "checkpoint")
        if FLAGS[name].present and FLAGS.mode != "eval"
    ]
    if FLAGS.profile is not None:
        if FLAGS.rerun is not None or FLAGS.mode != "train":
            other = f"--mode={FLAGS.mode}" if FLAGS.rerun is None else "--rerun"
            problems.append(f"--profile has no effect with {other}; use it with --config, to train")
        elif not FLAGS.profile:
            problems.append("--profile has no value; for example --profile=trace")
    if FLAGS.rerun is not None:
        if FLAGS.mode != "train":
            problems.append(f"--rerun trains; leave out --mode={FLAGS.mode}")
        if FLAGS.allow_config_change:
            problems.append("--allow_config_change has no effect with --rerun: the config is that of the recorded run")
        return problems
    if FLAGS.allow_config_change and FLAGS.mode == "eval" and config is None:
        problems.append("--allow_config_change has no effect without --config: the run's own config is used")
    if FLAGS.allow_config_change and FLAGS.mode != "eval" and not FLAGS.workdir:
        problems.append("--allow_config_change has no effect without --workdir, the folder of the run to resume")
    return problems


def _dispatch(config, argv, config_file, recorded) -> int:
    from imgclf_jax.devices import processes
    from imgclf_jax.workdir.claim import default_path
    from imgclf_jax.workdir.saved_config import check_config, load_config

    if FLAGS.mode == "check":
        from imgclf_jax.check import check

        check(config, Path(FLAGS.workdir) if FLAGS.workdir else None, FLAGS.allow_config_change)
        return 0
    if FLAGS.mode == "eval":
        from imgclf_jax.evaluate import evaluate_run

        folder = Path(FLAGS.workdir)
        saved = load_config(folder)
        changed = [] if config is None else check_config(folder, config, FLAGS.allow_config_change)
        if changed and processes.is_first():
            print("\n".join(f"warning: config changed: {line}" for line in changed), file=sys.stderr)
        evaluate_run(config or saved, folder, FLAGS.split, FLAGS.checkpoint)
        return 0

    from imgclf_jax.train import train
    from imgclf_jax.training.run import Calls

    streams.survive()  # A run outlives its terminal.

    def command(folder):
        workdir_flag = [] if FLAGS.workdir else [f"--workdir={folder}"]
        return f"{tools.command('train')} {shlex.join([*argv[1:], *workdir_flag])}"

    if recorded is not None:
        from imgclf_jax.rerun import rerun

        return rerun(recorded, Path(FLAGS.workdir) if FLAGS.workdir else None, command)
    folder = Path(FLAGS.workdir) if FLAGS.workdir else default_path(cli.config_path(argv) or "")
    calls = Calls(resume_command=command)
    if FLAGS.profile:
        from imgclf_jax.profile import recorder

        calls = calls._replace(watch=recorder.watch(Path(FLAGS.profile)))
    return train(
        config,
        folder,
        new=not FLAGS.workdir,
        allow_config_change=FLAGS.allow_config_change,
        config_file=config_file,
        calls=calls,
    )


if __name__ == "__main__":
    sys.exit(cli.run_tool(main))
