"""The metrics files: what is written, what survives, what is dropped when a run goes on."""

import csv
import json
import math
import warnings

import pytest

from imgclf_jax.storage.files import read_json, write_json
from imgclf_jax.workdir.metrics import MetricsFiles, repair
from imgclf_jax.workdir.rows import METRICS, columns, read_rows


def write(folder, steps, resume_step=0, **values):
    files = MetricsFiles(folder, METRICS, resume_step, tensorboard=False)
    for step in steps:
        files.write(step=step, epoch=step / 10, split="train", loss=1 / step, accuracy=0.5, **values)
    files.close()


def table(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def as_text(rows):
    return [{name: "" if row[name] is None else str(row[name]) for name in columns(METRICS)} for row in rows]


def test_csv_is_equal_to_jsonl(tmp_path):
    write(tmp_path, [1, 2, 3], learning_rate=0.1)
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 2, 3]
    assert all(tuple(row) == columns(METRICS) for row in read_rows(tmp_path))
    assert table(tmp_path) == as_text(read_rows(tmp_path))


def test_number_that_is_not_finite_becomes_null(tmp_path):
    files = MetricsFiles(tmp_path, METRICS, tensorboard=False)
    for step, loss in enumerate((math.nan, math.inf, -math.inf, 1.0), 1):
        files.write(step=step, split="train", loss=loss)
    files.close()
    assert [row["loss"] for row in read_rows(tmp_path)] == [None, None, None, 1.0]
    # Strict JSON: NaN is not.
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert [row["loss"] for row in table(tmp_path)] == ["", "", "", "1.0"]


def test_rows_past_the_resumed_step_are_dropped(tmp_path):
    write(tmp_path, [2, 4, 6, 8])
    write(tmp_path, [6, 8, 10], resume_step=4)
    assert [row["step"] for row in read_rows(tmp_path)] == [2, 4, 6, 8, 10]
    assert table(tmp_path) == as_text(read_rows(tmp_path))


def change_a_loss(folder, name):
    """Changes a digit in the row of step 4: the file stays a valid one."""
    path = folder / name
    path.write_text(path.read_text().replace("0.25", "0.35"))


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv"])
def test_a_changed_digit_is_noticed(tmp_path, name):
    write(tmp_path, [2, 4, 6])
    change_a_loss(tmp_path, name)
    before = [(tmp_path / file).read_bytes() for file in ("metrics.jsonl", "metrics.csv")]
    with pytest.warns(UserWarning, match=r"differ in the rows of step 4, .* kept as metrics\.damaged-1\.jsonl and "):
        write(tmp_path, [6], resume_step=4)
    kept = [(tmp_path / f"metrics.damaged-1.{suffix}").read_bytes() for suffix in ("jsonl", "csv")]
    assert kept == before
    write(tmp_path, [6], resume_step=4)  # said once
    assert table(tmp_path) == as_text(read_rows(tmp_path))


def test_a_changed_row_that_will_be_written_again_does_not_matter(tmp_path):
    write(tmp_path, [2, 4, 6])
    change_a_loss(tmp_path, "metrics.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path, [4, 6], resume_step=2)
    assert read_rows(tmp_path)[1]["loss"] == 0.25


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metrics.csv", b"", "metrics.csv lacked 3 rows, which were taken from metrics.jsonl"),
        ("metrics.jsonl", b"", "metrics.jsonl lacked 3 rows, which were taken from metrics.csv"),
        ("metrics.jsonl", b"\xff\n", "is damaged in line 1"),
    ],
)
def test_the_files_of_a_complete_run_are_repaired(tmp_path, name, content, words):
    write(tmp_path, [2, 4, 6])
    whole = [(tmp_path / file).read_bytes() for file in ("metrics.jsonl", "metrics.csv")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        repair(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.warns(UserWarning, match=words):
        repair(tmp_path)
    assert [(tmp_path / file).read_bytes() for file in ("metrics.jsonl", "metrics.csv")] == whole


def test_the_row_of_the_resumed_step_stays(tmp_path):
    write(tmp_path, [2, 4])
    write(tmp_path, [], resume_step=4)
    assert [row["step"] for row in read_rows(tmp_path)] == [2, 4]


def test_the_row_of_the_test_split_is_written_again(tmp_path):
    for _ in range(2):
        files = MetricsFiles(tmp_path, METRICS, 4, tensorboard=False)
        files.write(step=4, split="test", accuracy=0.5)
        files.close()
    assert [row["split"] for row in read_rows(tmp_path)] == ["test"]


@pytest.mark.parametrize("torn", ['{"step": 6, "epo', '{"step": 6', "{", "\n"])
def test_torn_last_line_is_ignored_and_healed(tmp_path, torn):
    write(tmp_path, [2, 4])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert [row["step"] for row in read_rows(tmp_path)] == [2, 4]
    write(tmp_path, [6], resume_step=4)
    assert [row["step"] for row in read_rows(tmp_path)] == [2, 4, 6]
    assert table(tmp_path) == as_text(read_rows(tmp_path))


def test_csv_that_lags_behind_is_made_equal_again(tmp_path):
    write(tmp_path, [2, 4])
    (tmp_path / "metrics.csv").write_text("step,epo")
    write(tmp_path, [6], resume_step=4)
    assert table(tmp_path) == as_text(read_rows(tmp_path))


def test_flushed_rows_are_on_disk_before_the_files_are_closed(tmp_path):
    files = MetricsFiles(tmp_path, METRICS, tensorboard=False)
    files.write(step=1, split="train", loss=1.0)
    files.flush()
    assert len(read_rows(tmp_path)) == len(table(tmp_path)) == 1
    files.close()


def test_no_rows_without_a_file(tmp_path):
    assert read_rows(tmp_path) == []


def test_tensorboard_files_are_only_written_when_wanted(tmp_path):
    write(tmp_path, [1])
    assert not (tmp_path / "tensorboard").exists()
    files = MetricsFiles(tmp_path, METRICS, 1, tensorboard=True)
    files.write(step=2, split="train", loss=1.0)
    files.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.stat().st_size


def test_json_is_replaced_in_one_piece(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"status": "running"})
    with pytest.raises(TypeError):
        write_json(path, {"status": object()})
    assert read_json(path) == {"status": "running"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
