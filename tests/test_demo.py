"""The page that tries a network: its answers, what it refuses, and the command line."""

import http.client
import io
import json
import shutil
import threading
import urllib.request

import jax
import numpy as np
import pytest
from fake_runs import write_run
from PIL import Image
from runs import ROOT
from synthetic import SMALL_CNN, make_config, make_data, make_experiment, make_normalization

from imgclf_jax.data import decode
from imgclf_jax.demo import server
from imgclf_jax.demo.answers import SHOWN, Answers
from imgclf_jax.errors import UserError
from imgclf_jax.predict import reading
from imgclf_jax.predict.network import Network
from imgclf_jax.training import trained

pytest_plugins = ["run_fixtures"]

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAMES = ("<script>alert(1)</script>", "größer 象 🐘", "x" * 300, "file\udcff", *"efghij")


def make_trained():
    """A network that was never trained."""
    images, _ = make_data(5)
    config = make_config(SMALL_CNN, {"model.norm": "batch"})
    experiment = make_experiment(config, np.concatenate([images, images]))
    variables = jax.jit(experiment.init)(experiment.key).eval_variables()
    return trained.Trained(ROOT / "nowhere", {}, 3, experiment, variables, make_normalization(config, images))


@pytest.fixture(scope="module")
def network():
    return make_trained()


