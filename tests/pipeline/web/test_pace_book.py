import asyncio
from collections.abc import Callable
from itertools import pairwise

import pytest

from pipeline.web.pace import (
    HostLimits,
    HostOutcome,
    PaceBook,
    PaceClient,
    PaceReply,
    PaceRequest,
    PaceSettings,
)
from schemas.errors import CircuitOpenError
from tests.pipeline.web.pace_cluster import HOST, WELL, Cluster, assert_pace_held, fail_until_open, kill_later, now
from tests.pipeline.web.virtual_time import run_virtual


def test_a_dead_worker_gives_its_places_back() -> None:
    async def main() -> None:
        cluster = Cluster(settings=PaceSettings(silent_s=3.0))
        dead, alive = cluster.client(1), cluster.client(2)
        limits = HostLimits(10.0, concurrency=1)
        await dead.slot(HOST, limits)
        assert dead._talking is not None
        dead._talking.cancel()
        await asyncio.wait_for(alive.slot(HOST, limits), 10.0)
        alive.done(HOST, WELL)
        await alive.aclose()

    run_virtual(main())


def test_crawl_delay_lowers_the_pace_for_all_workers_until_it_is_known_to_be_gone() -> None:
    async def main() -> Cluster:
        cluster = Cluster()
        knows = asyncio.create_task(cluster.crawl(1, 2, HostLimits(50.0, 8, crawl_delay_s=2.0), 30.0))
        await asyncio.sleep(1.2)
        await cluster.crawl(2, 2, HostLimits(50.0, 8, crawl_delay_s=None), 28.0)
        await knows
        return cluster

    assert 10 <= len(run_virtual(main()).sent) <= 16


def test_429_and_503_lower_the_rate_and_good_answers_win_it_back_but_never_more() -> None:
    async def main() -> list[float]:
        cluster = Cluster()
        cluster.answer = lambda _number: HostOutcome(status=429) if 5.0 < now() < 15.0 else WELL
        await cluster.crawl(2, 20, HostLimits(20.0, concurrency=100), 60.0)
        return cluster.sent

    sent = run_virtual(main())

    def count(start: float, end: float) -> int:
        return sum(start <= moment < end for moment in sent)

    assert count(10, 15) < 0.2 * count(1, 5)
    assert count(50, 60) >= 0.9 * 20 * 10
    assert_pace_held(sent, 20.0)


def test_a_429_or_503_now_and_then_does_not_lower_the_rate() -> None:
    async def main() -> list[float]:
        cluster = Cluster()
        cluster.answer = lambda number: HostOutcome(status=503) if number % 40 == 0 else WELL
        await cluster.crawl(2, 20, HostLimits(20.0, concurrency=100), 31.0)
        return cluster.sent

    assert len(run_virtual(main())) >= 0.9 * 20 * 30


def test_slow_answers_lower_the_rate() -> None:
    async def main() -> list[float]:
        cluster = Cluster()
        cluster.answer = lambda _number: HostOutcome(status=200, latency_s=6.0 if now() > 10 else 0.1)
        await cluster.crawl(1, 20, HostLimits(20.0, concurrency=100), 40.0)
        return cluster.sent

    sent = run_virtual(main())
    assert sum(moment >= 30 for moment in sent) < 0.6 * sum(moment < 10 for moment in sent)


@pytest.mark.parametrize("killed", [False, True])
def test_retry_after_pauses_the_host_even_where_the_book_is_killed_meanwhile(killed: bool) -> None:
    async def main() -> list[float]:
        cluster = Cluster()
        cluster.answer = lambda number: HostOutcome(status=503, retry_after_s=12.0) if number == 20 else WELL
        killer = asyncio.create_task(kill_later(cluster, 8.0)) if killed else None
        await cluster.crawl(2, 4, HostLimits(10.0, concurrency=100), 25.0)
        if killer is not None:
            await killer
        return cluster.sent

    sent = run_virtual(main())
    longest = max(later - earlier for earlier, later in pairwise(sent))
    assert 10.5 <= longest <= 15.0


