"""Who does the parts: Ray tasks, each a process that starts afresh, or workers that keep what they have loaded."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray

from pipeline.lease import LeaseTicket
from pipeline.runner_part import PartContext, PartTask, Work, run_part
from pipeline.web.pace import PaceSettings
from schemas.errors import UsageError

# A second part is read and written while the first is computed; more would only hold memory.
_PARTS_PER_WORKER = 2


@dataclass(frozen=True, slots=True)
class Errand:
    """What every part of a run is given."""

    ticket: LeaseTicket
    stall_s: float
    pace: PaceSettings


class Hands(Protocol):
    """Takes parts to do; a part that is begun again (attempt 2 on) is done alone, so that it takes no other with it."""

    def has_room(self, *, alone: bool) -> bool:
        """Tell whether one more part can be begun."""

    def begin(self, task: PartTask, attempt: int) -> Any:
        """Begin a part; return the reference that its counts come by."""

    def ended(self, reference: Any, *, died: bool) -> None:
        """Hear that a part ended, or its process did."""

    def stop(self) -> None:
        """End whatever is still at work."""


class TaskHands:
    """Ray tasks, so many at a time."""

    def __init__(self, work: Work, errand: Errand, *, num_in_flight: int, num_cpus: float) -> None:
        self._errand, self._work = errand, work
        self._num_in_flight, self._num_cpus = num_in_flight, num_cpus
        self._running: set[Any] = set()

    def has_room(self, *, alone: bool) -> bool:
        """Tell whether one more part can be begun; each task is alone in its process anyway."""
        return len(self._running) < self._num_in_flight

    def begin(self, task: PartTask, attempt: int) -> Any:
        """Begin a part as a task."""
        errand = self._errand
        remote = ray.remote(run_part).options(
            num_cpus=self._num_cpus, max_retries=0, name=f"{errand.ticket.stage}:{task.part}"
        )
        reference = remote.remote(self._work, task, attempt, errand.ticket, errand.stall_s, errand.pace)
        self._running.add(reference)
        return reference

    def ended(self, reference: Any, *, died: bool) -> None:
        """Make room."""
        self._running.discard(reference)

    def stop(self) -> None:
        """Cancel the tasks."""
        for reference in self._running:
            ray.cancel(reference, force=True)


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """How many workers there are, and what each reserves."""

    num_workers: int
    cpus_per_worker: int
    gpus_per_worker: int


def plan_workers(device: str, *, num_workers: int | None, cpus_per_worker: int | None) -> WorkerPlan:
    """Plan a worker for each GPU of the cluster, or for each machine where there are none or `device` is "cpu".

    One worker with all cores of a machine beats several with some: they share the batches, not the caches.

    Raises:
        UsageError: GPUs are asked for and the cluster has none.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    gpus = {} if device == "cpu" else {i: int(n["GPU"]) for i, n in enumerate(nodes) if n.get("GPU", 0) >= 1}
    if device == "cuda" and not gpus and num_workers is None:
        raise UsageError(
            "GPUs are asked for (device cuda) and the cluster has none now; ask for the CPU, or, where its autoscaler "
            "brings them, say how many workers to wait for"
        )
    if gpus or device == "cuda":
        cores = min((int(nodes[i]["CPU"]) // count for i, count in gpus.items()), default=1)
        return WorkerPlan(num_workers or sum(gpus.values()), cpus_per_worker or max(1, cores), 1)
    cores = cpus_per_worker or min((int(node["CPU"]) for node in nodes), default=1)
    return WorkerPlan(num_workers or max(1, sum(int(node["CPU"]) // cores for node in nodes)), cores, 0)


class WorkerHands:
    """Workers that make their `Work` once, at their first part, and do two parts at a time.

    A worker that died is replaced by the next part that needs one.
    """

    def __init__(self, make_work: Callable[[], Work], errand: Errand, plan: WorkerPlan) -> None:
        self._make_work, self._errand, self._plan = make_work, errand, plan
        self._workers: list[_Worker] = []

    def has_room(self, *, alone: bool) -> bool:
        """Tell whether one more part can be begun."""
        return len(self._workers) < self._plan.num_workers or self._least_busy(alone=alone) is not None

    def begin(self, task: PartTask, attempt: int) -> Any:
        """Begin a part with an idle worker, or a new one while there may be more, or beside another part."""
        worker = self._least_busy(alone=attempt > 1)
        if worker is None or (worker.running and len(self._workers) < self._plan.num_workers):
            worker = self._hire()
        reference = worker.handle.run.options(name=f"{self._errand.ticket.stage}:{task.part}").remote(
            task, attempt, self._errand
        )
        worker.running.add(reference)
        worker.is_taken = attempt > 1
        return reference

    def ended(self, reference: Any, *, died: bool) -> None:
        """Make room; a worker out of touch may still be at it, and is ended for good."""
        for worker in self._workers:
            if reference in worker.running:
                worker.running.discard(reference)
                worker.is_taken = False
                if died:
                    ray.kill(worker.handle)
                    self._workers.remove(worker)
                return

    def stop(self) -> None:
        """End the workers, idle ones too: they hold the device."""
        for worker in self._workers:
            ray.kill(worker.handle)

    def _least_busy(self, *, alone: bool) -> "_Worker | None":
        limit = 1 if alone else _PARTS_PER_WORKER
        free = [worker for worker in self._workers if not worker.is_taken and len(worker.running) < limit]
        return min(free, key=lambda worker: len(worker.running), default=None)

    def _hire(self) -> "_Worker":
        handle = (
            ray.remote(_WorkerProcess)
            .options(
                num_cpus=self._plan.cpus_per_worker,
                num_gpus=self._plan.gpus_per_worker,
                max_concurrency=_PARTS_PER_WORKER,
                max_restarts=0,
            )
            .remote(self._make_work)
        )
        self._workers.append(_Worker(handle))
        return self._workers[-1]


@dataclass(slots=True)
class _Worker:
    """A worker as the driver knows it."""

    handle: Any
    running: set[Any] = field(default_factory=set)
    is_taken: bool = False  # by a part that wants to be alone


class _WorkerProcess:
    """A worker in its own process."""

    def __init__(self, make_work: Callable[[], Work]) -> None:
        self._make_work = make_work
        self._work: Work | None = None
        self._making = threading.Lock()

    def run(self, task: PartTask, attempt: int, errand: Errand) -> dict[str, int]:
        """Do one part."""
        return run_part(self._do, task, attempt, errand.ticket, errand.stall_s, errand.pace)

    def _do(self, context: PartContext, spec: Any) -> dict[str, int]:
        # Made under the part's watch: what cannot be made fails the part, and is heard.
        with context.watchdog.doing("making ready"), self._making:
            if self._work is None:
                self._work = self._make_work()
        return dict(self._work(context, spec))
