"""The board that all workers of a cluster share: the hosts' pace, the parts' progress, last words of stuck parts."""

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError

from pipeline.web.pace import PaceBook, PaceReply, PaceRequest, PaceSettings, PaceUnavailable
from schemas.errors import RunError

NAMESPACE = "forecourt"
_BOARD = "forecourt-board"
_WAIT_S = 30.0
_ANSWER_S = 1.0


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


class BoardDoor:
    """Find the board by name, make it where there is none, and speak to it; a dead board is found or made again."""

    def __init__(self, pace: PaceSettings) -> None:
        self.pace = pace
        self._handle: Any = None

    def start(self, run: str) -> None:
        """Wait until the board answers, and knows this run."""
        deadline_s = time.monotonic() + _WAIT_S
        while True:
            try:
                ray.get(self._board().progress.remote(run, self.pace), timeout=_WAIT_S)
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
            return ray.get(getattr(self._board(), method).remote(*arguments), timeout=_ANSWER_S)
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
                    namespace=NAMESPACE,
                    lifetime="detached",
                    get_if_exists=True,
                    num_cpus=0,
                    max_restarts=-1,
                )
                .remote(self.pace)
            )
        return self._handle
