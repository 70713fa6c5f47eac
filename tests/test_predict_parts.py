"""predict/: finding files, reading them ahead of the network, writing rows, and the score."""

import csv
import io
import json
import os
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.cells import cell_len

from imgclf_jax.data import decode as photos
from imgclf_jax.predict import reading
from imgclf_jax.predict.files import find, label
from imgclf_jax.predict.formats import Csv, JsonLines, Table
from imgclf_jax.predict.reading import Row, best, predict_files
from imgclf_jax.predict.score import Score

NAMES = ("cars", "elephants", "sea, lions")
PROBABILITIES = np.array([0.2, 0.7, 0.1], np.float32)


# Finding files


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder that is the current one, with files in it by name."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

    return make


def paths(*names):
    return [str(file.path) for file in find(names).files]


def test_folders_are_searched_in_order_without_what_is_hidden(tree):
    tree("a/2.png", "a/10.png", "a/b/c/x.jpg", "a/.hidden", "a/.git/y.jpg", "a/notes.txt")
    assert paths("a") == ["a/10.png", "a/2.png", "a/b/c/x.jpg", "a/notes.txt"]
    assert paths("a/.hidden") == ["a/.hidden"]  # asked for by name


def test_names_keep_their_order_and_a_file_counts_once(tree):
    tree("a/1.png", "a/2.png", "b/3.png")
    assert paths("b", "a/2.png", "a", "./b/../a/1.png", "a/*") == ["b/3.png", "a/2.png", "a/1.png"]


def test_globs_are_expanded(tree, tmp_path):
    tree("a/1.png", "a/2.jpg", "a/b/3.png", "a/.4.png", "5.png")
    assert paths("*.png") == ["5.png"]
    assert paths("a/*.png") == ["a/1.png"]
    assert paths("**/*.png") == ["5.png", "a/1.png", "a/b/3.png"]
    assert paths(f"{tmp_path}/a/**/[13].png") == [f"{tmp_path}/a/1.png", f"{tmp_path}/a/b/3.png"]
    assert paths("a*") == ["a/1.png", "a/2.jpg", "a/b/3.png"]  # a folder that matches is searched


def test_an_existing_name_is_not_a_glob(tree):
    tree("x[1].png", "x1.png", "a*/y.png", "ab/z.png")
    assert paths("x[1].png") == ["x[1].png"]
    assert paths("a*") == ["a*/y.png"]


def test_names_that_match_nothing_are_reported(tree, tmp_path):
    tree("a.png")
    (tmp_path / "empty").mkdir()
    found = find(["a.png", "b.png", "*.jpg", "empty", ""])
    assert [str(file.path) for file in found.files] == ["a.png"]
    words = ("no file matches 'b.png'", "no file matches '*.jpg'", "folder 'empty' holds no files", "an empty name")
    assert len(found.problems) == len(words)
    assert all(word in problem for word, problem in zip(words, found.problems, strict=True))


def test_links_are_followed_but_not_in_circles(tree, tmp_path):
    tree("real/1.png", "a/2.png")
    (tmp_path / "a/linked").symlink_to(tmp_path / "real")
    (tmp_path / "a/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/nowhere").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "a/pipe")  # opening it would wait for a writer
    assert paths("a") == ["a/2.png", "a/linked/1.png", "a/nowhere"]
    assert paths("a/pipe") == []


def test_the_label_is_that_of_the_nearest_folder_within_what_was_given(tree, tmp_path, monkeypatch):
    tree("cars/photos/elephants/old/1.png", "cars/photos/2.png")
    labels = {"cars": 0, "elephants": 1}

    def found(*names):
        return [label(file, labels) for file in find(names).files]

    assert found("cars") == [0, 1]
    assert found("cars/photos") == [None, 1]  # the folder above was not given
    assert found("cars/photos/2.png") == [None]
    assert found("cars/**/*.png") == [0, 1]
    assert found(f"{tmp_path}/*/photos/*.png") == [0]
    assert found(f"{tmp_path}/cars/photos/*.png") == [None]
    monkeypatch.chdir(tmp_path / "cars")
    assert found(".") == [0, 1]
    assert found("../cars/photos/..") == [0, 1]


def test_the_label_does_not_depend_on_how_accents_are_written(tree):
    tree("pflanzen/Bla\u0308tter/1.png", "pflanzen/Blätter/2.png")
    assert [label(file, {"Blätter": 3}) for file in find(["pflanzen"]).files] == [3, 3]


def test_thumbnails_and_the_like_are_not_found(tree):
    tree("a/1.png", "a/@eaDir/1.png/SYNO.png", "a/__MACOSX/._1.png", "a/Thumbs.db")
    assert paths("a") == ["a/1.png"]


def test_subfolders_are_noticed(tree):
    tree("a/b/1.png", "c/2.png")
    assert find(["a"]).has_subfolders
    assert not find(["a/b", "c", "a/b/1.png", "c/*"]).has_subfolders


# Reading


