"""One request on its way: the slot it may be sent in, and how long it takes."""

import asyncio
import time
from dataclasses import dataclass, field

from pipeline.web.pace import HostLimits, HostOutcome, PaceClient, Slot


@dataclass(slots=True)
class Departure:
    """One request on its way: its slot, renewed where connecting took too long to use it, and its time."""

    pace: PaceClient
    host: str
    limits: HostLimits
    slot: Slot | None = None
    outcome: HostOutcome | None = None
    deadline: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    started: float = 0.0
    connected: bool = False

    async def wait(self) -> None:
        """Wait for the right to send a request."""
        self.slot = await self.pace.slot(self.host, self.limits)
        self.started = time.monotonic()

    def begin(self) -> None:
        """Refuse to connect a second time: the client library would repeat a broken request unasked."""
        if self.connected:
            raise ConnectionAbortedError("the connection broke before an answer")

    async def leave(self) -> None:
        """Let the request go, within its slot."""
        self.begin()
        self.connected = True
        if self.slot is not None and self.pace.fresh(self.slot):
            return
        # The time for the request does not pass while it waits for its turn.
        when, waiting = self.deadline.when(), time.monotonic()
        self.deadline.reschedule(None)
        self.end()
        self.slot = await self.pace.slot(self.host, self.limits)
        waited_s = time.monotonic() - waiting
        self.started += waited_s
        if when is not None:
            self.deadline.reschedule(when + waited_s)

    def end(self) -> None:
        """Give the slot back."""
        if self.slot is not None:
            self.slot = None
            self.pace.done(self.host, self.outcome)

    def elapsed_s(self) -> float:
        """Seconds since the request could be sent."""
        return time.monotonic() - self.started if self.started else 0.0
