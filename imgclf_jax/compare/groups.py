"""Groups runs by experiment, collects their values of a metric, and makes the table."""

import collections
import difflib
import itertools
import math
import statistics as stats
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imgclf_jax.compare import naming, protocol, reading, sentence, statistics
from imgclf_jax.compare.reading import Found, Key, Run
from imgclf_jax.compare.statistics import Comparison, Interval
from imgclf_jax.errors import UserError
from imgclf_jax.terminal import tools
from imgclf_jax.workdir.record import is_number, own_seconds

METRIC = "test.accuracy"
# Metrics of a whole run, and the fields of an evaluation that count examples.
OF_RUN = ("wall_time_seconds", "images_per_second")
COUNTS = ("correct", "count", "not_finite")
EARLY = "before it wrote run.json"  # Reasons of runs without a value.
PLANNED = "planned in sweep.json"
LOWER_IS_BETTER = ("loss", "tta_loss", "error", "wall_time_seconds")


class Group(NamedTuple):
    """A row of the table: the repetitions of one experiment.

    Attributes:
        name: unique in the table.
        identity: of the config; see `imgclf_jax.config.identity`.
        runs: the complete runs that have a value, in the order of `values`.
        values: (seed, fold) -> the metric, in its own unit (an accuracy is between 0 and 1).
        mean: of the values; None if there are none.
        std: standard deviation with n - 1; None for fewer than two values.
        interval: 95 % t interval of the mean; None for fewer than two values.
        comparison: with the baseline; None for the baseline, and if either group has no value.
        changes: the config fields that differ between the groups; empty for a group without a run.
        images: mean number of training images that a run has seen, with repetition; None if not recorded.
        seconds: mean wall time of a run, of runs that shared a program their share of it; None if not recorded.
    """

    name: str
    identity: str
    runs: tuple[Run, ...]
    values: dict[Key, float]
    mean: float | None
    std: float | None
    interval: Interval | None
    comparison: Comparison | None
    changes: dict[str, Any]
    images: float | None
    seconds: float | None


class Missing(NamedTuple):
    """A run without a value.

    Attributes:
        name: of its group.
        seed: its seed.
        fold: its fold; None without cross-validation.
        folder: its workdir, which need not exist.
        status: in run.json; "waiting" if it has not begun.
        reason: why there is no value.
    """

    name: str
    seed: int
    fold: int | None
    folder: Path
    status: str
    reason: str

    @property
    def line(self) -> str:
        """The run, its status and the reason, in one line."""
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"{self.name}, seed {self.seed}{fold}: {self.status}, {self.reason} ({self.folder})"


class Table(NamedTuple):
    """The comparison of several groups of runs, in every format.

    Attributes:
        metric: as in `--metric`.
        baseline: the name of the group that the others are compared with.
        higher_is_better: of the metric.
        groups: the rows.
        missing: runs without a value.
        notes: what the reader must know, each a sentence without a full stop.
        sentence: what a paper must say about the numbers, without LaTeX or Markdown.
    """

    metric: str
    baseline: str
    higher_is_better: bool
    groups: tuple[Group, ...]
    missing: tuple[Missing, ...]
    notes: tuple[str, ...]
    sentence: str

    @property
    def missing_lines(self) -> list[str]:
        """`missing` as text: a line per run, but a single line for the runs of a group that have not begun."""
        lines = []
        for (name, status), runs in itertools.groupby(self.missing, key=lambda run: (run.name, run.status)):
            waiting = list(runs)
            if status != "waiting" or len(waiting) == 1:
                lines += [run.line for run in waiting]
            else:
                seeds = ", ".join(map(str, dict.fromkeys(run.seed for run in waiting)))
                lines.append(f"{name}, seeds {seeds}: {len(waiting)} runs are {status} ({waiting[0].folder.parent})")
        return lines


