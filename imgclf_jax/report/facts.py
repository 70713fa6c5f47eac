"""The tables of a report: results, configuration, provenance, time and parameters of a run."""

from typing import Any

from imgclf_jax import config
from imgclf_jax.models.cost import parameter_table
from imgclf_jax.report.markup import Markup, join, name, table, tag
from imgclf_jax.report.measures import wilson
from imgclf_jax.report.runs import Run, is_result
from imgclf_jax.terminal.console import count, duration
from imgclf_jax.workdir.record import own_seconds


def accuracy_with_interval(result: dict[str, Any]) -> str:
    """An accuracy with its 95 % interval: "0.7844 (0.7762 to 0.7924)"."""
    low, high = wilson(result["correct"], result["count"])
    return f"{result['accuracy']:.4f} ({low:.4f} to {high:.4f})"


def results(run: Run) -> Markup:
    """Accuracy and loss by split, from `run.json`."""
    by_split = {split: value for split, value in (run.record.get("results") or {}).items() if is_result(value)}
    if not by_split:
        return tag("p", "The run has not reached its final evaluation, so run.json has no results.")
    rows = [
        (split, f"{value['accuracy']:.4f}", f"{value['correct']:,}", f"{value['count']:,}", f"{value['loss']:.4f}")
        for split, value in by_split.items()
    ]
    heads = ("split", "accuracy", "correct", "examples", "loss")
    fields = [field for field in ("tta_accuracy", "tta_loss") if any(field in value for value in by_split.values())]
    augmented = [tuple(_number(value.get(field)) for field in fields) for value in by_split.values()]
    return table((*heads, *fields), [(*row, *more) for row, more in zip(rows, augmented, strict=True)])


def _number(value):
    return "–" if value is None else f"{value:.4f}"


def settings(run: Run) -> Markup:
    """Every field of the config, those that differ from the default first."""
    default, mine = (config.flatten(config.to_json(values)) for values in (config.default(), run.config))
    changed = [
        (tag("code", key), show(value), show(default.get(key, "")))
        for key, value in mine.items()
        if value != default.get(key, ...)
    ]
    same = [(tag("code", key), show(value)) for key, value in mine.items() if value == default.get(key, ...)]
    parts = [tag("p", f"{len(changed)} of {len(mine)} fields differ from imgclf_jax.config.default().")]
    if changed:
        parts.append(table(("field", "this run", "default"), changed, text=3, css="changed"))
    parts.append(
        tag(
            "details",
            tag("summary", f"The {len(same)} fields at their defaults"),
            table(("field", "value"), same, text=2),
        )
    )
    return join(parts)


def show(value: Any) -> Markup:
    """A value of a config, as written in Python."""
    if value is None:
        return tag("span", "–", title="not given")
    return tag("code", name(repr(tuple(value) if isinstance(value, list) else value), longest=120))


def provenance(run: Run) -> Markup:
    """When, on which data and machine, and with which versions the run was made."""
    record, origin = run.record, run.record.get("provenance") or {}
    data, git = record.get("data") or {}, origin.get("git")
    present, used = origin.get("device_count", "?"), origin.get("devices_used")
    devices = f"{used or present} × {origin.get('device_kind', '?')}"
    if used and used != present:
        devices += f", of {present}"
    processes = origin.get("process_count", 1)
    file = origin.get("config_file")
    versions = {name: version for name, version in (origin.get("packages") or {}).items() if version}
    counts = ", ".join(f"{split} {size:,}" for split, size in (data.get("counts") or {}).items())
    shape = "×".join(map(str, data.get("image_shape") or ()))
    pairs = [
        ("workdir", run.folder.resolve()),
        ("started", record.get("started", "?")),
        ("status", record.get("status", "?")),
        ("data", f"{data.get('name', '?')}, images {shape or '?'}, {len(data.get('class_names') or ())} classes"),
        ("examples", counts or "?"),
        ("data location", data.get("location", "?")),
        ("data fingerprint", data.get("fingerprint", "?")),
        *([("training labels", _labels(data["labels"]))] if data.get("labels") else []),
        *([("ancestor", _ancestor(record["ancestor"]))] if record.get("ancestor") else []),
        ("git commit", _commit(git)),
        ("config file", f"{file['path']}, SHA-256 {file['sha256']}" if file else "unknown"),
        ("devices", devices + (f", {processes} processes" if processes > 1 else "")),
        ("machine", f"{origin.get('platform', '?')}, {origin.get('cpu_count', '?')} CPUs"),
        (
            "versions",
            ", ".join([f"Python {origin.get('python', '?')}", *(" ".join(pair) for pair in versions.items())]),
        ),
        ("XLA_FLAGS", origin.get("xla_flags") or "none"),
    ]
    last_session = table(("", ""), pairs, text=2, css="pairs")
    changes = [_changed(before, origin) for before in record.get("earlier_provenance") or []]
    if not changes:
        return last_session
    text = "This is the last session. Earlier sessions of the run differed from it as follows:"
    return join([last_session, tag("p", text), tag("ul", *(tag("li", change) for change in changes))])


