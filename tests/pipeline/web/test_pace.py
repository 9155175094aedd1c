import asyncio
import pickle
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.web.pace import (
    HostLimits,
    PaceClient,
    PaceReply,
    PaceRequest,
    PaceSettings,
    PaceUnavailable,
    Slot,
)
from tests.pipeline.web.pace_cluster import HOST, WELL, Cluster, assert_pace_held, kill_later, now
from tests.pipeline.web.virtual_time import run_virtual


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_workers=st.integers(1, 32),
    tasks_each=st.integers(1, 6),
    rate=st.sampled_from([0.5, 1.0, 3.0, 10.0, 40.0]),
    max_delay_s=st.sampled_from([0.0, 0.002, 0.05, 0.3, 1.5]),
    loss=st.sampled_from([0.0, 0.05, 0.3]),
    max_stall_s=st.sampled_from([0.0, 0.05, 3.0]),
    kills=st.lists(st.tuples(st.floats(0, 15), st.floats(0, 3)), max_size=4),
)
def test_the_pace_holds_whatever_happens_to_the_book_the_network_and_the_workers(
    seed: int,
    num_workers: int,
    tasks_each: int,
    rate: float,
    max_delay_s: float,
    loss: float,
    max_stall_s: float,
    kills: list[tuple[float, float]],
) -> None:
    async def main() -> list[float]:
        cluster = Cluster(seed, max_delay_s=max_delay_s, loss=loss, max_stall_s=max_stall_s)

        async def kill() -> None:
            for after_s, down_s in kills:
                await asyncio.sleep(after_s)
                await cluster.kill_book(down_s)

        killer = asyncio.create_task(kill())
        await cluster.crawl(num_workers, tasks_each, HostLimits(rate, concurrency=10_000), seconds=25.0)
        killer.cancel()
        return cluster.sent

    if sent := run_virtual(main()):
        assert_pace_held(sent, rate)


