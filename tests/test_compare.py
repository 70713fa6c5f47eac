"""compare/: finding and grouping runs, which may be compared, the numbers in every format, lines for bad input."""

import csv
import io
import json
import math
import re
import subprocess
import sys

import pytest
from fake_runs import DATA, make_config, result, write_run, write_sweep
from runs import ROOT, environment

from imgclf_jax.compare import formats, groups, page, reading
from imgclf_jax.errors import UserError
from imgclf_jax.storage.files import write_json
from imgclf_jax.workdir import failure
from imgclf_jax.workdir.failure import Failure
from imgclf_jax.workdir.saved_config import save_config

pytest_plugins = ["run_fixtures"]

RATE = {"optim.learning_rate": 0.01}
FLIP = {"augment.flip": True}
# Chosen so that means and deviations are simple: mean 0.8 and std 0.01; mean 0.82 and std 0.01.
BASE, BETTER = (0.79, 0.80, 0.81), (0.81, 0.82, 0.83)
T_2 = 4.302653  # 97.5 % quantile of t with 2 degrees of freedom


def table(*names, **options):
    return groups.make_table(reading.read([str(name) for name in names]), **options)


def refused(*names, **options):
    with pytest.raises(UserError) as caught:
        table(*names, **options)
    return str(caught.value)


def by_name(made):
    return {group.name: group for group in made.groups}


@pytest.fixture
def study(tmp_path):
    """A sweep of three variants: the baseline, a better one, and one whose runs have not ended well."""
    folders = write_sweep(tmp_path / "study", {"plain": {}, "flip": FLIP, "low_rate": RATE}, [0, 1, 2])
    for seed, (one, other) in enumerate(zip(BASE, BETTER, strict=True)):
        write_run(folders["plain"] / f"seed{seed}", {}, seed, one)
        write_run(folders["flip"] / f"seed{seed}", FLIP, seed, other)
    write_run(folders["low_rate"] / "seed0", RATE, 0, status="diverged", diverged_at_step=1234)
    write_run(folders["low_rate"] / "seed1", RATE, 1, status="failed", error="OSError: disk\nfull", step=7)
    return tmp_path / "study"


# Finding runs


def folders(*names):
    return [str(run.folder) for run in reading.read([str(name) for name in names]).runs]


def test_folders_are_searched_in_natural_order_but_not_within_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a/seed10", "runs/a/seed2", "runs/b/c/d", "runs/a/seed2/old", "runs/.hidden/x", "runs/report/x"):
        write_run(tmp_path / name)
    write_run(tmp_path / "runs/1/2/3/4/5")  # too deep
    assert folders("runs") == ["runs/a/seed2", "runs/a/seed10", "runs/b/c/d"]
    assert folders("runs/.hidden/x", "runs/b") == ["runs/.hidden/x", "runs/b/c/d"]
    assert folders("runs/a/seed*") == ["runs/a/seed2", "runs/a/seed10"]
    # All folders that a glob matches count as given.
    assert {*folders("runs/**")} == {*folders("runs"), "runs/a/seed2/old", "runs/report/x", "runs/1/2/3/4/5"}


def test_a_run_given_twice_counts_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/a")
    (tmp_path / "link").symlink_to(tmp_path / "runs/a")
    assert folders("runs/a", "runs", "link", tmp_path / "runs/../runs/a", "r*/*") == ["runs/a"]


def test_names_of_the_sweep_are_used_for_runs_in_it(study):
    made = table(f"{study}/*/seed[01]")
    assert [group.name for group in made.groups] == ["plain", "flip", "low_rate"]
    # Only the whole sweep is expected to be complete.
    assert [line.seed for line in made.missing] == [0, 1]


def test_two_sweeps_with_the_same_name_for_different_configs(tmp_path):
    for name, changes in (("one", {}), ("two", FLIP)):
        place = write_sweep(tmp_path / name, {"plain": changes}, [0])["plain"]
        write_run(place / "seed0", changes)
    assert [group.name for group in table(tmp_path).groups] == ["one/plain", "two/plain"]


# Groups and their names


def test_repetitions_are_one_group_whatever_does_not_change_the_numbers(tmp_path):
    write_run(tmp_path / "a", {"log.every_steps": 7}, 0)
    write_run(tmp_path / "b", {"train.steps_per_dispatch": 3}, 1)
    (group,) = table(tmp_path).groups
    assert list(group.values) == [(0, 0), (1, 0)]