def some_photos(folder, count, size=(6, 5)):
    draws = np.random.default_rng(0)
    names = []
    for index in range(count):
        name = str(folder / f"{index:03}.png")
        Image.fromarray(draws.integers(0, 256, (*size, 3)).astype(np.uint8)).save(name)
        names.append(name)
    return names


def mean_color(images):
    """A network whose three probabilities differ between photos."""
    return images.reshape(len(images), -1, 3).astype(np.float32).mean(1) / 255


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_rows_come_in_order_with_bad_files_among_them(tmp_path, batch_size):
    names = some_photos(tmp_path, 10)
    expected = [mean_color(np.asarray(Image.open(name))[None])[0] for name in names]
    (tmp_path / "empty").touch()
    files = [(name, index) for index, name in enumerate(names)]
    files[3:3] = [(str(tmp_path / "empty"), None), (str(tmp_path / "gone.png"), 7)]
    expected[3:3] = [None, None]
    batches = list(predict_files(files, mean_color, (6, 5, 3), "stretch", batch_size))
    assert all(len(batch) <= batch_size for batch in batches)
    rows = [row for batch in batches for row in batch]
    assert [(row.file, row.label) for row in rows] == files
    for row, probabilities in zip(rows, expected, strict=True):
        if probabilities is None:
            assert row.probabilities is None and row.reason
        else:
            np.testing.assert_array_equal(row.probabilities, probabilities)
            assert row.reason == ""


@pytest.mark.parametrize("image_shape", [(4, 8, 1), (6, 5, 3), (3, 3, 4)])
def test_photos_get_the_shape_that_the_network_takes(tmp_path, image_shape):
    seen = []

    def network(images):
        seen.append(images)
        return np.zeros((len(images), 2), np.float32)

    files = [(name, None) for name in some_photos(tmp_path, 3)]
    assert len(next(predict_files(files, network, image_shape, "crop", 8))) == 3
    assert [(images.shape, images.dtype) for images in seen] == [((3, *image_shape), np.uint8)]


def test_photos_are_read_ahead_but_not_far(tmp_path, monkeypatch):
    started = []

    def decode(name, *_):
        started.append(name)
        return photos.Photo(Image.new("RGB", (2, 2)), "")

    monkeypatch.setattr(photos, "decode", decode)
    files = ((f"{index}.png", None) for index in range(500))
    batches = predict_files(files, mean_color, (2, 2, 3), "stretch", 8)
    for index in range(3):
        next(batches)
        ahead = 8 * (index + 1) + 8 + 16  # this batch and those before, the next one, and one for each thread
        assert len(started) <= ahead
    deadline = time.monotonic() + 20
    while len(started) <= 24 and time.monotonic() < deadline:  # the next batch is being read meanwhile
        time.sleep(0.01)
    assert len(started) > 24
    batches.close()
    assert threading.active_count() < 20


def test_nan_is_not_a_prediction(tmp_path):
    def network(images):
        found = mean_color(images)
        found[1, 2] = np.nan
        return found

    files = [(name, 0) for name in some_photos(tmp_path, 3)]
    (rows,) = predict_files(files, network, (6, 5, 3), "stretch", 8)
    assert [row.probabilities is None for row in rows] == [False, True, False]
    assert rows[1].reason == reading.NOT_FINITE
    for form in (Csv(NAMES, 2), Table(NAMES, 2, [files[1][0]], 0), JsonLines(NAMES)):
        text = form.row(rows[1])
        assert reading.NOT_FINITE in text and not any(name in text for name in NAMES[1:])


def test_photos_that_are_odd_are_reported_once(tmp_path):
    names = [str(tmp_path / f"{number}.png") for number in range(5)]
    for number, name in enumerate(names):
        values = np.full((4, 4), 4095 if number in (1, 3) else 65535, np.uint16)
        Image.fromarray(values).save(name)
    with pytest.warns(UserWarning) as caught:
        rows = list(predict_files([(name, None) for name in names], mean_color, (2, 2, 3), "stretch", 2))
    assert sum(map(len, rows)) == 5
    (line,) = [str(warning.message) for warning in caught]
    assert line.startswith(f"2 of 5 photos come out dark (2 × values stay below 4,096 of 65,535), e.g. {names[1]}; if ")