def make_table(found: Found, metric: str = METRIC, baseline: str | None = None) -> Table:
    """Makes the table of the runs.

    Args:
        found: the runs and the sweeps.
        metric: "SPLIT.FIELD" with a field of the results, such as accuracy, loss or tta_accuracy, or error; or one of
            `OF_RUN`.
        baseline: the name of a group. Default: the first.

    Raises:
        UserError: no run is complete, the metric or the baseline does not exist, or runs may not be compared.
    """
    complete = [run for run in found.runs if run.status == "complete"]
    if not complete:
        raise UserError(_nothing_complete(found))
    _check_metric(metric, complete)
    names = _names(found)
    baseline = _check_baseline(baseline, list(names.values()))
    notes = protocol.check(complete, metric)
    complete, repeated = _without_repetitions(complete)
    notes += repeated

    measured = {run.folder: value for run in complete if _is_value(value := value_of(run, metric))}
    members: dict[str, list[Run]] = {identity: [] for identity in names}
    for run in sorted(complete, key=lambda run: run.key):
        if run.folder in measured:
            members[run.identity].append(run)
    values = {names[key]: {run.key: measured[run.folder] for run in runs} for key, runs in members.items()}
    higher = is_higher_better(metric)
    comparisons: dict[str, Comparison] = {}
    if values[baseline]:
        comparisons = statistics.compare({name: own for name, own in values.items() if own}, baseline, higher)
    changes = naming.differing(_firsts(found.runs))
    groups = tuple(
        _group(names[key], key, runs, values[names[key]], comparisons.get(names[key]), changes.get(key, {}))
        for key, runs in members.items()
    )
    missing = [*_without_value(found.runs, complete, measured, metric, names), *_not_begun(found, names)]
    order = list(names.values())
    missing.sort(key=lambda line: (order.index(line.name), line.seed, line.fold or 0))
    notes += _notes(groups, baseline, missing)
    text = sentence.write(metric, baseline, groups, complete[0].config.eval.report)
    return Table(metric, baseline, higher, groups, tuple(missing), tuple(notes), text)


def is_higher_better(metric: str) -> bool:
    """Whether a larger value of the metric is better."""
    return metric.rpartition(".")[2] not in LOWER_IS_BETTER


def value_of(run: Run, metric: str) -> Any:
    """The metric in the record of a run; None if it is not there. It may be NaN or infinite."""
    if metric == "wall_time_seconds":
        return own_seconds(run.record)
    if metric in OF_RUN:
        return run.record.get(metric)
    split, _, field = metric.partition(".")
    result = (run.record.get("results") or {}).get(split) or {}
    if field == "error" and "error" not in result:
        return (result["count"] - result["correct"]) / result["count"] if result else None
    return result.get(field)


def metrics_of(runs: Iterable[Run]) -> list[str]:
    """The metrics that at least one of the runs has."""
    names: dict[str, None] = {}
    for run in runs:
        for split, result in (run.record.get("results") or {}).items():
            for field, value in (result or {}).items():
                if field not in COUNTS and (isinstance(value, float) or _is_value(value)):
                    names[f"{split}.{field}"] = None
            names[f"{split}.error"] = None
        names |= dict.fromkeys(name for name in OF_RUN if _is_value(run.record.get(name)))
    return list(names)


