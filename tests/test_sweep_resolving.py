"""From a sweep to its runs: their order, configs and folders, and every mistake in one line."""

import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import ROOT, environment

from imgclf_jax import config as configs
from imgclf_jax import sweep
from imgclf_jax.data import loading as data_loading
from imgclf_jax.errors import UserError
from imgclf_jax.sweep import Variant, resolving, validating
from imgclf_jax.sweep.resolving import parse_seeds


def unchecked(named):
    return []


def base(**changes):
    config = configs.default()
    values = {"data.source": "sample", "train.epochs": 2.0, "parallel.devices": 1}
    config.update_from_flattened_dict(values | {path.replace("__", "."): value for path, value in changes.items()})
    return config


def resolve(variants, seeds=(0,), check=unchecked, changes=None, folds=0):
    return resolving.resolve(sweep.Sweep(base(), variants, changes or {}, folds), seeds, check)


def lines(*arguments, **options):
    with pytest.raises(UserError) as caught:
        resolve(*arguments, **options)
    return str(caught.value).splitlines()


TWO = sweep.variants({"a": {}, "b": {"augment.flip": True}})


# Runs


def test_every_variant_has_a_run_of_a_seed_before_any_has_the_next():
    study = resolve(TWO, [3, 1])
    assert [(job.group.name, job.seed, job.config.seed) for job in study.runs] == [
        ("a", 3, 3),
        ("b", 3, 3),
        ("a", 1, 1),
        ("b", 1, 1),
    ]
    assert [job.config.augment.flip for job in study.runs] == [False, True, False, True]
    assert study.seeds == [3, 1] and study.folds == 0


def test_a_folder_is_named_after_the_variant_its_config_and_the_seed():
    first, second = resolve(TWO, [0, 12]).groups
    assert first.folder == f"a-{configs.identity(base())[:8]}"
    assert second.identity == configs.identity(base(augment__flip=True))
    assert [job.folder for job in resolve(TWO, [12]).runs] == [f"{first.folder}/seed12", f"{second.folder}/seed12"]


def test_runs_have_the_identity_of_their_group():
    for job in resolve(TWO, [0, 1]).runs:
        assert configs.identity(job.config) == job.group.identity
        assert job.config.is_locked


def test_common_changes_are_part_of_every_config_and_variants_come_last():
    study = resolve(TWO, changes={"augment.flip": False, "model.dropout": 0.25, "model.widths": [3, 4]})
    assert [group.config.augment.flip for group in study.groups] == [False, True]
    assert all(group.config.model.dropout == 0.25 and group.config.model.widths == (3, 4) for group in study.groups)
    assert study.base.model.dropout == 0.25


def test_an_empty_field_can_be_set_and_emptied_again():
    (group,) = resolve([Variant("x", {"train.epochs": None, "train.steps": 7})]).groups
    assert group.config.train.epochs is None and group.config.train.steps == 7


def test_the_base_is_not_changed():
    config = base()
    resolving.resolve(sweep.Sweep(config, TWO, {"augment.pad": 4}), [5], unchecked)
    assert config.to_dict() == base().to_dict()


def test_a_run_for_each_fold(monkeypatch):
    study = resolve(TWO, [0, 1], folds=3)
    assert [(job.seed, job.fold, job.group.name) for job in study.runs[:4]] == [
        (0, 0, "a"),
        (0, 0, "b"),
        (0, 1, "a"),
        (0, 1, "b"),
    ]
    assert len(study.runs) == 12
    assert all(job.config.data.folds == 3 and job.config.data.fold == job.fold for job in study.runs)
    assert study.runs[2].folder == f"{study.groups[0].folder}/seed0-fold1"
    assert all(configs.identity(job.config) == job.group.identity for job in study.runs)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=100))
def test_folder_names_are_safe(name):
    folder = resolving.folder_name(name, "0123456789abcdef")
    assert re.fullmatch(r"[A-Za-z0-9_=+,][A-Za-z0-9_.,=+-]*-01234567", folder)
    assert len(folder) <= 89


