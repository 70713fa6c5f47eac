"""Early stopping: a run ends after some evaluations in a row without a better validation accuracy.

The rule looks at the rows of the metrics files alone, so a run that is resumed decides as if it had never stopped. See
L. Prechelt, "Early Stopping - But When?" (1998).
"""

from collections.abc import Iterable

from imgclf_jax.workdir.rows import Row


def accuracies(rows: Iterable[Row], last_step: int) -> dict[int, float]:
    """Returns the validation accuracies of a run up to a step, by step."""
    return {
        row["step"]: row["accuracy"]
        for row in rows
        if row["split"] == "valid" and row["step"] <= last_step and row["accuracy"] is not None
    }


def ran_out(accuracies: dict[int, float], patience: int) -> bool:
    """Whether the last `patience` evaluations were no better than the best one before them; never if it is 0.

    Args:
        accuracies: step -> validation accuracy.
        patience: a number of evaluations.
    """
    values = [accuracies[step] for step in sorted(accuracies)]
    return 0 < patience <= len(values) - 1 - values.index(max(values)) if values else False
