"""Calls over a real local Ray."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.hash_join import ThreadHands, near_pairs
from pipeline.runner import RaySettings, connected
from pipeline.runner_calls import RayHands, names_cluster, run_calls
from schemas.errors import IntegrityError, RunError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with connected(RaySettings()):
        yield


def squared(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number * number


def refused(number: int) -> int:
    raise IntegrityError(f"number {number} is damaged")


def confused(number: int) -> int:
    return number // 0


def dying_first(marks: str) -> str:
    """End the process at the first call for a folder."""
    mark = Path(marks) / "called"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def test_each_result_comes_once_with_its_number_and_inputs_are_read_as_calls_end() -> None:
    read = []

    def numbers() -> Iterator[int]:
        for number in range(12):
            read.append(number)
            yield number

    found = {}
    for number, result in run_calls(squared, numbers(), num_in_flight=2, settings=RaySettings()):
        found[number] = result
        assert len(read) <= len(found) + 2
    assert found == {number: number**2 for number in range(12)}


def test_nothing_to_call_is_no_result() -> None:
    assert list(run_calls(squared, [], num_in_flight=2, settings=RaySettings())) == []


def test_what_a_call_raises_on_purpose_is_raised_here_and_a_bug_is_named() -> None:
    with pytest.raises(IntegrityError, match="number 3 is damaged"):
        list(run_calls(refused, [3], num_in_flight=2, settings=RaySettings()))
    with pytest.raises(RunError, match="a call failed: integer division"):
        list(run_calls(confused, [3], num_in_flight=2, settings=RaySettings()))


def test_a_call_whose_worker_dies_is_made_again_so_many_times(tmp_path: Path) -> None:
    assert list(run_calls(dying_first, [str(tmp_path)], num_in_flight=1, settings=RaySettings(part_tries=2))) == [
        (0, "done")
    ]
    (tmp_path / "called").unlink()
    with pytest.raises(RunError, match="worker of a call died"):
        list(run_calls(dying_first, [str(tmp_path)], num_in_flight=1, settings=RaySettings(part_tries=1)))


def test_a_cluster_is_named_by_a_setting_or_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not names_cluster(RaySettings())
    assert names_cluster(RaySettings(address="auto"))
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert names_cluster(RaySettings())


def test_the_hash_join_finds_in_tasks_what_threads_find() -> None:
    numbers = np.random.default_rng(1).integers(0, 2**20, 4_000, dtype=np.uint64)
    distinct = np.unique(numbers * np.uint64(0x1_0001))
    tasks = RayHands(2, RaySettings())
    there = [tuple(sorted(pair)) for block in near_pairs(distinct, 3, tasks) for pair in block.tolist()]
    with ThreadHands(2) as threads:
        here = {tuple(sorted(pair)) for block in near_pairs(distinct, 3, threads) for pair in block.tolist()}
    assert len(there) == len(here) > 100
    assert set(there) == here


def test_hands_share_values_and_raise_what_a_call_raises() -> None:
    tasks = RayHands(1, RaySettings())
    tasks.submit(squared, tasks.share(7))
    assert tasks.result() == 49
    tasks.submit(refused, tasks.share(3))
    with pytest.raises(IntegrityError, match="number 3 is damaged"):
        tasks.result()
