"""One part's work in a worker process: fenced, watched, and heard of."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.lease import Fence, LeaseTicket
from pipeline.runner_board import BoardDoor
from pipeline.watchdog import Watchdog
from pipeline.web.pace import PaceReply, PaceRequest, PaceSettings
from schemas.errors import PartError


@dataclass(frozen=True, slots=True)
class PartTask:
    """One part to do: its name and the stage's own small specification."""

    part: str
    spec: Any


@dataclass(frozen=True, slots=True)
class PartContext:
    """What a part's work may use: the fence, the watchdog, the shared pace, a place to report progress.

    `attempt` counts from 1 within the run; one before may still be alive on a machine that the cluster lost.
    """

    ticket: LeaseTicket
    part: str
    attempt: int
    check: Callable[[], None]
    watchdog: Watchdog
    exchange: Callable[[PaceRequest], Awaitable[PaceReply]]
    advance: Callable[[Mapping[str, int]], None]


Work = Callable[[PartContext, Any], Mapping[str, int]]


def run_part(
    work: Work, task: PartTask, attempt: int, ticket: LeaseTicket, stall_s: float, pace: PaceSettings
) -> dict[str, int]:
    """Do one part in a worker process, fenced and watched."""
    board = BoardDoor(pace)

    def last_words(text: str) -> None:
        board.note(ticket.token, task.part, text)

    with Fence(ticket) as fence, Watchdog(task.part, stall_s=stall_s, last_words=last_words) as watchdog:
        context = PartContext(
            ticket,
            task.part,
            attempt,
            check=fence.check,
            watchdog=watchdog,
            exchange=board.exchange,
            advance=lambda counts: board.advance(ticket.token, task.part, counts),
        )
        try:
            return dict(work(context, task.spec))
        except asyncio.CancelledError:
            raise PartError(watchdog.stuck or "cancelled") from None
