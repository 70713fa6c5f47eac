"""The page of a report: in a browser, and with any names of classes, files and runs."""

import csv
import html
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgclf_jax.config import default
from imgclf_jax.data.types import LazyImages
from imgclf_jax.report import drawing, examples, facts, grouping, markup, page, predictions, side_by_side, thumbnails
from imgclf_jax.report.predictions import Predictions
from imgclf_jax.report.runs import Run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
SCRIPT = "<script>alert(1)</script>"
HOSTILE = (
    SCRIPT,
    "$x_1$ $\\frac{$",
    "_private",
    "\"quotes\" & 'others'",
    "größer 象 🐘",
    "x" * 200,
    "</title></style><img src=x onerror=alert(2)>",
    "control\x07\x1b[0m",
    "file\udcff",  # as os.listdir gives a name that is no UTF-8
    "10 % {braces} \\n",
)


def make_run(names=HOSTILE, shape=(8, 8, 3), count=60, name="run", notes=()):
    """A run that was never trained, with predictions that were drawn."""
    draws = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int32) % len(names)
    scores = draws.normal(size=(count, len(names))) + 2 * np.eye(len(names))[labels]
    scores = (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32)
    ids = np.array([f"{names[label]}/{index}.png" for index, label in enumerate(labels)])
    images = draws.integers(0, 256, (count, *shape)).astype(np.uint8)
    found = Predictions("test", tuple(names), ids, images, labels, scores)
    config = default()
    config.data.dir = SCRIPT
    rows = [
        {
            "step": 10 * n,
            "epoch": n / 2,
            "split": split,
            "loss": 2 / n + 0.1 * (split == "valid"),
            "accuracy": 1 - 0.4 / n,
        }
        for n in range(1, 9)
        for split in ("train", "valid")
    ]
    record = {
        "status": "complete",
        "started": SCRIPT,
        "data": {"name": SCRIPT, "class_names": list(names), "counts": {"valid": 50, "test": count}},
        "provenance": {"device_kind": SCRIPT, "packages": {SCRIPT: SCRIPT}},
        "results": {"test": {"accuracy": found.correct / count, "loss": 1.0, "correct": found.correct, "count": count}},
    }
    return Run(name, Path("/tmp") / "run", config, record, rows, None, found, notes)


class OnDisk(LazyImages):
    """Images that look as if they were decoded when they are asked for, and remember which were."""

    def __init__(self, images):
        super().__init__(images.shape)
        self._images, self.asked = images, set()

    def read(self, index):
        self.asked.add(index)
        return self._images[index]


@pytest.fixture(scope="module")
def hostile():
    return page.build([make_run(name=SCRIPT, notes=(SCRIPT,))])


@pytest.fixture(scope="module")
def written(hostile, tmp_path_factory):
    """Files of pages: one run, and two side by side."""
    folder = tmp_path_factory.mktemp("pages")
    both = page.build([make_run(name="_one $x$"), make_run(names=("cat", "dog"), shape=(300, 400, 1), name=SCRIPT)])
    for name, built in (("hostile", hostile), ("both", both)):
        (folder / f"{name}.html").write_text(built.html, encoding="utf-8")
    return folder


def pictures(built):
    return {picture.name: picture for found in built.pictures.values() for picture in found}


def test_runs_that_were_trained_together_have_their_share_of_the_time():
    run = make_run(names=("cat", "dog"))
    run.record["wall_time_seconds"] = 120.0
    assert "at once" not in facts.time(run) and facts.own_time(run) == "2:00 min"
    run.record["together"] = 4
    assert "2:00 min" in facts.time(run) and "4 runs at once; the share of this run: 30.0 s" in facts.time(run)
    compared = side_by_side.compare([run, run._replace(name="again")], linked=False)[0].body
    assert "30.0 s" in compared and "2:00 min" not in compared


