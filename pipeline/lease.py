"""One owner: the lease on (root, stage), its heartbeat, and the fence that stops workers whose run is dead.

The driver beats once a second into `leases/STAGE.json`. A worker that sees no new beat for `STALE_S`, or another run's
token, ends its process. A new run takes a lease over only when it has seen no beat for `EXPIRY_S`, which is longer, so
that no worker of the old run is left to write a part or to ask a host. Clocks of two machines are never compared.
"""

import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from schemas.errors import LeaseError, RunError
from schemas.storage import Root, reported

BEAT_S = 1.0
STALE_S = 5.0
EXPIRY_S = 10.0
_POLL_S = 0.25
_SETTLE_S = 2.0  # object stores have no lock: the later of two writers wins, and both look again after this
FENCED_EXIT_CODE = 71

log = logging.getLogger("forecourt.lease")


@dataclass(frozen=True, slots=True)
class LeaseTicket:
    """What a worker needs to know whose work it does."""

    root: str
    stage: str
    token: str


@dataclass(frozen=True, slots=True)
class _Mark:
    """What the lease file says."""

    token: str
    host: str
    pid: int
    beat: int
    beat_at_s: float
    held: bool

    @property
    def is_of_this_host(self) -> bool:
        return self.host == socket.gethostname()

    def age_s(self) -> float:
        """Return the beat's age; only where it is of this host do both moments come from one clock."""
        return max(0.0, time.time() - self.beat_at_s)


class Lease:
    """A held lease; made by `hold_lease`."""

    def __init__(self, root: Root, stage: str, token: str) -> None:
        self.ticket = LeaseTicket(root.text, stage, token)
        self.token = token
        self._root, self._stage = root, stage
        self._beat = 0
        self._last_beat_s = time.monotonic()
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)

    def check(self) -> None:
        """Raise where this run no longer owns the root.

        Raises:
            LeaseError: another run took it over, or no beat could be written for too long.
        """
        silent_s = time.monotonic() - self._last_beat_s
        if self._lost or silent_s > STALE_S:
            raise LeaseError(
                f"this run lost its lease on {self._root.text} (stage {self._stage}): "
                + ("another run took it over" if self._lost else f"no heartbeat could be written for {silent_s:.0f} s")
            )

    def start(self) -> None:
        """Write the first beat and keep beating."""
        self._write(held=True)
        if not self._root.is_local:
            time.sleep(_SETTLE_S)
            mark = _read_mark(self._root, self._stage)
            if mark is None or mark.token != self.token:
                raise LeaseError(f"another run took {self._root.text} (stage {self._stage}) at the same moment")
        self._thread.start()

    def release(self) -> None:
        """Stop beating and leave the lease to the next run."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self._lost:
            with suppress(RunError):
                self._write(held=False)

    def _keep_beating(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                mark = _read_mark(self._root, self._stage)
                if mark is None or mark.token != self.token:
                    self._lost = True
                    log.error("event=lease_lost root=%s stage=%s", self._root.text, self._stage)
                    return
                self._write(held=True)
            except RunError as error:
                log.warning("event=beat_failed error=%s", error)

    def _write(self, *, held: bool) -> None:
        self._beat += 1
        mark = {
            "token": self.token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "beat": self._beat,
            "beat_at_s": time.time(),
            "held": held,
        }
        self._root.write_bytes(_lease_name(self._stage), json.dumps(mark).encode(), durable=False)
        self._last_beat_s = time.monotonic()


@contextmanager
def hold_lease(root: Root, stage: str) -> Iterator[Lease]:
    """Own (root, stage) for the time of the block.

    Raises:
        LeaseError: a living run owns it.
    """
    with _acquiring(root, stage):
        _wait_for_expiry(root, stage)
        lease = Lease(root, stage, uuid.uuid4().hex[:12])
        lease.start()
    try:
        yield lease
    finally:
        lease.release()


def is_held(root: Root, stage: str) -> bool:
    """Tell whether a living run owns the stage; takes up to `EXPIRY_S` where it was of another machine."""
    mark = _read_mark(root, stage)
    if mark is None or not mark.held:
        return False
    if mark.is_of_this_host:
        return mark.age_s() < EXPIRY_S
    return _next_beat(root, stage, mark, EXPIRY_S) is not None


def living_tokens(root: Root) -> set[str]:
    """Return the tokens of the runs on this root that may be alive, of any stage: of another machine, all not ended."""
    marks = [_read_mark(root, Path(name).stem) for name in root.list("leases", suffix=".json")]
    held = [mark for mark in marks if mark is not None and mark.held]
    return {mark.token for mark in held if not mark.is_of_this_host or mark.age_s() < EXPIRY_S}


class Fence:
    """End this worker's process when its run is dead; used as a context around a part's work."""

    def __init__(self, ticket: LeaseTicket) -> None:
        self._ticket = ticket
        self._root = Root(ticket.root)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fence", daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self.check()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End watching."""
        self._stop.set()

    def check(self) -> None:
        """Raise where the lease file no longer names this worker's run.

        Raises:
            LeaseError: the run ended or another took over.
        """
        mark = _read_mark(self._root, self._ticket.stage)
        if mark is None or mark.token != self._ticket.token or not mark.held:
            raise LeaseError(
                f"the run {self._ticket.token} no longer owns {self._ticket.root}; its work is not committed"
            )

    def _watch(self) -> None:
        last_beat, last_change_s = -1, time.monotonic()
        while not self._stop.wait(BEAT_S):
            beat = self._current_beat()
            now_s = time.monotonic()
            # A process that was stopped and goes on finds the gap here before it finds the file unchanged.
            if now_s - last_change_s > STALE_S or beat is None:
                log.error("event=fenced root=%s run=%s", self._ticket.root, self._ticket.token)
                os._exit(FENCED_EXIT_CODE)
            if beat != last_beat:
                last_beat, last_change_s = beat, now_s

    def _current_beat(self) -> int | None:
        """Return the run's beat, -1 where the file cannot be read right now, None where the run is over."""
        try:
            mark = _read_mark(self._root, self._ticket.stage)
        except RunError:
            return -1
        if mark is None or mark.token != self._ticket.token or not mark.held:
            return None
        return mark.beat


