"""Evaluate runs together: `python -m imgclf_jax.ensemble RUN|FOLDER|SWEEP|GLOB... [--format=table|json]`.

Runs whose configs differ in the seed alone are one ensemble. Its probabilities are the means of those of its members
(Lakshminarayanan et al. 2017, https://arxiv.org/abs/1612.01474), on the test split, or on the validation split if there
is no other. Members are evaluated with the checkpoints that their runs reported. Nothing is written or chosen.

Exit status: 0: the table was printed; 2: the command line has a mistake, or the data or a checkpoint cannot be read.
"""

if __name__ == "__main__":  # Must come before the imports that swallow Ctrl-C.
    from imgclf_jax.terminal import interrupt

    interrupt.install()

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from imgclf_jax.errors import UserError
from imgclf_jax.terminal import cli
from imgclf_jax.terminal.console import Console

FLAGS = flags.FLAGS


class Result(NamedTuple):
    """An ensemble and its members.

    Attributes:
        name: of the group.
        split: "test" or "valid".
        accuracies: those of the members, fractions.
        losses: those of the members: mean cross-entropy, in nats.
        accuracy: that of the ensemble.
        loss: that of the ensemble.
    """

    name: str
    split: str
    accuracies: list[float]
    losses: list[float]
    accuracy: float
    loss: float


def define_flags() -> None:
    """Defines the flags of this tool."""
    flags.DEFINE_enum("format", "table", ["table", "json"], "Format of the result.")


def main(argv: list[str]) -> int:
    """Parses the command line and prints the table. Returns the exit status."""
    define_flags()
    names = cli.parse_flags(argv, positional=True)
    cli.begin_work(needs_stdout=True)
    from imgclf_jax.compare import groups, reading

    found = groups.make_table(reading.read(names)).groups
    several = [group for group in found if len(group.runs) > 1]
    if not several:
        raise UserError("an ensemble needs two complete runs that differ in the seed alone; train more seeds")
    from imgclf_jax.devices import xla

    xla.configure_xla()
    console = Console("auto" if FLAGS.format == "table" else "silent")
    results = [evaluate(group.name, [run.folder for run in group.runs], console.task) for group in several]
    console.finish()
    if FLAGS.format == "json":
        print(json.dumps([result._asdict() for result in results], indent=2))
    else:
        show(console, results)
    return 0


def evaluate(name: str, folders: Sequence[Path], progress: Callable[[str, int, int], None]) -> Result:
    """Evaluates an ensemble.

    Args:
        name: of the group.
        folders: the workdirs of its members, trained on the same data.
        progress: called now and then with (description, examples done, total examples).

    Raises:
        UserError: a checkpoint or the data cannot be read, or the examples differ, as those of folds do.
    """
    from imgclf_jax.report.predictions import predict
    from imgclf_jax.training import trained

    each: list[tuple[float, float]] = []
    ids: Any = None
    total: Any = -np.inf
    for folder in folders:
        found = predict(trained.load(folder), progress)
        if ids is not None and not np.array_equal(ids, found.ids):
            raise UserError(f"{folder} was evaluated on other examples than {folders[0]}; they are no ensemble")
        ids = found.ids
        each.append(score(found.scores, found.labels))
        total = np.logaddexp(total, found.scores.astype(np.float64))  # Probabilities may be too small for a float.
    accuracy, loss = score(total - np.log(len(folders)), found.labels)
    return Result(name, found.split, [one[0] for one in each], [one[1] for one in each], accuracy, loss)


def score(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Returns the accuracy and the mean cross-entropy of log probabilities [N, classes]."""
    own = scores[np.arange(len(labels)), labels]
    correct = (scores.argmax(1) == labels) & np.isfinite(scores).any(1)
    return float(correct.mean()), float(-own.mean(dtype=np.float64))


def show(console: Console, results: Iterable[Result]) -> None:
    """Prints the table."""
    rows = []
    for result in results:
        values = 100 * np.asarray(result.accuracies)
        rows.append(
            (
                result.name,
                len(values),
                f"{values.mean():.2f} ± {values.std(ddof=1):.2f}",
                f"{100 * result.accuracy:.2f}",
                f"{np.mean(result.losses):.4f}",
                f"{result.loss:.4f}",
            )
        )
        split = result.split
    console.table(("group", "n", "members", "ensemble", "loss of members", "of the ensemble"), rows)
    console.print()
    console.print(
        f"Accuracy in % on the {split} split: mean ± standard deviation of the members, and that of the mean of their "
        "probabilities."
    )


if __name__ == "__main__":
    sys.exit(cli.run_tool(main, takes_config=False))