def test_lasting_failures_open_the_circuit_and_a_good_probe_closes_it() -> None:
    async def main() -> None:
        cluster = Cluster()
        client, limits = cluster.client(), HostLimits(10.0, concurrency=8)
        with pytest.raises(CircuitOpenError, match=r"\d+ requests in a row failed, the last with connect"):
            await fail_until_open(client, limits, HostOutcome(error="connect"))
        with pytest.raises(CircuitOpenError):
            await client.slot(HOST, limits)
        await asyncio.sleep(31.0)
        probe, other = (asyncio.create_task(client.slot(HOST, limits)) for _ in range(2))
        done, _ = await asyncio.wait({probe, other}, timeout=5.0)
        assert len(done) == 1, "one probe, and nobody else meanwhile"
        client.done(HOST, WELL)
        await asyncio.wait_for(asyncio.gather(probe, other), 5.0)
        client.done(HOST, WELL)
        await client.aclose()

    run_virtual(main())


def test_a_failed_probe_opens_the_circuit_for_longer() -> None:
    async def main() -> None:
        cluster = Cluster(settings=PaceSettings(breaker_failures=3, breaker_s=0.0, open_s=5.0))
        client, limits = cluster.client(), HostLimits(100.0)
        for _ in range(2):
            with pytest.raises(CircuitOpenError):
                await fail_until_open(client, limits, HostOutcome(status=500))
            await asyncio.sleep(6.0)
        with pytest.raises(CircuitOpenError, match="a probe failed again with http_500"):
            await client.slot(HOST, limits)
        await client.aclose()

    run_virtual(main())


def test_a_high_share_of_refused_requests_raises_the_alarm() -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.answer = lambda number: HostOutcome(status=403) if number % 3 else WELL
        with pytest.raises(CircuitOpenError, match="of the last 200 requests failed or were refused"):
            await cluster.crawl(1, 8, HostLimits(100.0, concurrency=100), 60.0)

    run_virtual(main())


def test_gone_pages_and_scattered_failures_raise_no_alarm() -> None:
    async def main() -> None:
        cluster = Cluster()
        outcomes = {0: HostOutcome(error="timeout"), 1: HostOutcome(status=500), 2: WELL}
        cluster.answer = lambda number: outcomes.get(number % 10, HostOutcome(status=404))
        await cluster.crawl(1, 8, HostLimits(100.0, concurrency=100), 20.0)

    run_virtual(main())


def test_an_overtaken_message_is_granted_nothing() -> None:
    async def main() -> None:
        cluster = Cluster()
        seen: list[PaceRequest] = []

        async def exchange(request: PaceRequest) -> PaceReply:
            seen.append(request)
            return await cluster.exchange(request)

        client = PaceClient(exchange, "w", clock=now)
        await client.slot(HOST, HostLimits(5.0))
        client.done(HOST, WELL)
        await client.aclose()
        assert cluster.book is not None
        assert cluster.book.exchange(seen[0]).hosts == ()

    run_virtual(main())


def test_a_site_file_is_fetched_by_one_worker_and_known_to_all() -> None:
    async def main() -> None:
        cluster = Cluster()
        clients = [cluster.client(number) for number in range(8)]
        num_fetched = 0

        async def robots(client: PaceClient) -> str | None:
            nonlocal num_fetched
            file = await client.get_file("robots cars.example")
            if not file.claimed:
                return file.text
            num_fetched += 1
            await asyncio.sleep(3.0)
            client.put_file(file.key, "User-agent: *", ttl_s=100.0)
            return "User-agent: *"

        texts = await asyncio.gather(*(robots(client) for client in clients for _ in range(3)))
        assert set(texts) == {"User-agent: *"}
        assert num_fetched == 1
        await asyncio.sleep(101.0)
        assert (await clients[0].get_file("robots cars.example")).claimed
        for client in clients:
            await client.aclose()

    run_virtual(main())


def test_a_claim_given_back_goes_to_the_next_and_large_files_push_out_old_ones() -> None:
    async def main() -> None:
        cluster = Cluster(settings=PaceSettings(max_files_bytes=1000))
        one, other = cluster.client(1), cluster.client(2)
        assert (await one.get_file("a")).claimed
        one.put_file("a", None, ttl_s=0.0)
        await one.aclose()
        assert (await other.get_file("a")).claimed
        other.put_file("a", "x" * 600, ttl_s=100.0)
        other.put_file("b", "y" * 600, ttl_s=100.0)
        await other.aclose()
        assert (await one.get_file("b")).text == "y" * 600
        assert (await one.get_file("a")).claimed
        await one.aclose()

    run_virtual(main())


def test_the_clock_is_the_callers() -> None:
    book: Callable[[PaceRequest], PaceReply] = PaceBook(clock=lambda: 42.0).exchange
    assert book(PaceRequest("w", 0, "", 0.0)).now == 42.0
