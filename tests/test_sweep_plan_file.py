"""sweep.json: what was asked of a folder, what has changed since, and which folders are refused."""

import json

import pytest

from imgclf_jax import config as configs
from imgclf_jax import sweep
from imgclf_jax.errors import UserError
from imgclf_jax.sweep import plan_file, resolving

FILE = "configs/ablations/x.py"
FLIP = {"no_flip": {"augment.flip": False}, "pad": {"augment.pad": 4}}


def study(named, seeds=(0, 1), folds=0, **changes):
    base = configs.default()
    values = {"augment.flip": True, "train.epochs": 3.0}
    base.update_from_flattened_dict(values | {path.replace("__", "."): value for path, value in changes.items()})
    return resolving.resolve(sweep.Sweep(base, sweep.variants(named), folds=folds), seeds, lambda named: [])


def ask(folder, asked, file=FILE):
    """What an invocation does with the file. Returns the lines about what has changed, and the study."""
    old = plan_file.check_folder(folder, asked, file)
    asked = plan_file.keep_folders(asked, old)
    new = plan_file.content(asked, file, old)
    folder.mkdir(exist_ok=True)
    plan_file.write(folder, new)
    assert plan_file.read(folder) == new
    return (plan_file.differences(old, new) if old else []), asked


def refused(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    (line,) = str(caught.value).splitlines()
    return line


# Content


def test_the_file_says_what_was_asked(tmp_path):
    folder = tmp_path / "new"
    assert plan_file.read(folder) is None
    _, asked = ask(folder, study({"all": {}, "crop": {"augment.crop": (24, 24)}}, [3, 1]))
    content = plan_file.read(folder)
    assert content == {
        "version": 1,
        "config": FILE,
        "base": {"augment.flip": True, "train.epochs": 3.0},
        "groups": [
            {
                "name": group.name,
                "identity": configs.identity(group.config),
                "changes": changes,
                "folder": f"{group.name}-{group.identity[:8]}",
            }
            for group, changes in zip(asked.groups, ({}, {"augment.crop": [24, 24]}), strict=True)
        ],
        "seeds": [3, 1],
        "folds": 0,
        "earlier": [],
    }


def test_the_same_sweep_again_changes_nothing(tmp_path):
    ask(tmp_path, study(FLIP))
    before = (tmp_path / plan_file.NAME).read_bytes()
    lines, _ = ask(tmp_path, study(FLIP))
    assert lines == [] and (tmp_path / plan_file.NAME).read_bytes() == before


def test_a_file_without_the_later_members_can_be_read(tmp_path):
    ask(tmp_path, study(FLIP))
    content = plan_file.read(tmp_path)
    for name in ("base", "earlier"):
        del content[name]
    plan_file.write(tmp_path, content)
    assert plan_file.read(tmp_path) == {"base": {}, "earlier": []} | content


# Differences


def test_added_and_removed_variants_are_named_and_kept(tmp_path):
    _, first = ask(tmp_path, study(FLIP))
    lines, _ = ask(tmp_path, study({"pad": FLIP["pad"], "hue": {"augment.hue": 0.1}}))
    folder = first.groups[0].folder
    assert lines == [
        "added: hue (hue=0.1)",
        f"removed: no_flip (flip=False); its runs are kept in {folder}",
        "first variant: no_flip -> pad",
    ]
    assert [group["name"] for group in plan_file.read(tmp_path)["earlier"]] == ["no_flip"]
    lines, third = ask(tmp_path, study(FLIP))
    assert f"added again: no_flip (flip=False); its runs in {folder} are used" in lines
    assert [group["name"] for group in plan_file.read(tmp_path)["earlier"]] == ["hue"]
    assert [job.folder for job in third.runs] == [job.folder for job in first.runs]


def test_a_renamed_variant_keeps_its_runs(tmp_path):
    _, first = ask(tmp_path, study(FLIP))
    lines, second = ask(tmp_path, study({"without flip": FLIP["no_flip"], "pad": FLIP["pad"]}))
    folder = first.groups[0].folder
    assert lines == [
        f"renamed: no_flip -> without flip; its runs stay in {folder}",
        "first variant: no_flip -> without flip",
    ]
    assert [job.folder for job in second.runs] == [job.folder for job in first.runs]
    assert all(job.group.folder == folder for job in second.runs if job.group.name == "without flip")
    assert plan_file.read(tmp_path)["earlier"] == []


def test_a_name_with_another_config_is_another_variant(tmp_path):
    _, first = ask(tmp_path, study(FLIP))
    lines, second = ask(tmp_path, study({"no_flip": FLIP["no_flip"], "pad": {"augment.pad": 5}}))
    assert lines == [
        "changed: pad (pad=5)",
        f"no longer asked for: the earlier pad; its runs are kept in {first.groups[1].folder}",
    ]
    assert second.groups[1].folder != first.groups[1].folder


def test_a_changed_base_is_shown_field_by_field(tmp_path):
    ask(tmp_path, study(FLIP))
    lines, _ = ask(tmp_path, study(FLIP, train__epochs=5.0, optim__name="adam", log__every_steps=7))
    assert lines[:2] == ["base: optim.name: 'sgd' -> 'adam'", "base: train.epochs: 3.0 -> 5.0"]
    assert len(lines) == 6 and sum(line.startswith("changed: ") for line in lines) == 2


def test_seeds_and_folds(tmp_path):
    ask(tmp_path, study(FLIP, [0, 1, 2]))
    lines, _ = ask(tmp_path, study(FLIP, [0, 2, 3, 4, 5, 9]))
    assert lines == ["seeds added: 3 to 5, 9", "seeds removed: 1; their runs are kept"]
    old = plan_file.read(tmp_path)
    assert plan_file.differences(old, old | {"folds": 5}) == ["folds: 0 -> 5"]


def test_more_samples_keep_the_first(tmp_path):
    ranges = {"optim.learning_rate": sweep.log(1e-3, 1.0)}
    few, many = ({variant.name: variant.changes for variant in sweep.random(count, ranges)} for count in (3, 5))
    ask(tmp_path, study(few))
    lines, _ = ask(tmp_path, study(many))
    assert len(lines) == 2 and all(line.startswith("added: learning_rate=") for line in lines)
    assert "(" not in lines[0], "the name says what changes"


# Refusals


def test_a_folder_with_a_run_is_refused_and_unchanged(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    line = refused(plan_file.check_folder, tmp_path, study(FLIP), FILE)
    assert line == f"{tmp_path} holds a run, not a sweep; choose another --workdir"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_file_in_the_place_of_the_folder(tmp_path):
    path = tmp_path / "file"
    path.touch()
    line = refused(plan_file.check_folder, path, study(FLIP), FILE)
    assert line == f"{path} is not a folder; choose another --workdir"


def test_a_sweep_of_another_base_is_refused(tmp_path):
    ask(tmp_path, study(FLIP))
    other = study(FLIP, train__epochs=5.0)
    line = refused(plan_file.check_folder, tmp_path, other, "configs/other.py")
    assert line == f"{tmp_path} holds a sweep of {FILE} with another base config; choose another --workdir"
    # The same base in another file is a renamed file, or other variants of the same config.
    lines, _ = ask(tmp_path, study(FLIP), "configs/renamed.py")
    assert lines == [f"config file: {FILE} -> configs/renamed.py"]


def test_a_folder_without_a_sweep_can_be_used(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert plan_file.check_folder(tmp_path, study(FLIP), FILE) is None
    assert plan_file.check_folder(tmp_path / "new", study(FLIP), FILE) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("{", "cannot read"),
        ("[]", "does not hold a JSON object"),
        ("{}", "does not describe a sweep of imgclf_jax"),
        ('{"version": 2}', "a later version of imgclf_jax wrote it"),
        ('{"version": "1"}', "does not describe a sweep"),
    ],
)
def test_a_file_that_is_not_a_sweep_is_one_line(tmp_path, text, words):
    (tmp_path / plan_file.NAME).write_text(text)
    line = refused(plan_file.read, tmp_path)
    assert str(tmp_path / plan_file.NAME) in line and words in line


def test_a_changed_digit_is_noticed(tmp_path):
    ask(tmp_path, study(FLIP))
    path = tmp_path / plan_file.NAME
    path.write_text(path.read_text().replace('"folds": 0', '"folds": 5'))
    assert "differs from what was written" in refused(plan_file.read, tmp_path)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("config", 3),
        ("base", []),
        ("groups", {}),
        ("groups", [3]),
        ("earlier", None),
        ("seeds", "5"),
        ("seeds", [-1]),
        ("seeds", ["a"]),
        ("folds", "5"),
        ("group", {"folder": "../elsewhere"}),
        ("group", {"folder": "a/b"}),
        ("group", {"folder": ".."}),
        ("group", {"identity": "abc"}),
        ("group", {"name": None}),
        ("group", {"changes": []}),
    ],
)
def test_members_of_another_type_are_refused(tmp_path, member, value):
    ask(tmp_path, study(FLIP))
    content = plan_file.read(tmp_path)
    if member == "group":
        content["groups"][0] |= value
    else:
        content[member] = value
    (tmp_path / plan_file.NAME).write_text(json.dumps(content))
    assert "does not describe a sweep of imgclf_jax; choose another --workdir" in refused(plan_file.read, tmp_path)


@pytest.mark.parametrize(
    ("seeds", "text"),
    [([0], "0"), ([0, 1], "0, 1"), ([2, 0, 1, 7], "0 to 2, 7"), ([1, 3], "1, 3"), ([], "")],
)
def test_seeds_are_shown_in_short(seeds, text):
    assert plan_file.seeds_text(seeds) == text