@pytest.mark.parametrize("num_workers", [1, 4, 32])
@pytest.mark.parametrize("rate", [1.0, 50.0, 1000.0])
def test_the_pace_is_used_in_full_by_any_number_of_workers(num_workers: int, rate: float) -> None:
    seconds = 11.0 if rate > 100 else 31.0

    async def main() -> Cluster:
        cluster = Cluster()
        await cluster.crawl(num_workers, max(2, 128 // num_workers), HostLimits(rate, concurrency=200), seconds)
        return cluster

    cluster = run_virtual(main())
    assert len(cluster.sent) >= 0.9 * rate * (seconds - 1.5)
    assert_pace_held(cluster.sent, rate)


def test_at_a_high_rate_many_requests_share_an_exchange() -> None:
    async def main() -> Cluster:
        cluster = Cluster()
        await cluster.crawl(4, 100, HostLimits(1000.0, concurrency=400), 6.0)
        return cluster

    cluster = run_virtual(main())
    assert cluster.exchanges < 0.7 * len(cluster.sent)


def test_no_more_requests_are_in_flight_than_the_cap_over_all_workers() -> None:
    async def main() -> Cluster:
        cluster = Cluster(latency_s=0.3, max_stall_s=0.05)
        killer = asyncio.create_task(kill_later(cluster, 8.0))
        await cluster.crawl(8, 8, HostLimits(1000.0, concurrency=5), 20.0)
        await killer
        return cluster

    cluster = run_virtual(main())
    assert cluster.most_in_flight <= 5
    assert len(cluster.sent) > 100


@pytest.mark.parametrize(
    ("num_workers", "tasks_each", "limits", "least_per_s"),
    [
        (2, 16, HostLimits(200.0, concurrency=16), 190),
        (8, 2, HostLimits(1000.0, concurrency=2), 90),
        (2, 1, HostLimits(1000.0, concurrency=1), 45),
    ],
)
def test_a_place_in_flight_is_soon_another_workers(
    num_workers: int, tasks_each: int, limits: HostLimits, least_per_s: float
) -> None:
    async def main() -> Cluster:
        cluster = Cluster(latency_s=0.005)
        await cluster.crawl(num_workers, tasks_each, limits, 11.5)
        return cluster

    cluster = run_virtual(main())
    assert cluster.most_in_flight <= limits.concurrency
    assert len(cluster.sent) >= 10.0 * least_per_s


def test_an_answer_that_says_to_wait_is_heard_of_while_a_slot_is_waited_for() -> None:
    async def main() -> None:
        cluster = Cluster()
        heard: list[float] = []
        client = PaceClient(cluster.exchange, "w", clock=now, on_answer=lambda: heard.append(now()))
        limits = HostLimits(1.0, concurrency=2, crawl_delay_s=30.0)
        await client.slot(HOST, limits)
        await asyncio.sleep(10.0)
        held_alone = len(heard)
        await client.slot(HOST, limits)
        assert max(after - before for before, after in pairwise(heard[held_alone:])) <= 1.5
        assert now() >= 30.0
        waited = len(heard)
        await asyncio.sleep(10.0)
        assert waited <= len(heard) <= waited + 1
        client.done(HOST, WELL)
        client.done(HOST, WELL)
        await client.aclose()

    run_virtual(main())


@pytest.mark.parametrize("limits", [HostLimits(4.0, concurrency=100), HostLimits(1000.0, concurrency=3)])
def test_no_worker_starves(limits: HostLimits) -> None:
    async def main() -> Cluster:
        cluster = Cluster()
        await cluster.crawl(16, 8, limits, 30.0)
        return cluster

    shares = run_virtual(main()).by_worker
    assert len(shares) == 16
    assert min(shares.values()) >= 0.25 * max(shares.values())


def test_a_book_that_stays_away_fails_those_who_wait_after_a_bounded_time() -> None:
    async def main() -> float:
        cluster = Cluster(settings=PaceSettings(unavailable_s=10.0))
        cluster.book = None
        client = cluster.client()
        with pytest.raises(PaceUnavailable, match="no answer from the pace book"):
            await client.slot(HOST, HostLimits(1.0))
        await client.aclose()
        return now()

    assert 10.0 <= run_virtual(main()) <= 12.0


def test_a_bug_in_the_exchange_reaches_those_who_wait() -> None:
    async def broken(_request: PaceRequest) -> PaceReply:
        raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await PaceClient(broken, "w", clock=now).slot(HOST, HostLimits(1.0))

    run_virtual(main())


def test_cancelled_requests_leave_no_place_taken() -> None:
    async def main() -> None:
        cluster = Cluster()
        client, limits = cluster.client(), HostLimits(5.0, concurrency=1)
        for delay in range(60):
            waiting = asyncio.create_task(client.slot(HOST, limits))
            await asyncio.sleep(delay * 0.037)
            if waiting.done():
                client.done(HOST, None)
            else:
                waiting.cancel()
                await asyncio.wait([waiting])
        await asyncio.wait_for(client.slot(HOST, limits), 2.0)
        client.done(HOST, WELL)
        await client.aclose()
        assert client._busy == {}

    run_virtual(main())


def test_a_slot_grows_stale() -> None:
    async def main() -> None:
        client = Cluster().client()
        slot = await client.slot(HOST, HostLimits(5.0))
        assert client.fresh(slot)
        await asyncio.sleep(0.2)
        assert not client.fresh(slot)
        client.done(HOST, None)
        await client.aclose()

    run_virtual(main())


def test_messages_travel_between_processes() -> None:
    request = PaceRequest("w", 1, "", 0.0)
    assert pickle.loads(pickle.dumps(request)) == request
    assert pickle.loads(pickle.dumps(HostLimits(1.0))) == HostLimits(1.0)
    assert pickle.loads(pickle.dumps(Slot(HOST, 1.0, 2.0))).host == HOST


@pytest.mark.parametrize("limits", [(0.0, 8), (-1.0, 8), (float("nan"), 8), (1.0, 0)])
def test_a_pace_without_meaning_is_refused(limits: tuple[float, int]) -> None:
    with pytest.raises(ValueError, match="positive rate"):
        HostLimits(*limits)
