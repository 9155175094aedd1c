"""The shared pace of hosts: a worker's side, which asks the book for slots and uses none of them late.

A slot is a moment, on the book's clock, at which one request may be sent. The client maps it to its own clock by the
round trips of its exchanges: it never sends before the slot's time, and bounds how long after. What it cannot use in
time it gives up and asks anew, so that a worker that was stopped for a while does not send a bunch of requests.
"""

import asyncio
import contextlib
import math
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.web.pace_book import HostPace, PaceBook
from pipeline.web.pace_messages import (
    SPACING_MARGIN,
    HostAsk,
    HostGrant,
    HostLimits,
    HostOutcome,
    PaceReply,
    PaceRequest,
    PaceSettings,
    PaceUnavailable,
    SharedFile,
)
from schemas.errors import CircuitOpenError

__all__ = [
    "SPACING_MARGIN",
    "HostAsk",
    "HostGrant",
    "HostLimits",
    "HostOutcome",
    "HostPace",
    "PaceBook",
    "PaceClient",
    "PaceReply",
    "PaceRequest",
    "PaceSettings",
    "PaceUnavailable",
    "SharedFile",
    "Slot",
    "local_pace",
]

Exchange = Callable[[PaceRequest], Awaitable[PaceReply]]

# Wishes that come up within this time share an exchange.
_BATCH_S = 0.002
# How long news may wait for a wish to travel with.
_NEWS_S = 0.05
_RETRY_S = 0.05
_MAX_RETRY_S = 0.5
# Clocks drift apart: round trips older than this no longer bound the offset.
_SAMPLE_S = 60.0
# Where the offset is less certain than this, a slot's true time is not known well enough to use it.
_MAX_UNCERTAINTY_S = 0.15
_FILE_POLL_S = 0.2
_CLOSE_S = 2.0
_MAX_HOSTS = 10_000
_MAX_NEWS = 1_000


@dataclass(frozen=True, slots=True)
class Slot:
    """The right to send one request to a host, between two moments on the client's clock."""

    host: str
    not_before: float
    not_after: float


@dataclass(slots=True)
class _HostWork:
    """What this worker wants of a host, holds of it, and has not yet told; moments are on the client's clock."""

    limits: HostLimits
    waiting: deque["asyncio.Future[Slot]"] = field(default_factory=deque)
    held: int = 0
    news: list[HostOutcome] = field(default_factory=list)
    tell_at: float | None = None
    ask_at: float = 0.0
    share: float = 1.0
    paused_until: float = -math.inf
    awaited: bool = False

    def idle(self) -> bool:
        """Tell whether there is nothing to say about this host."""
        return not self.waiting and not self.held and self.tell_at is None

    def due_at(self) -> float:
        """Say when to speak of this host, heartbeats aside."""
        wish = self.ask_at if self.waiting else math.inf
        return wish if self.tell_at is None else min(wish, self.tell_at)


