"""The watchdog: a stuck part is told so, then ended, and what it was stuck on is named."""

import subprocess
import sys
import threading
import time

import pytest

from pipeline.watchdog import STUCK_EXIT_CODE, Watchdog


def test_progress_keeps_it_quiet() -> None:
    told: list[str] = []
    with Watchdog("p", stall_s=0.3, last_words=told.append) as watchdog:
        watchdog.on_stall = told.append
        for _ in range(8):
            time.sleep(0.1)
            with watchdog.doing("a step"):
                pass
    assert told == []
    assert watchdog.stuck is None


def test_a_stall_names_what_is_being_done_the_oldest_first() -> None:
    told: list[str] = []
    heard = threading.Event()
    with Watchdog("p", stall_s=0.2, last_words=told.append) as watchdog:

        def on_stall(text: str) -> None:
            told.append(text)
            heard.set()

        watchdog.on_stall = on_stall
        with watchdog.doing("page /1"), watchdog.doing("photo /2"):
            assert heard.wait(5)
    assert watchdog.stuck is not None
    assert told[0].index("page /1") < told[0].index("photo /2")


CLOSED_LOOP = """
loop = asyncio.new_event_loop()
loop.close()
on_stall = lambda text: loop.call_soon_threadsafe(print)
"""
BUG = "on_stall = lambda text: 1 / 0"


@pytest.mark.parametrize("on_stall", ["on_stall = None", CLOSED_LOOP, BUG])
def test_a_part_that_cannot_be_ended_takes_its_process_with_it(on_stall: str) -> None:
    code = (
        "import asyncio, sys, time\n"
        "from pipeline.watchdog import Watchdog\n"
        f"{on_stall}\n"
        "with Watchdog('p', stall_s=0.2, last_words=lambda text: print(text, flush=True), grace_s=0.2) as w:\n"
        "    w.on_stall = on_stall\n"
        "    with w.doing('decode x'):\n"
        "        time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == STUCK_EXIT_CODE
    assert "decode x" in done.stdout


def test_last_words_that_cannot_be_said_do_not_keep_the_process() -> None:
    code = (
        "import time\n"
        "from pipeline.watchdog import Watchdog\n"
        "with Watchdog('p', stall_s=0.2, last_words=lambda text: 1 / 0, grace_s=0.2):\n"
        "    time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20, check=False)
    assert done.returncode == STUCK_EXIT_CODE
