"""What all tests share: the environment of libraries, and the folder of real data."""

import os
from pathlib import Path

import pytest

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
