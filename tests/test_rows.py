"""The reader of the metrics files: from any content, every readable row is read, and none is made up."""

import csv
import json
import warnings

import pytest

from imgclf_jax.errors import UserError
from imgclf_jax.workdir.metrics import MetricsFiles, repair
from imgclf_jax.workdir.rows import METRICS, columns, read, read_rows

STEPS = [2, 4, 6, 8]


def write(folder, rows=STEPS, resume_step=0):
    files = MetricsFiles(folder, METRICS, resume_step, tensorboard=False)
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
    return [{name: "" if row[name] is None else str(row[name]) for name in columns(METRICS)} for row in rows]


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
def test_a_folder_of_that_name_is_reported(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"cannot read .*{name}: Is a directory; move it away"):
        read_rows(tmp_path)


# Files with other columns than those of the session that reads or continues them.


def write_columns(folder, metrics, steps, resume_step=0):
    files = MetricsFiles(folder, metrics, resume_step, tensorboard=False)
    for step in steps:
        values = {name: 0.5 / step for name in metrics}
        files.write(step=step, epoch=step / 10, split="train", learning_rate=1e-3, **values)
    files.close()


def table_of(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


TOP5 = ("loss", "accuracy", "top5")


def test_a_metric_adds_a_column_before_the_rate(tmp_path):
    write_columns(tmp_path, TOP5, [2, 4])
    assert tuple(table_of(tmp_path)[0]) == ("step", "epoch", "split", *TOP5, "learning_rate", "images_per_second")
    assert all(tuple(row) == columns(TOP5) for row in read_rows(tmp_path))
    assert [row["top5"] for row in read_rows(tmp_path)] == [0.25, 0.125]


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv"])
def test_either_file_alone_is_enough_with_other_columns(tmp_path, name):
    write_columns(tmp_path, TOP5, [2, 4])
    whole = read_rows(tmp_path)
    (tmp_path / name).unlink()
    assert read_rows(tmp_path) == whole
    with pytest.warns(UserWarning, match=f"{name} lacked 2 rows"):
        repair(tmp_path)
    assert read(tmp_path) == (whole, [], [], [], [])


@pytest.mark.parametrize(("before", "after"), [(METRICS, TOP5), (TOP5, METRICS), (TOP5, (*METRICS, "nll"))])
def test_a_run_goes_on_with_other_columns(tmp_path, before, after):
    write_columns(tmp_path, before, [2, 4, 6])
    old = read_rows(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_columns(tmp_path, after, [6, 8], resume_step=4)
        write_columns(tmp_path, after, [8], resume_step=6)
        repair(tmp_path)
    assert read(tmp_path)[1:] == ([], [], [], [])
    rows = read_rows(tmp_path)
    assert rows[:2] == old[:2] and [row["step"] for row in rows] == [2, 4, 6, 8]
    assert [tuple(row) for row in rows] == [columns(before)] * 2 + [columns(after)] * 2
    table = table_of(tmp_path)
    assert tuple(table[0]) == columns(after, old)
    for row, line in zip(rows, table, strict=True):
        assert line == {name: "" if row.get(name) is None else str(row[name]) for name in line}


def test_a_changed_value_of_any_metric_is_noticed(tmp_path):
    write_columns(tmp_path, TOP5, [1, 2])
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text().replace("0.25,0.001", "0.35,0.001"))
    assert [row["step"] for row in read(tmp_path).differing] == [2]


def test_columns_that_the_csv_file_lacks_are_not_compared(tmp_path):
    write_columns(tmp_path, TOP5, [2, 4])
    names = [name for name in columns(TOP5) if name != "top5"]
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(read_rows(tmp_path))
    assert read(tmp_path)[1:] == ([], [], [], [])


@pytest.mark.parametrize("value", ['"0.5"', "[]", "{}", "true", "NaN"])
def test_a_metric_must_be_a_number_or_null(tmp_path, value):
    write_columns(tmp_path, TOP5, [2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace('"top5": 0.25', f'"top5": {value}'))
    assert read(tmp_path).damaged == [1]
    path.write_text(path.read_text().replace(f'"top5": {value}', '"top5": null'))
    assert read(tmp_path).damaged == []


def test_files_without_a_single_row_are_repaired(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("x\n")
    with pytest.warns(UserWarning, match="damaged in line 1"):
        repair(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert (tmp_path / "metrics.csv").read_text() == ",".join(columns(METRICS)) + "\n"