class PaceClient:
    """Asks for slots on behalf of one worker; at most one exchange is under way at a time.

    `on_answer` is called at each answer while a slot or a file is waited for, also at one that says to wait on: long
    waits at a slow pace are no standstill.
    """

    def __init__(
        self,
        exchange: Exchange,
        worker_id: str,
        *,
        settings: PaceSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_answer: Callable[[], object] | None = None,
    ) -> None:
        self._exchange = exchange
        # A worker that starts anew under its old name is another one to the book.
        self._worker = f"{worker_id}-{uuid.uuid4().hex[:8]}"
        self._settings = settings or PaceSettings()
        self._clock = clock
        self._sleep = sleep
        self._on_answer = on_answer
        self._hosts: dict[str, _HostWork] = {}
        self._busy: dict[str, _HostWork] = {}
        self._file_waiters: dict[str, list[asyncio.Future[SharedFile]]] = {}
        self._file_puts: list[SharedFile] = []
        self._claimed: set[str] = set()
        self._offset = _Offset()
        self._turn = 0
        self._spoke_at = self._free_at = -math.inf
        self._failing_since: float | None = None
        self._wake = asyncio.Event()
        self._talking: asyncio.Task[None] | None = None

    async def slot(self, host: str, limits: HostLimits) -> Slot:
        """Wait until a request may be sent to a host; each slot must be given back by `done`.

        Raises:
            CircuitOpenError: the host's circuit is open.
            PaceUnavailable: the book did not answer for `unavailable_s`.
        """
        work = self._work(host, limits)
        while True:
            waiter: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
            if not work.waiting:
                work.ask_at = self._clock() + _BATCH_S
            work.waiting.append(waiter)
            self._speak(host, work)
            try:
                slot = await waiter
                await self._sleep_until(slot.not_before)
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                    self._give_back(host, work, None)
                raise
            if self.fresh(slot):
                return slot
            self._give_back(host, work, None)

    def fresh(self, slot: Slot) -> bool:
        """Tell whether a slot may still be used."""
        return self._clock() <= slot.not_after

    def done(self, host: str, outcome: HostOutcome | None) -> None:
        """Give a slot back and tell how its request ended; None where none was sent."""
        self._give_back(host, self._hosts[host], outcome)

    async def get_file(self, key: str) -> SharedFile:
        """Return a file that a worker has put, or the claim to fetch it, which `put_file` ends.

        Waits while another worker has the claim.
        """
        while True:
            while key in self._claimed:
                await self._sleep(_FILE_POLL_S)
            waiter: asyncio.Future[SharedFile] = asyncio.get_running_loop().create_future()
            self._file_waiters.setdefault(key, []).append(waiter)
            self._speak()
            file = await waiter
            if file.text is not None or file.claimed:
                return file
            # Another worker has the claim, or a task here has just got it.
            await self._sleep(_FILE_POLL_S)

    def put_file(self, key: str, text: str | None, ttl_s: float) -> None:
        """Share a file with all workers; None gives a claim back."""
        self._claimed.discard(key)
        self._file_puts.append(SharedFile(key, text, ttl_s))
        self._speak()

    async def aclose(self) -> None:
        """Say what is left to say; the client may be used again afterwards."""
        for work in self._busy.values():
            work.tell_at = self._clock()
        self._wake.set()
        if self._talking is not None:
            _, late = await asyncio.wait([self._talking], timeout=_CLOSE_S)
            for talk in late:
                talk.cancel()
                await asyncio.wait([talk])

    def _work(self, host: str, limits: HostLimits) -> _HostWork:
        if host not in self._hosts and len(self._hosts) >= _MAX_HOSTS:
            self._hosts = dict(self._busy)
        work = self._hosts.setdefault(host, _HostWork(limits))
        if limits.crawl_delay_s is not None or work.limits.crawl_delay_s is None:
            work.limits = limits
        return work

    def _give_back(self, host: str, work: _HostWork, outcome: HostOutcome | None) -> None:
        work.held -= 1
        # The freed place may be what others here wait for.
        work.ask_at = min(work.ask_at, self._clock() + _BATCH_S)
        self._tell(host, work, outcome)

    def _tell(self, host: str, work: _HostWork, outcome: HostOutcome | None) -> None:
        if outcome is not None:
            work.news.append(outcome)
        if work.tell_at is None:
            work.tell_at = self._clock() + (_BATCH_S if work.awaited else _NEWS_S)
        self._speak(host, work)

    def _speak(self, host: str = "", work: _HostWork | None = None) -> None:
        if work is not None:
            self._busy[host] = work
        self._wake.set()
        if self._talking is None or self._talking.done():
            self._talking = asyncio.get_running_loop().create_task(self._talk(), name=f"pace {self._worker}")
            self._talking.add_done_callback(self._ended)

    async def _sleep_until(self, moment: float) -> None:
        while (left := moment - self._clock()) > 0:
            await self._sleep(left)

    async def _talk(self) -> None:
        """Exchange while there is something to say; with nothing left the task ends by itself."""
        while self._busy or self._file_waiters or self._file_puts:
            self._wake.clear()
            pause = self._due_at() - self._clock()
            if pause > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                continue
            await self._exchange_once()

    def _due_at(self) -> float:
        if self._file_waiters or self._file_puts:
            return self._free_at
        heartbeat = self._settings.heartbeat_s
        dues = [work.due_at() for work in self._busy.values()]
        dues += [self._spoke_at + heartbeat for work in self._busy.values() if work.held]
        return max(self._free_at, min(dues, default=self._free_at))

    async def _exchange_once(self) -> None:
        self._turn += 1
        sent = self._clock()
        asks = tuple(self._ask(host, work, sent) for host, work in self._busy.items())
        puts, self._file_puts = tuple(self._file_puts), []
        request = PaceRequest(
            self._worker, self._turn, self._offset.book, self._offset.lead_s, asks, tuple(self._file_waiters), puts
        )
        try:
            async with asyncio.timeout(self._settings.exchange_timeout_s):
                reply = await self._exchange(request)
        except (PaceUnavailable, TimeoutError) as error:
            self._file_puts = [*puts, *self._file_puts]
            await self._wait_for_book(asks, error)
            return
        heard = self._clock()
        self._failing_since = None
        self._spoke_at = heard
        # Long exchanges mean that the book is busy.
        self._free_at = heard + max(_BATCH_S, (heard - sent) / 4)
        self._offset.learn(reply, sent, heard)
        if self._on_answer is not None and (request.get_files or any(ask.wanted for ask in asks)):
            self._on_answer()
        for grant in reply.hosts:
            self._take(grant, heard)
        for file in reply.files:
            self._hand_out(file)
        self._busy = {host: work for host, work in self._busy.items() if not work.idle()}

    def _ask(self, host: str, work: _HostWork, now: float) -> HostAsk:
        while work.waiting and work.waiting[0].done():
            work.waiting.popleft()
        news, work.news = tuple(work.news[-_MAX_NEWS:]), []
        work.tell_at = None
        work.ask_at = now + _NEWS_S
        wanted = sum(not waiter.done() for waiter in work.waiting)
        return HostAsk(host, work.limits, wanted, work.held, news, work.share, max(0.0, work.paused_until - now))

    async def _wait_for_book(self, asks: tuple[HostAsk, ...], error: BaseException) -> None:
        """Keep what could not be said, and try again after a while; give up in the end."""
        now = self._clock()
        self._offset.lead_s = min(self._settings.horizon_s, self._offset.lead_s + _RETRY_S)
        self._failing_since = now if self._failing_since is None else self._failing_since
        for ask in asks:
            work = self._hosts[ask.host]
            work.news = [*ask.outcomes, *work.news]
            work.tell_at = work.ask_at = now
        failing_s = now - self._failing_since
        if failing_s > self._settings.unavailable_s:
            raise PaceUnavailable(f"no answer from the pace book for {failing_s:.0f} s: {error}") from error
        await self._sleep(min(_MAX_RETRY_S, max(_RETRY_S, failing_s)))

    def _take(self, grant: HostGrant, now: float) -> None:
        work = self._hosts[grant.host]
        work.share = grant.share
        work.paused_until = now + grant.paused_s
        work.ask_at = now + grant.ask_after_s
        work.awaited = grant.awaited
        if grant.open_reason is not None:
            _fail(work.waiting, CircuitOpenError(f"{grant.host} is not asked any more: {grant.open_reason}"))
            work.waiting.clear()
        for moment in grant.slots:
            slot = self._offset.slot(grant.host, moment, self._settings.late_s)
            waiter = next((waiter for waiter in work.waiting if not waiter.done()), None)
            if waiter is None or slot is None or slot.not_after < now:
                # The book thinks that this slot is held.
                work.tell_at = now if work.tell_at is None else work.tell_at
                continue
            work.waiting.remove(waiter)
            work.held += 1
            waiter.set_result(slot)

    def _hand_out(self, file: SharedFile) -> None:
        waiters = [waiter for waiter in self._file_waiters.pop(file.key, []) if not waiter.done()]
        if file.claimed and waiters:
            self._claimed.add(file.key)
        for position, waiter in enumerate(waiters):
            waiter.set_result(file if position == 0 else replace(file, claimed=False))

    def _ended(self, talk: "asyncio.Task[None]") -> None:
        """Hand what ended the talk to all who wait for an answer."""
        error = None if talk.cancelled() else talk.exception()
        if error is None and not talk.cancelled():
            if self._busy or self._file_waiters or self._file_puts:
                self._speak()
            return
        for work in self._busy.values():
            _fail(work.waiting, error)
            work.waiting.clear()
            work.tell_at = None
        _fail((waiter for group in self._file_waiters.values() for waiter in group), error)
        self._busy, self._file_waiters, self._file_puts = {}, {}, []
        self._failing_since = None


