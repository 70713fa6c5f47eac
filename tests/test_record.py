"""`run.json`: for any content, the reader gives a record that the tools can use, or one line."""

import copy
import json

import pytest

from imgclf_jax.errors import UserError
from imgclf_jax.storage import files as storage
from imgclf_jax.workdir import record

WHOLE = {
    "status": "complete",
    "started": "2026-01-01T12:00:00+00:00",
    "sessions": 1,
    "seed": 0,
    "step": 14,
    "reported_step": 14,
    "wall_time_seconds": 3.5,
    "together": 2,
    "flops_per_step": 1000,
    "images_per_second": 12.5,
    "data": {
        "name": "cifar10",
        "location": "somewhere",
        "fingerprint": "abc",
        "class_names": ["a", "b"],
        "image_shape": [8, 8, 3],
        "counts": {"train": 10, "test": 2},
    },
    "results": {"test": {"accuracy": 0.5, "loss": 0.1, "correct": 1, "count": 2}},
    "provenance": {"git": {"commit": "abc", "changed": False}, "packages": {"jax": "1", "flax": None}},
}
WRONG = [3.5, -1, "text", [], [1], {"a": 1}, None, True, 1e400, "NaN"]


def places(content, path=()):
    for name, value in content.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from places(value, (*path, name))


def changed(path, value):
    content = copy.deepcopy(WHOLE)
    owner = content
    for name in path[:-1]:
        owner = owner[name]
    owner[path[-1]] = value
    return content


def use(content):
    """What the tools do with a record without asking."""
    data = content.get("data") or {}
    [f"{size:,}" for size in (data.get("counts") or {}).values()]
    tuple(data.get("image_shape") or ()), len(data.get("class_names") or ())
    for result in (content.get("results") or {}).values():
        f"{result['accuracy']:.4f} {result['correct']:,} {result['count']:,} {result['loss'] or 0:.4f}"
        assert result["count"] > 0
    f"{content.get('step', 0):,} {round(content.get('wall_time_seconds', 0))}"
    f"{record.own_seconds(content) or 0:.1f}"
    origin = content.get("provenance") or {}
    (origin.get("git") or {"commit": ""})["commit"] + ""
    [" ".join(pair) for pair in (origin.get("packages") or {}).items() if pair[1]]


def test_runs_that_were_trained_together_share_the_time():
    assert record.own_seconds({}) is None
    assert record.own_seconds({"together": 4}) is None
    assert record.own_seconds({"wall_time_seconds": 6.0}) == 6.0
    assert record.own_seconds({"wall_time_seconds": 6.0, "together": 4}) == 1.5


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", None])
def test_a_number_of_runs_that_cannot_be_is_refused(tmp_path, value):
    (tmp_path / "run.json").write_text(json.dumps({**WHOLE, "together": value}))
    with pytest.raises(UserError, match=r"together is .*, not a positive integer"):
        record.read(tmp_path)


def test_a_whole_record_comes_back(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(WHOLE))
    assert record.read(tmp_path) == WHOLE
    assert record.is_described(WHOLE["data"])


def test_a_changed_digit_is_noticed_and_an_edit_can_be_kept(tmp_path):
    path = tmp_path / "run.json"
    storage.write_json(path, WHOLE)
    assert record.read(tmp_path) == WHOLE
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text)))  # the same values, written in another way
    assert record.read(tmp_path) == WHOLE
    count = str(WHOLE["results"]["test"]["count"])
    edited = text.replace(f'"count": {count}', f'"count": {count}0')
    assert edited != text
    path.write_text(edited)
    with pytest.raises(UserError, match=r"differs from what was written\. If you have edited it, delete its line"):
        record.read(tmp_path)
    lines = edited.splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"sha256"' not in line))
    assert record.read(tmp_path)["results"]["test"]["count"] == int(f"{count}0")


def test_no_record(tmp_path):
    assert record.read(tmp_path) is None
    assert record.read(tmp_path / "nowhere") is None


@pytest.mark.parametrize("path", list(places(WHOLE)), ids=".".join)
def test_a_value_of_the_wrong_type_at_any_depth(tmp_path, path):
    refused = 0
    for value in WRONG:
        (tmp_path / "run.json").write_text(json.dumps(changed(path, value)))
        try:
            use(record.read(tmp_path))
        except UserError as error:
            refused += 1
            (line,) = str(error).splitlines()
            assert ".".join(path[:2]) in line and "run.json" in line and "can be deleted" in line
    assert refused or path[-1] == "changed"


@pytest.mark.parametrize(
    "content",
    [b"", b" ", b"{", b"[]", b"3", b"null", b"\xff\xfe", b"\0" * 99, b'{"status": "comp', b"[" * 99_999, b'{"a": 1} x'],
)
def test_a_file_that_is_not_a_record(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"^cannot read .*run\.json: .*can be deleted") as caught:
        record.read(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_of_that_name(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(UserError, match=r"^cannot read .*run\.json: Is a directory"):
        record.read(tmp_path)


def test_what_newer_versions_add_is_let_through(tmp_path):
    content = WHOLE | {"new": [1], "results": {"test": WHOLE["results"]["test"] | {"top5": 0.9}}}
    (tmp_path / "run.json").write_text(json.dumps(content))
    assert record.read(tmp_path) == content


@pytest.mark.parametrize("lacking", ["class_names", "image_shape", "counts"])
def test_a_description_that_is_too_short_to_use(lacking):
    assert not record.is_described({name: value for name, value in WHOLE["data"].items() if name != lacking})
    assert not record.is_described(None)
