"""The runner on a real local Ray: retries, failures, stops, and a board that may be killed."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle

from pipeline.lease import Lease, hold_lease
from pipeline.runner import PartContext, PartTask, RaySettings, connected, run_parts
from pipeline.runner_board import Board, BoardDoor
from pipeline.web.pace import HostLimits, HostOutcome, PaceClient, PaceRequest, PaceSettings
from pipeline.web.pace_messages import HostAsk
from schemas.errors import CircuitOpenError, PartError, ReconcileError
from schemas.storage import Root

pytestmark = pytest.mark.slow
SETTINGS = RaySettings(num_workers=2, part_tries=2, stall_s=2.0)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with connected(SETTINGS):
        yield


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    with hold_lease(Root.open(str(tmp_path / "data"), create=True), "crawl") as held:
        yield held


def run(work: Any, specs: Mapping[str, Any], lease: Lease) -> tuple[Any, dict[str, Mapping[str, int]]]:
    done: dict[str, Mapping[str, int]] = {}
    result = run_parts(
        (PartTask(part, spec) for part, spec in specs.items()),
        work,
        ticket=lease.ticket,
        num_in_flight=2,
        settings=SETTINGS,
        on_done=done.__setitem__,
    )
    return result, done


def double(context: PartContext, spec: int) -> dict[str, int]:
    return {"n": 2 * spec}


def fail_once(context: PartContext, spec: str) -> dict[str, int]:
    mark = Path(spec)
    if not mark.exists():
        mark.touch()
        raise PartError("the first try")
    return {"n": 1}


def die_once(context: PartContext, spec: str) -> dict[str, int]:
    mark = Path(spec)
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"n": 1}


def say_attempt(context: PartContext, spec: str) -> dict[str, int]:
    return {**die_once(context, spec), "attempt": context.attempt}


def miscount(context: PartContext, spec: str) -> dict[str, int]:
    with Path(spec).open("a") as file:
        file.write("x")
    raise ReconcileError("one and one are three")


def fail_if_odd(context: PartContext, spec: int) -> dict[str, int]:
    if spec % 2:
        raise ValueError(f"odd {spec}")
    return {"n": spec}


def open_circuit(context: PartContext, spec: int) -> dict[str, int]:
    if spec == 3:
        raise CircuitOpenError("the site is down")
    return {"n": spec}


def hang(context: PartContext, spec: int) -> dict[str, int]:
    with context.watchdog.doing("a thing that never ends"):
        time.sleep(60)
    return {}


def test_every_part_is_done_once(lease: Lease) -> None:
    result, done = run(double, {f"p{i}": i for i in range(20)}, lease)
    assert done == {f"p{i}": {"n": 2 * i} for i in range(20)}
    assert (result.done, result.failed) == (20, {})


@pytest.mark.parametrize("work", [fail_once, die_once])
def test_a_part_that_fails_once_is_begun_again(work: Any, lease: Lease, tmp_path: Path) -> None:
    result, done = run(work, {"p": str(tmp_path / "mark")}, lease)
    assert done == {"p": {"n": 1}}
    assert result.failed == {}


def test_each_attempt_at_a_part_has_its_number(lease: Lease, tmp_path: Path) -> None:
    _, done = run(say_attempt, {"p": str(tmp_path / "mark")}, lease)
    assert done["p"]["attempt"] == 2


def test_what_would_fail_again_is_not_begun_again(lease: Lease, tmp_path: Path) -> None:
    result, _ = run(miscount, {"p": str(tmp_path / "begun")}, lease)
    assert result.failed == {"p": "ReconcileError: one and one are three"}
    assert (tmp_path / "begun").read_text() == "x"


def test_a_part_that_keeps_failing_is_reported_while_the_others_finish(lease: Lease) -> None:
    result, done = run(fail_if_odd, {f"p{i}": i for i in range(6)}, lease)
    assert sorted(done) == ["p0", "p2", "p4"]
    assert sorted(result.failed) == ["p1", "p3", "p5"]
    assert "odd 3" in result.failed["p3"]


def test_an_open_circuit_stops_the_run(lease: Lease) -> None:
    with pytest.raises(CircuitOpenError, match="the site is down"):
        run(open_circuit, {f"p{i}": i for i in range(50)}, lease)


def test_a_stuck_part_is_ended_and_named(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run(hang, {"p": 1}, lease)
    assert "a thing that never ends" in result.failed["p"]


async def test_the_pace_holds_when_the_board_is_killed() -> None:
    door = BoardDoor(PaceSettings())
    client = PaceClient(door.exchange, "worker")
    limits = HostLimits(requests_per_second=20.0, concurrency=4, crawl_delay_s=0.0)
    times = []
    for number in range(60):
        await client.slot("host", limits)
        times.append(time.monotonic())
        client.done("host", None)
        if number == 25:
            ray.kill(ray.get_actor("forecourt-board", namespace="forecourt"), no_restart=False)
    await client.aclose()
    for start in times:
        assert sum(start <= t < start + 1.0 for t in times) <= 1.0 * 20 * 1.05 + 1


def test_a_board_that_lives_on_goes_by_the_settings_of_the_newest_run() -> None:
    def paused_s(board: Board, turn: int) -> float:
        outcome = HostOutcome(status=503, retry_after_s=50.0)
        ask = HostAsk(f"host-{turn}", HostLimits(1.0), wanted=0, held=0, outcomes=(outcome,))
        return board.exchange(PaceRequest("w", turn, "", 0.0, (ask,))).hosts[0].paused_s

    board = Board(PaceSettings(max_pause_s=40.0))
    board.progress("first", PaceSettings(max_pause_s=10.0))
    assert paused_s(board, 1) == pytest.approx(10.0)
    board.progress("second", PaceSettings(max_pause_s=20.0))
    board.progress("first", PaceSettings(max_pause_s=10.0))
    assert paused_s(board, 2) == pytest.approx(20.0)
