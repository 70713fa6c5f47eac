"""The page of a comparison: its charts for many and few runs, names of every kind, and where it may be written."""

import html
import json
import math
import re
import shlex

import pytest
from fake_runs import DATA, result, write_run, write_sweep

from imgclf_jax.compare import charts, groups, page, predicted, reading, short
from imgclf_jax.errors import UserError
from imgclf_jax.report import bands, drawing, workdirs
from imgclf_jax.report.curves import Point

pytest_plugins = ["run_fixtures"]

FLIP = {"augment.flip": True}
CLASSES = ("Katze", "дом", "<i>象</i>", "$y$")
BOLD = "<b>bold</b>"


def write_rows(folder, evaluations=3, every=5, end=60, level=0.8):
    """Writes metrics.jsonl: training rows every `every` steps, and `evaluations` of the validation split."""
    rows = []
    for step in range(every, end + 1, every):
        value = level * (1 - math.exp(-step / 20))
        rows.append({"step": step, "epoch": step / 10, "split": "train", "loss": 2 - value, "accuracy": value})
        if evaluations and step % (end // evaluations) == 0:
            rows.append({"step": step, "epoch": step / 10, "split": "valid", "loss": 2 - value, "accuracy": value})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_predictions(folder, wrong, count=8):
    """Writes the predictions of a report; the examples in `wrong` are wrong. Returns the result of the run."""
    (folder / "report").mkdir(parents=True)
    lines = ["id,true,predicted,probability,probability_of_true"]
    for index in range(count):
        guess = CLASSES[(index + (index in wrong)) % 4]
        lines.append(f"'=photo{index},{CLASSES[index % 4]},{guess},0.5,0.5")
    (folder / "report" / "predictions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"test": result(1 - len(wrong) / count, count=count)}


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are not drawn, which takes most of a page's time."""
    blank = '<svg width="1pt" height="1pt"></svg>'
    monkeypatch.setattr(drawing, "finish", lambda figure, name, alt, *_: drawing.Picture(name, alt, blank, b"", {}))


def made(*names, **options):
    return groups.make_table(reading.read([str(name) for name in names]), **options)


def sections(text):
    return re.findall(r'<section id="([^"]*)"', text)


def pictures(text):
    """The names of the charts, which are in the ids of their parts."""
    return set(re.findall(r'id="page-(\w+)-', text))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Four variants of two fields with three runs each, of which one has diverged, with predictions for two of them."""
    folder = tmp_path_factory.mktemp("study")
    fields = ("optim.learning_rate", "optim.weight_decay")
    variants = {BOLD: (0.1, 0.0), "$x_1$": (0.01, 0.0), "_größer 象": (0.001, 1e-4), "v" * 80: (0.1, 1e-4)}
    variants = {name: dict(zip(fields, values, strict=True)) for name, values in variants.items()}
    places = write_sweep(folder, variants, [0, 1, 2])
    for index, (name, changes) in enumerate(variants.items()):
        for seed in range(3):
            run = places[name] / f"seed{seed}"
            if (index, seed) == (3, 2):
                write_run(run, changes, seed, status="diverged", diverged_at_step=5)
                continue
            results = None
            if index < 2:
                results = write_predictions(run, {0, seed + 1} if index else {4})
            seconds = {"wall_time_seconds": 60.0 + 30 * index, "step": 60 + index}
            data = {"data": {**DATA, "counts": {"train": 1, "valid": 1, "test": 8}}}
            results = results or {"test": result(0.5 + 0.125 * seed, count=8)}
            write_run(run, changes, seed, results=results, **seconds, **data)
            write_rows(run, every=5 * (1 + seed % 2), level=0.7 + index / 20)
    return folder


@pytest.fixture(scope="module")
def text(study):
    return page.build(made(study))


def test_every_section_and_chart_is_there(text):
    assert sections(text) == ["table", "intervals", "curves", "cost", "fields", "predictions"]
    expected = {"intervals", "curves_accuracy", "curves_loss", "cost_seconds", "cost_images", "slices", "parallel"}
    assert expected <= pictures(text)
    assert text.count('role="img"') == len(re.findall("<svg", text))
    assert all(label.strip() for label in re.findall(r'role="img" aria-label="([^"]*)"', text))


def test_numbers_are_those_of_the_table(study, text):
    table = made(study)
    for group in table.groups:
        if group.std is not None:
            assert f"{100 * group.mean:.2f} ± {100 * group.std:.2f}" in text
    assert html.escape(table.sentence) in text
    assert "diverged, the loss or a gradient is not finite at step 5" in text
    assert "(n = 2)" in text and "(n = 3)" in text


def test_the_page_needs_nothing_else(text):
    assert not re.findall(r"(?i)(?:https?:|file:|//\w)", text)
    assert not re.findall(r"(?i)<(?:script|link|iframe|object|embed|img)\b", text)
    assert all(target.startswith("#") for target in re.findall(r'(?:src|href)="([^"]*)"', text))


def test_ids_are_unique_and_all_that_are_used_are_there(text):
    ids = re.findall(r'\sid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', text))
    assert used and {one or other for one, other in used} <= set(ids)


def test_no_name_becomes_markup_and_all_are_shown(text):
    assert "<b>" not in text and "<i>" not in text
    for name in (BOLD, "$x_1$", "_größer 象", *CLASSES, "=photo0"):
        assert html.escape(name) in text, name
    assert "v" * 80 in text  # in a tooltip


def test_pictures_are_in_the_colors_of_the_page(text):
    for picture in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        colors = set(re.findall(r"(?:fill|stroke|color): (#[0-9a-f]{3,6})", picture))
        assert colors <= {"#000000"} and "var(--ink)" in picture, colors


def test_classes_and_disputed_examples(study, text):
    found, missing = predicted.usable(made(study).groups)
    assert len(missing) == 5
    assert {name: len(runs) for name, runs in found.items()} == {BOLD: 3, "$x_1$": 3}
    # Of the first, example 4 is always wrong; of the second, 0 and one other in each run.
    first, *others = predicted.disagreements(list(found.values()), 12)
    assert {example.id for example in (first, *others)} == {"=photo0", "=photo1", "=photo2", "=photo3", "=photo4"}
    assert (first.id, first.true, first.right) == ("=photo0", "Katze", (3, 0))
    by_class = predicted.by_class(list(found.values()))
    assert by_class["Katze"] == [predicted.Difference(0.0, 0.0)]
    assert by_class["дом"][0].value == pytest.approx(-1 / 6)
    assert "-16.67 ± 28.87" in text
    assert "5 of 11 runs have no report with predictions" in text
    assert html.escape(f"python -m imgclf_jax.report '--workdir={study}/*/*'") in text


def test_predictions_of_an_older_checkpoint_are_not_used(tmp_path):
    write_run(tmp_path / "a", results=write_predictions(tmp_path / "a", {1}))
    (run,) = reading.read([str(tmp_path)]).runs
    assert predicted.read(run).true["=photo1"] == "дом"
    write_run(tmp_path / "a", results={"test": result(0.25, count=8)})
    (run,) = reading.read([str(tmp_path)]).runs
    assert predicted.read(run) is None


def test_predictions_of_a_report_on_several_runs_are_found(tmp_path):
    folders = [tmp_path / "runs" / name / "seed0" for name in ("a", "b")]
    target = tmp_path / "runs" / "report"
    for index, folder in enumerate(folders):
        results = write_predictions(target / workdirs.part_of(index, 2), {index, 2})
        place = target / workdirs.part_of(index, 2)
        (place / "report" / "predictions.csv").rename(place / "predictions.csv")
        write_run(folder, FLIP if index else {}, results=results)
    marker = {"files": [], "runs": workdirs.describe_runs(folders, target)}
    (target / workdirs.MARKER).write_text(json.dumps(marker))
    moved = tmp_path / "moved"
    (tmp_path / "runs").rename(moved)
    table = made(moved)
    found, missing = predicted.usable(table.groups)
    assert not missing
    assert [sorted(set(range(8)) - {int(name[-1]) for name in runs[0].right}) for runs in found.values()] == [
        [0, 2],
        [1, 2],
    ]
    # The report on a run itself comes first, if it belongs to the result.
    results = write_predictions(moved / "a" / "seed0", {3, 4})
    write_run(moved / "a" / "seed0", results=results)
    assert "=photo3" not in predicted.read(reading.read([str(moved / "a")]).runs[0]).right
    for text in ("{", "[]", '{"runs": 3}', '{"runs": {"run2": 3}}'):
        (moved / "report" / workdirs.MARKER).write_text(text)
        assert [run.folder.parent.name for run in predicted.usable(table.groups)[1]] == ["b"]


def test_one_command_writes_all_missing_predictions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("it's [1]/a/seed0", "it's [1]/b/seed0", "it's [1]/c", "lone"):
        write_run(tmp_path / name)
    runs = {str(run.folder): run for run in reading.read(["it's [1]", "lone"]).runs}

    def expanded(*names):
        words = shlex.split(predicted.command([runs[name] for name in names]))
        assert words[:3] == ["python", "-m", "imgclf_jax.report"] and len(words) == 4
        return [str(folder) for folder in workdirs.expand([words[3].removeprefix("--workdir=")])]

    assert expanded("lone") == ["lone"]
    assert expanded("it's [1]/a/seed0", "it's [1]/b/seed0") == ["it's [1]/a/seed0", "it's [1]/b/seed0"]
    assert {*expanded("it's [1]/a/seed0", "it's [1]/c")} == {*runs} - {"lone"}
    assert {*expanded("it's [1]/a/seed0", "lone")} == {*runs}


# Little to show


def test_one_run(tmp_path):
    write_run(tmp_path / "a")
    write_rows(tmp_path / "a", evaluations=1)
    text = page.build(made(tmp_path / "a"))
    assert {"intervals", "curves_accuracy", "curves_loss", "cost_seconds"} <= pictures(text)
    assert "fields" not in sections(text)
    assert "validation accuracy by step" in text and "1 variant, 1 run" in text


@pytest.mark.parametrize("evaluations", [0, 1])
def test_runs_without_a_validation_split_or_with_one_evaluation(tmp_path, undrawn, evaluations):
    for seed in range(2):
        for name, changes in (("a", {}), ("b", FLIP)):
            folder = write_run(tmp_path / f"{name}{seed}", changes, seed, 0.7 + seed / 10)
            write_rows(folder, evaluations)
    text = page.build(made(tmp_path))
    assert ("No run has evaluated a validation split" in text) == (not evaluations)
    assert ("validation accuracy by step" in text) == bool(evaluations)
    assert "mean and range of two runs" in text


def test_runs_without_metrics_files(tmp_path, undrawn):
    write_run(tmp_path / "a")
    assert "have no rows" in page.build(made(tmp_path))


def test_a_baseline_without_a_value(study, undrawn):
    write_run(study / "alone", {"train.epochs": 77}, status="diverged")
    name = next(line.name for line in made(study).missing if line.folder == study / "alone")
    text = page.build(made(study, baseline=name))
    assert "nothing is compared" in text and "Examples that variants disagree on" in text
    (study / "alone" / "run.json").unlink()
    (study / "alone" / "config.json").unlink()


def test_many_variants_are_reduced_to_the_best(tmp_path, undrawn):
    for number in range(14):
        folder = write_run(tmp_path / f"{number:02}", {"augment.cutout": number}, 0, 0.5 + number / 100)
        write_rows(folder)
    text = page.build(made(tmp_path))
    assert "the baseline and the best others, 10 of 14 variants" in text
    alt = re.search(r'aria-label="(validation accuracy[^"]*)"', text)[1]
    assert "cutout=0" in alt and "cutout=13" in alt and "cutout=4," not in alt


@pytest.mark.parametrize("metric", ["test.loss", "valid.error", "wall_time_seconds", "images_per_second"])
def test_every_metric_has_a_page(study, tmp_path, undrawn, metric):
    for seed in range(2):
        write_run(tmp_path / f"a{seed}", {}, seed, 0.8, wall_time_seconds=60.0 + seed)
        write_run(tmp_path / f"b{seed}", FLIP, seed, 0.8, wall_time_seconds=70.0 + seed)
    text = page.build(made(tmp_path, metric=metric))
    assert metric in text
    assert (f"Mean {metric} by seconds" in text) == (metric != "wall_time_seconds")


# Parts


def test_curves_are_aligned_on_shared_steps():
    one = [Point(step / 10, step, float(step)) for step in range(10, 101, 10)]
    other = [Point(step / 10, step, step + 2.0) for step in range(20, 101, 20)]
    band = bands.band([one, other, []])
    assert [point.step for point in band.mean] == [20, 40, 60, 80, 100]
    assert [point.value for point in band.mean] == [21, 41, 61, 81, 101]
    assert (band.low[0], band.high[0], band.runs) == (20, 22, 2)
    three = bands.band([one, other, [point._replace(value=point.value + 4) for point in one]])
    assert (three.low[0], three.high[0]) == (pytest.approx(20), pytest.approx(24))
    assert bands.band([[], []]) is None
    apart = bands.band([one, [Point(0.5, 5, 1.0)]])
    assert apart.runs == 1 and apart.mean == one


def test_long_curves_are_thinned_or_averaged():
    curve = [Point(step / 10, step, float(step)) for step in range(1, 451)]
    thinned, averaged = bands.band([curve]), bands.band([curve], average=True)
    assert len(thinned.mean) == len(averaged.mean) == bands.LONGEST
    assert thinned.mean[-1].value == 450 and averaged.mean[-1] == Point(45.0, 450, 449.0)


def test_the_pareto_front():
    assert charts.front([3, 1, 2, 4], [0.9, 0.5, 0.4, 0.8], True) == [1, 0]
    assert charts.front([3, 1, 2, 4], [0.9, 0.5, 0.4, 0.8], False) == [1, 2]
    assert charts.front([1, 1, 1], [0.5, 0.5, 0.4], True) == [0, 1]
    assert charts.front([1], [0.5], True) == [0]


def test_axes_are_logarithmic_from_a_factor_of_20():
    assert charts.is_wide([0.0, 0.001, 0.1])
    assert not charts.is_wide([1, 20]) and not charts.is_wide([0, 1]) and not charts.is_wide([-1, 1, 100])


def test_variants_that_did_not_learn_do_not_squeeze_the_others(tmp_path, undrawn):
    for number in range(10):
        write_run(
            tmp_path / f"{number}",
            {"augment.cutout": number},
            0,
            (0.1, 0.9)[number - 8] if number > 7 else 0.8 + number / 1000,
        )
    table = made(tmp_path)
    assert charts.visible(table) == (0.8, 0.9)  # The best one is never left out.
    assert [group.mean for group in charts.outside(table)] == [0.1]
    assert "Far worse than the others are 1 variant" in page.build(table)
    assert charts.visible(made(tmp_path, metric="test.error")) == (pytest.approx(0.1), pytest.approx(0.2))
    assert charts.visible(made(tmp_path, baseline="augment.cutout=8")) == (0.1, 0.9)


def test_short_names_differ():
    one, two = (f"optim.learning_rate=0.0125, optim.weight_decay=0.{digit}" for digit in "12")
    assert short.shorten(one, 48) == "learning_rate=0.0125, weight_decay=0.1"
    assert short.shorten(one, 24) != short.shorten(two, 24)
    assert len(short.shorten(one, 24)) == 24
    assert short.name("plain") == "plain"
    assert short.name(BOLD * 9, 20).startswith('<span title="&lt;b&gt;')


# Where it is written


def test_as_a_command(run, tmp_path):
    write_run(tmp_path / "runs" / "a")
    done = run(tmp_path / "runs", "--format=html", "--metric=test.loss", module="imgclf_jax.compare")
    target = tmp_path / "runs" / "compare" / "index.html"
    assert (done.code, done.out, done.err) == (0, f"page {target}\n", "")
    assert "test.loss" in target.read_text()
    assert [path.name for path in target.parent.iterdir()] == ["index.html"]
    done = run(tmp_path / "runs", "--format=csv", "--output=x.html", module="imgclf_jax.compare")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: --output is for --format=html; redirect the output of --format=csv instead\n"


def test_where_a_page_is_written(tmp_path, undrawn):
    write_run(tmp_path / "a")
    table = made(tmp_path)
    folder = str(tmp_path)
    default = page.choose_path([folder], None)
    assert default == tmp_path / "compare" / "index.html"
    page.write(table, default)
    before = default.read_text()
    default.write_text(before.replace("Results", "old"))
    page.write(table, page.choose_path([folder], None))  # An earlier page is replaced.
    assert default.read_text() == before
    assert page.choose_path([folder, folder], str(tmp_path / "new" / "x.html")) == tmp_path / "new" / "x.html"

    (tmp_path / "mine.html").write_text("<!doctype html>years of work")
    (tmp_path / "folder.html").mkdir()
    for names, output, message in (
        ([folder, folder], None, "--output is missing"),
        ([f"{folder}/*"], None, "--output is missing"),
        ([folder], "page.txt", r"does not end in \.html"),
        ([folder], str(tmp_path / "mine.html"), "is not a page of this tool"),
        ([folder], str(tmp_path / "folder.html"), "is not a page of this tool"),
        ([folder], str(tmp_path / "mine.html" / "x.html"), "is not a folder"),
    ):
        with pytest.raises(UserError, match=message):
            page.choose_path(names, output)
    assert (tmp_path / "mine.html").read_text() == "<!doctype html>years of work"


def test_a_page_in_the_folder_is_not_taken_for_a_run(tmp_path, undrawn):
    write_run(tmp_path / "a")
    page.write(made(tmp_path), page.choose_path([str(tmp_path)], None))
    assert len(made(tmp_path).groups) == 1
