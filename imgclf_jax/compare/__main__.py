"""Compare runs over seeds: `python -m imgclf_jax.compare RUN|FOLDER|SWEEP|GLOB... [--baseline=NAME] [--metric=METRIC]`.

A name is the folder of a run, a folder with runs in it, the folder of a sweep, or a quoted glob:

    python -m imgclf_jax.compare runs/sweep --baseline=no_flip
    python -m imgclf_jax.compare runs/cnn runs/mlp --metric=test.loss
    python -m imgclf_jax.compare 'runs/*/seed?' --format=latex
    python -m imgclf_jax.compare runs/sweep --format=html

Runs whose configs differ in the seed (or fold) alone are one group, and one row: n, mean and standard deviation, the
95 % interval of the mean, the difference to the baseline (the first group unless --baseline is given) with its interval
and p, and what a run costs. "not shown (36 seeds)" means that the runs do not show a difference, and that it would take
36 seeds per group to show the observed one. Runs that are not complete are listed below the table with the reason.

Metrics: SPLIT.accuracy, SPLIT.error, SPLIT.loss, wall_time_seconds, images_per_second; SPLIT.tta_accuracy and
SPLIT.tta_loss of runs with eval.tta; and your own ones, SPLIT.NAME.

Formats: table; markdown; csv (one row per group, all digits); latex (a tabular for the package booktabs); json (all
values); html (a page with charts: intervals, learning curves, cost, the fields of a search, and, if the runs have
reports, classes and examples). In csv and json, an accuracy is between 0 and 1; elsewhere it is in percent. With csv,
what is below the table goes to standard error. In CSV, a name that a spreadsheet would evaluate is prefixed with `'`;
see README.md.

A page is one file that needs no network. It is written to --output=FILE.html; for one folder, the default is
FOLDER/compare/index.html. An earlier page in the same place is replaced, but no other file.

Exit status: 0: the table was printed or the page was written; 2: the command line has a mistake, or the runs cannot be
compared.
"""

if __name__ == "__main__":  # Must come before the imports that swallow Ctrl-C.
    from imgclf_jax.terminal import interrupt

    interrupt.install()

import sys

from absl import flags

from imgclf_jax.errors import UserError
from imgclf_jax.terminal import cli

FLAGS = flags.FLAGS
FORMATS = ("table", "markdown", "csv", "latex", "json", "html")


def define_flags() -> None:
    """Defines the flags of this tool."""
    flags.DEFINE_string("baseline", None, "Name of the group that the others are compared with. Default: the first.")
    flags.DEFINE_string("metric", "test.accuracy", "What to compare.")
    flags.DEFINE_enum("format", "table", FORMATS, "Format of the table.")
    flags.DEFINE_string("output", None, "With --format=html: the file for the page. Default: see above.")


def main(argv: list[str]) -> int:
    """Parses the command line and prints the table. Returns the exit status."""
    define_flags()
    names = cli.parse_flags(argv, positional=True)
    if FLAGS.output is not None and FLAGS.format != "html":
        raise UserError(f"--output is for --format=html; redirect the output of --format={FLAGS.format} instead")
    cli.begin_work(needs_stdout=FLAGS.format != "html")
    from imgclf_jax.compare import reading

    found = reading.read(names)
    from imgclf_jax.compare import groups  # SciPy is slow to import: report the mistakes above first.

    if FLAGS.format == "html":
        _write_page(names, found)
        return 0
    from imgclf_jax.compare import formats

    formats.write(groups.make_table(found, FLAGS.metric, FLAGS.baseline), FLAGS.format)
    return 0


def _write_page(names, found):
    from imgclf_jax.compare import groups, page

    path = page.choose_path(names, FLAGS.output)
    page.write(groups.make_table(found, FLAGS.metric, FLAGS.baseline), path)
    print(f"page {path}")


if __name__ == "__main__":
    sys.exit(cli.run_tool(main, takes_config=False))
