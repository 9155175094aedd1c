"""Confirm candidate pairs by their stored pixels: laid over each other at 64 px, in colour.

Photos are read part by part and decoded in threads, a block of pairs at a time, so that memory does not grow with the
pairs. A copy that is re-encoded, resized, brighter or cropped by 1 % is confirmed; another paint on the same car, a
view from one step aside, and flat pictures, which prove nothing, are not.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.dedup_fit import SIDE_PX, Floats, compare
from pipeline.hash_join import Pairs
from pipeline.same_picture import StoredPhotos
from schemas.image import decode_stored
from schemas.storage import Root

# On 1,788 real photos and 12,516 changed copies of them (q90 to q50, resized, 1 % crop, 10 % brighter) 99.9 % of the
# copies lie within half of the grey limit and 99.8 % within the colour limits; of 1,679 pairs of other photos with
# hashes within 16 bits the nearest has a correlation of 0.993 and 32 levels of grey, the next ones 0.96 and 66.
MIN_CORRELATION = 0.985
MAX_GREY_LEVELS = 24.0
MAX_COLOUR_LEVELS = 14.0
MAX_MEAN_COLOUR_LEVELS = 3.0
# How many times the mean difference the worst px may differ by: 26 in those copies, 33 in drawn cut-outs that are the
# same but for a number plate, far less than a cell large.
MAX_PEAK = 28.0
_MAX_GAIN = 1.34
_BLUR_PX = 0.8
_PAIRS_AT_ONCE = 4_096

# Ranks (N,) -> their parts and keys, in order of part and key, as (rank, part, key).
Locate = Callable[[NDArray[np.int64]], Iterator[tuple[int, str, str]]]


def shrunk(jpeg: bytes) -> Floats:
    """Reduce a stored photo to (64, 64, 3) levels, whatever its aspect, slightly blurred against the codec's noise."""
    small = cv2.resize(decode_stored(jpeg), (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.GaussianBlur(small.astype(np.float32), (0, 0), _BLUR_PX), np.float32)


def same_photo(ours: Floats, theirs: Floats) -> bool:
    """Tell whether two shrunk photos are one photo."""
    correlation, gain, mean_colour, colour, grey, peak = compare(ours, theirs)
    return bool(
        correlation >= MIN_CORRELATION
        and 1 / _MAX_GAIN <= gain <= _MAX_GAIN
        and grey <= MAX_GREY_LEVELS
        and colour <= MAX_COLOUR_LEVELS
        and mean_colour <= MAX_MEAN_COLOUR_LEVELS
        and peak <= MAX_PEAK
    )


class PhotoPairs:
    """Confirms pairs of photos of one root, named by rank; a context manager."""

    def __init__(self, root: Root, locate: Locate, *, threads: int, mirrored: bool = False) -> None:
        self._photos, self._locate, self._mirrored = StoredPhotos(root), locate, mirrored
        self._pool = ThreadPoolExecutor(threads)
        self._threads = threads

    def __enter__(self) -> "PhotoPairs":
        return self

    def __exit__(self, *raised: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._photos.close()

    def confirm(self, pairs: Pairs) -> NDArray[np.bool_]:
        """Tell of each pair of ranks (K, 2) whether it is one photo, or where asked one mirrored."""
        confirmed = np.zeros(len(pairs), np.bool_)
        # By the second photo, which many pairs have in common.
        order = np.lexsort((pairs[:, 0], pairs[:, 1]))
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            chosen = order[start : start + _PAIRS_AT_ONCE]
            confirmed[chosen] = self._block(pairs[chosen])
        return confirmed

    def _block(self, pairs: Pairs) -> list[bool]:
        ranks = np.unique(pairs)
        located = list(self._locate(ranks))
        jpegs = (self._photos.get(part, key) for _, part, key in located)
        shown = dict(zip((rank for rank, _, _ in located), self._map(shrunk, list(jpegs)), strict=True))
        return self._map(lambda pair: self._is_same(shown[pair[0]], shown[pair[1]]), pairs.tolist())

    def _is_same(self, ours: Floats, theirs: Floats) -> bool:
        return same_photo(ours, theirs) or (self._mirrored and same_photo(ours[:, ::-1], theirs))

    def _map(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Apply `work` in the threads, a few items a task."""
        size = -(-len(items) // (4 * self._threads)) or 1
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        done = self._pool.map(lambda batch: [work(item) for item in batch], batches)
        return [result for batch in done for result in batch]
