"""Labels on disk before the answer: each click commits its part again, and is stored once however often it is sent.

A run owns parts named after its token. A click rewrites the current one as its next generation; after `ROWS_PER_PART`
rows a new part begins, so that a click costs the same after a million. The receipt keeps the ids of the clicks: one
that was stored and whose answer was lost is known again, also by the run after a kill. An undo takes its row out.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pipeline.fnr_bound import labels_needed, listing_of
from pipeline.label_rows import FOLDER, KEEP, LABEL_VALUES, RANDOM, STAGE, LabelRow, Settled, label_rows, settle
from pipeline.lease import hold_lease
from pipeline.leftovers import remove_half_written
from schemas.receipts import PartWriter, read_receipts
from schemas.storage import Root
from schemas.tables import LABELS, table_of

ROWS_PER_PART = 512
IMPORTED_ROWS_PER_PART = 65_536
_IMPORT_PREFIX = "import-"
_TICK = timedelta(microseconds=1)

log = logging.getLogger("forecourt.label")


@contextmanager
def open_store(root: Root) -> Iterator["LabelStore"]:
    """Own the labels of a root for the time of the block.

    Raises:
        LeaseError: another labelling page or import is alive on this root.
    """
    with hold_lease(root, STAGE) as lease:
        _remove_leftovers(root)
        yield LabelStore(root, token=lease.token, fence=lease.check)


@dataclass(slots=True)
class _Part:
    """The rows of a part, each with its click's id, empty where it was imported."""

    name: str
    rows: list[LabelRow] = field(default_factory=list)
    clicks: list[str] = field(default_factory=list)


