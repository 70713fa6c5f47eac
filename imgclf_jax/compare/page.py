"""The page of a comparison: the table, and charts of what is in it. It is one file and needs nothing external."""

from collections.abc import Sequence
from pathlib import Path

from imgclf_jax.compare import charts, predicted
from imgclf_jax.compare.columns import columns, title
from imgclf_jax.compare.groups import Group, Table
from imgclf_jax.compare.predicted import Difference, Judged
from imgclf_jax.compare.short import name, shorten
from imgclf_jax.errors import UserError
from imgclf_jax.report import bands, curves
from imgclf_jax.report.document import Section, contents, document, generator, section
from imgclf_jax.report.drawing import Picture, inline
from imgclf_jax.report.markup import Markup, join, table, tag
from imgclf_jax.storage import atomic
from imgclf_jax.terminal.output import folder_problems
from imgclf_jax.workdir.rows import Row, read_rows

KIND = "compare"
PLACE = Path("compare") / "index.html"
LINES = 10  # most variants of a chart with one line each, and of a table with one column each
INTERVALS = 40
FIELDS = 9
CLASSES = 20
EXAMPLES = 12
_PREFIX = "page"

# Columns of the table that come first.
FIRST = ("group", "n", "mean ± std", "95 % interval", "verdict")


def choose_path(names: Sequence[str], output: str | None) -> Path:
    """Where the page is written.

    Args:
        names: of the command line.
        output: the value of `--output`.

    Raises:
        UserError: the name of the file is missing or not that of a page, or the file cannot be written or is not a page
            of this tool.
    """
    if output is None:
        if len(names) != 1 or not Path(names[0]).is_dir():
            raise UserError("--output is missing, the file for the page; for example --output=compare.html")
        path = Path(names[0]) / PLACE
    else:
        path = Path(output)
    if path.suffix.lower() != ".html":
        raise UserError(f"--output={output} does not end in .html; for example --output=compare.html")
    path = path.resolve()  # A link stays a link.
    if problems := folder_problems(path.parent, "--output", missing=True):
        raise UserError(problems[0])
    if path.exists() and not _is_page(path):
        raise UserError(f"{path} is not a page of this tool; choose another --output, or delete it")
    return path


