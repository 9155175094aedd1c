"""A simulated cluster: a book that can be killed, a bad network, workers with clocks of their own, in virtual time."""

import asyncio
import bisect
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.web.pace import (
    HostLimits,
    HostOutcome,
    PaceBook,
    PaceClient,
    PaceReply,
    PaceRequest,
    PaceSettings,
    PaceUnavailable,
)

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


async def kill_later(cluster: Cluster, after_s: float) -> None:
    await asyncio.sleep(after_s)
    await cluster.kill_book(0.2)