def _is_value(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def _nothing_complete(found: Found) -> str:
    early = [line for line in _not_begun(found, _names(found)) if line.status == "failed"]
    if not found.runs and not early:
        folder = found.sweeps[0].folder
        return f"no run of the sweep in {folder} has begun; start it with {tools.command('sweep')}"
    runs = [(run.folder, run.status) for run in found.runs] + [(line.folder, line.status) for line in early]
    counts = collections.Counter(status for _, status in runs)
    states = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    what = "the run" if len(runs) == 1 else f"none of the {len(runs)} runs"
    verb = "is not complete" if len(runs) == 1 else "is complete"
    failures = [(run.folder, run.failure) for run in found.runs if run.failure]
    failures += [(line.folder, line.reason) for line in early]
    if failures:
        folder, reason = failures[0]
        return f"{what} {verb} ({states}; {folder} failed: {_shortened(reason)}); repair that, and run the sweep again"
    return f"{what} {verb} ({states}; the first is {runs[0][0]}); wait for them, or resume them"


def _check_metric(metric: str, runs: Sequence[Run]) -> None:
    known = metrics_of(runs)
    if metric in known:
        return
    raise UserError(f"--metric={metric}: no complete run has it{_nearest(metric, known)}; there are {', '.join(known)}")


def _check_baseline(baseline: str | None, names: list[str]) -> str:
    if baseline is None or baseline in names:
        return names[0] if baseline is None else baseline
    raise UserError(
        f"--baseline={baseline}: no group has this name{_nearest(baseline, names)}; the groups are "
        + ", ".join(map(repr, names))
    )


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _names(found: Found) -> dict[str, str]:
    """identity -> name of every group, planned groups first."""
    planned = [group.identity for sweep in found.sweeps for group in sweep.groups]
    firsts = _firsts(found.runs)
    # Groups of the sweep around single runs keep its order.
    inside = [identity for identity in found.names if identity in firsts]
    order = dict.fromkeys([*planned, *inside, *firsts])
    names = naming.name(firsts, {key: name for key, name in found.names.items() if key in order})
    return {identity: names[identity] for identity in order}


def _firsts(runs: Iterable[Run]) -> dict[str, Run]:
    firsts: dict[str, Run] = {}
    for run in runs:
        firsts.setdefault(run.identity, run)
    return firsts


def _without_repetitions(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Leaves one of the runs with the same config, seed and fold, and results.

    Returns:
        The remaining runs, and a note for each that was left out.

    Raises:
        UserError: their results differ; one line for each such pair.
    """
    first: dict[tuple[str, Key], Run] = {}
    notes, problems = [], []
    for run in runs:
        before = first.setdefault((run.identity, run.key), run)
        if before is run:
            continue
        pair = f"{before.folder} and {run.folder} have the same config and seed {run.key[0]}"
        pair += f" and fold {run.key[1]}" if run.folds else ""
        if before.record.get("results") == run.record.get("results"):
            notes.append(f"{pair}, and identical results, so they count as one run")
        else:
            problems.append(f"{pair} but different results; they are not independent repetitions, so leave one out")
    if problems:
        raise UserError("\n".join(problems))
    return list(first.values()), notes


def _group(name, identity, runs, values, comparison, changes) -> Group:
    numbers = list(values.values())
    seen = [run.record["step"] * run.config.train.batch_size for run in runs if "step" in run.record]
    seconds = [share for run in runs if (share := own_seconds(run.record)) is not None]
    return Group(
        name,
        identity,
        tuple(runs),
        values,
        stats.fmean(numbers) if numbers else None,
        stats.stdev(numbers) if len(numbers) > 1 else None,
        statistics.mean_interval(numbers),
        comparison,
        changes,
        stats.fmean(seen) if seen else None,
        stats.fmean(seconds) if seconds else None,
    )


def _without_value(runs, complete, measured, metric, names) -> list[Missing]:
    """The runs that exist but have no value. Repetitions of a complete run are not among them."""
    kept = {run.folder for run in complete}
    lines = []
    for run in runs:
        if run.status == "complete" and (run.folder not in kept or run.folder in measured):
            continue
        seed, fold = run.key
        fold = fold if run.folds else None
        lines.append(Missing(names[run.identity], seed, fold, run.folder, run.status, _reason(run, metric)))
    return lines


def _reason(run: Run, metric: str) -> str:
    record = run.record
    step = f"at step {record.get('step', 0):,}"
    if run.status == "complete":
        value = value_of(run, metric)
        return f"but it has no {metric}" if value is None else f"but its {metric} is {value}"
    if run.status == "diverged":
        at = record.get("diverged_at_step")
        return "the loss or a gradient is not finite" + ("" if at is None else f" at step {at:,}")
    if run.status == "running":
        return f"{step}; if no process is training it, it was killed: resume it"
    if run.status == "waiting":
        return "it has no run.json yet"
    shown = _shortened(run.failure or str(record.get("error", "")))
    step = step if record else EARLY
    return f"{step}: {shown}" if shown else step


def _shortened(error: str) -> str:
    text = " ".join(error.split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def _not_begun(found: Found, names: dict[str, str]) -> list[Missing]:
    """The runs that a sweep plans but that do not exist."""
    existing = {(run.identity, run.key) for run in found.runs}
    lines: dict[tuple[str, Key], Missing] = {}
    for sweep in found.sweeps:
        for group in sweep.groups:
            for seed, fold in sweep.keys:
                if (group.identity, (seed, fold)) in existing:
                    continue
                folder = sweep.folder / group.folder / (f"seed{seed}-fold{fold}" if sweep.folds else f"seed{seed}")
                shown = fold if sweep.folds else None
                failure = reading.failure_of(folder)
                status, reason = ("failed", f"{EARLY}: {_shortened(failure)}") if failure else ("waiting", PLANNED)
                line = Missing(names[group.identity], seed, shown, folder, status, reason)
                lines.setdefault((group.identity, (seed, fold)), line)
    return list(lines.values())


def _notes(groups: Sequence[Group], baseline: str, missing: Sequence[Missing]) -> list[str]:
    notes = []
    base = next(group for group in groups if group.name == baseline)
    if len(groups) > 1 and not base.values:
        notes.append(f"the baseline {baseline!r} has no value, so nothing is compared; choose another --baseline")
    if max(len(group.values) for group in groups) == 1:
        notes.append("every group has one seed only, with which nothing can be shown; train at least 5 seeds of each")
    at_once = sorted(
        {number for group in groups for run in group.runs if (number := run.record.get("together", 1)) > 1}
    )
    if at_once:
        numbers = " or ".join(map(str, at_once))
        notes.append(f"some runs were trained {numbers} at once; their time is the wall time divided by that number")
    diverged = collections.Counter(line.name for line in missing if line.status == "diverged")
    for name, count in diverged.items():
        runs = "1 run" if count == 1 else f"{count} runs"
        notes.append(f"{runs} of {name!r} diverged; the mean of the others is too favorable to it")
    return notes
