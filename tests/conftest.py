"""What all tests share: the environment of libraries, and the folder of real data."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

CHECKOUT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Set what libraries read when they are first imported, and what every child process inherits."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Find the real photos and pages, which are no part of the project."""
    named = os.environ.get("FORECOURT_SHARED")
    folder = Path(named) if named else CHECKOUT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set FORECOURT_SHARED to its folder")
    return folder


@pytest.fixture
def open_browser() -> Iterator[Callable[[int, int], webdriver.Chrome]]:
    """Give a function that opens a headless Chromium of some width and height in px; all are closed after the test."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with chromedriver is installed; `make browser` installs it")
    with ExitStack() as opened:

        def open_one(width_px: int, height_px: int) -> webdriver.Chrome:
            options = webdriver.ChromeOptions()
            options.binary_location = chromium
            for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-background-networking"):
                options.add_argument(f"--{flag}")
            browser = webdriver.Chrome(options=options, service=Service(driver))
            opened.callback(browser.quit)
            # The window has a frame, and headless Chromium none narrower than 500 px: the page's own size is set.
            metrics = {"width": width_px, "height": height_px, "deviceScaleFactor": 1, "mobile": width_px < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            return browser

        yield open_one
