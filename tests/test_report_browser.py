"""The page of a report in a headless browser: accessibility by axe-core, and the confusion matrix with the keyboard.

It needs playwright, Chromium, and axe-core: `pip install axe-playwright-python`, or AXE=axe.min.js.
"""

import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_report_page import make_run

from imgclf_jax.report import page

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def find_axe():
    found = importlib.util.find_spec("axe_playwright_python")
    places = [Path(os.environ.get("AXE", ""))]
    places += (
        [Path(place) / "axe.min.js" for place in (found.submodule_search_locations or ()) if found] if found else []
    )
    return next((place for place in places if place.is_file()), None)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    run = make_run(names=("cat", "größer dog", "象"), shape=(32, 32, 3))
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(page.build([run]).html, encoding="utf-8")
    both = page.build([run, make_run(names=("cat", "dog"), name="other")])
    path.with_name("both.html").write_text(both.html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        try:
            opened = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        except playwright.Error:
            pytest.skip("needs Chromium: playwright install chromium")
        yield opened
        opened.close()


@pytest.mark.parametrize("name", ["index.html", "both.html"])
@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (390, "dark")])
def test_axe_finds_no_violation(browser, address, name, width, scheme):
    axe = find_axe()
    if axe is None:
        pytest.skip("needs axe-core: pip install axe-playwright-python, or AXE=axe.min.js")
    # The page allows no script; axe is injected all the same.
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    tab = context.new_page()
    tab.goto(address.with_name(name).as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    tab.add_script_tag(path=str(axe))
    found = tab.evaluate("axe.run()")["violations"]
    assert not found, [(one["id"], one["help"], one["nodes"][0]["html"][:300]) for one in found]
    wide = tab.evaluate("document.documentElement.scrollWidth")
    assert wide <= width  # Nothing but tables scrolls sideways.
    context.close()


def test_a_number_of_the_confusion_matrix_shows_its_images_with_the_keyboard(browser, address):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(address.as_uri())
    links = tab.locator(".confusion td a")
    assert links.count() > 3 and tab.locator(".panel:visible").count() == 0
    links.nth(1).focus()
    tab.keyboard.press("Enter")
    shown = tab.locator(".panel:visible")
    assert shown.count() == 1 and "taken for" in shown.inner_text()
    assert shown.locator("img").count() == min(8, int(links.nth(1).inner_text()))
    assert np.all(np.asarray(shown.locator("img").first.bounding_box()["width"]) >= 60)
    context.close()
