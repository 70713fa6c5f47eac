"""The front door: `python -m imgclf_jax.main --config=configs/NAME.py [--workdir=DIR] [--mode=train|eval|check]`."""

if __name__ == "__main__":  # This comes before imports that swallow Ctrl-C.
    from imgclf_jax.terminal import interrupt

    interrupt.install()

import shlex
import sys
from pathlib import Path

from absl import flags

from imgclf_jax.errors import UserError
from imgclf_jax.terminal import cli, streams
from imgclf_jax.workdir import provenance

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The flags of this tool; `--config` and its overrides are added by `imgclf_jax.terminal.cli`."""
    flags.DEFINE_string(
        "workdir", None, "Folder of the run. Default: runs/NAME/YYYYmmdd-HHMMSS. Resumed where it holds a run."
    )
    flags.DEFINE_enum("mode", "train", ["train", "eval", "check"], "What to do.")
    flags.DEFINE_bool("allow_config_change", False, "Resume although the config has changed.")
    flags.DEFINE_string("split", "test", "With --mode=eval: train, valid, test, or a split in TFDS syntax.")
    flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "With --mode=eval: which one to evaluate.")
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, where several processes train together; auto on Kubernetes and Cloud TPU. Under srun "
        "and mpirun it need not be given.",
    )
    flags.DEFINE_integer("num_processes", None, "With --coordinator: how many there are.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "With --coordinator: which one this is, from 0.", lower_bound=0)
    flags.DEFINE_integer("connect_seconds", 120, "How long to wait for the other processes.", lower_bound=1)


def main(argv: list[str]) -> int:
    """Parses the command line and dispatches. Returns the exit status."""
    define_flags()
    config = cli.parse(argv)
    if problems := _unused(config):
        raise UserError("\n".join(problems))
    if FLAGS.mode == "eval" and not FLAGS.workdir:
        raise UserError("--mode=eval needs --workdir, the folder that training printed")
    if config is None and FLAGS.mode != "eval":
        raise UserError("--config is missing; for example --config=configs/cnn.py")

    file = cli.config_path(argv)
    config_file = provenance.describe_file(Path(file)) if file else None  # Read now, before somebody edits it.
    from imgclf_jax.devices import processes, xla  # JAX is slow to import: mistakes above are told at once.

    xla.configure_xla()
    cli.begin_work()
    with processes.session(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.connect_seconds):
        return _dispatch(config, argv, config_file)


def _unused(config) -> list[str]:
    """One line for each flag that is given but has no effect."""
    found = [
        f"--{name} has no effect with --mode={FLAGS.mode}; it goes with --mode=eval"
        for name in ("split", "checkpoint")
        if FLAGS[name].present and FLAGS.mode != "eval"
    ]
    if FLAGS.allow_config_change and FLAGS.mode == "eval" and config is None:
        found.append("--allow_config_change has no effect without --config: the config is that of the run")
    if FLAGS.allow_config_change and FLAGS.mode != "eval" and not FLAGS.workdir:
        found.append("--allow_config_change has no effect without --workdir, the folder of the run to go on with")
    return found


def _dispatch(config, argv, config_file) -> int:
    from imgclf_jax.devices import processes
    from imgclf_jax.workdir import saved_config
    from imgclf_jax.workdir.claim import default_path

    if FLAGS.mode == "check":
        from imgclf_jax.check import check

        check(config, Path(FLAGS.workdir) if FLAGS.workdir else None, FLAGS.allow_config_change)
        return 0
    if FLAGS.mode == "eval":
        from imgclf_jax.evaluate import evaluate_run

        folder = Path(FLAGS.workdir)
        saved = saved_config.load_config(folder)
        changed = [] if config is None else saved_config.check_config(folder, config, FLAGS.allow_config_change)
        if changed and processes.is_first():
            print("\n".join(f"warning: config changed: {line}" for line in changed), file=sys.stderr)
        evaluate_run(config or saved, folder, FLAGS.split, FLAGS.checkpoint)
        return 0

    from imgclf_jax.train import train

    streams.survive()  # A run outlives its terminal.
    folder = Path(FLAGS.workdir) if FLAGS.workdir else default_path(cli.config_path(argv) or "")

    def command(folder):
        given = [] if FLAGS.workdir else [f"--workdir={folder}"]
        return shlex.join(["python", "-m", "imgclf_jax.main", *argv[1:], *given])

    return train(
        config,
        folder,
        new=not FLAGS.workdir,
        allow_config_change=FLAGS.allow_config_change,
        resume_command=command,
        config_file=config_file,
    )


if __name__ == "__main__":
    sys.exit(cli.run_tool(main))
