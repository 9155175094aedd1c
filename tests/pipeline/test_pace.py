import asyncio
import bisect
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pace import (
    HostLimits,
    HostOutcome,
    PaceBook,
    PaceClient,
    PaceReply,
    PaceRequest,
    PaceSettings,
    PaceUnavailable,
    Slot,
)
from schemas.errors import CircuitOpenError
from tests.pipeline.virtual_time import run_virtual

HOST = "cars.example"
WELL = HostOutcome(status=200, latency_s=0.02)


@dataclass
class Cluster:
    """A book that can be killed, behind a network that delays and loses, and workers with clocks of their own."""

    seed: int = 0
    max_delay_s: float = 0.002
    loss: float = 0.0
    max_stall_s: float = 0.0
    settings: PaceSettings = field(default_factory=PaceSettings)
    answer: Callable[[int], HostOutcome] = lambda _number: WELL
    latency_s: float = 0.02
    sent: list[float] = field(default_factory=list)
    by_worker: dict[int, int] = field(default_factory=dict)
    in_flight: int = 0
    most_in_flight: int = 0
    exchanges: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.start_book()

    def start_book(self) -> None:
        skew = self.dice.uniform(-1e6, 1e6)
        self.book: PaceBook | None = PaceBook(self.settings, clock=lambda: now() + skew)

    async def kill_book(self, down_s: float) -> None:
        self.book = None
        await asyncio.sleep(down_s)
        self.start_book()

    async def exchange(self, request: PaceRequest) -> PaceReply:
        self.exchanges += 1
        await asyncio.sleep(self.dice.uniform(0, self.max_delay_s))
        book = self.book
        if book is None or self.dice.random() < self.loss:
            raise PaceUnavailable("down")
        reply = book.exchange(request)
        await asyncio.sleep(self.dice.uniform(0, self.max_delay_s))
        if book is not self.book or self.dice.random() < self.loss:
            raise PaceUnavailable("died while it answered")
        return reply

    def client(self, number: int = 0) -> PaceClient:
        skew = self.dice.uniform(-1e6, 1e6)
        return PaceClient(
            self.exchange, f"w{number}", settings=self.settings, clock=lambda: now() + skew, sleep=self.oversleep
        )

    async def oversleep(self, seconds: float) -> None:
        stall = self.dice.uniform(0, self.max_stall_s) if self.dice.random() < 0.1 else 0.0
        await asyncio.sleep(seconds + stall)

    async def request(self, client: PaceClient, worker: int, limits: HostLimits) -> None:
        await client.slot(HOST, limits)
        self.sent.append(now())
        self.by_worker[worker] = self.by_worker.get(worker, 0) + 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        number = len(self.sent)
        await asyncio.sleep(self.dice.uniform(0, 2 * self.latency_s))
        self.in_flight -= 1
        client.done(HOST, self.answer(number))

    async def crawl(self, num_workers: int, tasks_each: int, limits: HostLimits, seconds: float) -> None:
        """Ask as fast as the pace lets through."""

        async def one(client: PaceClient, worker: int) -> None:
            while True:
                await self.request(client, worker, limits)

        clients = [self.client(number) for number in range(num_workers)]
        tasks = [
            asyncio.create_task(one(client, number)) for number, client in enumerate(clients) for _ in range(tasks_each)
        ]
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in clients:
            await client.aclose()
        for task in done:
            task.result()


async def fail_until_open(client: PaceClient, limits: HostLimits, outcome: HostOutcome) -> None:
    while True:
        await client.slot(HOST, limits)
        client.done(HOST, outcome)


def now() -> float:
    return asyncio.get_running_loop().time()


def most_within(sent: list[float], window_s: float) -> int:
    ordered = sorted(sent)
    return max(bisect.bisect_left(ordered, start + window_s) - place for place, start in enumerate(ordered))


def assert_pace_held(sent: list[float], rate: float) -> None:
    assert most_within(sent, 5.0) <= 5 * rate * 1.05 + 1


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
        killer = asyncio.create_task(_kill_later(cluster, 8.0))
        await cluster.crawl(8, 8, HostLimits(1000.0, concurrency=5), 20.0)
        await killer
        return cluster

    cluster = run_virtual(main())
    assert cluster.most_in_flight <= 5
    assert len(cluster.sent) > 100


async def _kill_later(cluster: Cluster, after_s: float) -> None:
    await asyncio.sleep(after_s)
    await cluster.kill_book(0.2)


@pytest.mark.parametrize("limits", [HostLimits(4.0, concurrency=100), HostLimits(1000.0, concurrency=3)])
def test_no_worker_starves(limits: HostLimits) -> None:
    async def main() -> Cluster:
        cluster = Cluster()
        await cluster.crawl(16, 8, limits, 30.0)
        return cluster

    shares = run_virtual(main()).by_worker
    assert len(shares) == 16
    assert min(shares.values()) >= 0.25 * max(shares.values())


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
        killer = asyncio.create_task(_kill_later(cluster, 8.0)) if killed else None
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


def test_messages_travel_between_processes() -> None:
    request = PaceRequest("w", 1, "", 0.0)
    assert pickle.loads(pickle.dumps(request)) == request
    assert pickle.loads(pickle.dumps(HostLimits(1.0))) == HostLimits(1.0)
    assert pickle.loads(pickle.dumps(Slot(HOST, 1.0, 2.0))).host == HOST


@pytest.mark.parametrize("limits", [(0.0, 8), (-1.0, 8), (float("nan"), 8), (1.0, 0)])
def test_a_pace_without_meaning_is_refused(limits: tuple[float, int]) -> None:
    with pytest.raises(ValueError, match="positive rate"):
        HostLimits(*limits)


def test_the_clock_is_the_callers() -> None:
    book: Callable[[PaceRequest], PaceReply] = PaceBook(clock=lambda: 42.0).exchange
    assert book(PaceRequest("w", 0, "", 0.0)).now == 42.0
