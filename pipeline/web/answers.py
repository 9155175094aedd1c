"""What comes out of a fetch: answers, the two ways to fail, and how headers and statuses are read."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from pipeline.web.policy import PASSING
from schemas.errors import FetchError, PolicyError, RowError, http_reason, is_transient

Kind = Literal["page", "photo", "site"]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_VALIDATORS = frozenset({"etag", "last-modified"})
_MAX_VALIDATOR = 1024
_STRAY_BYTE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Answer:
    """A usable answer: `url` after redirects, headers by lower-case name, the decoded body, evidence for the row."""

    url: str
    status: int
    headers: dict[str, str]
    body: bytes = b""
    num_tries: int = 1
    latency_s: float = 0.0
    policy: dict[str, Any] = field(default_factory=dict)
    not_modified: bool = False


class _Tried(RowError):
    """A failure that says how far it got."""

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        num_tries: int = 0,
        status: int | None = None,
        latency_s: float | None = None,
        policy: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(reason, detail)
        self.num_tries = num_tries
        self.status = status
        self.latency_s = latency_s
        self.policy = dict(policy or {})


class FetchFailed(_Tried, FetchError):
    """A URL that gave no usable answer, with `num_tries`, `status`, `latency_s` and `policy` for its row."""


class FetchRefused(_Tried, PolicyError):
    """A URL or an answer whose owner does not want it used, with the same for its row."""

    @property
    def passing(self) -> bool:
        """Whether the owner's word could not be heard, so that asking again may tell another one."""
        return self.policy.get(PASSING) is True


@dataclass(slots=True)
class Trip:
    """The way to an answer, over tries and redirects.

    `reached`: a connection stood at least once.
    """

    kind: Kind
    conditions: dict[str, str]
    is_robots: bool = False
    num_tries: int = 0
    num_retries: int = 0
    reached: bool = False
    status: int | None = None
    latency_s: float = 0.0
    policy: dict[str, Any] = field(default_factory=dict)

    def begin_try(self) -> None:
        """Forget the try before; a redirect is no further try."""
        self.num_tries = self.num_retries + 1
        self.status, self.latency_s = None, 0.0

    def settles(self, answer: Answer) -> bool:
        """Tell whether an answer ends the tries: for pages and site files lasting 4xx do too."""
        status = answer.status
        if answer.not_modified or 200 <= status < 300 or redirect_of(answer) is not None:
            return True
        return self.kind != "photo" and 400 <= status < 500 and not is_transient(http_reason(status))

    def wants_body(self, answer: Answer) -> bool:
        """Tell whether the body of an answer is of use."""
        return self.settles(answer) and not answer.not_modified and redirect_of(answer) is None

    def told(self, error: RowError) -> FetchFailed | FetchRefused:
        """Add to a failure how far it got."""
        made = FetchRefused if isinstance(error, PolicyError) else FetchFailed
        return made(
            error.reason,
            error.detail,
            num_tries=self.num_tries,
            status=self.status,
            latency_s=self.latency_s if self.num_tries else None,
            policy=self.policy,
        )


def read_headers(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return headers by lower-case name, in order, as text that can be stored.

    The HTTP client leaves bytes that are no UTF-8 as surrogates: an address keeps such bytes, escaped. A validator that
    is not worth a row's space is left out.
    """
    read = []
    for name, value in ((name.lower(), value) for name, value in pairs):
        value = _STRAY_BYTE.sub(_escaped if name == "location" else "\ufffd", value)
        if name not in _VALIDATORS or len(value) <= _MAX_VALIDATOR:
            read.append((name, value))
    return read


def _escaped(stray: re.Match[str]) -> str:
    return f"%{ord(stray.group()) - 0xDC00:02X}"


def redirect_of(answer: Answer) -> str | None:
    """Return where an answer sends us, if it does."""
    return (answer.headers.get("location") or None) if answer.status in _REDIRECTS else None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read Retry-After, as seconds or as a date (by the server's own clock where it tells it)."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        until, now = _date(value), _date(headers.get("date", "")) or datetime.now(UTC)
        return max(0.0, (until - now).total_seconds()) if until else None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
