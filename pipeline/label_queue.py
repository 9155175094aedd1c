"""Which photo a labeller sees next: at random, by the filter's score, or by a text.

Reads: photos, listings, duplicates, scores, embeddings. Every labeller has a queue of their own over the stored photos;
those dropped as duplicates are left out, as they are judged with the copy that stays.

Random is uniform: a permutation of all these photos, by the session's seed and the labeller's name, from which only
photos that this labeller was shown at random before are left out. One that was labelled for another reason is asked
again: were it left out, the sample would lack what the filter doubts, and the bound would be too good. Other ways to
choose leave out all that this labeller has labelled.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.catalog import Catalog, CatalogSettings, query
from pipeline.label_rows import RANDOM, LabelRow
from schemas.errors import ForecourtError
from schemas.receipts import read_receipt
from schemas.storage import Root

MAX_NEIGHBOURS = 24
# Read a batch at a time; what stays in memory is about 150 bytes a photo.
_PHOTOS = """
SELECT p.key, p.part, left(p.sha256, 16) AS version, coalesce(d.kept, true) AS shown,
       coalesce(l.title, nullif(concat_ws(' ', l.year, l.make, l.model), '')) AS title
FROM photos p LEFT JOIN listings l USING (site, listing_id) LEFT JOIN duplicates d USING (key)
WHERE p.outcome = 'stored' ORDER BY p.key
"""
_SCORES = "SELECT key, score, drop_reason = 'junk' AS junk FROM scores WHERE score IS NOT NULL"


class QueueError(ForecourtError):
    """Photos cannot be chosen this way now; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo as the page shows it; `version` changes with its bytes."""

    key: str
    part: str
    version: str
    title: str | None


class PhotoIndex:
    """The stored photos of a root in order of key, as they were when it was made."""

    def __init__(self, root: Root, limits: CatalogSettings | None = None) -> None:
        table = query(root, _PHOTOS, settings=limits)
        self._keys: pa.ChunkedArray = table["key"].combine_chunks()
        self._columns = {name: table[name].dictionary_encode() for name in ("part", "title")}
        self._versions = table["version"]
        self.shown: NDArray[np.int64] = np.flatnonzero(table["shown"].to_numpy())

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, key: str) -> int | None:
        """Return a photo's place; None where it is not stored."""
        place = bisect_left(range(len(self)), key, key=self.key)
        return place if place < len(self) and self.key(place) == key else None

    def key(self, place: int) -> str:
        """Return the key of the photo at a place."""
        return str(self._keys[place].as_py())

    def photo(self, place: int) -> Photo:
        """Return the photo at a place."""
        part, title = (self._columns[name][place].as_py() for name in ("part", "title"))
        return Photo(self.key(place), part, self._versions[place].as_py() or "", title)

    def neighbours(self, place: int) -> list[Photo]:
        """Return the listing's other photos in order, the nearest where there are many."""
        prefix = self.key(place).rpartition("/")[0] + "/"
        first = bisect_left(range(len(self)), prefix, key=self.key)
        last = first
        while last < len(self) and self.key(last).startswith(prefix):
            last += 1
        others = [one for one in range(first, last) if one != place]
        nearest = sorted(sorted(others, key=lambda one: abs(one - place))[:MAX_NEIGHBOURS])
        return [self.photo(one) for one in nearest]

    def places(self, keys: pa.ChunkedArray) -> NDArray[np.int64]:
        """Return the place of each key, -1 where it is not stored."""
        return np.asarray(pc.fill_null(pc.index_in(keys, value_set=self._keys), -1).to_numpy(), dtype=np.int64)


# By a text: the similarity of each photo of the index, NaN where it has no embedding.
TextRanking = Callable[[str], NDArray[np.float32]]


@dataclass(slots=True)
class _Queue:
    """An order of places, and how far it was handed out."""

    order: NDArray[np.int64]
    state: str
    next: int = 0


