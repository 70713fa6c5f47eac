"""The reader of the metrics files: whatever is in a file, every row that can be had is read, and none is made up."""

import csv
import json

import pytest

from imgclf_jax.errors import UserError
from imgclf_jax.workdir.metrics import MetricsFiles
from imgclf_jax.workdir.rows import COLUMNS, read, read_rows

STEPS = [2, 4, 6, 8]


def write(folder, rows=STEPS, resume_step=0):
    files = MetricsFiles(folder, resume_step, tensorboard=False)
    for step in rows:
        files.write(step=step, epoch=step / 10, split="train", loss=1 / 3 / step, accuracy=0.5, learning_rate=1e-3)
        files.write(step=step, epoch=step / 10, split="valid", loss=0.1 / step, accuracy=0.25)
    files.close()


@pytest.fixture
def folder(tmp_path):
    write(tmp_path)
    return tmp_path


def replace_line(folder, number, content, name="metrics.jsonl"):
    lines = (folder / name).read_bytes().split(b"\n")
    lines[number - 1] = content
    (folder / name).write_bytes(b"\n".join(lines))


def as_table(rows):
    return [{name: "" if row[name] is None else str(row[name]) for name in COLUMNS} for row in rows]


DAMAGE = {
    "blank": b"",
    "blanks": b"   ",
    "zeros": b"\0" * 40,
    "not UTF-8": b'{"step": \xff\xfe}',
    "cut": b'{"step": 4, "epo',
    "a number": b"3",
    "a list": b'["step", 4]',
    "null": b"null",
    "no step": b'{"epoch": 0.4, "split": "train", "loss": 0.1, "accuracy": 0.5}',
    "a text as step": b'{"step": "4", "epoch": 0.4, "split": "train", "loss": 0.1, "accuracy": 0.5}',
    "a negative step": b'{"step": -4, "epoch": 0.4, "split": "train", "loss": 0.1, "accuracy": 0.5}',
    "a fraction as step": b'{"step": 4.5, "epoch": 0.4, "split": "train", "loss": 0.1, "accuracy": 0.5}',
    "true as step": b'{"step": true, "epoch": 0.4, "split": "train", "loss": 0.1, "accuracy": 0.5}',
    "a number as split": b'{"step": 4, "epoch": 0.4, "split": 1, "loss": 0.1, "accuracy": 0.5}',
    "a list as loss": b'{"step": 4, "epoch": 0.4, "split": "train", "loss": [], "accuracy": 0.5}',
    "NaN": b'{"step": 4, "epoch": 0.4, "split": "train", "loss": NaN, "accuracy": 0.5}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("line", [1, 3, 8])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_line_loses_nothing(folder, damage, line):
    whole, original = read_rows(folder), (folder / "metrics.jsonl").read_bytes()
    replace_line(folder, line, damage)
    damaged = (folder / "metrics.jsonl").read_bytes()
    assert damaged != original
    assert read_rows(folder) == whole
    if line == 8 and not damage.strip():  # Nothing stands there: the file has merely lost its last row.
        with pytest.warns(UserWarning, match=r"lacked 1 rows, which were taken from metrics\.csv"):
            write(folder, [], resume_step=8)
    else:
        with pytest.warns(UserWarning, match=rf"damaged in line {line}; the original is kept as metrics\.damaged-1"):
            write(folder, [], resume_step=8)
        assert (folder / "metrics.damaged-1.jsonl").read_bytes() == damaged
    assert (folder / "metrics.jsonl").read_bytes() == original
    with (folder / "metrics.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == as_table(whole)


def test_copies_of_damaged_files_are_never_overwritten(folder):
    for number in (1, 2, 3):
        replace_line(folder, number, b"x")
        with pytest.warns(UserWarning, match=f"kept as metrics.damaged-{number}"):
            write(folder, [], resume_step=8)
    copies = [(folder / f"metrics.damaged-{number}.jsonl").read_bytes() for number in (1, 2, 3)]
    assert [copy.split(b"\n").index(b"x") for copy in copies] == [0, 1, 2]


def test_a_row_that_neither_file_has_is_all_that_is_lost(folder):
    whole = read_rows(folder)
    replace_line(folder, 3, b"x")
    replace_line(folder, 4, b"4,0.4,tr", "metrics.csv")  # after the head
    found = read(folder)
    assert found.damaged == [3] and found.recovered == []
    assert found.rows == whole[:2] + whole[3:]


def test_a_row_that_was_cut_off_below_the_checkpoint_is_recovered(folder):
    whole = read_rows(folder)
    text = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(text[: len(text) // 2])
    with pytest.warns(UserWarning, match="lacked"):
        write(folder, [], resume_step=8)
    assert read_rows(folder) == whole


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv"])
def test_either_file_alone_is_enough(folder, name):
    whole = read_rows(folder)
    (folder / name).unlink()
    assert read_rows(folder) == whole


@pytest.mark.parametrize("content", [b"", b"\0" * 1000, b"\xff\xfe" * 99, b"a,b\n1,2\n", b'"' * 999, b"step\n" * 3])
def test_a_csv_file_of_anything_is_not_believed(folder, content):
    whole = read_rows(folder)
    (folder / "metrics.csv").write_bytes(content)
    replace_line(folder, 1, b"x")
    assert read_rows(folder) == whole[1:]


def test_a_whole_last_line_without_its_line_break_is_a_row(folder):
    whole = read_rows(folder)
    (folder / "metrics.csv").unlink()
    (folder / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes().rstrip())
    assert read_rows(folder) == whole


def test_rows_of_older_versions_lack_columns(tmp_path):
    row = {"step": 1, "epoch": 0.1, "split": "train", "loss": 0.5, "accuracy": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert read_rows(tmp_path) == [row | {"learning_rate": None, "images_per_second": None}]


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv"])
def test_a_folder_of_that_name_is_told(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"cannot read .*{name}: Is a directory; move it away"):
        read_rows(tmp_path)