def _is_page(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return generator(KIND).encode() in file.read(1000)
    except OSError:
        return False


def write(made: Table, path: Path) -> None:
    """Writes the page, or nothing.

    Args:
        made: the table.
        path: from `choose_path`.

    Raises:
        UserError: the file cannot be written, or the metrics files of a run cannot be read.
    """
    text = build(made)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another --output") from error


def build(made: Table) -> str:
    """The page as HTML."""
    sections = [part for part in _sections(made) if part is not None]
    runs = sum(len(group.runs) for group in made.groups)
    counts = f"{_count(len(made.groups), 'variant')}, {_count(runs, 'run')} with a result"
    top = tag("header", tag("h1", f"Comparison: {made.metric}"), tag("p", counts, css="what"))
    body = [top, contents(sections), *map(section, sections)]
    return document(f"{made.metric} of {_count(len(made.groups), 'variant')}", body, KIND)


def _sections(made):
    yield _table(made)
    yield _intervals(made)
    yield _curves(made)
    yield _cost(made)
    yield _search(made)
    yield _predictions(made)


def _table(made: Table) -> Section:
    # The table may be wider than the window, and people look for the verdict.
    shown = sorted(columns(made), key=lambda column: column.head not in FIRST)
    rows = zip(*(map(name, column.cells, [48] * len(column.cells)) for column in shown), strict=True)
    parts = [tag("p", title(made), css="small"), table([column.head for column in shown], rows)]
    parts.append(tag("p", made.sentence))
    parts += [tag("p", f"{note}.", css="note", role="note") for note in made.notes]
    if made.missing:
        parts.append(tag("h3", "Runs without a value"))
        parts.append(tag("ul", *(tag("li", line) for line in made.missing_lines)))
    return Section("table", "Results", join(parts))


def _intervals(made: Table) -> Section | None:
    known = [group for group in made.groups if group.values]
    if not known:
        return None
    shown = _chosen(made, INTERVALS)
    picture = charts.intervals(made, shown)
    caption = "In the order of the table. Intervals that are much longer than the range of the values are cut off."
    return _charts(
        "intervals",
        "Intervals",
        [(picture, caption + _hidden(made, "their means are at the edge", shown) + _omitted(known, shown))],
    )


def _curves(made: Table) -> Section | None:
    shown = _chosen(made, LINES)
    if not shown:
        return None
    rows = [(group.name, [read_rows(run.folder) for run in group.runs]) for group in shown]
    known = [group for group in made.groups if group.values]
    figures = []
    has_valid = any(row["split"] == "valid" for _, runs in rows for own in runs for row in own)
    for split, field in (("valid" if has_valid else "train", "accuracy"), ("train", "loss")):
        lines = _lines(rows, split, field)
        if not lines:
            continue
        label = f"{'validation' if split == 'valid' else 'training'} {field}"
        picture = bands.chart(lines, field, f"curves_{field}", "step", label)
        what = bands.explain(lines)
        caption = label.capitalize() + (f": {what}." if what else ".")
        figures.append((picture, caption + _omitted(known, shown)))
        if field == "accuracy" and len(lines) > 1 and (end := bands.second_half(lines)):
            figures.append(
                (bands.chart(end, field, "curves_end", "step", label), f"{label.capitalize()} again, the second half.")
            )
    if not figures:
        return Section("curves", "Learning curves", tag("p", "The metrics files of the runs have no rows."))
    notes = [
        "Of several runs, only the steps that all of them have are shown. Training values are means over the steps "
    ]
    notes[0] += "since the previous point."
    if not has_valid:
        notes.append("No run has evaluated a validation split, so training accuracy is shown.")
    return _charts("curves", "Learning curves", figures, " ".join(notes))


def _lines(rows: Sequence[tuple[str, list[list[Row]]]], split: str, field: str) -> list[bands.Line]:
    lines = []
    for own, runs in rows:
        band = bands.band([curves.points(run, split, field) for run in runs], average=split == "train")
        if band is not None:
            lines.append(bands.Line(shorten(own, 48), band, detail=f" (n = {band.runs})"))
    return lines


def _cost(made: Table) -> Section | None:
    kinds = [
        (lambda group: group.seconds, "cost_seconds", "seconds per run"),
        (lambda group: group.images, "cost_images", "training images per run"),
    ]
    if made.metric == "wall_time_seconds":  # It would be drawn against itself.
        kinds = kinds[1:]
    figures = []
    for of, file, label in kinds:
        if picture := charts.cost(made, of, file, label):
            figures.append((picture, f"Mean {made.metric} by {label}." + _hidden(made, "they are not shown")))
    if not figures:
        return None
    text = (
        "Means over the runs of each variant. Times can be compared only if the runs had equal machines to themselves."
    )
    if len({group.images for group in made.groups if group.mean is not None}) == 1 and len(made.groups) > 1:
        text += " All variants were trained on the same number of images."
    return _charts("cost", "Accuracy and cost" if "accuracy" in made.metric else "Metric and cost", figures, text)


def _search(made: Table) -> Section | None:
    """The metric by the numeric fields that differ between the groups."""
    known = [group for group in made.groups if group.values]
    fields = [field for field in dict.fromkeys(field for group in known for field in group.changes)]
    numeric = [field for field in fields if _is_numeric([group.changes.get(field) for group in known])]
    if not numeric:
        return None
    shown = numeric[:FIELDS]
    more = f" These are {len(shown)} of {len(numeric)} fields." if len(numeric) > len(shown) else ""
    figures = [
        (
            charts.slices(made, shown),
            f"Every run, and the means of variants.{more}" + _hidden(made, "they are not shown"),
        )
    ]
    if len(shown) > 1:
        caption = f"Each line is a variant: its fields, and its mean {made.metric} on the right."
        figures.append((charts.parallel(made, shown), caption))
    return _charts("fields", "Fields of the search", figures, css="")


def _is_numeric(values) -> bool:
    """Whether there are at least two numbers and nothing else but fields that are not given."""
    given = [value for value in values if value is not None]
    return all(map(charts.is_number, given)) and len(set(given)) > 1


def _predictions(made: Table) -> Section:
    known = _chosen(made, LINES)
    found, missing = predicted.usable(known)
    runs = sum(len(group.runs) for group in known)
    parts: list[Markup] = []
    if missing:
        text = (
            f"{len(missing)} of {_count(runs, 'run')} have no report with predictions of their result. Write it with "
        )
        parts.append(tag("p", text, tag("code", predicted.command(missing)), ", and then write this page again."))
    order = sorted(found, key=lambda own: own != made.baseline)
    groups = [found[own] for own in order]
    if len(groups) > 1:
        if made.baseline in found:
            parts += _by_class(order, groups)
        parts += _disagreements(order, groups)
    elif not parts:
        parts.append(tag("p", "There is one variant only, so there is nothing to compare."))
    return Section("predictions", "Classes and examples", join(parts))


def _by_class(order: list[str], groups: list[list[Judged]]) -> list[Markup]:
    differences = predicted.by_class(groups)
    largest = sorted(differences, key=lambda label: -max(abs(one.value) for one in differences[label]))[:CLASSES]
    shown = [label for label in differences if label in largest]
    rows = [(name(label), *map(_difference, differences[label])) for label in shown]
    text = (
        f"Accuracy on each class minus that of {order[0]}, in percentage points. ±: standard deviation of the "
        "difference of two single runs, that is, what other seeds alone would change."
    )
    if len(differences) > len(shown):
        text += f" The {len(shown)} of {len(differences)} classes with the largest differences."
    head = (
        "class",
        *(join([name(own), f"(n = {len(runs)})"], " ") for own, runs in zip(order[1:], groups[1:], strict=True)),
    )
    return [tag("h3", "Classes"), tag("p", text), table(head, rows)]


def _difference(one: Difference) -> str:
    text = f"{100 * one.value:+.2f}"
    return text if one.deviation is None else f"{text} ± {100 * one.deviation:.2f}"


def _disagreements(order: list[str], groups: list[list[Judged]]) -> list[Markup]:
    found = predicted.disagreements(groups, EXAMPLES)
    heading = tag("h3", "Examples that variants disagree on")
    if not found:
        return [heading, tag("p", "On every example, all variants have the same share of correct runs.")]
    rows = [
        (
            name(example.id, 40),
            name(example.true),
            *(f"{right}/{len(runs)}" for right, runs in zip(example.right, groups, strict=True)),
        )
        for example in found
    ]
    head = ("example", "true class", *(name(own) for own in order))
    text = f"{_count(len(found), 'example')}, the largest disagreement first: how many runs of each variant were right."
    return [heading, tag("p", text), table(head, rows, text=2)]


def _chosen(made: Table, most: int) -> list[Group]:
    """The groups with values in the order of the table; of more than `most`, the baseline and the best others."""
    known = [group for group in made.groups if group.values]
    sign = -1 if made.higher_is_better else 1
    ranked = sorted(known, key=lambda group: (group.name != made.baseline, sign * (group.mean or 0)))
    kept = {group.name for group in ranked[:most]}
    return [group for group in known if group.name in kept]


def _omitted(known: Sequence[Group], shown: Sequence[Group]) -> str:
    if len(known) == len(shown):
        return ""
    return f" Shown are the baseline and the best others, {len(shown)} of {len(known)} variants."


def _hidden(made: Table, how: str, shown: Sequence[Group] | None = None) -> str:
    hidden = [group for group in charts.outside(made) if shown is None or group in shown]
    return f" Far worse than the others are {_count(len(hidden), 'variant')}: {how}." if hidden else ""


def _charts(
    anchor: str, heading: str, figures: list[tuple[Picture, str]], text: str = "", css: str = "pair"
) -> Section:
    drawn = [
        tag("figure", inline(picture, _PREFIX, wide=not css), tag("figcaption", caption))
        for picture, caption in figures
    ]
    parts = [tag("div", *drawn, css="pair" if css and len(drawn) > 1 else None)]
    if text:
        parts.append(tag("p", text, css="small"))
    return Section(anchor, heading, join(parts), tuple(picture for picture, _ in figures))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
