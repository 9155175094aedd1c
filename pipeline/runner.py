"""The door to Ray: run parts as tasks, a bounded number in flight, and keep the board that all workers share.

Only names, small specifications and receipts' counts go through Ray; pixels never do.
"""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    RayActorError,
    RayError,
    RayTaskError,
)

from pipeline.lease import Fence, LeaseTicket
from pipeline.watchdog import Watchdog
from pipeline.web.pace import PaceBook, PaceReply, PaceRequest, PaceSettings, PaceUnavailable
from schemas.errors import CircuitOpenError, DiskFullError, LeaseError, PartError, RootError, RunError, UsageError
from schemas.settings import Section, operational

_NAMESPACE = "forecourt"
_BOARD = "forecourt-board"
_TICK_S = 1.0
_BOARD_WAIT_S = 30.0
# The run stops at once on these: another part would meet the same.
_FATAL = (CircuitOpenError, LeaseError, DiskFullError, UsageError, RootError)
# A part is begun again after these: it was stuck or late, or out of touch. Anything else would come out the same again.
_PASSING = (PartError, PaceUnavailable, RayError)

log = logging.getLogger("forecourt.runner")


class RaySettings(Section):
    """How work is spread; nothing here changes a result."""

    address: str | None = operational(None, "cluster to use; without it $RAY_ADDRESS, else a Ray started here")
    num_workers: int | None = operational(None, "parts in flight; default: the cluster's cores", ge=1)
    cpus_per_part: float = operational(1.0, "cores reserved for a part", gt=0)
    object_store_bytes: int = operational(256 << 20, "for a Ray started here; only names pass through it", ge=80 << 20)
    part_tries: int = operational(3, "how often a part is begun whose worker dies or gets stuck", ge=1)
    stall_s: float = operational(300.0, "a part without progress for so long is ended, naming what is stuck", gt=0)


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


@dataclass(slots=True)
class RunResult:
    """What became of the parts of one run."""

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)


class Board:
    """Shared by all workers of a cluster: the hosts' pace, the parts' progress, last words of stuck parts."""

    def __init__(self, pace: PaceSettings) -> None:
        self._pace = PaceBook(pace)
        self._runs: set[str] = set()
        self._progress: dict[str, dict[str, dict[str, int]]] = {}
        self._last_words: dict[tuple[str, str], str] = {}

    def exchange(self, request: PaceRequest) -> PaceReply:
        """Hand out slots at the hosts' pace."""
        return self._pace.exchange(request)

    def advance(self, run: str, part: str, counts: dict[str, int]) -> None:
        """Note how far a part in flight is."""
        self._progress.setdefault(run, {})[part] = counts

    def progress(self, run: str, pace: PaceSettings) -> dict[str, dict[str, int]]:
        """Return how far the parts in flight are; a run that is heard the first time brings its settings along."""
        if run not in self._runs:
            self._runs.add(run)
            self._pace.adopt(pace)
        return self._progress.get(run, {})

    def finish(self, run: str, part: str) -> None:
        """Forget a part that is no longer in flight."""
        self._progress.get(run, {}).pop(part, None)

    def note(self, run: str, part: str, text: str) -> None:
        """Keep what a worker says before it ends itself."""
        self._last_words[run, part] = text

    def take_note(self, run: str, part: str) -> str | None:
        """Return what a worker of that part said before it ended itself."""
        return self._last_words.pop((run, part), None)

    def forget(self, run: str) -> None:
        """Forget a run that ended; the pace is kept."""
        self._progress.pop(run, None)
        self._runs.discard(run)


