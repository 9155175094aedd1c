"""Compare candidate pairs by their pixels, many at once and in bounded memory.

Pairs come sorted by their first photo, and photos stand in order of key, as do parts, so that what a block of pairs
needs lies close together; local features are kept for the photos used last. They are made anew in each run, for they
are larger than the photos themselves, only photos that have a candidate need them, and a new part brings new candidates
to all.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.copies_align import Alignment, Features, agreement, align, features_of
from pipeline.same_picture import StoredPhotos
from schemas.command import Progress
from schemas.storage import Root

_PAIRS_AT_ONCE = 2_048
_OPEN_SHARDS = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where a photo is stored."""

    part: str
    key: str


class Located(Protocol):
    """Photos by number."""

    def __getitem__(self, place: int, /) -> Place:
        """Say where a photo is stored."""


@dataclass(frozen=True, slots=True)
class Block:
    """Pairs to compare elsewhere: rows of `photos`, so that only names travel."""

    root: Root
    photos: tuple[Place, ...]
    pairs: NDArray[np.uint32]
    max_scale: float
    min_inliers: int


def compare_block(block: Block) -> NDArray[np.float32]:
    """Compare the pairs of a block in one thread; return what `PairChecker.shares` does."""
    with PairChecker(
        block.root,
        block.photos,
        max_scale=block.max_scale,
        min_inliers=block.min_inliers,
        cached_photos=len(block.photos),
        threads=1,
    ) as checker:
        return checker.shares(block.pairs)


class PairChecker:
    """Compares photos of one root by their pixels; a context manager.

    `cached_photos` bounds whose features are kept, about 30 KB each.
    """

    def __init__(
        self,
        root: Root,
        photos: Located,
        *,
        max_scale: float,
        min_inliers: int,
        cached_photos: int,
        threads: int | None = None,
    ) -> None:
        self._root, self._photos = root, photos
        self._max_scale, self._min_inliers = max_scale, min_inliers
        self._cached_photos = cached_photos
        self._features: OrderedDict[int, Features] = OrderedDict()
        self._shards: OrderedDict[str, StoredPhotos] = OrderedDict()
        self._num_threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._num_threads)
        self._cv2_threads = cv2.getNumThreads()

    def __enter__(self) -> Self:
        # One photo a thread, not one photo over all threads.
        cv2.setNumThreads(1)
        return self

    def __exit__(self, *raised: object) -> None:
        cv2.setNumThreads(self._cv2_threads)
        self._pool.shutdown()
        for shard in self._shards.values():
            shard.close()

    def shares(self, pairs: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Return for each pair of places the share of blocks that agree once aligned; 0 where nothing aligns them."""
        found = np.zeros(len(pairs), np.float32)
        progress = Progress(len(pairs), "pairs")
        try:
            for start in range(0, len(pairs), _PAIRS_AT_ONCE):
                block = pairs[start : start + _PAIRS_AT_ONCE]
                found[start : start + len(block)] = self._block(block)
                progress.show(start + len(block))
        finally:
            progress.close()
        return found

    def _block(self, pairs: NDArray[np.uint32]) -> NDArray[np.float32]:
        self._load(np.unique(pairs).tolist())
        ordered = [self._by_key(int(a), int(b)) for a, b in pairs]
        alignments = self._map(self._align, ordered)
        aligned = [place for place, alignment in enumerate(alignments) if alignment is not None]
        jpegs = self._jpegs(sorted({photo for place in aligned for photo in ordered[place]}))

        def compared(place: int) -> float:
            alignment = alignments[place]
            assert alignment is not None
            first, second = ordered[place]
            return agreement(jpegs[first], jpegs[second], alignment)

        found = np.zeros(len(pairs), np.float32)
        found[aligned] = self._map(compared, aligned)
        while len(self._features) > self._cached_photos:
            self._features.popitem(last=False)
        return found

    def _by_key(self, first: int, second: int) -> tuple[int, int]:
        """Order a pair by key: in which part a photo lies must not change what is found."""
        return (first, second) if self._photos[first].key < self._photos[second].key else (second, first)

    def _align(self, pair: tuple[int, int]) -> Alignment | None:
        first, second = self._features[pair[0]], self._features[pair[1]]
        return align(first, second, max_scale=self._max_scale, min_inliers=self._min_inliers)

    def _load(self, photos: Sequence[int]) -> None:
        """Have the features of these photos at hand, as the ones used last."""
        missing = [photo for photo in photos if photo not in self._features]
        jpegs = self._jpegs(missing)
        self._features.update(zip(missing, self._map(features_of, [jpegs[photo] for photo in missing]), strict=True))
        for photo in photos:
            self._features.move_to_end(photo)

    def _jpegs(self, photos: Iterable[int]) -> dict[int, bytes]:
        return {photo: self._shard(self._photos[photo].part).get(*self._named(photo)) for photo in photos}

    def _named(self, photo: int) -> tuple[str, str]:
        return self._photos[photo].part, self._photos[photo].key

    def _shard(self, part: str) -> StoredPhotos:
        if part not in self._shards:
            if len(self._shards) >= _OPEN_SHARDS:
                self._shards.popitem(last=False)[1].close()
            self._shards[part] = StoredPhotos(self._root)
        self._shards.move_to_end(part)
        return self._shards[part]

    def _map(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Apply `work` in the threads, a few items a task."""
        size = -(-len(items) // (4 * self._num_threads)) or 1
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        done = self._pool.map(lambda batch: [work(item) for item in batch], batches)
        return [result for batch in done for result in batch]
