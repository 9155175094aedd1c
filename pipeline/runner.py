"""The door to Ray: run parts on its tasks or on workers of ours, a bounded number in flight; some fail, others go on.

Only names, small specifications and receipts' counts go through Ray; pixels never do.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import LocalRayletDiedError, RayError, RayTaskError

from pipeline.lease import LeaseTicket
from pipeline.runner_board import NAMESPACE, BoardDoor
from pipeline.runner_hands import Errand, Hands, TaskHands, WorkerHands, WorkerPlan, plan_workers
from pipeline.runner_part import PartContext, PartTask, Work
from pipeline.web.pace import PaceSettings, PaceUnavailable
from schemas.errors import CircuitOpenError, DiskFullError, LeaseError, PartError, RootError, RunError, UsageError
from schemas.settings import Section, operational

__all__ = [
    "PartContext",
    "PartTask",
    "RaySettings",
    "RunResult",
    "Work",
    "WorkerPlan",
    "connected",
    "plan_workers",
    "run_parts",
    "run_parts_on_workers",
]

_TICK_S = 1.0
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


@dataclass(slots=True)
class RunResult:
    """What became of the parts of one run."""

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)


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
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        else:
            cores = max(os.cpu_count() or 1, round((settings.num_workers or 1) * settings.cpus_per_part + 0.5))
            ray.init(
                address="local",
                namespace=NAMESPACE,
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
    errand = Errand(ticket, settings.stall_s, pace or PaceSettings())
    hands = TaskHands(work, errand, num_in_flight=num_in_flight, num_cpus=settings.cpus_per_part)
    return _run(tasks, hands, errand, settings, on_done, on_tick, check)


def run_parts_on_workers(
    tasks: Iterable[PartTask],
    make_work: Callable[[], Work],
    *,
    plan: WorkerPlan,
    ticket: LeaseTicket,
    settings: RaySettings,
    on_done: Callable[[str, Mapping[str, int]], None],
    on_tick: Callable[[Mapping[str, Mapping[str, int]]], None] = lambda progress: None,
    check: Callable[[], None] = lambda: None,
) -> RunResult:
    """Run parts as `run_parts` does, on workers that each call `make_work` once and keep what it gives.

    A worker has two parts at a time, so `Work` is called from two threads.

    Raises:
        RunError: what stops the whole run: lease lost, disk full.
        UsageError: `make_work` was given something it cannot work with.
    """
    errand = Errand(ticket, settings.stall_s, PaceSettings())
    return _run(tasks, WorkerHands(make_work, errand, plan), errand, settings, on_done, on_tick, check)


def _run(
    tasks: Iterable[PartTask],
    hands: Hands,
    errand: Errand,
    settings: RaySettings,
    on_done: Callable[[str, Mapping[str, int]], None],
    on_tick: Callable[[Mapping[str, Mapping[str, int]]], None],
    check: Callable[[], None],
) -> RunResult:
    board = BoardDoor(errand.pace)
    run = errand.ticket.token
    board.start(run)
    loop = _Loop(hands, iter(tasks), run, settings.part_tries, board, RunResult())
    try:
        while True:
            loop.launch_all()
            if not loop.in_flight:
                return loop.result
            ready, _ = ray.wait(list(loop.in_flight), num_returns=1, timeout=_TICK_S)
            check()
            for reference in ready:
                loop.collect(reference, on_done)
            on_tick(board.progress(run))
    finally:
        hands.stop()
        board.forget(run)


@dataclass(slots=True)
class _Loop:
    """The parts in flight and those to try again."""

    hands: Hands
    waiting: Iterator[PartTask]
    run: str
    part_tries: int
    board: BoardDoor
    result: RunResult
    in_flight: dict[Any, PartTask] = field(default_factory=dict)
    again: deque[PartTask] = field(default_factory=deque)
    tries: dict[str, int] = field(default_factory=dict)

    def launch_all(self) -> None:
        """Begin parts while there is room, those to be tried again first."""
        while self.hands.has_room(alone=bool(self.again)):
            task = self.again.popleft() if self.again else next(self.waiting, None)
            if task is None:
                return
            self.tries[task.part] = self.tries.get(task.part, 0) + 1
            self.in_flight[self.hands.begin(task, self.tries[task.part])] = task

    def collect(self, reference: Any, on_done: Callable[[str, Mapping[str, int]], None]) -> None:
        task = self.in_flight.pop(reference)
        died = False
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
            died = True
            said = self.board.take_note(self.run, task.part)
            self._failed(task, said or f"its worker died: {type(error).__name__}", passing=True)
        else:
            self.result.done += 1
            del self.tries[task.part]
            on_done(task.part, counts)
        self.hands.ended(reference, died=died)
        self.board.finish(self.run, task.part)

    def _failed(self, task: PartTask, why: str, *, passing: bool) -> None:
        tries = self.tries[task.part]
        if passing and tries < self.part_tries:
            log.warning("event=part_again part=%s try=%d why=%s", task.part, tries, why)
            self.again.append(task)
        else:
            log.error("event=part_failed part=%s tries=%d why=%s", task.part, tries, why)
            self.result.failed[task.part] = why


def _cluster_slots(settings: RaySettings) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1) / settings.cpus_per_part))