def test_an_error_that_is_not_the_files_is_not_hidden(tmp_path, monkeypatch):
    def decode(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(photos, "decode", decode)
    with pytest.raises(ZeroDivisionError):
        list(predict_files([("x.png", None)], mean_color, (2, 2, 3), "stretch", 8))


def test_equal_probabilities_come_in_the_order_of_the_labels():
    assert best(np.array([0.1, 0.4, 0.4, 0.1], np.float32), 3) == [1, 2, 0]


# Formats


def file_names():
    return st.text(st.characters(codec=None, exclude_characters="\0"), min_size=1)


@given(name=file_names(), reason=st.text())
def test_csv_and_json_give_any_name_back(name, reason):
    good, bad = Row(name, PROBABILITIES, "", 1), Row(name, None, reason, None)
    form = Csv(NAMES, 9)
    text = form.head() + form.row(good) + form.row(bad)
    head, first, second = csv.reader(io.StringIO(text, newline=""))
    assert head == ["file", "class_1", "probability_1", "class_2", "probability_2", "class_3", "probability_3", "error"]
    assert [first[0].removeprefix("'"), *first[1:]] == [
        name,
        "elephants",
        "0.7",
        "cars",
        "0.2",
        "sea, lions",
        "0.1",
        "",
    ]
    assert [second[0].removeprefix("'"), *second[1:7]] == [name, *[""] * 6]
    assert second[7].removeprefix("'") == reason
    assert not {cell[:1] for cell in (first[0], second[0], second[7])} & set("=+-@\t\r\n")
    form = JsonLines(NAMES)
    lines = (form.row(good) + form.row(bad)).splitlines()
    probabilities = {"elephants": 0.7, "cars": 0.2, "sea, lions": 0.1}
    assert [json.loads(line) for line in lines] == [
        {
            "file": name,
            "class": "elephants",
            "probability": 0.7,
            "probabilities": probabilities,
            "true": "elephants",
        },
        {"file": name, "error": reason},
    ]


def test_numbers_are_those_of_the_network():
    numbers = np.random.default_rng(0).dirichlet(np.ones(3), 100).astype(np.float32)
    form = Csv(NAMES, 3)
    for row in numbers:
        cells = next(csv.reader([form.row(Row("x", row, "", None))]))
        assert {name: np.float32(value) for name, value in zip(cells[1:7:2], cells[2:7:2], strict=True)} == dict(
            zip(NAMES, row, strict=True)
        )


LONG = [
    "a.png",
    "photos/with a long name/" + "x" * 80 + "/1234.png",
    "大きな写真/" + "象" * 40 + ".png",
    "new\nline.png",
]


@pytest.mark.parametrize("width", [0, 80, 100, 120])
def test_table_is_aligned_and_fits(width):
    table = Table(NAMES, 3, LONG, width)
    lines = [table.head(), *(table.row(Row(name, PROBABILITIES, "", None)) for name in LONG)]
    assert all(line.count("\n") == 1 and line.endswith("\n") for line in lines)
    lines = [line[:-1] for line in lines]
    assert (
        len({cell_len(line.split("elephants")[0]) for line in lines[1:]} | {cell_len(lines[0].split("class 1")[0])})
        == 1
    )
    assert len({cell_len(line) for line in lines[1:]}) == 1
    if width:
        assert max(map(cell_len, lines)) <= width
        assert lines[2].split("  ")[0].endswith("x/1234.png")  # the names differ at the end
    else:
        assert all(name in line for name, line in zip(LONG[:3], lines[1:4], strict=True))


def test_a_table_too_narrow_shortens_classes_as_well():
    names = ["a very long name of a class", "b" * 40]
    table = Table(names, 2, ["f" * 50], 60)
    row = table.row(Row("f" * 50, np.array([0.25, 0.75], np.float32), "", None))
    assert cell_len(row) <= 61
    assert "b… 0.7500" in row and "… 0.2500" in row


def test_the_reason_stands_in_the_place_of_the_classes():
    table = Table(NAMES, 2, ["a.png", "longer.png"], 0)
    assert table.row(Row("a.png", None, "an empty file", None)) == "a.png       an empty file\n"


# The score


def scored(names, pairs):
    score = Score(names)
    for true, predicted in pairs:
        score.add(true, predicted)
    return score


def test_score_counts_and_shows_what_is_taken_for_what():
    score = scored(NAMES, [(0, 0)] * 12 + [(0, 2)] * 3 + [(1, 1)] * 5)
    assert score.count == 20
    assert score.text(20, 100).splitlines() == [
        "17 / 20 correct, 0.8500",
        "",
        "            predicted",
        "true        cars  elephants  sea, lions",
        "cars          12          .           3",
        "elephants      .          5           .",
    ]


def test_score_says_what_it_leaves_out():
    assert "4 of 5 files are not scored" in scored(NAMES, [(0, 0)]).text(5, 100)
    assert "not scored" not in scored(NAMES, [(0, 0)]).text(1, 100)


def test_classes_whose_names_do_not_fit_are_numbered():
    names = [f"a long name {index}" for index in range(12)]
    lines = scored(names, [(3, 11)] * 7).text(7, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[3].split()[1:] == [str(index) for index in range(12)]
    assert len(lines) == 4 + 12  # all numbers are explained
    row = lines[4 + 3]
    assert row.startswith(" 3 a long name 3 ") and row.split()[-1] == "7"


def test_of_many_classes_only_the_worst_pairs_are_shown():
    names = [f"c{index}" for index in range(21)]
    pairs = [(0, 0)] * 50 + [(1, 2)] * 5 + [(20, 3)] * 9 + [(index, 4) for index in range(5, 20)]
    lines = scored(names, pairs).text(len(pairs), 80).splitlines()
    assert [line.split() for line in lines[2:5]] == [
        ["files", "true", "predicted"],
        ["9", "c20", "c3"],
        ["5", "c1", "c2"],
    ]
    assert len(lines) == 3 + 10
    assert scored(names, [(0, 0)]).text(1, 80) == "1 / 1 correct, 1.0000\n"
