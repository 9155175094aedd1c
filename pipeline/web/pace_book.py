"""The book of hosts: which worker may ask which host, and when.

One book serves a cluster. It knows nothing but what workers tell it, so it may be killed at any time: a new one hands
out nothing before every slot of the old one has passed, and relearns what is in flight from the workers' next words.
"""

import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable

from pipeline.web.pace_messages import (
    SPACING_MARGIN,
    HostAsk,
    HostGrant,
    HostLimits,
    HostOutcome,
    PaceReply,
    PaceRequest,
    PaceSettings,
    SharedFile,
)

THROTTLED = frozenset({429, 503})
# Answers of a host that is well but does not want us; beside failures they count for the alarm, not for the breaker.
REFUSALS = frozenset({401, 403, 407, 429})
HOST_ERRORS = frozenset({"connect", "dns", "timeout", "deadline", "tls"})
# A worker is owed a slot before later ones only around the time at which it was told to ask again.
_SOON_S = 0.1
_GRACE_S = 0.5
_ASK_AGAIN_S = 0.05
_FIRST_ASKS_S = 0.01
_MAX_ASK_AGAIN_S = 1.0
_DECREASE_PAUSE_S = 1.0
_SLOW_PAUSE_S = 5.0
_LATENCY_WEIGHT = 0.1
_THROTTLE_WEIGHT = 0.1
_USUAL_WEIGHT = 0.0005
# Slow answers alone never lower the rate below this share: a site may have become slower for good.
_SLOW_SHARE = 0.2
_MAX_OPEN_S = 600.0
_CLAIM_S = 30.0
_MAX_HOSTS = 10_000
_REST_S = 600.0