def test_a_single_group_has_the_name_of_its_config_file_or_folder(tmp_path):
    write_run(tmp_path / "mine" / "seed0")
    assert [group.name for group in table(tmp_path).groups] == ["mine"]
    file = {"path": "/home/me/configs/wide.py", "sha256": "0"}
    write_run(tmp_path / "mine" / "seed0", provenance={"config_file": file})
    assert [group.name for group in table(tmp_path).groups] == ["wide"]


@pytest.mark.parametrize(
    ("variants", "names"),
    [
        ([{}, RATE], ["optim.learning_rate=0.1", "optim.learning_rate=0.01"]),
        ([{}, {"model.name": "mlp"}], ["model.name=cnn", "model.name=mlp"]),
        ([{}, {"augment.crop": (24, 24)}], ["augment.crop=()", "augment.crop=(24, 24)"]),
        (
            [{}, RATE, FLIP, {"augment.cutout": 8, **FLIP}],
            ["base", "optim.learning_rate=0.01", "augment.flip=True", "augment.cutout=8, augment.flip=True"],
        ),
    ],
)
def test_groups_are_named_by_the_fields_that_differ(tmp_path, variants, names):
    for place, changes in enumerate(variants):
        write_run(tmp_path / f"{place}/base/seed0", changes | {"log.every_steps": place + 1})
    assert [group.name for group in table(tmp_path).groups] == names


def test_config_files_name_groups_that_differ_in_many_fields(tmp_path):
    many = {"optim.learning_rate": 0.01, "optim.name": "adam", "model.name": "mlp"}
    for name, changes in (("cnn", {}), ("mlp", many)):
        write_run(tmp_path / name, changes, provenance={"config_file": {"path": f"/c/{name}.py", "sha256": "0"}})
    assert [group.name for group in table(tmp_path).groups] == ["cnn", "mlp"]


# Numbers


def test_the_numbers_of_a_worked_example(study):
    made = table(study)
    plain, flip, low_rate = made.groups
    assert (made.metric, made.baseline, made.higher_is_better) == ("test.accuracy", "plain", True)
    assert (plain.mean, plain.std) == (pytest.approx(0.8), pytest.approx(0.01))
    half = T_2 * 0.01 / math.sqrt(3)
    assert plain.interval == pytest.approx((0.8 - half, 0.8 + half), abs=1e-6)
    assert plain.comparison is None
    assert (plain.images, plain.seconds) == (100 * 128, 60.0)
    assert flip.comparison.difference == pytest.approx(0.02)
    assert flip.changes == {"augment.flip": True, "optim.learning_rate": 0.1}
    # All 9 pairs but one tie (0.81 and 0.81) are won.
    assert flip.comparison.p_superior == pytest.approx(8.5 / 9)
    assert (low_rate.values, low_rate.mean, low_rate.std, low_rate.comparison) == ({}, None, None, None)


def test_the_baseline_can_be_chosen(study):
    made = by_name(table(study, baseline="flip"))
    assert made["flip"].comparison is None
    assert made["plain"].comparison.difference == pytest.approx(-0.02)


def test_lower_is_better_for_losses_errors_and_seconds(tmp_path):
    for seed, (one, other) in enumerate(zip(BASE, BETTER, strict=True)):
        write_run(tmp_path / f"a{seed}", {}, seed, one, wall_time_seconds=100.0 + seed)
        write_run(tmp_path / f"b{seed}", FLIP, seed, other, wall_time_seconds=10.0 + seed)
    for metric, difference in (("test.error", -0.02), ("test.loss", -0.04), ("wall_time_seconds", -90.0)):
        made = table(tmp_path, metric=metric)
        assert not made.higher_is_better
        assert made.groups[1].comparison.difference == pytest.approx(difference)
        assert made.groups[1].comparison.p_superior > 0.9
    assert table(tmp_path, metric="images_per_second").higher_is_better
    assert table(tmp_path, metric="valid.accuracy").groups[0].mean == pytest.approx(0.8)


