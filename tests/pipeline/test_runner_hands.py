"""Workers that keep what they have loaded, on a real local Ray."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from pipeline.lease import Lease, hold_lease
from pipeline.runner import (
    PartContext,
    PartTask,
    RaySettings,
    RunResult,
    Work,
    WorkerPlan,
    connected,
    plan_workers,
    run_parts_on_workers,
)
from schemas.errors import UsageError
from schemas.storage import Root

pytestmark = pytest.mark.slow
SETTINGS = RaySettings(num_workers=2, part_tries=2, stall_s=1.0)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with connected(SETTINGS):
        yield


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    with hold_lease(Root.open(str(tmp_path / "data"), create=True), "embed/test") as held:
        yield held


class Told:
    """Work that says which process did it, and how many made ready before."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        (self._folder / f"made-{os.getpid()}-{time.monotonic_ns()}").touch()

    def __call__(self, context: PartContext, spec: Any) -> Mapping[str, int]:
        if spec == "die" and context.attempt == 1:
            time.sleep(0.5)  # beside another part by then
            os.kill(os.getpid(), signal.SIGKILL)
        if spec == "die again":
            os.kill(os.getpid(), signal.SIGKILL)
        if spec == "hang":
            with context.watchdog.doing("a thing that never ends"):
                time.sleep(60)
        if spec == "slow":
            time.sleep(2.0)
        return {"pid": os.getpid(), "attempt": context.attempt}


def refuse() -> Work:
    raise UsageError("there are no weights")


def run(
    make_work: Callable[[], Work], specs: Mapping[str, Any], lease: Lease, num_workers: int = 1
) -> tuple[RunResult, dict[str, Mapping[str, int]]]:
    done: dict[str, Mapping[str, int]] = {}
    result = run_parts_on_workers(
        (PartTask(part, spec) for part, spec in specs.items()),
        make_work,
        plan=WorkerPlan(num_workers, 1, 0),
        ticket=lease.ticket,
        settings=SETTINGS,
        on_done=done.__setitem__,
    )
    return result, done


def test_a_worker_makes_ready_once_for_all_its_parts(lease: Lease, tmp_path: Path) -> None:
    result, done = run(partial(Told, str(tmp_path)), {f"p{i}": None for i in range(10)}, lease)
    assert (result.done, result.failed, len(done)) == (10, {}, 10)
    assert len({counts["pid"] for counts in done.values()}) == 1
    assert len(list(tmp_path.glob("made-*"))) == 1


def test_all_workers_get_parts(lease: Lease, tmp_path: Path) -> None:
    _, done = run(partial(Told, str(tmp_path)), {f"p{i}": "slow" for i in range(2)}, lease, num_workers=2)
    assert len({counts["pid"] for counts in done.values()}) == 2


def test_the_parts_of_a_worker_that_died_are_begun_again_each_alone(lease: Lease, tmp_path: Path) -> None:
    specs = {"a": "slow", "b": "die", **{f"p{i}": None for i in range(4)}}
    result, done = run(partial(Told, str(tmp_path)), specs, lease)
    assert (sorted(done), result.failed) == (sorted(specs), {})
    assert (done["a"]["attempt"], done["b"]["attempt"]) == (2, 2)


def test_a_part_that_ends_every_worker_fails_without_taking_others_along(lease: Lease, tmp_path: Path) -> None:
    specs = {"bad": "die again", **{f"p{i}": None for i in range(4)}}
    result, done = run(partial(Told, str(tmp_path)), specs, lease)
    assert sorted(result.failed) == ["bad"]
    assert "its worker died" in result.failed["bad"]
    assert sorted(done) == ["p0", "p1", "p2", "p3"]


def test_a_stuck_part_ends_its_worker_and_is_named(lease: Lease, tmp_path: Path) -> None:
    result, done = run(partial(Told, str(tmp_path)), {"p": "hang", "q": None}, lease)
    assert "a thing that never ends" in result.failed["p"]
    assert list(done) == ["q"]


def test_what_cannot_be_made_stops_the_run_with_its_reason(lease: Lease) -> None:
    with pytest.raises(UsageError, match="there are no weights"):
        run(refuse, {f"p{i}": None for i in range(5)}, lease)


def test_without_a_gpu_one_worker_has_all_cores_of_the_machine() -> None:
    planned = plan_workers("auto", num_workers=None, cpus_per_worker=None)
    assert (planned.num_workers, planned.gpus_per_worker) == (1, 0)
    assert planned.cpus_per_worker >= 1
    assert plan_workers("cpu", num_workers=3, cpus_per_worker=1) == WorkerPlan(3, 1, 0)


def test_a_gpu_that_is_asked_for_and_not_there_is_misuse() -> None:
    with pytest.raises(UsageError, match="has none now"):
        plan_workers("cuda", num_workers=None, cpus_per_worker=None)
    assert plan_workers("cuda", num_workers=2, cpus_per_worker=4) == WorkerPlan(2, 4, 1)