def test_no_name_becomes_markup(hostile):
    assert "<script" not in hostile.html.lower()
    assert "<img src=x" not in hostile.html
    assert hostile.html.count("</title></style>") == 0
    for picture in pictures(hostile).values():
        assert "<script" not in picture.svg.lower(), picture.name
    # They are there all the same.
    assert html.escape(SCRIPT) in hostile.html


def test_names_are_shown_as_they_are(hostile):
    confusion = pictures(hostile)["confusion"].svg
    for text in ("_private", "größer 象 🐘", "$x_1$ $\\frac{$"):
        assert text in hostile.html and text in html.unescape(confusion), text
    assert "x" * 200 in hostile.html  # the whole of it in a tooltip
    assert "x" * 30 not in re.sub(r'(title|alt)="[^"]*"|<title>[^<]*</title>', "", hostile.html)
    assert not re.findall("[\x00-\x08\x0b-\x1f\x7f]", hostile.html)
    hostile.html.encode("utf-8")


def test_runs_of_any_name_are_in_the_legend():
    built = page.build([make_run(name=name) for name in ("_one", "two $x$ $", SCRIPT)])
    for field in ("accuracy", "loss"):
        legend = html.unescape(pictures(built)[f"compare_{field}"].svg)
        assert all(name in legend for name in ("_one", "two $x$ $", SCRIPT))


def repetitions(count, group="plain", **changes):
    """Runs in one folder that differ in the seed."""
    made = []
    for seed in range(count):
        run = make_run(names=("a", "b"), count=12, name=f"{group}/seed{seed}", notes=("odd",) if seed == 1 else ())
        run.config.update_from_flattened_dict({"seed": seed, **changes})
        rows = [{**row, "accuracy": row["accuracy"] + seed / 100} for row in run.rows]
        made.append(run._replace(folder=Path("/tmp") / group / f"seed{seed}", rows=rows))
    return made


def test_repetitions_are_one_curve_with_a_band():
    built = page.build([*repetitions(3), *repetitions(1, "flip", **{"augment.flip": True})], details=False)
    legend = html.unescape(pictures(built)["compare_accuracy"].svg)
    assert "plain (n = 3)" in legend and "flip/seed0" in legend and "plain/seed0" not in legend
    assert "Mean ± standard deviation" in built.html
    results = [run.result["accuracy"] for run in repetitions(3)]
    assert f"{np.mean(results):.4f} ± {np.std(results, ddof=1):.4f}" in built.html
    differences = built.html.partition('id="differences"')[2].partition("</section>")[0]
    assert "augment.flip" in differences and ">seed<" not in differences


def test_groups_of_runs():
    plain, flip = repetitions(2), repetitions(2, "flip", **{"augment.flip": True})
    found = grouping.group([plain[0], *flip, plain[1]])
    assert [(part.name, len(part.runs)) for part in found] == [("plain", 2), ("flip", 2)]
    # The same experiment twice is not repeated, and one folder for two groups does not name them.
    assert [len(part.runs) for part in grouping.group([*plain, plain[0]._replace(name="again")])] == [1, 1, 1]
    mixed = [run._replace(folder=Path("/tmp/all") / run.name) for run in (*plain, *flip)]
    mixed = [run._replace(folder=Path("/tmp/all") / str(index)) for index, run in enumerate(mixed)]
    assert [part.name for part in grouping.group(mixed)] == ["plain/seed0 and 1 more", "flip/seed0 and 1 more"]


def test_many_runs_are_compared_without_details_unless_they_are_asked_for(undrawn):
    runs = repetitions(5)
    built = page.build(runs)
    assert "<details" not in built.html and 'href="#run1"' not in built.html
    assert "--details" in built.html and "plain/seed1: odd" in built.html
    assert "Nothing but seed and fold." in built.html
    assert list(built.pictures) == [None, 0, 1, 2, 3, 4]
    for anchor in re.findall(r'href="#([\w-]+)"', built.html):
        assert f'id="{anchor}"' in built.html
    built = page.build(runs[:2], details=False)
    assert "<details" not in built.html
    built = page.build(runs, details=True)
    assert built.html.count('<details class="run"') == 5 and 'href="#run5"' in built.html