def _labels(labels):
    changed = f"{labels.get('changed', 0):,} differ from those of the data set"
    return f"{labels.get('file', '?')}, SHA-256 {labels.get('sha256', '?')}; {changed}"


def _ancestor(ancestor):
    place = f"step {ancestor['step']:,} of {ancestor['workdir']}, SHA-256 {ancestor['sha256']}"
    return f"{place}; trained on data with fingerprint {ancestor.get('data_fingerprint') or 'unknown'}"


def _commit(git):
    if not git:
        return "none: an installed package"
    if "package_changed" not in git:  # Older records cover the tracked files of the whole repository.
        return git["commit"] + (", with uncommitted changes" if git.get("changed") else "")
    return git["commit"] + (", with uncommitted changes to the package" if git["package_changed"] else "")


def _changed(before, now):
    flat = [config.flatten(origin) for origin in (before, now)]
    names = sorted(name for name in flat[0].keys() | flat[1].keys() if flat[0].get(name) != flat[1].get(name))
    return ", ".join(f"{name}: {flat[0].get(name)}" for name in names)


def time(run: Run) -> Markup:
    """How long the run took and how fast it was."""
    record = run.record
    rate, flops = record.get("images_per_second"), record.get("flops_per_step")
    killed = record.get("killed_sessions")
    lost = f", {killed} of them killed: time after their last checkpoint is not counted" if killed else ""
    pairs = [
        ("total time", duration(wall) if (wall := record.get("wall_time_seconds")) else "unknown"),
        *_at_once(run),
        ("sessions", f"{record.get('sessions', '?')}{lost}"),
        ("steps", f"{record.get('step', 0):,}{_early(record)}"),
        ("reported checkpoint", f"step {run.network.step:,}" if run.network else "none"),
        ("throughput, median", f"{rate:,.0f} images/s" if rate else "unknown"),
        ("computation", f"{count(flops)}FLOP per step of {run.config.train.batch_size} images" if flops else "unknown"),
    ]
    if rate and flops:
        pairs.append(("achieved", f"{count(flops * rate / run.config.train.batch_size)}FLOP/s"))
    return table(("", ""), pairs, text=2, css="pairs")


def _early(record):
    early = record.get("stopped_early")
    return f": stopped early, after {early['patience']} evaluations without a better one" if early else ""


def _at_once(run):
    number = run.record.get("together", 1)
    return (
        [("trained together", f"{number} runs at once; the share of this run: {own_time(run)}")] if number > 1 else []
    )


def own_time(run: Run) -> str:
    """The formatted time of all sessions of the run; of runs that were trained together, its share."""
    seconds = own_seconds(run.record)
    return duration(seconds) if seconds else "unknown"


def parameters(run: Run) -> Markup | None:
    """Every parameter with its shape; `None` if the run has no network."""
    if run.network is None:
        return None
    entries = parameter_table(run.network.variables["params"])
    rows = [(tag("code", path), "×".join(map(str, shape)), f"{size:,}") for path, shape, size in entries]
    return table(("parameter", "shape", "values"), rows, ("total", "", f"{parameter_count(run):,}"))


def parameter_count(run: Run) -> int:
    """The number of values of all parameters; 0 if the run has no network."""
    return sum(size for *_, size in parameter_table(run.network.variables["params"])) if run.network else 0
