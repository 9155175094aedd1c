"""In which order an epoch shows its photos, and how each is changed: pure functions of seed, epoch and photo.

Photos come window by window. A window is a few parts, whose shards are read once in order and are warm from then on,
since random reads of a cold shard are slow; within a window photos come in any order, and so do the parts of an epoch.
Nothing here depends on the number of workers: a step's photos are one global batch, of which each takes its share.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ORDER, _PARTS, _DRAWS = 1, 2, 3  # what a draw is for, so that no two purposes share one


@dataclass(frozen=True, slots=True)
class Window:
    """The photos of a few parts: where they begin in the epoch, their rows in the order shown, their parts."""

    first: int
    rows: NDArray[np.int64]  # (num_photos,)
    parts: NDArray[np.int64]  # (parts_per_window,) or fewer


class EpochOrder:
    """The order of a data set's rows in any epoch.

    `parts` (num_photos,) gives each row's part as a number from 0. One window is computed at a time, so memory is that
    of the rows' parts and of a window.
    """

    def __init__(self, parts: NDArray[np.int64], *, batch_size: int, parts_per_window: int, seed: int) -> None:
        if not len(parts) or batch_size < 1 or parts_per_window < 1:
            raise ValueError(f"nothing to order: {len(parts)} photos, batches of {batch_size}, {parts_per_window=}")
        self.num_photos, self.batch_size, self._seed = len(parts), batch_size, seed
        self._per_window = parts_per_window
        self._by_part = np.argsort(parts, kind="stable")
        self._sizes = np.bincount(parts)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])

    @property
    def steps_per_epoch(self) -> int:
        """Count the global batches of an epoch; the last may be smaller."""
        return -(-self.num_photos // self.batch_size)

    def windows(self, epoch: int, *, start: int = 0) -> Iterator[Window]:
        """Yield the windows of an epoch from the one that holds position `start` on."""
        parts = np.flatnonzero(self._sizes)
        parts = parts[np.argsort(mix(self._seed, _PARTS, epoch, parts), kind="stable")]
        first = 0
        for begin in range(0, len(parts), self._per_window):
            chosen = parts[begin : begin + self._per_window]
            size = int(self._sizes[chosen].sum())
            if first + size > start:
                rows = np.concatenate([self._by_part[self._starts[p] : self._starts[p + 1]] for p in chosen])
                rows = np.sort(rows)  # what comes first must not hang on how parts are numbered
                yield Window(first, rows[np.argsort(mix(self._seed, _ORDER, epoch, rows), kind="stable")], chosen)
            first += size

    def batches(self, epoch: int, *, start_step: int = 0) -> Iterator[NDArray[np.int64]]:
        """Yield the rows of each global batch of an epoch, (batch_size,) or fewer in the last, from `start_step` on."""
        position = start_step * self.batch_size
        held = np.empty(0, dtype=np.int64)
        for window in self.windows(epoch, start=position):
            held = np.concatenate([held, window.rows[max(0, position - window.first) :]])
            while len(held) >= self.batch_size:
                yield held[: self.batch_size]
                held = held[self.batch_size :]
        if len(held):
            yield held


def share_of(rows: NDArray[np.int64], *, rank: int, num_workers: int) -> NDArray[np.int64]:
    """Return one worker's rows of a global batch; the shares of all workers are the batch, each row once."""
    return np.array_split(rows, num_workers)[rank]


def draws(seed: int, epoch: int, rows: NDArray[np.int64], num_draws: int) -> NDArray[np.float64]:
    """Draw (len(rows), num_draws) numbers uniform in [0, 1) that hang on seed, epoch and row alone."""
    mixed = mix(seed, _DRAWS, epoch, np.repeat(rows, num_draws) * num_draws + np.tile(np.arange(num_draws), len(rows)))
    uniform: NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform.reshape(len(rows), num_draws)


def mix(seed: int, purpose: int, epoch: int, values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash whole numbers with seed, purpose and epoch to 64 bits: SplitMix64's finaliser (Steele et al. 2014)."""
    hashed = values.astype(np.uint64)
    for salt in (seed, purpose, epoch):
        hashed = _finalise(hashed ^ _finalise(np.array([salt & (2**64 - 1)], dtype=np.uint64)))
    return hashed


def _finalise(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