def test_shortened_names_have_tooltips(hostile):
    assert re.search(r'<th scope="row"><span title="x{200}">x{17}…</span></th>', hostile.html)


def test_the_confusion_matrix_leads_to_the_images_of_its_cells(undrawn):
    run = make_run(names=("cat", "dog", "象"), count=400)
    built = page.build([run])
    found = run.predictions
    shown = dict(
        re.findall(r'<div id="run-cell-(\d-\d)" class="panel">(.*?)</figure></div></div>', built.html, re.DOTALL)
    )
    counts = {f"{a}-{b}": int(((found.labels == a) & (found.predicted == b)).sum()) for a in range(3) for b in range(3)}
    assert set(shown) == {cell for cell, count in counts.items() if count}
    for cell, content in shown.items():
        assert content.count("<img") == min(8, counts[cell])
        assert f'<a href="#run-cell-{cell}">{counts[cell]}</a>' in built.html
    assert built.html.count('<div id="run-cell-') == len(shown)


def test_the_images_of_cells_are_few(undrawn):
    predictions_of = make_run(names=[f"class {index}" for index in range(30)], count=3000).predictions
    found = examples.of_cells(predictions_of)
    assert len(found) == 400 == sum(map(len, found.values()))
    assert all(true != predicted for true, predicted in found)  # mistakes come first


def test_the_page_says_how_good_it_is_compared_with_guessing(undrawn):
    run = make_run(names=("cat", "dog", "cow"), count=61)
    html = page.build([run]).html
    assert "Always guessing cat would be right for 21, which is 0.3443." in html
    assert "Images: 50 validation, 61 test. Classes of the test images: cat 21, dog 20, cow 20." in html
    assert "3 classes with 20 test images each" in page.build([make_run(names=("cat", "dog", "cow"), count=60)]).html


def test_own_metrics_have_curves_and_a_column():
    run = make_run(names=("cat", "dog"))
    run = run._replace(rows=[{**row, "top 2/3": row["accuracy"] / 2} for row in run.rows])
    run.record["results"]["test"]["top 2/3"] = 0.4567
    built = page.build([run])
    assert "learning_top_2_3" in pictures(built) and "Top 2/3 while training" in built.html
    both = page.build([run, make_run(names=("cat", "dog"), name="other")], details=False)
    assert "compare_top_2_3" in pictures(both)
    assert '<th class="number">top 2/3</th>' in both.html and '<td class="number">0.4567</td>' in both.html
    assert '<td class="number">–</td>' in both.html  # of the other run


