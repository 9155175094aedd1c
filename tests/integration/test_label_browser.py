"""The labelling page in a real browser, its server a real process that gets killed.

With FORECOURT_WRITE_DOCS=1 set, the screenshot in docs/ is made anew.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from pipeline.drawn_site.photos import photo_bytes
from pipeline.drawn_site.stock import DrawnStock
from pipeline.label_rows import label_rows, read_labels, settled_labels
from pipeline.verify import verify
from schemas.storage import Root
from tests.pipeline.roots import Listing, new_root, noise, write_part

CHECKOUT = Path(__file__).resolve().parent.parent.parent
PATIENCE_S = 30.0
PHONE_PX = (390, 844)
MAX_SCREENSHOT_BYTES = 300_000

KEYS, LABELS = "kju", ("keep", "junk", "unsure")
OpenBrowser = Callable[[int, int], webdriver.Chrome]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of drawn cars with a little over 100 photos."""
    folder = tmp_path_factory.mktemp("drawn")
    stock = DrawnStock(seed=0, first=0, last=69)
    live = [stock.listing(one) for one in range(70) if stock.state(one) == "live"]
    rows = []
    for listing in live:
        whole = [photo_bytes(0, photo) for photo in listing.photos if photo.broken is None]
        car = {name: listing.fields[name] for name in ("make", "model", "year")}
        title = f"{car['year']} {car['make']} {car['model']}"
        rows.append(Listing(str(listing.listing_id), whole, columns={**car, "title": title}))
    write_part(new_root(folder), "demo-0", rows)
    return folder


