"""Classify photos with a trained network: `python -m imgclf_jax.predict --workdir=DIR FILES|FOLDERS|GLOBS...`.

Folders are searched recursively; in a quoted glob, `**` is recursive too. The result has one row per file, in order,
with the most probable classes, in one of three formats: a table; `--format=csv` (columns file, class_1, probability_1,
..., error); or `--format=json` (one object per line, with file, class, probability, the probabilities of all classes,
and the true class if it is known; or with file and error). A file that cannot be read has the reason instead of a
class. In CSV, a name that a spreadsheet would evaluate is prefixed with `'`; see README.md.

If files are in folders named like classes, the predictions are scored: how many are correct, and a confusion table. The
score follows the table; with csv, json or --output it goes to standard error.

Exit status: 0: all files were classified; 1: some files cannot be read or get NaN from the network, or a name matches
nothing; 2: no file was classified, or the command line has a mistake.
"""

if __name__ == "__main__":  # Must come before the imports that swallow Ctrl-C.
    from imgclf_jax.terminal import interrupt

    interrupt.install()

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from absl import flags

from imgclf_jax.errors import UserError
from imgclf_jax.terminal import cli

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this tool."""
    cli.define_run()
    flags.DEFINE_integer("top_k", 3, "Number of classes to show per file; json always has all.", lower_bound=1)
    flags.DEFINE_enum("format", "table", ["table", "csv", "json"], "Format of the rows.")
    flags.DEFINE_string("output", None, "File to write the rows to; it must not exist. Default: standard output.")
    flags.DEFINE_integer("batch_size", 64, "Images that go through the network at once.", lower_bound=1)


def main(argv: list[str]) -> int:
    """Parses the command line and classifies the files. Returns the exit status."""
    define_flags()
    names = cli.parse_flags(argv, positional=True)
    from imgclf_jax.predict import files
    from imgclf_jax.terminal import output  # Both import only the standard library.

    problems = [] if FLAGS.workdir else ["--workdir is missing; give the folder that training printed"]
    if FLAGS.output is not None:
        problems += output.problems(Path(FLAGS.output)) if FLAGS.output else ["--output= is empty; name a new file"]
    selection = files.find(names)
    if not names:
        problems.append("no files are given; add photos, folders or globs after the flags")
    elif not selection.files:
        problems.append("; ".join(selection.problems))
    if problems:
        raise UserError("\n".join(problems))
    for problem in selection.problems:
        print(f"warning: {problem}", file=sys.stderr)

    from imgclf_jax.devices import xla
    from imgclf_jax.training import trained

    xla.configure_xla()
    cli.begin_work()
    network = trained.load(Path(FLAGS.workdir), FLAGS.checkpoint)
    unread, not_finite, first = _predict(network, selection)
    for count, failure in ((unread, "files could not be read"), (not_finite, "files get NaN from the network")):
        if count:
            example = f", such as {first}" if FLAGS.output else ""  # Without --output, the rows are on the terminal.
            print(f"{count} of {len(selection.files)} {failure}{example}", file=sys.stderr)
    failed = unread + not_finite
    return 2 if failed == len(selection.files) else 1 if failed or selection.problems else 0


def _predict(network, selection) -> tuple[int, int, str]:
    """Writes the rows and the score.

    Returns:
        The number of files that could not be read, the number that got NaN, and the first such file with its reason.
    """
    from imgclf_jax.predict import files, reading
    from imgclf_jax.predict.bar import Bar
    from imgclf_jax.predict.network import Network
    from imgclf_jax.predict.score import Score
    from imgclf_jax.storage.names import class_name
    from imgclf_jax.terminal.output import printable

    reading.check_channels(network.image_shape, str(network.folder))
    labels = {class_name(name): label for label, name in enumerate(network.class_names)}
    todo = ((str(file.path), files.label(file, labels)) for file in selection.files)
    predictor = Network(network, FLAGS.batch_size)
    score = Score(network.class_names)
    done = unread = not_finite = 0
    first = ""
    with _rows_file() as stream:
        form = _format(network.class_names, selection.files, stream)
        bar = Bar("predicting", len(selection.files))
        try:
            bar.write(form.head(), stream)
            shape, resize = network.image_shape, network.config.data.resize
            for rows in reading.predict_files(todo, predictor, shape, resize, FLAGS.batch_size):
                bar.write("".join(map(form.row, rows)), stream)
                for row in rows:
                    if row.reason and not first:
                        first = printable(f"{row.file}: {row.reason}")
                    if row.reason == reading.NOT_FINITE:
                        not_finite += 1
                    elif row.probabilities is None:
                        unread += 1
                    elif row.label is not None:
                        score.add(row.label, reading.best(row.probabilities, 1)[0])
                done += len(rows)
                bar.update(done)
        finally:
            bar.close()
    score_stream = sys.stdout if stream is sys.stdout and FLAGS.format == "table" else sys.stderr
    _show_score(score, done - unread - not_finite, selection, score_stream)
    return unread, not_finite, first


@contextlib.contextmanager
def _rows_file() -> Iterator[TextIO]:
    from imgclf_jax.terminal import output

    if FLAGS.output:
        with output.new_file(Path(FLAGS.output)) as file:
            yield file
    else:
        # File names are written with their own bytes, independently of the encoding of the terminal.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")  # type: ignore[union-attr]
        yield sys.stdout


def _format(class_names, selected, stream):
    from imgclf_jax.predict import formats

    if FLAGS.format == "csv":
        return formats.Csv(class_names, FLAGS.top_k)
    if FLAGS.format == "json":
        return formats.JsonLines(class_names)
    width = shutil.get_terminal_size().columns if stream.isatty() else 0
    return formats.Table(class_names, FLAGS.top_k, [str(file.path) for file in selected], width)


def _show_score(score, predicted, selection, stream):
    if score.count:
        gap = "\n" if stream is sys.stdout else ""
        print(gap + score.text(predicted, shutil.get_terminal_size((100, 0)).columns), end="", file=stream)
    elif predicted and selection.has_subfolders:
        names = ", ".join(score.class_names[:10]) + (", ..." if len(score.class_names) > 10 else "")
        print(f"not scored: no folder is named like a class of the model ({names})", file=stream)


if __name__ == "__main__":
    sys.exit(cli.run_tool(main, takes_config=False))
