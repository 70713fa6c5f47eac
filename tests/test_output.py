"""output.py: files that appear whole, and never over another."""

import csv
import os

import numpy as np
import pytest

from imgclf_jax.errors import UserError
from imgclf_jax.terminal.output import csv_line, folder_problems, new_file, problems


def test_a_file_appears_when_the_block_has_ended(tmp_path):
    path = tmp_path / "rows.csv"
    assert problems(path) == []
    with new_file(path) as file:
        file.write("é\udcff\r\n")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == "é".encode() + b"\xff\r\n"
    assert list(tmp_path.iterdir()) == [path]
    with new_file(tmp_path / "bytes", "wb") as file:
        file.write(b"\0")
    assert (tmp_path / "bytes").read_bytes() == b"\0"


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in (path, tmp_path / "link", tmp_path):
        message = "is a folder; choose another --output" if taken == tmp_path else "exists; choose another --output or"
        assert message in problems(taken)[0]
        with pytest.raises(UserError, match=message), new_file(taken):
            pass
    assert path.read_text() == "mine"


def test_nor_is_what_came_while_the_file_was_written(tmp_path):
    path = tmp_path / "rows.csv"
    with pytest.raises(UserError, match="exists"), new_file(path) as file:
        file.write("ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "rows.csv") as file:
        file.write("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_and_an_impossible_name_are_reported(tmp_path):
    missing = tmp_path / "nowhere" / "rows.csv"
    assert "does not exist" in problems(missing)[0] and "nowhere" in problems(missing)[0]
    with pytest.raises(UserError, match="does not exist"), new_file(missing):
        pass
    with pytest.raises(UserError, match="cannot write"), new_file(tmp_path / ("x" * 300)):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", '"\'\t=1"'),
        ("\r=1", '"\'\r=1"'),
        ("'=1", "''=1"),
        ('=HYPERLINK("http://x","y")', '"\'=HYPERLINK(""http://x"",""y"")"'),
        ("a;=1+1", '"a;=1+1"'),  # two cells, where semicolons separate them
        ("a-b=c@d", "a-b=c@d"),
        ("", ""),
    ],
)
def test_text_is_not_a_formula_and_is_read_back_without_its_apostrophe(text, written):
    line = csv_line([text, "end"])
    assert line == f"{written},end\n"
    ((cell, _),) = csv.reader([line[:-1]])
    assert cell.removeprefix("'") == text


def test_numbers_in_a_csv_stay_numbers():
    assert csv_line([-1.5, np.float32(0.1), 7, "-1.5"]) == "-1.5,0.1,7,'-1.5\n"


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "file" / "x", f"{tmp_path / 'file'} is not a folder; choose another --output"),
        (tmp_path / "none" / "x", f"folder {tmp_path / 'none'} does not exist; create it or choose another --output"),
        (tmp_path / "pipe", "exists and is not a regular file; choose another --output"),
        (tmp_path / ("x" * 300), "File name too long; choose another --output"),
        (tmp_path / ("x" * 300) / "y", "File name too long; choose another --output"),
    ):
        (line,) = problems(path)
        assert line.endswith(words), line
    assert problems(tmp_path / ("é" * 120)) == []
    with new_file(tmp_path / ("é" * 120)) as file:
        file.write("fits")


def test_a_folder_may_be_missing_but_not_a_file(tmp_path):
    (tmp_path / "file").touch()
    assert folder_problems(tmp_path / "a" / "b", "--save_dir", missing=True) == []
    assert "is not a folder" in folder_problems(tmp_path / "file" / "b", "--save_dir", missing=True)[0]
    assert "too long" in folder_problems(tmp_path / ("x" * 300), "--save_dir", missing=True)[0]
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