@pytest.fixture(scope="module")
def web(network):
    """A server in this process, whose network has classes of odd names."""
    with server.bind(0) as serving:
        named = Network(network)
        named.class_names = NAMES
        serving.answers = Answers(named, "the run")
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of several sizes, modes and formats, by name."""
    folder = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    coarse = Image.fromarray(draws.integers(0, 256, (3, 4, 3)).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    coarse.resize((40, 30)).save(folder / "plain.png")
    coarse.resize((700, 500)).save(folder / "turned.jpg", exif=turned)
    coarse.resize((20, 90)).convert("RGBA").save(folder / "clear.webp")
    coarse.resize((50, 50)).convert("L").save(folder / "gray.tif")
    coarse.resize((1, 1)).save(folder / "one pixel.bmp")
    coarse.convert("P").save(folder / "palette.gif")
    return sorted(folder.iterdir())


def send(web, body=b"", method="POST", path="/classify", **headers):
    """A request. Returns the status, the headers and the content, which is JSON if it is an object."""
    connection = http.client.HTTPConnection("127.0.0.1", web.server_address[1], timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, json.loads(content) if content.startswith(b"{") else content


def png(mode="RGB", size=(2, 2), color=None):
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, "PNG")
    return file.getvalue()


# Answers


def test_the_probabilities_are_those_of_predict(web, network, photos):
    shape, resize = network.image_shape, network.config.data.resize
    files = [(str(path), None) for path in photos]
    (rows,) = reading.predict_files(files, Network(network, 64), shape, resize, 64)
    for row, path in zip(rows, photos, strict=True):
        status, _, answer = send(web, path.read_bytes())
        assert status == 200
        best = reading.best(row.probabilities, SHOWN)
        assert [entry["name"] for entry in answer["classes"]] == [NAMES[label] for label in best]
        shown = [entry["probability"] for entry in answer["classes"]]
        np.testing.assert_allclose(shown, row.probabilities[best], rtol=1e-5)
        assert answer["others"] == len(NAMES) - SHOWN
    assert len({tuple(row.probabilities.round(5)) for row in rows}) == len(rows)


def picture(url):
    with urllib.request.urlopen(url) as file:
        return Image.open(io.BytesIO(file.read()))


@pytest.mark.parametrize(
    ("name", "size"), [("turned.jpg", (343, 480)), ("plain.png", (240, 180)), ("one pixel.bmp", (240, 240))]
)
def test_the_picture_is_the_photo_upright(web, photos, name, size):
    (path,) = (path for path in photos if path.name == name)
    _, _, answer = send(web, path.read_bytes())
    shown = picture(answer["photo"])
    assert shown.size == size
    expected = decode.read(path, size[::-1])
    assert np.abs(np.asarray(shown).astype(int) - expected).mean() < 10


def test_the_page_says_what_the_network_is(web):
    status, _, about = send(web, method="GET", path="/about")
    assert status == 200
    assert about["classes"] == list(NAMES) and about["run"] == "the run"
    assert (about["height"], about["width"], about["gray"]) == (8, 8, False)


def test_two_at_once_are_both_answered(web, photos):
    found = []
    threads = [
        threading.Thread(target=lambda path=path: found.append(send(web, path.read_bytes())[0])) for path in photos
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * len(photos)


def test_files_of_the_page_allow_nothing_from_elsewhere(web):
    kinds = {"/": "text/html", "/page.js": "text/javascript", "/camera.js": "text/javascript", "/style.css": "text/css"}
    for path, kind in kinds.items():
        status, headers, content = send(web, method="GET", path=path)
        assert status == 200 and headers["Content-Type"].startswith(kind)
        assert b"http" not in content and b"//cdn" not in content  # needs no network
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
    assert send(web, method="HEAD", path="/")[2] == b""


# What is refused

BAD = {
    "no bytes": (b"", "an empty file"),
    "text": (b"hello", "not an image"),
    "cut": (png(size=(50, 50))[:50], "truncated"),
    "200 megapixels": (png("1", (20_000, 10_000)), "more than 89,478,485 pixels"),
    "90 megapixels": (png("1", (9_000, 10_000)), "more than 89,478,485 pixels"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_bytes_get_one_sentence(web, case, monkeypatch):
    body, words = BAD[case]
    if "megapixels" in case:  # The header is enough.
        monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it was decoded"))
    status, _, answer = send(web, body)
    assert status == 422
    assert words in answer["error"] and "\n" not in answer["error"] and answer.keys() == {"error"}


def test_large_files_are_refused_before_they_are_read(web, monkeypatch):
    monkeypatch.setattr(server, "MOST_BYTES", 1000)
    monkeypatch.setattr(web.answers, "answer", lambda encoded: pytest.fail("it was answered"))
    for headers in ({}, {"Expect": "100-continue"}):
        status, answered, answer = send(web, bytes(1001), **headers)
        assert status == 413 and "larger than" in answer["error"]
        assert answered["Connection"] == "close"


def test_nan_is_said(web, monkeypatch):
    monkeypatch.setattr(web.answers, "_evaluate", lambda pixels: (np.full(10, np.nan), None))
    status, _, answer = send(web, png())
    assert status == 422 and answer["error"] == reading.NOT_FINITE


def test_a_bug_is_a_sentence_on_the_page_and_a_traceback_in_the_terminal(web, monkeypatch, capsys):
    def fail(encoded):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(web.answers, "answer", fail)
    status, _, answer = send(web, png())
    assert status == 500 and "terminal" in answer["error"] and "bug" not in answer["error"]
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err


FOREIGN = {
    "another host": {"Host": "example.com"},
    "another host and the port": {"Host": "example.com:{port}"},
    "a host that begins like this one": {"Host": "127.0.0.1.example.com:{port}"},
    "no host": {"Host": ""},
    "another page": {"Origin": "http://example.com"},
    "another server of this computer": {"Origin": "http://127.0.0.1:1"},
    "another name of this computer": {"Origin": "http://localhost:{port}"},
    "a file": {"Origin": "null"},
    "https": {"Origin": "https://127.0.0.1:{port}"},
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("case", FOREIGN)
def test_requests_from_elsewhere_are_refused(web, case, method):
    headers = {name: value.format(port=web.server_address[1]) for name, value in FOREIGN[case].items()}
    status, _, answer = send(web, png(), method, "/classify" if method == "POST" else "/about", **headers)
    assert status == 403 and answer.keys() == {"error"}


def test_requests_from_the_page_are_answered(web):
    port = web.server_address[1]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost:1234"):  # the last one through a tunnel
        assert send(web, png(), Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize("path", ["/../server.py", "/server.py", "//etc/passwd", "/classify", "/about/x", "/%2e%2e/x"])
def test_no_other_file_is_served(web, path):
    status, _, answer = send(web, method="GET", path=path)
    assert status == 404 and answer.keys() == {"error"}


def test_other_requests_are_refused(web):
    assert send(web, b"x", path="/about")[0] == 404
    assert send(web, b"x", method="PUT")[0] == 501
    status, _, answer = send(web, iter([b"x"]))  # chunked
    assert status == 411 and "length" in answer["error"]


# The command line


MISTAKES = {
    "no workdir": (["--workdir="], "--workdir is missing"),
    "no run": (["--workdir=."], ". holds no run"),
    "no folder": (["--workdir=nowhere"], "nowhere holds no run"),
    "unknown checkpoint": (["--checkpoint=first"], "--checkpoint=first", "reported"),
    "no port": (["--port=65536"], "--port=65536"),
    "no number": (["--port=http"], "--port=http"),
    "an argument": (["photo.jpg"], "unexpected argument 'photo.jpg'"),
    "no parts": (["--parts=nowhere"], "--parts=nowhere is not a folder"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_reported_in_one_line(run, tmp_path, case):
    arguments, *words = MISTAKES[case]
    assert_one_error(run("--workdir=x", *arguments, cwd=tmp_path, module="imgclf_jax.demo"), *words)


def test_a_busy_port_is_reported(run, web):
    port = web.server_address[1]
    done = run("--workdir=x", f"--port={port}", module="imgclf_jax.demo")
    assert_one_error(done, f"port {port} is in use", "--port")


def test_missing_parts_are_reported(run, tmp_path):
    folder = write_run(tmp_path / "own", {"model.name": "nets_of_mine:Net"})
    (folder / "checkpoints" / "100").mkdir(parents=True)
    done = run("--workdir=own", cwd=tmp_path, module="imgclf_jax.demo")
    assert_one_error(done, "there is no module nets_of_mine", "--parts=DIR")


def assert_one_error(done, *words):
    assert done.code == 2, done
    assert done.out == ""
    assert done.err.startswith("error: ") and len(done.err.splitlines()) == 1, done.err
    for word in words:
        assert word in done.err


def test_images_of_two_channels_are_refused(network):
    two = Network(network)
    two.image_shape = (8, 8, 2)
    with pytest.raises(UserError, match="in runs/x takes images with 2 channels"):
        Answers(two, "runs/x")


# In a browser


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium with a camera that shows a test picture."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    if BROWSER is None:
        pytest.skip("needs Chromium or Chrome on the PATH")
    with playwright.sync_playwright() as starting:
        arguments = ["--use-fake-device-for-media-stream", "--no-sandbox"]
        started = starting.chromium.launch(executable_path=BROWSER, args=arguments)
        yield started
        started.close()


@pytest.fixture
def opened(web, browser):
    """Opens the page; its errors and what it may not do are failures."""
    contexts, problems = [], []

    def call(width=1000, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: problems.append(error))
        page.on("console", lambda line: problems.append(line.text) if "resource" not in line.text else None)
        page.goto(web.url)
        return page

    yield call
    for context in contexts:
        context.close()
    assert not problems


def upload(name, content):
    return {"name": name, "mimeType": "application/octet-stream", "buffer": content}


def test_page_shows_the_answers(web, opened, photos, tmp_path):
    (tmp_path / "<b>text<b>.jpg").write_text("hello")
    page = opened(width=390)
    page.locator("#about", has_text="8 × 8 pixels").wait_for()
    page.set_input_files("#files", [*photos, tmp_path / "<b>text<b>.jpg"])
    page.locator("#errors p").wait_for()
    assert page.locator("#errors p").all_text_contents() == ["<b>text<b>.jpg: not an image: text."]
    results = page.locator("#results > li")
    assert results.locator("h2").all_text_contents() == [path.name for path in reversed(photos)]
    for result, path in zip(results.all(), reversed(photos), strict=True):
        _, _, answer = send(web, path.read_bytes())
        names = [entry["name"].replace("\udcff", "\ufffd") for entry in answer["classes"]]
        assert [name.replace("\udcff", "\ufffd") for name in result.locator("bdi").all_text_contents()] == names
        widths = [float(bar.get_attribute("style")[7:-2]) for bar in result.locator(".bar span").all()]
        np.testing.assert_allclose(widths, [100 * entry["probability"] for entry in answer["classes"]], rtol=1e-3)
        loaded = result.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)")
        assert loaded and all(loaded)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390  # despite a name of 300 characters


def test_page_takes_what_is_dropped_or_pasted(opened):
    page = opened()
    other = opened()  # at the same time
    give = """([type, content]) => {
        const data = new DataTransfer();
        if (content) data.items.add(new File([new Uint8Array(content)], "given.png"));
        const options = {clipboardData: data, dataTransfer: data, bubbles: true, cancelable: true};
        const event = type == "paste" ? new ClipboardEvent(type, options) : new DragEvent(type, options);
        document.querySelector("#drop").dispatchEvent(event);
    }"""
    for tab in (page, other):
        tab.locator("#about", has_text="classes").wait_for()
        for count, kind in enumerate(("drop", "paste"), 1):
            tab.evaluate(give, [kind, list(png())])
            tab.locator("#results > li").nth(count - 1).wait_for()
        tab.evaluate(give, ["paste", None])
        tab.locator("#errors", has_text="The clipboard holds no photo.").wait_for()
        tab.evaluate(give, ["drop", None])
        tab.locator("#errors", has_text="Save the picture first").wait_for()


def test_page_uses_the_camera_by_keyboard(opened):
    page = opened(permissions=["camera"])
    page.locator("#about", has_text="classes").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "files"
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "camera"
    page.keyboard.press("Enter")
    page.locator("#live .classes li").first.wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#results > li").wait_for()
    assert page.locator("#results h2").text_content() == "Camera"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.locator("#live").wait_for(state="hidden")


def test_page_says_that_the_camera_is_refused(opened):
    page = opened()
    page.click("#camera")
    page.locator("#errors", has_text="The browser may not use the camera.").wait_for()
    assert page.locator("#live").is_hidden()


def test_page_without_javascript_says_so(opened):
    page = opened(java_script_enabled=False)
    assert "needs JavaScript" in page.locator("noscript").inner_text()


def test_page_says_that_the_program_has_ended_or_a_file_is_too_large(opened, monkeypatch):
    monkeypatch.setattr(server, "MOST_BYTES", 2**20)
    page = opened()
    page.locator("#about", has_text="classes").wait_for()
    page.route("**/classify", lambda route: route.abort())
    page.set_input_files("#files", upload("a.png", png()))
    page.locator("#errors", has_text="a.png: no answer; the program in the terminal has ended.").wait_for()
    page.set_input_files("#files", upload("a.png", bytes(2**20 + 1)))
    page.locator("#errors", has_text="a.png: larger than 1 MB").wait_for()