def test_a_heat_map_is_over_the_image():
    image = np.full((8, 8, 3), 100, np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[2, 5] = 1
    covered = thumbnails.under(image, heat).astype(int)
    assert covered.shape == (8, 8, 3) and (covered[0] == 100).all()
    assert np.abs(covered - 100).sum(axis=2).argmax() == 2 * 8 + 5


def test_pictures_are_in_the_colors_of_the_page(hostile):
    for picture in re.findall(r"<svg.*?</svg>", hostile.html, flags=re.DOTALL):
        colors = set(re.findall(r"(?:fill|stroke|color): (#[0-9a-f]{3,6})", picture))
        assert colors <= {"#000000"} and "var(--ink)" in picture, colors


@pytest.mark.parametrize("count", [2, 21, 100])
def test_many_classes_have_no_numbers_but_a_list(count):
    names = [f"class number {index}" for index in range(count)]
    built = page.build([make_run(names=names, count=300)])
    confusion = pictures(built)["confusion"].svg
    assert ("class number 1" in confusion) == (count <= 20)
    assert "Most frequent mistakes" in built.html
    assert (f"All {count} classes" in built.html) == (count > 20)
    shown = {int(k) for k in re.findall(r">top (\d)<", built.html)}
    assert shown == ({1, 2, 3, 5} if count > 5 else set())


def test_small_images_keep_their_pixels_and_photos_are_scaled_down():
    tiny = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3).astype(np.uint8)
    assert thumbnails.small(tiny) is tiny and thumbnails.is_tiny(tiny)
    for shape in ((480, 640, 3), (640, 480, 1), (1000, 10, 4)):
        small = thumbnails.small(np.zeros(shape, np.uint8))
        assert max(small.shape) == 224 and small.shape[2] == shape[2]
        assert small.shape[0] / small.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.25)
        assert not thumbnails.is_tiny(small)
    run = make_run(names=("a", "b"), count=200, shape=(30, 400, 3))
    lazy = OnDisk(run.predictions.images)
    built = page.build([run._replace(predictions=run.predictions._replace(images=lazy))])
    assert 'class="pixels"' not in built.html
    assert 4 <= len(lazy.asked) < 50  # Only what is shown is decoded.


def test_an_image_is_encoded_without_loss():
    import base64
    import io

    for channels in (1, 3, 4):
        image = np.random.default_rng(channels).integers(0, 256, (7, 5, channels)).astype(np.uint8)
        kind, _, data = thumbnails.encode(image).partition(",")
        back = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert kind == "data:image/png;base64" and np.array_equal(back.reshape(image.shape), image)
    photo = np.random.default_rng(0).integers(0, 256, (200, 100, 3)).astype(np.uint8)
    assert thumbnails.encode(photo).startswith("data:image/jpeg;base64,")


def test_csv_is_read_back_as_it_was(tmp_path):
    run = make_run(names=(*HOSTILE, 'comma, "quote"\nline', "=1+1", "'quoted'"))
    predictions.write_csv(tmp_path / "predictions.csv", run.predictions)
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert rows[0][5:] == [f"p({name})" for name in run.predictions.class_names]
    text = [[cell.removeprefix("'") for cell in row[:3]] for row in rows[1:]]
    assert "'=1+1" in {row[1] for row in rows[1:]}
    assert [row[0] for row in text] == list(run.predictions.ids)
    assert [row[1] for row in text] == [run.predictions.class_names[label] for label in run.predictions.labels]
    np.testing.assert_allclose(np.array([row[5:] for row in rows[1:]], float), run.predictions.probabilities, rtol=1e-5)


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are not drawn, which takes most of a page's time."""
    blank = '<svg width="1pt" height="1pt"></svg>'
    monkeypatch.setattr(drawing, "finish", lambda figure, name, alt, *_: drawing.Picture(name, alt, blank, b"", {}))


