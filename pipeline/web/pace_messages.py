"""What workers and the pace book say to each other: settings and small picklable messages.

Times in a message are seconds on the book's clock, unless the name says that they are durations.
"""

from dataclasses import dataclass, field

from schemas.errors import RunError
from schemas.settings import Section, operational

# Slots lie this much further apart than the rate asks for, so that what happens between a slot's time and the
# request's arrival (scheduling, the network) never adds up to more than the set rate over a few seconds.
SPACING_MARGIN = 1.02


class PaceSettings(Section):
    """How the shared pace of a host is kept, lowered and stopped (section `pace`)."""

    horizon_s: float = operational(0.5, "s; slots are handed out this far ahead, and a new book waits as long", gt=0)
    relearn_s: float = operational(1.0, "s; a new book waits at least this long to hear what is in flight", ge=0)
    late_s: float = operational(0.1, "s; a slot is not used later than this after its time", gt=0)
    heartbeat_s: float = operational(0.4, "s; how often a worker with requests in flight speaks up", gt=0)
    silent_s: float = operational(10.0, "s; a worker silent for longer is taken to be gone", gt=0)
    exchange_timeout_s: float = operational(5.0, "s; an exchange without answer counts as failed", gt=0)
    unavailable_s: float = operational(60.0, "s; how long a worker waits for a book that does not answer", gt=0)
    decrease: float = operational(0.5, "factor on the rate where answers are 429 or 503", gt=0, lt=1)
    throttle_share: float = operational(0.15, "share of such answers, lately, from which on the rate falls", ge=0, lt=1)
    increase_per_s: float = operational(0.1, "share of the set rate won back per second of good answers", gt=0, le=1)
    min_share: float = operational(0.02, "the rate never falls below this share of the set rate", gt=0, le=1)
    slow_latency_s: float = operational(2.0, "s; average latencies below this are never called slow", gt=0)
    slow_factor: float = operational(4.0, "an average latency this many times the usual one lowers the rate", gt=1)
    max_pause_s: float = operational(60.0, "s; a longer Retry-After pauses the host for this long", gt=0)
    breaker_failures: int = operational(20, "consecutive failures that open a host's circuit", ge=1)
    breaker_s: float = operational(5.0, "s; the failures must also have lasted this long", ge=0)
    open_s: float = operational(30.0, "s until an open circuit is probed; doubles with each failed probe", gt=0)
    alarm_outcomes: int = operational(200, "outcomes over which the error rate of a host is taken", ge=10)
    alarm_share: float = operational(0.5, "share of failed or refused requests that opens the circuit", gt=0, le=1)
    max_files_bytes: int = operational(64 << 20, "bytes of robots.txt and the like the book keeps", ge=0)


class PaceUnavailable(RunError):
    """The book cannot be reached now; the call may be repeated."""


@dataclass(frozen=True, slots=True)
class HostLimits:
    """The set pace of a host.

    `crawl_delay_s` is None where robots.txt is not known yet, 0 where it asks for none. An open circuit of an
    essential host stops the run.
    """

    requests_per_second: float
    concurrency: int = 8
    crawl_delay_s: float | None = None
    essential: bool = False

    def __post_init__(self) -> None:
        """Refuse a pace that means nothing."""
        if not self.requests_per_second > 0 or self.concurrency < 1:
            raise ValueError(f"a pace needs a positive rate and concurrency, found {self}")


@dataclass(frozen=True, slots=True)
class HostOutcome:
    """How a request ended: a status, or the short name of what went wrong; neither where it was given up."""

    status: int | None = None
    error: str | None = None
    latency_s: float | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class HostAsk:
    """What a worker says of one host: slots wanted, slots held (waiting or in flight), and what ended since."""

    host: str
    limits: HostLimits
    wanted: int
    held: int
    outcomes: tuple[HostOutcome, ...] = ()
    share: float = 1.0
    paused_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PaceRequest:
    """One message of a worker; `turn` grows, so that one overtaken on the way is told from the newest.

    `book` names the book the worker heard last: another one learns `share` and `paused_s` from it. `lead_s` is the
    time an answer takes to arrive, so that slots are not stale on arrival.
    """

    worker: str
    turn: int
    book: str
    lead_s: float
    hosts: tuple[HostAsk, ...] = ()
    get_files: tuple[str, ...] = ()
    put_files: tuple["SharedFile", ...] = ()


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A robots.txt or the like, kept for all workers; `claimed` where nobody has it and the asker shall fetch it."""

    key: str
    text: str | None
    ttl_s: float = 0.0
    claimed: bool = False


@dataclass(frozen=True, slots=True)
class HostGrant:
    """What the book grants: slot times in order, when to ask again, and how the host does.

    `awaited`: others wait for a place in flight, so news of one that is free should not wait.
    """

    host: str
    slots: tuple[float, ...] = ()
    ask_after_s: float = 0.0
    share: float = 1.0
    paused_s: float = 0.0
    open_reason: str | None = None
    awaited: bool = False


@dataclass(frozen=True, slots=True)
class PaceReply:
    """The book's answer, with its name and clock."""

    book: str
    now: float
    hosts: tuple[HostGrant, ...] = ()
    files: tuple[SharedFile, ...] = field(default=())
