"""Confirm candidate pairs by their stored pixels: laid over each other at 64 px, in colour.

Photos are read part by part and decoded in threads, a block of pairs at a time, so that memory does not grow with the
pairs. A copy that is re-encoded, resized, brighter or cropped by 1 % is confirmed; another paint on the same car, a
view from one step aside, and flat pictures, which prove nothing, are not.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.dedup_fit import SIDE_PX, Floats, compare
from pipeline.hash_join import Pairs
from pipeline.same_picture import StoredPhotos
from schemas.image import decode_stored
from schemas.storage import Root

# Limits, on 1,788 real photos, 12,516 changed copies of them and 5,364 pairs of two changed copies (re-encoded at q90
# to q50, resized to 80 % and 50 %, 1 % crop, 10 % brighter): of each change 99.8 % and more lie within all of them. Of
# 1,671 pairs of other photos with hashes within 16 bits none do: of the most alike the greys correlate by 0.993, and a
# cell differs by 32 levels and 138 in colour.
_MIN_CORRELATION = 0.99
_MAX_GREY_LEVELS = 24.0
_MAX_COLOUR_LEVELS = 15.0
_MAX_MEAN_COLOUR_LEVELS = 3.0
_MAX_GAIN = 1.19
# A brighter copy has a gain, one of other contrast an offset against its gain; both one way is another light.
_MAX_OFFSET_LEVELS, _MAX_OFFSET_WITH_GAIN_LEVELS = 8.0, 3.5
# How many times the mean difference the worst px may differ by: 26 in those copies, 33 in drawn cut-outs that are the
# same but for a number plate, far less than a cell large.
_MAX_STANDS_OUT = 28.0
# A crop of 1 % moves the edges by 0.65 px, all outwards alike; two drawn seats of one pattern fit by moving aside, or
# along one axis alone. Sizes are rounded to whole px, which is more at 64 px where the stored photo has few.
_MAX_OUTWARDS_PX = 1.2
_SLACK_PX, _SLACK_STORED_PX = 0.1, 44.0
_BLUR_PX = 0.8
_PAIRS_AT_ONCE = 4_096

# Ranks (N,) -> their parts and keys, in order of part and key, as (rank, part, key).
Locate = Callable[[NDArray[np.int64]], Iterator[tuple[int, str, str]]]


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A stored photo at 64 px: `levels` (64, 64, 3), whatever its aspect, and its short side as stored."""

    levels: Floats
    short_side_px: int


def shrunk(jpeg: bytes) -> Shrunk:
    """Reduce a stored photo, and blur it slightly against the codec's noise."""
    pixels = decode_stored(jpeg)
    small = cv2.resize(pixels, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    return Shrunk(np.asarray(cv2.GaussianBlur(small, (0, 0), _BLUR_PX), np.float32), min(pixels.shape[:2]))


def mirror(photo: Shrunk) -> Shrunk:
    """Turn a photo left to right."""
    return Shrunk(np.ascontiguousarray(photo.levels[:, ::-1]), photo.short_side_px)


def same_photo(ours: Shrunk, theirs: Shrunk) -> bool:
    """Tell whether two shrunk photos are one photo."""
    fit, left = compare(ours.levels, theirs.levels)
    correlation, mean_colour, colour, grey, stands_out = left.tolist()
    if correlation < _MIN_CORRELATION:
        return False
    gain, offset, right, wider, down, higher = fit.tolist()
    slack = _SLACK_PX + _SLACK_STORED_PX / min(ours.short_side_px, theirs.short_side_px)
    return bool(
        1 / _MAX_GAIN <= gain <= _MAX_GAIN
        and abs(offset) <= (_MAX_OFFSET_WITH_GAIN_LEVELS if offset * (gain - 1) > 0 else _MAX_OFFSET_LEVELS)
        and max(abs(right), abs(down), abs(wider - higher)) <= slack
        and max(abs(wider), abs(higher)) <= _MAX_OUTWARDS_PX
        and grey <= _MAX_GREY_LEVELS
        and colour <= _MAX_COLOUR_LEVELS
        and mean_colour <= _MAX_MEAN_COLOUR_LEVELS
        and stands_out <= _MAX_STANDS_OUT
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

    def _is_same(self, ours: Shrunk, theirs: Shrunk) -> bool:
        return same_photo(ours, theirs) or (self._mirrored and same_photo(mirror(ours), theirs))

    def _map(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Apply `work` in the threads, a few items a task."""
        size = -(-len(items) // (4 * self._threads)) or 1
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        done = self._pool.map(lambda batch: [work(item) for item in batch], batches)
        return [result for batch in done for result in batch]