def _fail(waiters: "Iterable[asyncio.Future[Any]]", error: BaseException | None) -> None:
    """Raise an error where it is awaited; None cancels."""
    for waiter in waiters:
        if waiter.done():
            continue
        if error is None:
            waiter.cancel()
        else:
            waiter.set_exception(error)


class _Offset:
    """Between which bounds the client's clock is ahead of the book's, from the round trips of exchanges."""

    def __init__(self) -> None:
        self.book = ""
        self.lead_s = 0.0
        self._samples: deque[tuple[float, float, float]] = deque(maxlen=256)
        self._least = self._most = 0.0

    def learn(self, reply: PaceReply, sent: float, heard: float) -> None:
        """Narrow the bounds: the book read its clock somewhere between sending and hearing."""
        if reply.book != self.book:
            self.book = reply.book
            self._samples.clear()
        while self._samples and self._samples[0][2] < heard - _SAMPLE_S:
            self._samples.popleft()
        self._samples.append((sent - reply.now, heard - reply.now, heard))
        self._least = max(least for least, _, _ in self._samples)
        self._most = max(self._least, min(most for _, most, _ in self._samples))
        self.lead_s = max(heard - sent, 0.8 * self.lead_s)

    def slot(self, host: str, moment: float, late_s: float) -> Slot | None:
        """Place a slot on the client's clock: never before its time; None where the bounds are too wide."""
        if self._most - self._least > _MAX_UNCERTAINTY_S:
            return None
        return Slot(host, moment + self._most, moment + self._most + late_s)


def local_pace(settings: PaceSettings | None = None) -> PaceClient:
    """Make a client with a book of its own, for a process that shares its pace with no other."""
    book = PaceBook(settings, clock=time.monotonic)

    async def exchange(request: PaceRequest) -> PaceReply:
        return book.exchange(request)

    return PaceClient(exchange, "local", settings=settings)