def test_folder_names_stay_readable():
    assert resolving.folder_name("crop=(24,24),lr=0.1", "0" * 64) == "crop=24,24,lr=0.1-00000000"
    assert resolving.folder_name("a b/c", "0" * 64) == "a_b_c-00000000"
    assert resolving.folder_name("../x", "0" * 64) == "_x-00000000"


# Mistakes


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ([], "the sweep is empty; give it at least one variant"),
        ([Variant("", {})], "variant 1 has the name ''; give it a name with letters or digits"),
        ([Variant("a", {}), Variant(" ", {"augment.pad": 4})], "variant 2 has the name ' '"),
        ([Variant("a\n", {})], "the name 'a\\n' has characters that cannot be printed"),
        ([Variant("a", {}), Variant("a", {"augment.pad": 4})], "2 variants have the name a"),
        (
            [Variant("a", {"optim.learning_rat": 1.0})],
            "a: unknown config field optim.learning_rat; did you mean optim.learning_rate?",
        ),
        ([Variant("a", {"learning_rate": 1.0})], "a: unknown config field learning_rate; did you mean optim.learning"),
        ([Variant("a", {3: 1.0})], "a: unknown config field 3"),
        ([Variant("a", {"optim": {}})], "a: optim is a section; name one of its fields, such as optim.b1"),
        ([Variant("a", {"optim.learning_rate": "x"})], "a: optim.learning_rate='x' must be a number"),
        ([Variant("a", {"train.batch_size": 1.5})], "a: train.batch_size=1.5 must be a whole number"),
        ([Variant("a", {"train.batch_size": True})], "a: train.batch_size=True must be a whole number"),
        ([Variant("a", {"train.batch_size": None})], "a: train.batch_size=None must be a whole number"),
        ([Variant("a", {"augment.crop": 24})], "a: augment.crop=24 must be () or a tuple of 2 numbers"),
        ([Variant("a", {"model.dropout": "x"})], "a: model.dropout='x' must be a number"),
        ([Variant("a", {"model.name": max})], "a: model.name=<built-in function max> must be text"),
        ([Variant("a", {"seed": 3})], "a: seed cannot be changed here; it is set by --seeds"),
        ([Variant("a", {"data.fold": 3})], "a: data.fold cannot be changed here; it is set by folds=... of the Sweep"),
        ([Variant("a", {}), Variant("b", {"augment.flip": False})], "a and b are the same config; remove one of them"),
        (
            [Variant("a", {}), Variant("b", {"eval.batch_size": 7})],
            "a and b are the same config; eval.batch_size does not change what is computed; remove one of them",
        ),
    ],
)
def test_a_mistake_in_the_variants_is_one_line(variants, message):
    (found,) = lines(variants)
    assert found.startswith(message)


def test_all_mistakes_are_reported_together():
    wrong = sweep.variants({"a": {"optim.nam": "sgd", "augment.flip": 3}, "": {"seed": 1}})
    found = lines(wrong, [-1, 2, 2], changes={"augment.hew": 0.1})
    for words in ("changes: unknown config field augment.hew", "seed -1", "seed 2 is given 2 times", "variant 2 has"):
        assert sum(line.startswith(words) for line in found) == 1, words
    for words in (
        "a: unknown config field optim.nam;",
        "a: augment.flip=3 must be True",
        ": seed cannot be",
    ):
        assert sum(line.startswith(words) for line in found) == 1, words
    assert len(found) == 7


@pytest.mark.parametrize("folds", [-1, 1, 2.0, True])
def test_a_wrong_number_of_folds(folds):
    (found,) = lines(TWO, folds=folds)
    assert found == f"folds={folds!r} must be 0 or a whole number of at least 2"


def test_folds_of_the_base_are_all_run():
    study = resolving.resolve(sweep.Sweep(base(data__folds=3), TWO), [0], unchecked)
    assert study == resolve(TWO, [0], folds=3)


# Seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("5", [0, 1, 2, 3, 4]),
        ("1", [0]),
        ("3,5,8", [3, 5, 8]),
        ("8, 3", [8, 3]),
        ("5:10", [5, 6, 7, 8, 9]),
        ("0:2,7,4:6", [0, 1, 7, 4, 5]),
        ("4294967295:4294967296", [2**32 - 1]),
    ],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "write how many"),
        ("x", "write how many"),
        ("-1", "write how many"),
        ("1.5", "write how many"),
        ("3,", "write how many"),
        ("1:2:3", "write how many"),
        ("٣", "write how many"),
        ("0", "there are no seeds"),
        ("5:5", "there are no seeds"),
        ("1,7:3", "there are no seeds in 7:3"),
        ("3,5,3", "seed 3 is given 2 times"),
        ("0:5,4", "seed 4 is given 2 times"),
        ("4294967296:4294967297", "seed 4294967296 must be a whole number, at least 0 and below 2**32"),
        ("999999999999", "at most 100000 seeds"),
    ],
)
def test_a_mistake_in_the_seeds_is_one_line(text, words):
    with pytest.raises(UserError) as caught:
        parse_seeds(text)
    (found,) = str(caught.value).splitlines()
    assert found.startswith(f"--seeds={text}: ") and words in found


def test_no_seeds():
    assert lines(TWO, []) == ["there are no seeds; for example --seeds=3"]


# Validation


def test_each_config_is_validated_once_without_data(monkeypatch):
    monkeypatch.setattr(data_loading, "load", None)
    seen = []

    def check(named):
        seen.extend(named)
        return validating.in_this_process(named)

    study = resolve(TWO, range(4), check)
    assert seen == ["a", "b"] and len(study.runs) == 8


def test_problems_begin_with_the_names_of_their_variants():
    wrong = sweep.variants(
        {
            "a": {"optim.name": "lion"},
            "b": {"optim.name": "lion", "augment.hue": 0.7},
            "c": {},
            "d": {"train.batch_size": 0},
        }
    )
    first, second, third = lines(wrong, check=validating.in_this_process)
    assert first.startswith("a, b: optim.name='lion' is unknown")
    assert second.startswith("b: augment.hue=0.7 must be")
    assert third.startswith("d: train.batch_size=0")


def test_a_problem_of_all_variants_is_reported_once():
    (found,) = lines(TWO, changes={"train.epochs": 0.0}, check=validating.in_this_process)
    assert found.startswith("all 2 variants: the length of training is missing")


def test_continued_lines_stay_with_theirs(monkeypatch):
    from imgclf_jax.training import validate

    def fail(config):
        raise UserError("two files are wrong:\n  a.jpg\n  b.jpg\nseed: wrong")

    monkeypatch.setattr(validate, "validate", fail)
    assert lines(TWO, check=validating.in_this_process) == [
        "all 2 variants: two files are wrong:",
        "  a.jpg",
        "  b.jpg",
        "all 2 variants: seed: wrong",
    ]


def test_another_process_finds_the_same():
    named = {"a": base(), "b": base(optim__name="lion", model__name="cn")}
    assert validating.in_another_process(named) == validating.in_this_process(named) != []


def test_a_config_that_json_cannot_hold_is_reported():
    (found,) = validating.in_another_process({"a": base(optim__eps=float("nan"))})
    assert found.startswith("a: optim.eps=nan (float) cannot be kept in config.json")


def test_a_process_that_fails_is_reported(monkeypatch):
    monkeypatch.setattr(validating.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="validating the configs ended with status 1"):
        validating.in_another_process({"a": base()})


def test_mistakes_are_reported_before_jax_is_imported():
    code = (
        "import sys, imgclf_jax.sweep.loading, imgclf_jax.sweep.plan_file, imgclf_jax.sweep.resolving\n"
        "assert not {'jax', 'flax', 'scipy', 'tensorflow_datasets', 'orbax'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
