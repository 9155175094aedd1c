"""Every error Forecourt raises on purpose, and the short names that rows store.

ForecourtError
  UsageError            exit 2: settings, arguments, site file; nothing was started
    SettingsError         a key or value that is not known, or differs from what the root was made with
    SiteFileError         a site file that cannot be used
    RootVersionError      the root was written by another version of the format
  RunError              exit 1: the run cannot go on, or may not be trusted
    RootError             the root cannot be read or written
    DiskFullError         not enough space for what comes next
    LeaseError            another run owns this root, or this run lost it
    CircuitOpenError      a host failed so often that the run stops asking
    PartError             a part failed after its retries
    IntegrityError        what lies on disk is not what its receipt says
    ReconcileError        rows in are not rows kept, dropped and failed
  RowError              one row failed; its `reason` is stored in that row and the run goes on
    ImageError            bytes that do not become a stored photo
    FetchError            a URL that gave no usable answer
    PolicyError           a URL or an answer whose owner does not want it used
"""

from typing import ClassVar

HTTP_PREFIX = "http_"

# Reasons that can pass by themselves: what `crawl --retry transient` asks again.
TRANSIENT_REASONS = frozenset(
    {"timeout", "deadline", "dns", "connect", "tls", "circuit_open", "block_page"}
    | {f"{HTTP_PREFIX}{status}" for status in (408, 425, 429, 500, 502, 503, 504)}
)


class ForecourtError(Exception):
    """Base of all errors a caller may want to tell from a bug."""

    exit_code: ClassVar[int] = 1


class UsageError(ForecourtError):
    """The command was given something it cannot work with; nothing was started."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is unknown, out of range, or differs from what the root was made with."""


class SiteFileError(UsageError):
    """A site file is missing something or says something impossible."""


class RootVersionError(UsageError):
    """The root was written in another version of the format."""


class RunError(ForecourtError):
    """The run cannot go on, or its result may not be trusted."""


class RootError(RunError):
    """The root cannot be read or written."""


class DiskFullError(RunError):
    """The disk has too little space left for what comes next."""


class LeaseError(RunError):
    """Another run owns this root and stage, or this run lost them."""


class CircuitOpenError(RunError):
    """A host failed so often that the run stops asking it."""


class PartError(RunError):
    """A part failed after its retries."""


class IntegrityError(RunError):
    """What lies on disk is not what its receipt says."""


class ReconcileError(RunError):
    """Rows in are not equal to rows kept, dropped and failed."""


class RowError(ForecourtError):
    """One row failed; `reason` is the short name its row stores."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["RowError"], tuple[str, str]]:
        """Pickle by the two arguments, since the message is made of both."""
        return type(self), (self.reason, self.detail)


class ImageError(RowError):
    """Bytes that do not become a stored photo."""


class FetchError(RowError):
    """A URL that gave no usable answer."""


class PolicyError(RowError):
    """A URL or an answer whose owner does not want it used."""


def http_reason(status: int) -> str:
    """Name the error of an HTTP status, as rows store it."""
    return f"{HTTP_PREFIX}{status}"


def is_transient(reason: str | None) -> bool:
    """Tell whether asking again later can give another answer."""
    return reason in TRANSIENT_REASONS