def _lease_name(stage: str) -> str:
    return f"leases/{stage}.json"


def _read_mark(root: Root, stage: str) -> _Mark | None:
    try:
        said: dict[str, Any] = json.loads(root.read_bytes(_lease_name(stage)))
        return _Mark(**said)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise LeaseError(
            f"{root.path(_lease_name(stage))} is no lease file: {error}; remove it if no run is alive"
        ) from error


@contextmanager
def _acquiring(root: Root, stage: str) -> Iterator[None]:
    """Let one run at a time look at the lease and take it; only local roots can lock."""
    if not root.is_local:
        yield
        return
    path = Path(root.path(f"leases/{stage}.lock"))
    with ExitStack() as opened:
        with reported(str(path), writing=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = opened.enter_context(path.open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _wait_for_expiry(root: Root, stage: str) -> None:
    """Return when no living run owns the stage; a dead run's workers need `STALE_S` to stop, so wait them out."""
    mark = _read_mark(root, stage)
    if mark is None or not mark.held:
        return
    wait_s = EXPIRY_S - (mark.age_s() if mark.is_of_this_host else 0.0)
    log.info("event=waiting_for_lease stage=%s run=%s pid=%s seconds<=%.0f", stage, mark.token, mark.pid, EXPIRY_S)
    now = _next_beat(root, stage, mark, wait_s)
    if now is not None:
        raise LeaseError(
            f"another run (process {now.pid} on {now.host}) owns {root.text} (stage {stage}) and is alive; "
            "wait for it, or end it, and run again"
        )


def _next_beat(root: Root, stage: str, mark: _Mark, wait_s: float) -> _Mark | None:
    """Watch a held lease for so long; return a beat after `mark`, None where none comes or the run ends."""
    deadline_s = time.monotonic() + wait_s
    while time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        now = _read_mark(root, stage)
        if now is None or not now.held:
            return None
        if (now.token, now.beat) != (mark.token, mark.beat):
            return now
    return None