def test_nan_counts_as_wrong_and_is_measured_nowhere(tmp_path, undrawn):
    run = make_run(names=("a", "b", "c"))
    scores = run.predictions.scores.copy()
    lost = [0, 7, 59]
    scores[lost, 1] = np.nan
    found = run.predictions._replace(scores=scores, images=OnDisk(run.predictions.images))
    kept = np.setdiff1d(np.arange(60), lost)
    right = int((run.predictions.predicted[kept] == run.predictions.labels[kept]).sum())
    assert found.correct == right and list(np.flatnonzero(found.predicted == -1)) == lost
    finite = found.only_finite()
    np.testing.assert_array_equal(finite.scores, run.predictions.scores[kept])
    np.testing.assert_array_equal(finite.images[5], run.predictions.images[kept[5]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built = page.build([run._replace(predictions=found)])
        predictions.write_csv(tmp_path / "predictions.csv", found)
    assert f"{right} of 60 examples of the test split are classified correctly" in built.html
    # The confusion matrix is about the other 57 examples.
    assert f"confusion matrix of 3 classes: {right} of 57 predictions are correct" in built.html
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", built.html), re.IGNORECASE)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [index for index, row in enumerate(rows) if not row["predicted"]] == lost
    assert {rows[index]["probability"] for index in lost} == {"nan"}


def test_nothing_but_nan_is_said_in_a_sentence(undrawn):
    run = make_run(names=("a", "b"))
    nothing = run._replace(predictions=run.predictions._replace(scores=np.full((60, 2), np.nan, np.float32)))
    built = page.build([nothing, make_run(names=("a", "b"), name="other")])
    assert "All 60 predictions on the test split are NaN" in built.html
    assert "test accuracy 0.0000" in built.html


def test_text_cannot_turn_the_direction_of_what_follows(undrawn):
    built = page.build([make_run(names=("gnp\u202ejpg", "שלום", "\u2067x"))])
    assert not set(built.html) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    assert "gnp\ufffdjpg" in built.html and "שלום" in built.html


def test_predictions_without_a_mistake_and_without_a_class():
    run = make_run(names=("a", "b", "never seen"))
    perfect = np.full((60, 3), -10, np.float32)
    labels = np.arange(60, dtype=np.int32) % 2
    perfect[np.arange(60), labels] = 0
    built = page.build([run._replace(predictions=run.predictions._replace(scores=perfect, labels=labels))])
    assert "None of the 60 predictions is wrong" in built.html
    assert "never predicted has no precision" in built.html
    assert "mistakes" not in pictures(built)


def test_a_run_of_which_little_is_known_has_a_page():
    run = make_run()._replace(record={}, rows=[], predictions=None)
    built = page.build([run])
    assert "The metrics files have no rows yet" in built.html and "no results" in built.html
    built = page.build([run, run._replace(name="other")])
    assert "no result" in built.html


def test_markup_escapes_once():
    made = markup.tag("p", "a < b", markup.tag("b", "&"), title='"', css="x")
    assert made == '<p title="&quot;" class="x">a &lt; b<b>&amp;</b></p>'
    assert markup.name("short") == "short"
    assert markup.name("&" * 30, 5) == f'<span title="{"&amp;" * 30}">{"&amp;" * 4}…</span>'


def browse(path, tmp_path, *options):
    """(standard output, standard error) of a browser without a window that opens a file."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0", *options, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@needs_browser
def test_messages_of_the_console_are_noticed(tmp_path):
    path = tmp_path / "noisy.html"
    path.write_text("<script>console.error('heard')</script><img src='https://example.invalid/x.png'>")
    assert "CONSOLE" in browse(path, tmp_path, "--dump-dom")[1]


@needs_browser
@pytest.mark.parametrize("name", ["hostile", "both"])
def test_nothing_is_complained_about_and_nothing_runs(written, name, tmp_path):
    dom, log = browse(written / f"{name}.html", tmp_path, "--dump-dom")
    assert "CONSOLE" not in log
    assert not re.findall(r"(?i)<script|onerror=alert\(2\)>", dom)
    # The browser read the page to its end, as it was meant.
    assert dom.count("<section") == (written / f"{name}.html").read_text().count("<section") > 3
    assert "Record of the run" in dom


@needs_browser
@pytest.mark.parametrize(("scheme", "paper"), [(1, 255), (0, 21)])
def test_it_can_be_seen_in_light_and_dark(written, scheme, paper, tmp_path):
    options = f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1000,3000"
    browse(written / "hostile.html", tmp_path, f"--screenshot={tmp_path / 'page.png'}", *options)
    seen = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    assert seen.shape == (3000, 1000, 3)
    assert abs(seen[5, 5, 0] - paper) <= 2
    drawn = np.abs(seen - seen[5, 5]).max(axis=2) > 60
    # Text and pictures all the way down, and nothing over the whole of it.
    for part in np.array_split(drawn, 10):
        assert 0.005 < part.mean() < 0.75