@dataclass(slots=True)
class Queues:
    """The queues of all labellers of a session; `rows_of` returns a photo's labels."""

    root: Root
    index: PhotoIndex
    rows_of: Callable[[str], Sequence[LabelRow]]
    seed: str
    rank_by_text: TextRanking
    limits: CatalogSettings | None = None
    _queues: dict[tuple[str, str, str], _Queue] = field(default_factory=dict)

    def take(self, num: int, *, labeller: str, sampling: str, prompt: str, held: Collection[str]) -> list[int]:
        """Hand out the next places of a labeller's queue, none twice until all were; `held` are keys the page has.

        Raises:
            QueueError: there is no filter, or no text, to choose by.
        """
        queue = self.prepare(labeller, sampling, prompt)
        taken = self._advance(queue, num, labeller, sampling, held)
        if not taken:  # what was skipped, or handed to a page that was closed, comes again
            queue.next = 0
            taken = self._advance(queue, num, labeller, sampling, held)
        return taken

    def _advance(self, queue: _Queue, num: int, labeller: str, sampling: str, held: Collection[str]) -> list[int]:
        taken: list[int] = []
        while len(taken) < num and queue.next < len(queue.order):
            place = int(queue.order[queue.next])
            queue.next += 1
            key = self.index.key(place)
            if key not in held and not self._is_done(key, labeller, sampling):
                taken.append(place)
        return taken

    def _is_done(self, key: str, labeller: str, sampling: str) -> bool:
        mine = [row for row in self.rows_of(key) if row.labeller == labeller]
        return any(row.sampled_by == RANDOM for row in mine) if sampling == RANDOM else bool(mine)

    def prepare(self, labeller: str, sampling: str, prompt: str) -> _Queue:
        """Put a labeller's queue in order, again where the scores have changed; a text takes its time.

        Raises:
            QueueError: as `take`.
        """
        name = (labeller, sampling, prompt)
        state = _scores_state(self.root) if sampling in _BY_SCORE else ""
        queue = self._queues.get(name)
        if queue is None or queue.state != state:
            queue = self._queues[name] = _Queue(self._order(labeller, sampling, prompt), state)
        return queue

    def _order(self, labeller: str, sampling: str, prompt: str) -> NDArray[np.int64]:
        if sampling == RANDOM:
            return random_order(self.index.shown, seed=self.seed, labeller=labeller)
        if sampling in _BY_SCORE:
            return self._order_by_score(sampling)
        if not prompt:
            raise QueueError("type what to look for, such as: a car dashboard")
        likeness = self.rank_by_text(prompt)
        found = self.index.shown[~np.isnan(likeness[self.index.shown])]
        return found[np.argsort(-likeness[found], kind="stable")]

    def _order_by_score(self, sampling: str) -> NDArray[np.int64]:
        with Catalog(self.root, self.limits) as catalog:
            rows = catalog.query(_SCORES)
        places = self.index.places(rows["key"])
        here = np.isin(places, self.index.shown)
        if not here.any():
            raise QueueError("there is no filter yet: label at random, run pipeline/score.py, and choose this again")
        order = np.argsort(places[here], kind="stable")
        places, scores = places[here][order], rows["score"].to_numpy()[here][order].astype(np.float64)
        junk = pc.fill_null(rows["junk"], False).to_numpy()[here][order]
        rank = _BY_SCORE[sampling](scores, _threshold(scores, junk))
        ordered: NDArray[np.int64] = places[np.argsort(rank, kind="stable")]
        return ordered


# What is shown first has the smallest of these.
_BY_SCORE: dict[str, Callable[[NDArray[np.float64], float], NDArray[np.float64]]] = {
    "uncertain": lambda scores, threshold: np.abs(scores - threshold),
    "likely_junk": lambda scores, _threshold: -scores,
    "likely_keep": lambda scores, _threshold: scores,
}


def random_order(places: NDArray[np.int64], *, seed: str, labeller: str) -> NDArray[np.int64]:
    """Return the places in a random order that the seed and the labeller decide."""
    digest = hashlib.blake2b(f"{seed}\n{labeller}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).permutation(places)


def _threshold(scores: NDArray[np.float64], junk: NDArray[np.bool_]) -> float:
    """Return what lies between the kept and the dropped."""
    sides: list[Any] = [scores[~junk].max()] if (~junk).any() else []
    sides += [scores[junk].min()] if junk.any() else []
    return float(np.mean(sides))


def _scores_state(root: Root) -> str:
    receipt = read_receipt(root, "score", "all")
    return "" if receipt is None else f"{receipt.run} {receipt.generation}"
