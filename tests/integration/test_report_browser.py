"""The report in a real browser: on a desk, on a phone, in print.

The screenshots in docs/ are made by the same test, from the data set that `make demo` leaves:

    FORECOURT_REPORT_ROOT=out/demo/data FORECOURT_REPORT_SHOTS=docs \
        python -m pytest tests/integration/test_report_browser.py -k screenshots
"""

import base64
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from selenium import webdriver

from pipeline.report import main
from tests.pipeline.reported import curated

MIN_TEXT_PX = 12
# What of the page a reader of the README sees first.
SHOTS = {"report.png": (1280, 1500), "report_phone.png": (390, 1800)}

pytestmark = pytest.mark.slow

_ODD = """
const odd = [];
for (const image of document.images) {
  if (!image.complete || image.naturalWidth === 0) odd.push("broken: " + image.alt);
  if (!image.alt.trim()) odd.push("no alt: " + image.src.slice(0, 40));
  if (image.getBoundingClientRect().right > innerWidth + 0.5) odd.push("too wide: " + image.alt);
}
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.textContent.trim();
  const size = parseFloat(getComputedStyle(walker.currentNode.parentElement).fontSize);
  if (text && size < arguments[0]) odd.push(size + " px: " + text.slice(0, 40));
}
return odd;
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("browser") / "report.html"
    named = os.environ.get("FORECOURT_REPORT_ROOT")
    root = named if named else curated(tmp_path_factory.mktemp("browser-root") / "root").text
    assert main(["--root", root, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("width_px", [1280, 768, 390])
def test_nothing_sticks_out_is_broken_or_too_small(
    width_px: int, page: Path, open_browser: Callable[[int, int], webdriver.Chrome]
) -> None:
    browser = open_browser(width_px, 900)
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.execute_script(_ODD, MIN_TEXT_PX) == []
    assert browser.execute_script("return document.images.length") > 40
    messages = browser.get_log("browser")  # type: ignore[no-untyped-call]  # selenium has no types here
    assert messages == []
    requested = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in requested if not name.startswith("data:")] == []


def test_a_phone_gets_the_charts_that_are_drawn_for_it(
    page: Path, open_browser: Callable[[int, int], webdriver.Chrome]
) -> None:
    script = "return [...document.querySelectorAll('.chart img')].map(i => [i.naturalWidth, i.clientWidth])"
    widths = {}
    for width_px in (1280, 390):
        browser = open_browser(width_px, 900)
        browser.get(page.as_uri())
        widths[width_px] = browser.execute_script(script)
    assert {natural for natural, _ in widths[390]} == {340}
    assert {natural for natural, _ in widths[1280]} == {340, 660}
    assert all(natural == shown for sizes in widths.values() for natural, shown in sizes), "text keeps its size"


def test_wide_tables_scroll_within_their_box_and_are_reached_by_keyboard(
    page: Path, open_browser: Callable[[int, int], webdriver.Chrome]
) -> None:
    browser = open_browser(390, 900)
    browser.get(page.as_uri())
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].map(b => [b.scrollWidth > b.clientWidth, b.tabIndex,"
        " getComputedStyle(b).overflowX, b.getAttribute('aria-label')])"
    )
    assert any(scrolls for scrolls, *_ in boxes)
    assert all(tab == 0 and overflow == "auto" and label for _, tab, overflow, label in boxes)


def test_it_prints_on_a4_with_nothing_cut_off(page: Path, open_browser: Callable[[int, int], webdriver.Chrome]) -> None:
    browser = open_browser(680, 900)  # A4 less its margins
    browser.get(page.as_uri())
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script("return getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    cut = browser.execute_script(
        "return [...document.querySelectorAll('table, img')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.alt || e.caption.textContent)"
    )
    assert cut == []
    assert browser.execute_script("return document.querySelector('.chart img').naturalWidth") == 660
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")


@pytest.mark.parametrize("name", SHOTS)
def test_screenshots_show_the_top_of_the_page(
    name: str, page: Path, open_browser: Callable[[int, int], webdriver.Chrome], tmp_path: Path
) -> None:
    width_px, height_px = SHOTS[name]
    browser = open_browser(width_px, height_px)
    browser.get(page.as_uri())
    browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    clip = {"x": 0, "y": 0, "width": width_px, "height": height_px, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "clip": clip})
    out = Path(os.environ.get("FORECOURT_REPORT_SHOTS", tmp_path)) / name
    out.write_bytes(base64.b64decode(shot["data"]))
    assert 20_000 < out.stat().st_size < 400_000