def test_runs_that_were_trained_together_share_the_time(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", {}, seed, wall_time_seconds=90.0 + seed)
        write_run(tmp_path / f"b{seed}", FLIP, seed, wall_time_seconds=120.0, together=3)
    alone, together = table(tmp_path).groups
    assert (alone.seconds, together.seconds) == (91.0, 40.0)
    made = table(tmp_path, metric="wall_time_seconds")
    assert [group.mean for group in made.groups] == [91.0, 40.0]
    assert made.groups[1].comparison.verdict == "better"
    assert [note for note in made.notes if "trained 3 at once" in note]
    assert json.loads(formats.to_json(made))["groups"][1]["seconds"] == 40.0
    assert [group.mean for group in table(tmp_path, metric="images_per_second").groups] == [1000.0, 1000.0]
    assert not [note for note in table(tmp_path / "a0").notes if "at once" in note]


def test_runs_without_a_value_are_listed_with_the_reason(study):
    write_run(study / "more", FLIP, 3, results={"test": result(0.9, loss=math.nan)})
    write_run(study / "going", FLIP, 4, status="running", step=20)
    lines = [line.line for line in table(study, metric="test.loss").missing]
    assert len(lines) == 5
    for line, words in zip(
        lines,
        [
            ["flip, seed 3: complete", "nan"],
            ["flip, seed 4: running", "step 20"],
            ["low_rate, seed 0: diverged", "step 1,234"],
            ["low_rate, seed 1: failed", "OSError: disk full"],
            ["low_rate, seed 2: waiting", "sweep.json", "seed2"],
        ],
        strict=True,
    ):
        assert [word for word in words if word not in line] == []


def test_runs_that_failed_before_they_wrote_a_record_are_named_with_the_reason(study):
    (place,) = study.glob("low_rate-*")
    for seed, error in ((1, "earlier"), (2, "CacheError:\nno room"), (0, "before it diverged")):
        failure.write(place / f"seed{seed}", Failure("a", error))
    write_run(place / "seed1", RATE, 1, status="running", step=7)  # It failed after that.
    made = table(study)
    assert [(line.seed, line.status, line.reason) for line in made.missing] == [
        (0, "diverged", "the loss or a gradient is not finite at step 1,234"),
        (1, "failed", "at step 7: earlier"),
        (2, "failed", "before it wrote run.json: CacheError: no room"),
    ]
    for text in (formats.plain(made), formats.markdown(made), formats.latex(made), page.build(made)):
        assert "low\\_rate, seed 2: failed" in text or "low_rate, seed 2: failed" in text
        assert "CacheError: no room" in text
    assert json.loads(formats.to_json(made))["missing"][2]["reason"].endswith("CacheError: no room")
    # Of a run that has a config.json only, and by another way to its folder.
    (place / "seed2").mkdir()
    save_config(place / "seed2", make_config(RATE, 2))
    (study.parent / "link").symlink_to(place / "seed2")
    for name in (study, study.parent / "link"):
        (line,) = (line for line in table(study / place.name, name, *study.glob("plain-*")).missing if line.seed == 2)
        assert (line.status, line.reason) == ("failed", "before it wrote run.json: CacheError: no room")


def test_a_damaged_note_on_a_failure_says_that_the_run_failed(study):
    (place,) = study.glob("low_rate-*")
    failure.path(place / "seed2").parent.mkdir()
    for text in ("{", '{"error": 3}', "[]"):
        failure.path(place / "seed2").write_text(text)
        assert "failed, before it wrote run.json: unknown" in table(study).missing[2].line


def test_folds_are_repetitions_too(tmp_path):
    for number in range(4):
        counts = {"train": 40_000 + number, "valid": 10_000 - number, "test": 10_000}
        fingerprint = f"{'records:' * (number % 2)}{0:064}"  # One of the two folds was streamed.
        data = {**DATA, "counts": counts, "fingerprint": fingerprint}
        write_run(tmp_path / str(number), {}, number, 0.8 + number / 100, data=data)
    found = reading.read([str(tmp_path)])
    runs = [run._replace(folds=2, key=divmod(run.config.seed, 2)) for run in found.runs]
    made = groups.make_table(found._replace(runs=runs))
    assert list(made.groups[0].values) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert groups.make_table(found._replace(runs=runs), "valid.accuracy").groups[0].mean == pytest.approx(0.815)
    assert "fold" in made.sentence and "not independent" in made.sentence


def test_one_seed_gives_a_table_and_a_note(tmp_path):
    write_run(tmp_path / "a", {}, 0, 0.8)
    write_run(tmp_path / "b", FLIP, 0, 0.9)
    made = table(tmp_path)
    assert [group.interval for group in made.groups] == [None, None]
    assert made.groups[1].comparison.verdict == "not shown"
    assert any("nothing can be shown" in note for note in made.notes)
    for form in (formats.plain, formats.markdown, formats.csv, formats.latex, formats.to_json):
        assert form(made)


def test_a_diverged_run_is_no_value_and_is_noted(study):
    made = table(study)
    assert any("diverged" in note and "low_rate" in note for note in made.notes)


def test_a_baseline_without_a_value_is_noted(study):
    made = table(study, baseline="low_rate")
    assert all(group.comparison is None for group in made.groups)
    assert any("--baseline" in note for note in made.notes)


# What may be compared


@pytest.mark.parametrize(
    ("changes", "fields", "words"),
    [
        ({}, {"data": {**DATA, "fingerprint": "1" * 64}}, ["different data", "000000000000 -> 111111111111"]),
        ({}, {"data": {**DATA, "counts": {"test": 9}}}, ["test splits of different sizes", "10000 -> 9"]),
        ({"data.test_split": "test[:50%]"}, {}, ["data.test_split", "test[:50%]"]),
        ({"eval.report": "best"}, {}, ["eval.report", "'last' -> 'best'"]),
        ({}, {"data": {**DATA, "fingerprint": "records:1", "image_shape": [8, 8, 3]}}, ["different data"]),
    ],
)
def test_runs_of_different_protocols_are_refused(tmp_path, changes, fields, words):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", {**FLIP, **changes}, **fields)
    message = refused(tmp_path)
    assert message.count("\n") == 0
    assert [word for word in [str(tmp_path / "a"), str(tmp_path / "b"), *words] if word not in message] == []


def test_a_streamed_and_a_resident_data_set_may_be_the_same(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", FLIP, data={**DATA, "fingerprint": "records:1"})
    assert len(table(tmp_path).groups) == 2


def test_another_validation_split_matters_to_metrics_of_that_split_only(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", {"data.valid_split": "train[49000:]"})
    assert len(table(tmp_path).groups) == 2
    assert "data.valid_split" in refused(tmp_path, metric="valid.loss")


def test_accuracies_with_test_time_augmentation_are_compared_over_the_same_views(tmp_path):
    def write(seed, mode, changes, value):
        fields = {} if mode == "none" else {"tta_accuracy": value, "tta_loss": 1 - value}
        results = {"test": result(0.5) | fields}
        write_run(tmp_path / f"{seed}{len(changes)}", {"eval.tta": mode, **changes}, seed, results=results)

    for seed, mode in enumerate(("flip", "flip", "none")):
        write(seed, mode, {}, 0.8 + seed / 100)
        write(seed, mode, FLIP, 0.9 + seed / 100)
    for metric, values in (("tta_accuracy", [0.805, 0.905]), ("tta_loss", [0.195, 0.095])):
        made = table(tmp_path, metric=f"test.{metric}")
        # Whether a run has it is no part of the experiment.
        assert [group.mean for group in made.groups] == pytest.approx(values)
        assert [line.seed for line in made.missing] == [2, 2]
        assert by_name(made)["augment.flip=True"].comparison.verdict == "better"
    assert "80.50" in formats.plain(table(tmp_path, metric="test.tta_accuracy"))
    write(3, "flip_shift", {}, 0.8)
    assert "different views, eval.tta: 'flip' -> 'flip_shift'" in refused(tmp_path, metric="test.tta_accuracy")
    assert table(tmp_path).groups


def test_unknown_data_are_noted(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", FLIP, data=None)
    assert any(str(tmp_path / "b") in note for note in table(tmp_path).notes)


def test_the_same_seed_twice_is_refused_unless_the_results_are_identical(tmp_path):
    write_run(tmp_path / "a", accuracy=0.8)
    write_run(tmp_path / "b", accuracy=0.8)
    write_run(tmp_path / "c", accuracy=0.7, status="interrupted")
    made = table(tmp_path)
    assert list(made.groups[0].values.values()) == [0.8]
    assert any("identical" in note and str(tmp_path / "b") in note for note in made.notes)
    write_run(tmp_path / "b", accuracy=0.81)
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path / 'a'} and {tmp_path / 'b'} have the same config and seed 0 ")


# Formats


def test_json_has_natural_units_and_no_nan(study):
    content = json.loads(formats.to_json(table(study)))
    plain, flip, low_rate = content["groups"]
    assert (content["metric"], content["baseline"]) == ("test.accuracy", "plain")
    assert (plain["name"], plain["n"], plain["values"]) == ("plain", 3, list(BASE))
    assert plain["mean"] == pytest.approx(0.8)
    assert plain["difference"] is plain["p"] is plain["verdict"] is low_rate["mean"] is None
    assert flip["difference"] == pytest.approx(0.02)
    low, high = flip["difference_interval"]
    assert low - 1e-9 < 0.02 < high + 1e-9
    (folder,) = study.glob("flip-*")
    assert flip["runs"][2] == {"seed": 2, "fold": None, "folder": str(folder / "seed2")}
    assert [line["status"] for line in content["missing"]] == ["diverged", "failed", "waiting"]


def test_csv_has_all_digits(study):
    rows = list(csv.DictReader(io.StringIO(formats.csv(table(study)))))
    assert [row["name"] for row in rows] == ["plain", "flip", "low_rate"]
    assert float(rows[0]["mean"]) == pytest.approx(0.8, abs=1e-12)
    assert float(rows[0]["high"]) == pytest.approx(0.8 + T_2 * 0.01 / math.sqrt(3), abs=1e-7)
    assert rows[0]["difference"] == rows[2]["mean"] == ""
    assert float(rows[1]["difference"]) == pytest.approx(0.02)
    assert rows[2]["n"] == "0"


@pytest.mark.parametrize("form", [formats.plain, formats.markdown, formats.latex])
def test_texts_show_percent_with_two_decimals(study, form):
    text = form(table(study)).replace(r"$\pm$", "±").replace(r"\pm", "±")
    half = 100 * T_2 * 0.01 / math.sqrt(3)
    for shown in ("80.00 ± 1.00", "82.00 ± 1.00", f"{80 - half:.2f}, {80 + half:.2f}", "+2.00"):
        assert shown in text
    for name in ("plain", "flip"):
        assert name in text
    assert "The test split was read once" in " ".join(text.split())


def test_losses_have_four_significant_digits(study):
    text = formats.plain(table(study, metric="test.loss"))
    assert "0.4000 ± 0.0200" in text and "-0.0400" in text


def test_plain_text_fits_100_columns(study):
    lines = formats.plain(table(study)).split("Without a value:")[0].splitlines()
    assert max(map(len, lines)) <= 100


def test_long_names_are_shortened_in_text_alone(tmp_path):
    wide = {"model.hidden": tuple(range(100, 150))}
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", {}, seed, BASE[seed])
        write_run(tmp_path / f"b{seed}", wide, seed, BETTER[seed])
    made = table(tmp_path)
    text = formats.plain(made)
    assert max(len(line) for line in text.split("Mean ±")[0].splitlines()[1:]) <= 100
    assert "82.00 ± 1.00" in text
    assert made.groups[1].name in formats.csv(made)


def test_names_cannot_break_a_format(tmp_path):
    odd = "=a|b_c%$<x>\\[\n"
    write_sweep(tmp_path, {odd: {}, "other": FLIP}, [0, 1])
    for name, changes in ((odd, {}), ("other", FLIP)):
        for seed in range(2):
            write_run(tmp_path / f"{name == odd}{seed}", changes, seed, 0.8 + seed / 100)
    made = table(tmp_path)
    rows = list(csv.reader(io.StringIO(formats.csv(made))))
    assert rows[1][0] == f"'{odd}"  # a spreadsheet must not evaluate it
    lines = formats.markdown(made).splitlines()
    rules = next(number for number, line in enumerate(lines) if line.startswith("| :---"))
    columns = {len(re.split(r"(?<!\\)\|", line)) for line in lines[rules - 1 : rules + 3]}
    assert len(columns) == 1
    tabular = formats.latex(made).split(r"\bottomrule")[0]
    assert r"=a|b\_c\%\$\textless{}x\textgreater{}\textbackslash{}{[}\textbackslash{}n" in tabular
    assert json.loads(formats.to_json(made))["groups"][0]["name"] == odd


# Bad input


def test_every_mistake_has_one_line_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "photos").mkdir(parents=True)
    (tmp_path / "file.txt").touch()
    assert "no runs are given; add folders" in refused()
    assert refused("nowhere").startswith("nowhere does not exist; give")
    assert refused("no*").startswith("no folder matches 'no*'; give")
    assert refused("file.txt").startswith("file.txt is not a folder; give")
    assert refused("").startswith("an empty name matches no run; give")
    assert refused("empty").startswith("empty holds no run (no config.json")
    assert refused("empty*").startswith("empty holds no run (no config.json")
    (tmp_path / "empty2").mkdir()
    assert refused("empty*").startswith("'empty*' matches 2 folders, but none of them holds a run")
    assert len(refused("nowhere", "empty", "nowhere").splitlines()) == 2


def test_no_complete_run(tmp_path):
    write_run(tmp_path / "a", status="running")
    assert refused(tmp_path).startswith("the run is not complete (1 running; ")
    write_run(tmp_path / "b", seed=1, status="failed")
    write_run(tmp_path / "c", seed=2, status="running")
    assert refused(tmp_path).startswith("none of the 3 runs is complete (1 failed, 2 running; ")


def test_a_sweep_that_has_not_begun(tmp_path):
    place = write_sweep(tmp_path, {"plain": {}}, [0, 1])["plain"]
    assert refused(tmp_path).startswith(f"no run of the sweep in {tmp_path} has begun; ")
    failure.write(place / "seed1", Failure("a", "no disk"))
    message = refused(tmp_path)
    assert message.startswith("the run is not complete (1 failed; ") and "seed1 failed: " in message
    assert "no disk" in message
    write_run(place / "seed0", status="running")
    assert refused(tmp_path).startswith("none of the 2 runs is complete (1 failed, 1 running; ")


def test_an_unknown_metric(tmp_path):
    write_run(tmp_path / "a")
    message = refused(tmp_path, metric="test.acuracy")
    assert "--metric=test.acuracy" in message and "did you mean 'test.accuracy'?" in message
    assert "test.accuracy, test.loss, test.error, valid.accuracy" in message
    assert "wall_time_seconds, images_per_second" in message


def test_an_unknown_baseline(study):
    message = refused(study, baseline="plane")
    assert "--baseline=plane" in message and "did you mean 'plain'?" in message
    assert "'plain', 'flip', 'low_rate'" in message


def test_damaged_files(tmp_path):
    write_run(tmp_path / "a")
    for name in ("b", "c"):
        write_run(tmp_path / name, FLIP)
    (tmp_path / "b" / "run.json").write_text("{")
    (tmp_path / "c" / "config.json").unlink()
    lines = refused(tmp_path).splitlines()
    assert len(lines) == 2
    assert str(tmp_path / "b" / "run.json") in lines[0] and "config.json" in lines[1]


@pytest.mark.parametrize(
    ("change", "word"),
    [({"version": 2}, "version"), ({"groups": [{"name": "a"}]}, "groups"), ({"seeds": [-1]}, "seeds")],
)
def test_a_damaged_plan(tmp_path, change, word):
    write_run(tmp_path / "a")
    content = {"version": 1, "groups": [], "seeds": [0], "folds": 0, **change}
    write_json(tmp_path / "sweep.json", content)
    message = refused(tmp_path)
    assert message.startswith(f"cannot read {tmp_path / 'sweep.json'}: ") and word in message


# The door


def test_the_tool_prints_a_table(run, study):
    done = run(study, module="imgclf_jax.compare")
    assert (done.code, done.err) == (0, "")
    assert done.out == formats.plain(table(study))


def test_the_tool_writes_csv_alone_to_standard_output(run, study):
    done = run(study, "--format=csv", module="imgclf_jax.compare")
    assert done.code == 0
    assert done.out == formats.csv(table(study))
    assert "low_rate, seed 1: failed" in done.err and "standard deviation" in done.err


@pytest.mark.parametrize("flags", [[], ["--format=xml"], ["--metric=test.f1"], ["--baseline=none"], ["--workdir=x"]])
def test_the_tool_prints_nothing_but_an_error_for_a_mistake(run, study, flags):
    done = run(*([study] if flags else []), *flags, module="imgclf_jax.compare")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ") and done.err.count("\n") == 1


def test_no_jax_is_imported(study):
    code = (
        "import sys; from imgclf_jax.compare import __main__; from imgclf_jax.terminal import cli\n"
        f"sys.argv = ['compare', {str(study)!r}]\n"
        "assert cli.run_tool(__main__.main, takes_config=False) == 0\n"
        "assert not {'jax', 'flax', 'orbax', 'matplotlib', 'tensorflow_datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
