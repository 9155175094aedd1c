"""End a part that makes no progress, and name what it is stuck on."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

_POLL_S = 0.5
_GRACE_S = 10.0  # for the part to end by itself once told
_NUM_NAMED = 5
STUCK_EXIT_CODE = 72

log = logging.getLogger("forecourt.watchdog")


class Watchdog:
    """Watch a part's progress from a thread of its own.

    After `stall_s` seconds without progress `on_stall(text)` is called once, in the watching thread; where the part has
    not ended `grace_s` later, `last_words(text)` is called and the process ends, since a thread stuck in C cannot be
    stopped otherwise.
    """

    def __init__(
        self, part: str, *, stall_s: float, last_words: Callable[[str], None], grace_s: float = _GRACE_S
    ) -> None:
        self._part, self._stall_s, self._grace_s = part, stall_s, grace_s
        self._last_words = last_words
        self.on_stall: Callable[[str], object] | None = None
        self._doing: dict[int, tuple[str, float]] = {}
        self._last_progress_s = time.monotonic()
        self._next_id = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.stuck: str | None = None

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._last_progress_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End watching."""
        self._stop.set()

    def progress(self) -> None:
        """Say that something was finished."""
        self._last_progress_s = time.monotonic()

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Name what is being done, so that a stall can be explained; its end is progress."""
        with self._lock:
            self._next_id += 1
            mine = self._next_id
            self._doing[mine] = (what, time.monotonic())
        try:
            yield
            self.progress()
        finally:
            with self._lock:
                del self._doing[mine]

    def _watch(self) -> None:
        while not self._stop.wait(min(_POLL_S, self._stall_s / 4)):
            if time.monotonic() - self._last_progress_s > self._stall_s:
                break
        else:
            return
        self.stuck = self._describe()
        log.error("event=stuck part=%s %s", self._part, self.stuck)
        try:
            if self.on_stall is not None:
                self.on_stall(self.stuck)
        except RuntimeError as error:
            # An event loop that is closed cannot be told: the part is past it, writing its files.
            log.warning("event=stall_not_heard part=%s error=%s", self._part, error)
        finally:
            self._end_process(self.stuck)

    def _end_process(self, text: str) -> None:
        if self._stop.wait(self._grace_s):
            return
        try:
            self._last_words(text)
        finally:
            os._exit(STUCK_EXIT_CODE)

    def _describe(self) -> str:
        now_s = time.monotonic()
        with self._lock:
            oldest = sorted(self._doing.values(), key=lambda entry: entry[1])
        named = ", ".join(f"{what} (for {now_s - since:.0f} s)" for what, since in oldest[:_NUM_NAMED])
        more = f" and {len(oldest) - _NUM_NAMED} more" if len(oldest) > _NUM_NAMED else ""
        return f"no progress for {self._stall_s:g} s; stuck: {named or 'between two steps'}{more}"
