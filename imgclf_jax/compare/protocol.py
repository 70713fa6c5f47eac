"""Checks that runs may be compared: the same data, the same test split, the same rule for what is reported."""

from collections.abc import Sequence
from typing import Any

from imgclf_jax.compare.reading import Run
from imgclf_jax.errors import UserError
from imgclf_jax.workdir import same_data


def check(runs: Sequence[Run], metric: str) -> list[str]:
    """Checks complete runs.

    Args:
        runs: the runs.
        metric: what is compared; a metric of the validation split needs the same validation split.

    Returns:
        Notes on what cannot be checked.

    Raises:
        UserError: two runs may not be compared. One line names them and the difference.
    """
    first = runs[0]
    split, _, field = metric.partition(".")
    known = [run for run in runs if "fingerprint" in _data(run)]
    unknown = [run for run in runs if "fingerprint" not in _data(run)]
    for run in known[1:]:
        if reason := _data_difference(known[0], run):
            raise _refuse(known[0], run, f"different data ({reason})")
    for run in runs[1:]:
        for name, values in _facts(first, run, split, field).items():
            if None not in values and values[0] != values[1]:
                raise _refuse(first, run, f"{name}: {values[0]!r} -> {values[1]!r}")
    if not unknown:
        return []
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    return [f"run.json of {unknown[0].folder}{more} does not say which data the run used, so this was not checked"]


def _facts(one: Run, other: Run, split: str, field: str) -> dict[str, tuple[Any, Any]]:
    """What two runs must have in common; `None` if it is not known."""
    pair = one, other
    facts: dict[str, tuple[Any, Any]] = {
        "different data.test_split": (one.config.data.test_split, other.config.data.test_split),
        "test splits of different sizes": (_count(one, "test"), _count(other, "test")),
        "different folds, data.folds": (one.folds, other.folds),
        "reported by different rules, eval.report": (one.config.eval.report, other.config.eval.report),
    }
    if field.startswith("tta_"):
        facts["different views, eval.tta"] = _views(one), _views(other)
    if split == "valid" and not one.folds:
        facts["different data.valid_split"] = one.config.data.valid_split, other.config.data.valid_split
    if split in ("valid", "train") and not one.folds:
        first, second = (_count(run, split) for run in pair)
        facts[f"{split} splits of different sizes"] = first, second
    return facts


def _views(run: Run) -> str | None:
    """The views that the logits were averaged over; `None` without any: the run is then listed as one without value."""
    return None if run.config.eval.tta == "none" else run.config.eval.tta


def _data_difference(one: Run, other: Run) -> str | None:
    before, after = _data(one), _data(other)
    if one.folds or other.folds:  # Folds may differ in size by an example.
        before, after = ({**data, "counts": _count(run, "test")} for data, run in ((before, one), (after, other)))
    if same_data.is_same(before, after):
        return None
    names = [data.get("name", "?") for data in (before, after)]
    fingerprints = [data["fingerprint"][:12] for data in (before, after)]
    what = names[0] if names[0] == names[1] else " -> ".join(names)
    return f"{what}; fingerprint {' -> '.join(fingerprints)}"


def _data(run: Run) -> dict[str, Any]:
    return run.record.get("data") or {}


def _count(run: Run, split: str) -> int | None:
    result = (run.record.get("results") or {}).get(split) or {}
    return (_data(run).get("counts") or {}).get(split, result.get("count"))


def _refuse(one: Run, other: Run, difference: str) -> UserError:
    return UserError(f"{one.folder} and {other.folder} cannot be compared: {difference}; compare them separately")