@contextmanager
def connected(settings: RaySettings) -> Iterator[int]:
    """Connect to the cluster, or start a Ray here and end it after; give the number of parts to keep in flight.

    Raises:
        RunError: the cluster does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A worker has some thirty threads, and glibc gives each its own heap: freed photos pile up in all of them.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    address = settings.address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():  # a test, or a caller that holds a cluster of its own
        yield settings.num_workers or _cluster_slots(settings)
        return
    try:
        if address:
            ray.init(address=address, namespace=_NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        else:
            cores = max(os.cpu_count() or 1, round((settings.num_workers or 1) * settings.cpus_per_part + 0.5))
            ray.init(
                address="local",
                namespace=_NAMESPACE,
                num_cpus=cores,
                object_store_memory=settings.object_store_bytes,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RayError, OSError, RuntimeError) as error:
        raise RunError(f"cannot reach Ray at {address or 'this machine'}: {error}") from error
    try:
        yield settings.num_workers or _cluster_slots(settings)
    finally:
        ray.shutdown()


def run_parts(
    tasks: Iterable[PartTask],
    work: Work,
    *,
    ticket: LeaseTicket,
    num_in_flight: int,
    settings: RaySettings,
    pace: PaceSettings | None = None,
    on_done: Callable[[str, Mapping[str, int]], None],
    on_tick: Callable[[Mapping[str, Mapping[str, int]]], None] = lambda progress: None,
    check: Callable[[], None] = lambda: None,
) -> RunResult:
    """Run each part's `work` in a Ray task, and go on when some fail.

    `tasks` is read as parts finish, so that a billion ids need no list. `on_done` gets a part's counts when it is
    committed, `on_tick` the parts in flight about once a second, and `check` may raise to end the run.

    Raises:
        RunError: what stops the whole run: circuit open, lease lost, disk full.
    """
    board = _BoardDoor(pace or PaceSettings())
    board.start(ticket.token)
    loop = _Loop(work, ticket, settings, board, RunResult())
    waiting = iter(tasks)
    try:
        while True:
            while len(loop.in_flight) < num_in_flight and (task := loop.next_task(waiting)) is not None:
                loop.launch(task)
            if not loop.in_flight:
                return loop.result
            ready, _ = ray.wait(list(loop.in_flight), num_returns=1, timeout=_TICK_S)
            check()
            for reference in ready:
                loop.collect(reference, on_done)
            on_tick(board.progress(ticket.token))
    finally:
        loop.cancel_all()
        board.forget(ticket.token)


@dataclass(slots=True)
class _Loop:
    """The parts in flight and those to try again."""

    work: Work
    ticket: LeaseTicket
    settings: RaySettings
    board: "_BoardDoor"
    result: RunResult
    in_flight: dict[Any, PartTask] = field(default_factory=dict)
    again: deque[PartTask] = field(default_factory=deque)
    tries: dict[str, int] = field(default_factory=dict)

    def next_task(self, waiting: Iterator[PartTask]) -> PartTask | None:
        return self.again.popleft() if self.again else next(waiting, None)

    def launch(self, task: PartTask) -> None:
        self.tries[task.part] = self.tries.get(task.part, 0) + 1
        remote = ray.remote(_run_part).options(
            num_cpus=self.settings.cpus_per_part, max_retries=0, name=f"{self.ticket.stage}:{task.part}"
        )
        attempt = self.tries[task.part]
        reference = remote.remote(self.work, task, attempt, self.ticket, self.settings.stall_s, self.board.pace)
        self.in_flight[reference] = task

    def collect(self, reference: Any, on_done: Callable[[str, Mapping[str, int]], None]) -> None:
        task = self.in_flight.pop(reference)
        try:
            counts = ray.get(reference)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, _FATAL):
                raise cause from None
            why = f"{type(cause).__name__}: {cause}" if cause is not None else str(error)
            self._failed(task, why, passing=isinstance(cause, _PASSING))
        except LocalRayletDiedError:
            raise RunError("the Ray on this machine died; run again, what is committed is safe") from None
        except RayError as error:
            said = self.board.take_note(self.ticket.token, task.part)
            self._failed(task, said or f"its worker died: {type(error).__name__}", passing=True)
        else:
            self.result.done += 1
            del self.tries[task.part]
            on_done(task.part, counts)
        self.board.finish(self.ticket.token, task.part)

    def _failed(self, task: PartTask, why: str, *, passing: bool) -> None:
        tries = self.tries[task.part]
        if passing and tries < self.settings.part_tries:
            log.warning("event=part_again part=%s try=%d why=%s", task.part, tries, why)
            self.again.append(task)
        else:
            log.error("event=part_failed part=%s tries=%d why=%s", task.part, tries, why)
            self.result.failed[task.part] = why

    def cancel_all(self) -> None:
        for reference in self.in_flight:
            ray.cancel(reference, force=True)


def _run_part(
    work: Work, task: PartTask, attempt: int, ticket: LeaseTicket, stall_s: float, pace: PaceSettings
) -> dict[str, int]:
    """Do one part in a worker process, fenced and watched."""
    board = _BoardDoor(pace)

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


class _BoardDoor:
    """Find the board by name, make it where there is none, and speak to it; a dead board is found or made again."""

    def __init__(self, pace: PaceSettings) -> None:
        self.pace = pace
        self._handle: Any = None

    def start(self, run: str) -> None:
        """Wait until the board answers, and knows this run."""
        deadline_s = time.monotonic() + _BOARD_WAIT_S
        while True:
            try:
                ray.get(self._board().progress.remote(run, self.pace), timeout=_BOARD_WAIT_S)
                return
            except RayError as error:
                self._handle = None
                if time.monotonic() > deadline_s:
                    raise RunError(f"the board actor does not start: {error}") from error
                time.sleep(0.2)

    async def exchange(self, request: PaceRequest) -> PaceReply:
        """Ask for slots.

        Raises:
            PaceUnavailable: the board is dead or restarting; ask again.
        """
        try:
            reply: PaceReply = await self._board().exchange.remote(request)
        except (RayActorError, ActorDiedError, ActorUnavailableError, ValueError) as error:
            self._handle = None
            raise PaceUnavailable(str(error)) from error
        return reply

    def advance(self, run: str, part: str, counts: Mapping[str, int]) -> None:
        """Report progress; nobody waits for it."""
        self._tell("advance", run, part, dict(counts))

    def finish(self, run: str, part: str) -> None:
        """Say that a part is no longer in flight."""
        self._tell("finish", run, part)

    def forget(self, run: str) -> None:
        """Say that a run ended."""
        self._tell("forget", run)

    def progress(self, run: str) -> Mapping[str, Mapping[str, int]]:
        """Return how far the parts in flight are; empty where the board does not answer."""
        answer: Mapping[str, Mapping[str, int]] = self._ask("progress", run, self.pace) or {}
        return answer

    def note(self, run: str, part: str, text: str) -> None:
        """Leave a last word, and wait until it is kept."""
        self._ask("note", run, part, text)

    def take_note(self, run: str, part: str) -> str | None:
        """Return a part's last words."""
        answer: str | None = self._ask("take_note", run, part)
        return answer

    def _tell(self, method: str, *arguments: Any) -> None:
        try:
            getattr(self._board(), method).remote(*arguments)
        except (RayError, ValueError):
            self._handle = None

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(self._board(), method).remote(*arguments), timeout=_TICK_S)
        except (RayError, ValueError, TimeoutError):
            self._handle = None
            return None

    def _board(self) -> Any:
        if self._handle is None:
            # Detached: a second run on this cluster must not lose the pace when the first one ends.
            self._handle = (
                ray.remote(Board)
                .options(
                    name=_BOARD,
                    namespace=_NAMESPACE,
                    lifetime="detached",
                    get_if_exists=True,
                    num_cpus=0,
                    max_restarts=-1,
                )
                .remote(self.pace)
            )
        return self._handle


def _cluster_slots(settings: RaySettings) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1) / settings.cpus_per_part))
