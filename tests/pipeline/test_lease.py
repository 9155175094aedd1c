"""The lease: one owner at a time, and workers of a dead run that stop by themselves."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline import lease as lease_module
from pipeline.lease import FENCED_EXIT_CODE, Fence, LeaseTicket, hold_lease, is_held, living_tokens
from schemas.errors import LeaseError, RootError
from schemas.storage import Root

HOLDER = """
import sys, time
from pipeline.lease import hold_lease
from schemas.storage import Root
with hold_lease(Root.open(sys.argv[1]), "crawl") as lease:
    print(lease.token, flush=True)
    time.sleep(60)
"""
WORKER = """
import sys, time
from pipeline.lease import Fence, LeaseTicket
with Fence(LeaseTicket(sys.argv[1], "crawl", sys.argv[2])):
    print("working", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path / "data"), create=True)


def start(code: str, *arguments: str) -> tuple["subprocess.Popen[str]", str]:
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as stdout:
        return process, stdout.readline().strip()


def test_a_released_lease_is_taken_at_once(root: Root) -> None:
    started_s = time.monotonic()
    with hold_lease(root, "crawl") as first:
        assert is_held(root, "crawl")
    with hold_lease(root, "crawl") as second:
        assert second.token != first.token
    assert time.monotonic() - started_s < 2
    assert not is_held(root, "crawl")


def test_stages_are_owned_apart(root: Root) -> None:
    with hold_lease(root, "crawl"), hold_lease(root, "dedup") as other:
        other.check()


def test_a_living_owner_is_not_robbed(root: Root) -> None:
    process, _ = start(HOLDER, root.text)
    try:
        with pytest.raises(LeaseError, match="is alive"), hold_lease(root, "crawl"):
            pass
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_after_a_kill_the_workers_stop_before_the_next_run_starts(root: Root) -> None:
    holder, token = start(HOLDER, root.text)
    worker, said = start(WORKER, root.text, token)
    assert said == "working"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with hold_lease(root, "crawl"):
        assert worker.poll() == FENCED_EXIT_CODE


@pytest.mark.slow
def test_a_worker_stops_soon_after_another_run_took_over(root: Root) -> None:
    with hold_lease(root, "crawl") as mine:
        worker, _ = start(WORKER, root.text, mine.token)
    with hold_lease(root, "crawl"):
        assert worker.wait(timeout=4) == FENCED_EXIT_CODE


def test_a_fence_refuses_a_run_that_is_over(root: Root) -> None:
    with hold_lease(root, "crawl") as mine, Fence(mine.ticket) as fence:
        fence.check()
    with pytest.raises(LeaseError, match="not committed"), Fence(mine.ticket):
        pass
    with pytest.raises(LeaseError), Fence(LeaseTicket(root.text, "crawl", "other")):
        pass


def test_the_owner_notices_that_it_was_robbed(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "BEAT_S", 0.05)
    with hold_lease(root, "crawl") as mine:
        mark = json.loads(root.read_bytes("leases/crawl.json"))
        root.write_bytes("leases/crawl.json", json.dumps({**mark, "token": "thief"}).encode())
        time.sleep(0.3)
        with pytest.raises(LeaseError, match="took it over"):
            mine.check()
    assert json.loads(root.read_bytes("leases/crawl.json"))["token"] == "thief"


def test_a_lease_file_that_is_none_is_an_error_that_says_so(root: Root) -> None:
    root.write_bytes("leases/crawl.json", b"{")
    with pytest.raises(LeaseError, match="is no lease file"), hold_lease(root, "crawl"):
        pass


def test_a_root_that_cannot_hold_leases_is_told_with_the_place(root: Root) -> None:
    root.write_bytes("leases", b"a file of that name")
    with pytest.raises(RootError, match=r"leases.*check the path"), hold_lease(root, "crawl"):
        pass


def leave_foreign_mark(root: Root, **changes: object) -> None:
    mark = {"token": "far", "host": "elsewhere", "pid": 1, "beat": 7, "beat_at_s": time.time() - 3600, "held": True}
    root.write_bytes("leases/crawl.json", json.dumps({**mark, **changes}).encode())


def test_a_lease_of_another_machine_lives_by_its_beats_whatever_its_clock_says(root: Root) -> None:
    leave_foreign_mark(root)
    assert living_tokens(root) == {"far"}
    beats = threading.Timer(0.4, leave_foreign_mark, [root], {"beat": 8})
    beats.start()
    assert is_held(root, "crawl")
    beats.join()


def test_a_lease_of_another_machine_that_beats_no_more_is_free(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "EXPIRY_S", 0.6)
    leave_foreign_mark(root, beat_at_s=time.time() + 3600)
    assert not is_held(root, "crawl")
    leave_foreign_mark(root, held=False)
    assert not is_held(root, "crawl")
    assert living_tokens(root) == set()


def test_a_dead_run_of_this_machine_holds_nothing(root: Root) -> None:
    leave_foreign_mark(root, host=socket.gethostname())
    assert not is_held(root, "crawl")
    assert living_tokens(root) == set()
