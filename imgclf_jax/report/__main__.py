"""Report on runs: `python -m imgclf_jax.report --workdir=DIR [--workdir=DIR2 ...] [--output=FOLDER]`.

Of one run, it writes DIR/report/: a self-contained index.html that needs no network, its pictures as SVG and PNG files,
and predictions.csv.

Several runs, given by several flags or by a quoted glob such as --workdir='runs/sweep/*/seed*', are compared. Their
report is written to PARENT/report/, where PARENT is the nearest folder that holds all of them and is no run. Runs whose
configs differ in the seed or fold alone are one group, and the learning curves show its mean with a band. The page also
has the report on each run if there are at most four, or with --details. Each predictions.csv is in PARENT/report/runN.
`python -m imgclf_jax.compare` makes the table for a paper.

An earlier report in the same place is replaced.
"""

if __name__ == "__main__":  # Must come before the imports that swallow Ctrl-C.
    from imgclf_jax.terminal import interrupt

    interrupt.install()

import sys
from pathlib import Path

from absl import flags

from imgclf_jax.errors import UserError
from imgclf_jax.terminal import cli

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this tool."""
    cli.define_parts()
    flags.DEFINE_multi_string("workdir", None, "Folder of a run, or a quoted glob. Repeat it to compare several runs.")
    flags.DEFINE_string("output", None, "Folder of the report. Default: report/ in the run, or beside several runs.")
    flags.DEFINE_bool("details", None, "With several runs: the report on each of them too. Default: up to four runs.")


def main(argv: list[str]) -> int:
    """Parses the command line and writes the report. Returns the exit status."""
    define_flags()
    cli.parse_flags(argv)
    if not FLAGS.workdir:
        raise UserError("--workdir is missing; give the folder that training printed")
    from imgclf_jax.report import workdirs

    folders = workdirs.expand(FLAGS.workdir)
    from imgclf_jax.devices import xla  # JAX is slow to import: report the mistakes above first.

    xla.configure_xla()
    cli.begin_work(needs_stdout=False)
    from imgclf_jax.report.write import report
    from imgclf_jax.terminal.console import Console

    console = Console()
    output = None if FLAGS.output is None else Path(FLAGS.output)
    try:
        page = report(folders, output, console.task, console.warn, FLAGS.details)
    finally:
        console.finish()
    console.print(f"report {page}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run_tool(main, takes_config=False))