class PaceBook:
    """Hands out slots of all hosts to all workers; what the cluster-wide actor wraps."""

    def __init__(self, settings: PaceSettings | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self.name = uuid.uuid4().hex
        self._settings = settings or PaceSettings()
        self._clock = clock
        self._started = clock()
        self._hosts: dict[str, HostPace] = {}
        self._heard: dict[str, tuple[int, float]] = {}
        self._files = _Files(self._settings.max_files_bytes)

    def exchange(self, request: PaceRequest) -> PaceReply:
        """Hear what a worker says and answer with slots; a message overtaken on the way is granted nothing."""
        now = self._clock()
        self._forget_silent(now)
        turn, _ = self._heard.get(request.worker, (-1, now))
        if request.turn <= turn:
            return PaceReply(self.name, now)
        self._heard[request.worker] = (request.turn, now)
        relearn = request.book != self.name
        grants = tuple(self._host(ask.host).answer(now, request, ask, relearn=relearn) for ask in request.hosts)
        for file in request.put_files:
            self._files.put(now, file)
        files = tuple(self._files.get(now, request.worker, key) for key in request.get_files)
        return PaceReply(self.name, now, grants, files)

    def adopt(self, settings: PaceSettings) -> None:
        """Go on by other settings, as if this book had been made with them."""
        self._settings = settings
        self._files.max_bytes = settings.max_files_bytes
        for pace in self._hosts.values():
            pace.adopt(settings, started=self._started)

    def _host(self, host: str) -> "HostPace":
        if host not in self._hosts:
            if len(self._hosts) >= _MAX_HOSTS:
                now = self._clock()
                self._hosts = {name: pace for name, pace in self._hosts.items() if not pace.at_rest(now)}
            self._hosts[host] = HostPace(self._settings, started=self._started)
        return self._hosts[host]

    def _forget_silent(self, now: float) -> None:
        gone = [worker for worker, (_, heard) in self._heard.items() if now - heard > self._settings.silent_s]
        for worker in gone:
            del self._heard[worker]
            for pace in self._hosts.values():
                pace.forget(worker)


class HostPace:
    """The pace of one host: evenly spaced slots, a cap on what is in flight, and what its answers did to both."""

    def __init__(self, settings: PaceSettings, *, started: float) -> None:
        self._settings = settings
        self._limits: HostLimits | None = None
        self._crawl_delay_s = 0.0
        # As if the book before this one had handed out every slot it could.
        self._last_slot = started + settings.horizon_s
        self._quiet_until = started + max(settings.horizon_s, settings.relearn_s)
        self._held: dict[str, int] = {}
        self._waiting: OrderedDict[str, float] = OrderedDict()
        self._paused_until = started
        self._health = _Health(settings, started)

    def answer(self, now: float, request: PaceRequest, ask: HostAsk, *, relearn: bool) -> HostGrant:
        """Take in what a worker says of this host and grant what the host's pace allows."""
        self._hear(now, request.worker, ask, relearn=relearn)
        open_reason = self._health.open_reason(now)
        slots = () if open_reason else self._grant(now, request.worker, ask.wanted, request.lead_s)
        if slots:
            self._held[request.worker] = self._held.get(request.worker, 0) + len(slots)
        ask_after = 0.0
        if slots or not ask.wanted:
            self._waiting.pop(request.worker, None)
        if not open_reason and len(slots) < ask.wanted:
            ask_after = self._ask_after(now, request.worker)
            self._waiting[request.worker] = now + ask_after
        paused_s = max(0.0, self._paused_until - now)
        awaited = self._free_places() <= 0 and bool(self._waiting.keys() - {request.worker})
        return HostGrant(ask.host, slots, ask_after, self._health.share, paused_s, open_reason, awaited)

    def adopt(self, settings: PaceSettings, *, started: float) -> None:
        """Go on by other settings; slots handed out before keep their times."""
        self._settings = settings
        self._last_slot = max(self._last_slot, started + settings.horizon_s)
        self._quiet_until = max(self._quiet_until, started + max(settings.horizon_s, settings.relearn_s))
        self._health.adopt(settings)

    def forget(self, worker: str) -> None:
        """Drop what a worker that is gone had in flight."""
        self._held.pop(worker, None)
        self._waiting.pop(worker, None)

    def at_rest(self, now: float) -> bool:
        """Tell whether nothing is lost by forgetting this host."""
        rested = now - max(self._last_slot, self._paused_until) > max(_REST_S, 2 * self._crawl_delay_s)
        return rested and not any(self._held.values()) and self._health.open_reason(now) is None

    def _hear(self, now: float, worker: str, ask: HostAsk, *, relearn: bool) -> None:
        self._limits = ask.limits
        if ask.limits.crawl_delay_s is not None:
            self._crawl_delay_s = ask.limits.crawl_delay_s
        self._held[worker] = ask.held
        if relearn:
            self._health.share = min(self._health.share, max(ask.share, self._settings.min_share))
            self._paused_until = max(self._paused_until, now + min(ask.paused_s, self._settings.max_pause_s))
        for outcome in ask.outcomes:
            self._health.learn(now, outcome)
            if outcome.retry_after_s is not None and outcome.status in THROTTLED:
                pause = min(outcome.retry_after_s, self._settings.max_pause_s)
                self._paused_until = max(self._paused_until, now + pause)

    def _interval(self) -> float:
        assert self._limits is not None
        set_interval = max(1.0 / self._limits.requests_per_second, self._crawl_delay_s)
        return set_interval * SPACING_MARGIN / self._health.share

    def _next_slot(self, now: float) -> float:
        return max(now, self._last_slot + self._interval(), self._quiet_until, self._paused_until)

    def _ahead(self, now: float, worker: str) -> int:
        """Count the workers that have waited longer than this one and are about to ask; each is owed a slot first."""
        ahead = 0
        for other, due in list(self._waiting.items()):
            if now > due + _GRACE_S:
                del self._waiting[other]
            elif other == worker:
                break
            elif due <= now + _SOON_S:
                ahead += 1
        return ahead

    def _grant(self, now: float, worker: str, wanted: int, lead_s: float) -> tuple[float, ...]:
        assert self._limits is not None
        first = max(self._next_slot(now), now + min(lead_s, self._settings.horizon_s / 2))
        room = self._room(now, first)
        granted = min(wanted, room - self._ahead(now, worker))
        if granted <= 0:
            return ()
        interval = self._interval()
        slots = tuple(first + step * interval for step in range(granted))
        self._last_slot = slots[-1]
        return slots

    def _room(self, now: float, first: float) -> int:
        assert self._limits is not None
        free = self._free_places()
        horizon = now + self._settings.horizon_s
        return 0 if first > horizon else min(free, int((horizon - first) / self._interval()) + 1)

    def _free_places(self) -> int:
        assert self._limits is not None
        in_flight = sum(self._held.values())
        return (1 if self._health.probing else self._limits.concurrency) - in_flight

    def _ask_after(self, now: float, worker: str) -> float:
        waiting = list(self._waiting)
        queued = waiting.index(worker) if worker in self._waiting else len(waiting)
        in_reach = self._next_slot(now) + queued * self._interval() - self._settings.horizon_s - now
        # The first in the queue looks often whether a place is free; all together ask no more for being many.
        return min(max(min(_ASK_AGAIN_S, _FIRST_ASKS_S * (queued + 1)), in_reach), _MAX_ASK_AGAIN_S)


class _Health:
    """What a host's answers say about it: its share of the set rate, and whether its circuit is open."""

    def __init__(self, settings: PaceSettings, now: float) -> None:
        self.share = 1.0
        self.probing = False
        self._settings = settings
        self._changed_at = self._raised_at = now - _SLOW_PAUSE_S
        self._usual_s: float | None = None
        self._recent_s = 0.0
        self._throttled = 0.0
        self._failures = 0
        self._failing_since = now
        self._outcomes: deque[bool] = deque(maxlen=settings.alarm_outcomes)
        self._reason: str | None = None
        self._open_until = now
        self._open_s = settings.open_s

    def adopt(self, settings: PaceSettings) -> None:
        """Go on by other settings, with what was learned."""
        self._settings = settings
        self._outcomes = deque(self._outcomes, maxlen=settings.alarm_outcomes)
        self.share = max(self.share, settings.min_share)

    def open_reason(self, now: float) -> str | None:
        """Say why the circuit is open; None where it is closed, or open long enough for one probe."""
        if self._reason is not None and not self.probing and now >= self._open_until:
            self.probing = True
        return None if self.probing else self._reason

    def learn(self, now: float, outcome: HostOutcome) -> None:
        """Take in how one request ended."""
        status, error = outcome.status, outcome.error
        if status is None and error is None:
            return
        failed = error in HOST_ERRORS or (status is not None and status >= 500)
        self._outcomes.append(failed or status in REFUSALS)
        if failed:
            self._fail(now, error or f"http_{status}")
        else:
            self._failures = 0
            self._close()
        throttled = status in THROTTLED
        self._throttled += _THROTTLE_WEIGHT * (throttled - self._throttled)
        if throttled and self._throttled >= self._settings.throttle_share:
            self._slow_down(now, _DECREASE_PAUSE_S, floor=self._settings.min_share)
        elif not failed and self._is_slow(outcome.latency_s):
            self._slow_down(now, _SLOW_PAUSE_S, floor=_SLOW_SHARE)
        elif not failed:
            self._speed_up(now)
        self._raise_alarm(now)

    def _fail(self, now: float, what: str) -> None:
        if self._failures == 0:
            self._failing_since = now
        self._failures += 1
        lasting = now - self._failing_since >= self._settings.breaker_s
        if self.probing:
            self._open_s = min(self._open_s * 2, _MAX_OPEN_S)
            self._open(now, f"a probe failed again with {what}")
        elif self._reason is None and self._failures >= self._settings.breaker_failures and lasting:
            self._open(now, f"{self._failures} requests in a row failed, the last with {what}")

    def _raise_alarm(self, now: float) -> None:
        full = len(self._outcomes) == self._settings.alarm_outcomes
        if self._reason is None and full and sum(self._outcomes) > self._settings.alarm_share * len(self._outcomes):
            self._open(now, f"{sum(self._outcomes)} of the last {len(self._outcomes)} requests failed or were refused")

    def _open(self, now: float, reason: str) -> None:
        self._reason = reason
        self.probing = False
        self._open_until = now + self._open_s
        self._outcomes.clear()

    def _close(self) -> None:
        self._reason = None
        self.probing = False
        self._open_s = self._settings.open_s

    def _slow_down(self, now: float, pause_s: float, *, floor: float) -> None:
        # Answers to requests sent before the last change say nothing about it.
        if now - self._changed_at >= pause_s:
            self.share = min(self.share, max(floor, self.share * self._settings.decrease))
            self._changed_at = self._raised_at = now

    def _speed_up(self, now: float) -> None:
        if self.share < 1.0:
            self.share = min(1.0, self.share + self._settings.increase_per_s * min(1.0, now - self._raised_at))
        self._raised_at = now

    def _is_slow(self, latency_s: float | None) -> bool:
        if latency_s is None:
            return False
        if self._usual_s is None:
            self._usual_s = self._recent_s = latency_s
        self._recent_s += _LATENCY_WEIGHT * (latency_s - self._recent_s)
        # The usual latency falls fast and rises slowly, so that a slow spell does not become usual.
        self._usual_s += (0.5 if latency_s < self._usual_s else _USUAL_WEIGHT) * (latency_s - self._usual_s)
        return self._recent_s > max(self._settings.slow_latency_s, self._settings.slow_factor * self._usual_s)


class _Files:
    """robots.txt and the like, fetched once for all workers: who asks first is told to fetch, the others wait."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._texts: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._claims: dict[str, tuple[str, float]] = {}
        self._bytes = 0

    def get(self, now: float, worker: str, key: str) -> SharedFile:
        text, expires = self._texts.get(key, ("", now))
        if now < expires:
            return SharedFile(key, text, expires - now)
        claimer, until = self._claims.get(key, ("", now))
        if now < until and claimer != worker:
            return SharedFile(key, None)
        self._claims[key] = (worker, now + _CLAIM_S)
        return SharedFile(key, None, claimed=True)

    def put(self, now: float, file: SharedFile) -> None:
        self._claims.pop(file.key, None)
        self._drop(file.key)
        if file.text is not None and len(file.text) <= self.max_bytes:
            self._texts[file.key] = (file.text, now + file.ttl_s)
            self._bytes += len(file.text)
        while self._bytes > self.max_bytes:
            self._drop(next(iter(self._texts)))

    def _drop(self, key: str) -> None:
        text, _ = self._texts.pop(key, ("", 0.0))
        self._bytes -= len(text)