class LabelStore:
    """All labels of a root in memory, and the way to add and take back; one thread at a time may change it."""

    def __init__(self, root: Root, *, token: str, fence: Callable[[], None]) -> None:
        self._root, self.token, self._fence = root, token, fence
        self._parts: dict[str, _Part] = {}
        self._current: _Part | None = None
        self._by_key: dict[str, list[LabelRow]] = {}
        self._settled: dict[str, Settled] = {}
        self._counts: Counter[str] = Counter()
        self._random_keepers: Counter[str] = Counter()  # by listing
        self._clicks: dict[str, LabelRow] = {}
        self._clicked_by: dict[str, list[LabelRow]] = {}  # labeller -> what the page stored, by time
        self._part_of: dict[LabelRow, str] = {}
        self._latest_at = datetime.min.replace(tzinfo=UTC)
        self._read()

    def label(
        self, click: str, *, key: str, label: str, junk_type: str | None, sampled_by: str, labeller: str
    ) -> LabelRow:
        """Store a click and return its row once it is on disk; a click that is known returns the row it made."""
        if (known := self._clicks.get(click)) is not None:
            return known
        row = LabelRow(key, label, junk_type, sampled_by, labeller, self.next_moment())
        part = self._open_part()
        self._commit(part.name, [*part.rows, row], [*part.clicks, click])
        self._current = part
        part.rows.append(row)
        part.clicks.append(click)
        self._parts[part.name] = part
        self._add(row, part.name, click)
        return row

    def undo(self, *, labeller: str, key: str, labelled_at: datetime) -> LabelRow | None:
        """Take a label back and return it; None where it is not there, or no longer."""
        clicked = self._clicked_by.get(labeller, [])
        row = next((one for one in reversed(clicked) if (one.key, one.labelled_at) == (key, labelled_at)), None)
        if row is None:
            return None
        part = self._parts[self._part_of[row]]
        index = part.rows.index(row)
        rows, clicks = part.rows[:index] + part.rows[index + 1 :], part.clicks[:index] + part.clicks[index + 1 :]
        self._commit(part.name, rows, clicks)
        del self._clicks[part.clicks[index]], self._part_of[row]
        part.rows, part.clicks = rows, clicks
        clicked.remove(row)
        self._by_key[key].remove(row)
        self._settle(key)
        return row

    def add_all(self, rows: Sequence[LabelRow]) -> None:
        """Store imported rows."""
        for start in range(0, len(rows), IMPORTED_ROWS_PER_PART):
            chunk = list(rows[start : start + IMPORTED_ROWS_PER_PART])
            name = f"{_IMPORT_PREFIX}{self.token}-{start // IMPORTED_ROWS_PER_PART}"
            self._commit(name, chunk, [])
            self._parts[name] = _Part(name, chunk)
            for row in chunk:
                self._add(row, name, "")

    def rows_of(self, key: str) -> Sequence[LabelRow]:
        """Return all labels of a photo, of every labeller."""
        return self._by_key.get(key, ())

    def last_click(self, labeller: str) -> LabelRow | None:
        """Return the label that this labeller gave last on the page."""
        clicked = self._clicked_by.get(labeller)
        return clicked[-1] if clicked else None

    def num_by(self, labeller: str) -> int:
        """Return how many photos this labeller labelled on the page."""
        return len({row.key for row in self._clicked_by.get(labeller, ())})

    def counts(self) -> dict[str, int]:
        """Return how many photos have a label, and how many each of the settled labels."""
        return {"labels": len(self._settled), **{label: self._counts[label] for label in LABEL_VALUES}}

    def bound(self, max_fnr: float) -> dict[str, int]:
        """Return how many listings have a keeper drawn at random, and how many prove the bound where none is dropped.

        A listing counts once, since its photos go together.
        """
        found = sum(1 for number in self._random_keepers.values() if number)
        return {"listings": found, "needed": labels_needed(max_fnr), "more": max(0, labels_needed(max_fnr) - found)}

    def next_moment(self) -> datetime:
        """Return now, or just after the latest label where the clock is behind it."""
        return max(datetime.now(UTC), self._latest_at + _TICK)

    def _read(self) -> None:
        for receipt in read_receipts(self._root, STAGE):
            rows = list(label_rows(self._root.read_table(receipt.file(FOLDER))))
            clicks = receipt.scope.get("clicks") or [""] * len(rows)
            self._parts[receipt.part] = _Part(receipt.part, rows, list(clicks))
            for row, click in zip(rows, clicks, strict=True):
                self._add(row, receipt.part, click)
        for clicked in self._clicked_by.values():
            clicked.sort(key=lambda row: row.labelled_at)

    def _open_part(self) -> _Part:
        """Return the run's current part, a new one where there is none or it is full."""
        if self._current is not None and len(self._current.rows) < ROWS_PER_PART:
            return self._current
        own = sum(name.startswith(f"{self.token}-") for name in self._parts)
        return _Part(f"{self.token}-{own}")

    def _commit(self, part: str, rows: Sequence[LabelRow], clicks: Sequence[str]) -> None:
        writer = PartWriter(self._root, STAGE, part, token=self.token, fence=self._fence)
        counts = Counter(row.label for row in rows)
        try:
            writer.write_table(FOLDER, table_of([row._asdict() for row in rows], LABELS))
            writer.commit(
                counts={"labels": len(rows), **{label: counts[label] for label in LABEL_VALUES}},
                settings={},
                scope={"clicks": list(clicks)},
            )
        except BaseException:
            writer.abandon()
            raise

    def _add(self, row: LabelRow, part: str, click: str) -> None:
        if not part.startswith(_IMPORT_PREFIX):
            self._clicks[click] = row
            self._clicked_by.setdefault(row.labeller, []).append(row)
            self._part_of[row] = part
        self._by_key.setdefault(row.key, []).append(row)
        self._latest_at = max(self._latest_at, row.labelled_at)
        self._settle(row.key)

    def _settle(self, key: str) -> None:
        """Bring the counts of one photo up to date."""
        before = self._settled.pop(key, None)
        if before is not None:
            self._counts[before.label] -= 1
            self._random_keepers[listing_of(key)] -= _is_random_keeper(before)
        if not self._by_key[key]:
            del self._by_key[key]
            return
        now = self._settled[key] = settle(self._by_key[key])
        self._counts[now.label] += 1
        self._random_keepers[listing_of(key)] += _is_random_keeper(now)


def _is_random_keeper(settled: Settled) -> bool:
    return settled.label == KEEP and settled.sampled_by == RANDOM


def _remove_leftovers(root: Root) -> None:
    """Remove what killed runs left: half-written files, and whole ones that no receipt names."""
    remove_half_written(root, (FOLDER, f"receipts/{STAGE}"))
    named = {name for receipt in read_receipts(root, STAGE) for name in receipt.files}
    for name in root.list(FOLDER):
        if name not in named:
            log.info("event=leftover_removed file=%s", name)
            root.remove(name)