class Server:
    """A labelling page as a process, which can be killed and started again on the same port."""

    def __init__(self, root: Path, *options: str) -> None:
        self._command = [sys.executable, "pipeline/label.py", "--root", str(root), *options]
        self.address = self._start("0")
        self._port = self.address.rpartition(":")[2]

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._end()

    def restart(self) -> None:
        assert self._start(self._port) == self.address

    def stop(self) -> None:
        self._process.terminate()
        self._end()

    def _end(self) -> None:
        self._process.wait(PATIENCE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _start(self, port: str) -> str:
        self._process = subprocess.Popen(
            [*self._command, "--port", port], cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def serving(root: Path, *options: str) -> Iterator[Server]:
    with ExitStack() as ending:
        server = Server(root, *options)
        ending.callback(server.stop)
        yield server


class Page:
    """What a person does on the page."""

    def __init__(self, browser: webdriver.Chrome, address: str, name: str | None = None) -> None:
        self.browser = browser
        browser.get(address)
        if name is not None:
            self.wait(lambda: self.find("#name").is_displayed())
            self.press(name, Keys.ENTER)
        self.wait(lambda: self.key != "")

    def find(self, css: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        return str(self.browser.execute_script("return document.querySelector(arguments[0]).textContent", css))

    def press(self, *keys: str) -> None:
        ActionChains(self.browser, duration=0).send_keys(*keys).perform()

    def wait(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.browser, PATIENCE_S, poll_frequency=0.01).until(lambda _browser: condition())

    @property
    def key(self) -> str:
        script = "return document.querySelector('#figure').hidden ? '' : document.querySelector('#key').textContent"
        return str(self.browser.execute_script(script))

    def answer(self, key: str) -> str:
        """Press a key at the photo that is shown, wait for the next one, and return the key of the photo."""
        shown = self.key
        self.press(key)
        self.wait(lambda: self.key != shown)
        return shown

    def overflow_px(self) -> int:
        script = "const e = document.documentElement; return Math.max(e.scrollWidth, document.body.scrollWidth)"
        return int(self.browser.execute_script(script)) - int(self.browser.execute_script("return innerWidth"))


def labels_on_disk(root: Path) -> dict[str, dict[str, str]]:
    """Return key -> label by labeller; no photo may have two labels of one."""
    found: dict[str, dict[str, str]] = {}
    for row in label_rows(read_labels(Root.open(str(root)))):
        assert row.key not in found.setdefault(row.labeller, {})
        found[row.labeller][row.key] = row.label
    return found


def copied(root: Path, folder: Path) -> Path:
    return Path(shutil.copytree(root, folder / "root"))


def small_root(folder: Path, *, listings: int) -> Path:
    rows = [Listing(str(n), [noise(2 * n), noise(2 * n + 1)], columns={"title": f"Car {n}"}) for n in range(listings)]
    write_part(new_root(folder / "root"), "demo-0", rows)
    return folder / "root"


@pytest.mark.slow
def test_a_hundred_labels_by_keyboard_survive_a_kill_of_the_server(
    drawn: Path, tmp_path: Path, open_browser: OpenBrowser
) -> None:
    root = copied(drawn, tmp_path)
    said: dict[str, str] = {}
    with serving(root) as server:
        page = Page(open_browser(1280, 900), server.address, "ann")
        for number in range(47):
            said[page.answer(KEYS[number % 3])] = LABELS[number % 3]
        said |= label_while_the_server_is_killed(page, server)
        while len(said) < 100:
            said[page.answer(KEYS[len(said) % 3])] = LABELS[len(said) % 3]
        assert "yours 100," in page.text("#counts")
    assert labels_on_disk(root) == {"ann": said}
    assert verify(Root.open(str(root)), quick=True).ok


def label_while_the_server_is_killed(page: Page, server: Server) -> dict[str, str]:
    """Press a key, kill the server at once, see the page wait for it, and return what was said."""
    said = {}
    shown = page.key
    page.press("k")
    server.kill()
    page.wait(lambda: page.key != shown or page.find("#away").is_displayed())
    if page.key != shown:  # the answer came before the kill; the next click is the one that waits
        said[shown] = "keep"
        shown = page.key
        page.press("k")
        page.wait(lambda: page.find("#away").is_displayed())
    assert "sent again until it is stored" in page.text("#away")
    page.press("j")  # no click overtakes the one that waits
    Thread(target=server.restart).start()
    page.wait(lambda: page.key != shown)
    assert not page.find("#away").is_displayed()
    return {**said, shown: "keep"}


def test_two_browsers_at_once_do_not_overwrite_each_other(tmp_path: Path, open_browser: OpenBrowser) -> None:
    root = small_root(tmp_path, listings=6)
    with serving(root) as server:
        ann, bob = (Page(open_browser(900, 700), server.address, name) for name in ("ann", "bob"))
        said: Mapping[str, dict[str, str]] = {"ann": {}, "bob": {}}
        for number in range(12):
            for name, page in (("ann", ann), ("bob", bob)):
                label = "keep" if name == "ann" or number % 2 else "junk"
                said[name][page.answer(label[0])] = label
        ann.wait(lambda: "Nothing is left" in ann.text("#note"))
    assert labels_on_disk(root) == said
    settled = settled_labels(Root.open(str(root))).to_pylist()
    agreed = {key for key in said["ann"] if said["ann"][key] == said["bob"][key]}
    assert {row["key"]: row["label"] for row in settled} == {
        key: "keep" if key in agreed else "unsure" for key in said["ann"]
    }


def test_undo_skip_and_kinds_of_junk_by_keyboard_also_after_a_reload(tmp_path: Path, open_browser: OpenBrowser) -> None:
    root = small_root(tmp_path, listings=6)
    with serving(root, "--labeller", "ann") as server:
        page = Page(open_browser(900, 700), server.address)
        first, second, skipped = page.answer("1"), page.answer("k"), page.answer("s")
        assert page.key not in (first, second, skipped)
        assert page.answer("z") not in (first, second, skipped)
        assert page.key == skipped, "an undo goes back to what was skipped first"
        assert page.answer("z") == skipped
        assert page.key == second
        assert labels_on_disk(root) == {"ann": {first: "junk"}}
        page.browser.refresh()
        page.wait(lambda: page.key != "" and page.find("#undo").is_enabled())
        page.answer("z")
        assert page.key == first
        assert labels_on_disk(root) == {}
        page.answer("1")
    (row,) = label_rows(read_labels(Root.open(str(root))))
    assert (row.key, row.label, row.junk_type, row.sampled_by) == (first, "junk", "interior", "random")


def test_the_page_fits_a_phone_and_its_buttons_fit_a_thumb(
    drawn: Path, tmp_path: Path, open_browser: OpenBrowser
) -> None:
    with serving(copied(drawn, tmp_path)) as server:
        page = Page(
            open_browser(*PHONE_PX), server.address, "a name as long as names may be, which is 64 characters at most"
        )
        assert page.overflow_px() <= 0
        for name in ("keep", "junk", "unsure"):
            box = page.find(f"#{name}").rect
            assert box["height"] >= 44
            assert box["width"] >= 100
            assert box["y"] + box["height"] <= PHONE_PX[1], "no scrolling to answer"
        shown = page.key
        page.find("#keep").click()
        page.wait(lambda: page.key != shown)
        page.find("#sampling").send_keys("likely junk", Keys.ENTER)
        page.wait(lambda: "score.py" in page.text("#note"))
        assert page.overflow_px() <= 0
        server.kill()
        page.find("#sampling").send_keys("at random", Keys.ENTER)
        page.wait(lambda: page.find("#away").is_displayed())
        assert page.overflow_px() <= 0


def test_the_page_says_what_it_shows_and_where_the_focus_is(
    drawn: Path, tmp_path: Path, open_browser: OpenBrowser
) -> None:
    with serving(copied(drawn, tmp_path), "--labeller", "ann", "--set", "label.seed=shown") as server:
        page = Page(open_browser(1280, 900), server.address)
        for key in "kjk1kuj4":
            page.answer(key)
        images = page.browser.find_elements(By.TAG_NAME, "img")
        assert [image.get_attribute("src") for image in images if not image.get_attribute("alt")] == []
        page.wait(lambda: page.browser.execute_script("return [...document.images].every((i) => i.naturalWidth > 0)"))
        assert page.overflow_px() <= 0
        shot = tmp_path / "label.png"
        assert page.browser.save_screenshot(str(shot))
        assert shot.stat().st_size < MAX_SCREENSHOT_BYTES
        if os.environ.get("FORECOURT_WRITE_DOCS"):
            shutil.copy(shot, CHECKOUT / "docs" / "label.png")
        focused = set()
        for _ in range(8):
            page.press(Keys.TAB)
            script = "const e = document.activeElement; return [e.id, getComputedStyle(e).outlineStyle]"
            name, outline = page.browser.execute_script(script)
            assert outline == "solid"
            focused.add(name)
        assert {"sampling", "keep", "junk", "unsure", "undo", "skip"} <= focused
