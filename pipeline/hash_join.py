"""All pairs of 64-bit hashes that differ in a few bits: none missed, each once, in memory bounded by the block.

The bits are dealt to bands, those that tell most apart first. Two hashes within the distance agree in at least one
band but for the bits that are probed there, since the sum over bands of (probed bits + 1) is the distance + 1; the
first such band reports them. Within a band the hashes are sorted into buckets by their value, and buckets into blocks:
a task compares two blocks, bucket by bucket. Two buckets too large for that are joined by all other bits in turn.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.hash_join_kernels import Hashes, Places, compare_buckets, count_bits, lay_out, move_bits

NUM_BITS = 64
MAX_DISTANCE = 12
Pairs = NDArray[np.int64]

# Buckets of four bands hold N / 65,536 hashes and are gone through whole; from here on three wider bands cost less.
_MANY_HASHES = 1 << 21
_WIDTHS = {4: (4, 16), 3: (8, 21)}
# A block is what one task holds of a band; two blocks differ in some of the highest bits of the band's value.
_HASHES_PER_BLOCK = 1 << 19
_MIN_BLOCK_BITS, _MAX_BLOCK_BITS = 2, 8
_FOUND_AT_ONCE = 1 << 18
_GIANTS_AT_ONCE = 1 << 12
# Two buckets with more compares than this are split by the other bits.
MAX_COMPARES = 1 << 24
# Each split takes apart what the bits so far did not; hashes all different cannot stay together for long.
_MAX_DEPTH = 3


class Hands(Protocol):
    """Who compares the blocks: threads here, or tasks elsewhere; `num_calls` keep all of them busy."""

    num_calls: int

    def share(self, value: Any) -> Any:
        """Return what stands for a value in many calls."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin a call."""

    def result(self) -> Any:
        """Return the result of a call that has ended; any of those begun."""


class ThreadHands:
    """Threads of this process; a context manager."""

    def __init__(self, num_threads: int) -> None:
        self.num_calls = num_threads + 1
        self._pool = ThreadPoolExecutor(num_threads)
        self._running: set[Future[Any]] = set()

    def __enter__(self) -> "ThreadHands":
        return self

    def __exit__(self, *raised: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def share(self, value: Any) -> Any:
        """Return the value itself."""
        return value

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin a call in a thread."""
        self._running.add(self._pool.submit(function, *arguments))

    def result(self) -> Any:
        """Wait for a call."""
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        future = done.pop()
        self._running.remove(future)
        return future.result()


@dataclass(frozen=True, slots=True)
class _Bands:
    """How the bits of a set of hashes are dealt: `sources` (64,) of the moved bits, the highest first."""

    sources: Places
    width: int
    probes: tuple[int, ...]

    def shift(self, band: int) -> int:
        return NUM_BITS - (band + 1) * self.width

    def mask(self, band: int) -> np.uint64:
        return np.uint64(((1 << self.width) - 1) << self.shift(band))


@dataclass(frozen=True, slots=True)
class _Block:
    """Buckets that lie side by side in a band: hashes (N,) in order, the row of each, and where buckets start."""

    hashes: Hashes
    rows: NDArray[np.uint32]
    starts: Places


@dataclass(frozen=True, slots=True)
class _Rule:
    """What is found in a band: pairs that no earlier one finds."""

    max_distance: int
    earlier: Hashes
    earlier_probes: Places
    max_compares: int


@dataclass(frozen=True, slots=True)
class _Found:
    """What a call has found: pairs of rows (K, 2), pairs of giant buckets (G, 2), and where to go on, if at all."""

    task: "_Task"
    pairs: Pairs
    giants: Places
    state: Places | None


@dataclass(frozen=True, slots=True)
class _Task:
    """Two blocks of a band by number, and the bits of their buckets' numbers that may differ."""

    first: int
    second: int
    flips: Places


def near_pairs(hashes: Hashes, max_distance: int, hands: Hands, *, max_compares: int = MAX_COMPARES) -> Iterator[Pairs]:
    """Yield pairs of rows (K, 2) whose hashes differ in at most `max_distance` bits; the order means nothing.

    `hashes` (N,) are all different, and fewer than 2^32. Rows of a pair come in either order.
    """
    if not 0 <= max_distance <= MAX_DISTANCE:
        raise ValueError(f"a distance of 0 to {MAX_DISTANCE} is expected, found {max_distance}")
    if max_distance and len(hashes) > 1:
        yield from _join(hashes, max_distance, hands, max_compares, depth=0)


def differing_bits(first: Hashes, second: Hashes) -> NDArray[np.uint8]:
    """Return in how many bits hashes differ."""
    return np.asarray(np.bitwise_count(first ^ second), np.uint8)


def _join(hashes: Hashes, max_distance: int, hands: Hands, max_compares: int, *, depth: int) -> Iterator[Pairs]:
    bands = _deal(hashes, max_distance)
    moved = np.empty_like(hashes)
    move_bits(hashes, bands.sources, moved)
    earlier = np.array([bands.mask(band) for band in range(len(bands.probes))], np.uint64)
    probes = np.array(bands.probes, np.int64)
    # What no split has taken apart is compared as it is.
    most = max_compares if depth < _MAX_DEPTH else np.iinfo(np.int64).max
    for band in range(len(bands.probes)):
        layout = _laid_out(moved, bands.shift(band), bands.width)
        rule = _Rule(max_distance, earlier[:band], probes[:band], most)
        giants: list[tuple[int, int]] = []
        yield from _compared(layout, bands.width, bands.probes[band], rule, hands, giants)
        for first, second in giants:
            pairs = _taken_apart(layout, first, second, max_distance, hands, max_compares, depth)
            yield from (_not_earlier(block, moved, rule) for block in pairs)


def _deal(hashes: Hashes, max_distance: int) -> _Bands:
    """Choose bands for so many hashes, and deal them the bits in turn, the most evenly set ones first."""
    num_bands = min(4 if len(hashes) < _MANY_HASHES else 3, max_distance + 1)
    least, most = _WIDTHS.get(num_bands, (8, 21))
    width = min(most, max(least, len(hashes).bit_length()))
    to_probe, more = divmod(max_distance + 1 - num_bands, num_bands)
    probes = tuple(to_probe + (band < more) for band in range(num_bands))
    counts = np.zeros(NUM_BITS, np.int64)
    count_bits(hashes, counts)
    by_balance = np.argsort(np.abs(2 * counts - len(hashes)), kind="stable")
    used = num_bands * width
    dealt = np.concatenate([by_balance[band:used:num_bands] for band in range(num_bands)])
    return _Bands(np.concatenate([dealt, by_balance[used:]]).astype(np.int64), width, probes)


def _laid_out(moved: Hashes, shift: int, width: int) -> _Block:
    ordered, rows = np.empty_like(moved), np.empty(len(moved), np.uint32)
    starts = np.zeros((1 << width) + 1, np.int64)
    lay_out(moved, shift, width, ordered, rows, starts)
    return _Block(ordered, rows, starts)


def _compared(
    layout: _Block, width: int, probes: int, rule: _Rule, hands: Hands, giants: list[tuple[int, int]]
) -> Iterator[Pairs]:
    """Yield the pairs of a band; buckets too large are put into `giants`, by their numbers."""
    block_bits = _block_bits(len(layout.hashes))
    low_bits = width - block_bits
    blocks = [hands.share(block) for block in _cut(layout, block_bits, low_bits)]
    waiting, running = _tasks(block_bits, low_bits, probes), 0
    task = next(waiting, None)
    state: Places | None = None
    while task is not None or running:
        while task is not None and running < hands.num_calls:
            hands.submit(_compare_blocks, blocks[task.first], blocks[task.second], task, rule, state)
            running += 1
            task, state = next(waiting, None), None
        found: _Found = hands.result()
        running -= 1
        if found.state is not None:  # it goes on before anything else is begun
            hands.submit(
                _compare_blocks, blocks[found.task.first], blocks[found.task.second], found.task, rule, found.state
            )
            running += 1
        for first, second in found.giants.tolist():
            giants.append((found.task.first << low_bits | first, found.task.second << low_bits | second))
        if len(found.pairs):
            yield found.pairs


def _block_bits(num_hashes: int) -> int:
    return min(_MAX_BLOCK_BITS, max(_MIN_BLOCK_BITS, (num_hashes // _HASHES_PER_BLOCK).bit_length()))


def _cut(layout: _Block, block_bits: int, low_bits: int) -> Iterator[_Block]:
    for number in range(1 << block_bits):
        starts = layout.starts[number << low_bits : ((number + 1) << low_bits) + 1]
        rows = slice(int(starts[0]), int(starts[-1]))
        yield _Block(layout.hashes[rows], layout.rows[rows], starts)


def _tasks(block_bits: int, low_bits: int, probes: int) -> Iterator[_Task]:
    """Name each two blocks that hold buckets to compare, once."""
    flips = {left: _flips(low_bits, left) for left in range(probes + 1)}
    for first in range(1 << block_bits):
        for second in range(first, 1 << block_bits):
            if (left := probes - (first ^ second).bit_count()) >= 0:
                yield _Task(first, second, flips[left])


def _flips(num_bits: int, most: int) -> Places:
    """List the numbers of `num_bits` bits with at most so many of them set."""
    chosen = [sum(1 << bit for bit in bits) for size in range(most + 1) for bits in combinations(range(num_bits), size)]
    return np.array(chosen, np.int64)


def _compare_blocks(first: _Block, second: _Block, task: _Task, rule: _Rule, state: Places | None) -> _Found:
    """Compare two blocks from `state` on, until there are many pairs or nothing is left."""
    most = _FOUND_AT_ONCE
    if rule.max_compares > MAX_COMPARES:
        most = max(most, int(np.diff(second.starts).max(initial=0)))
    found = np.empty((most, 2), np.int64)
    giants = np.empty((_GIANTS_AT_ONCE, 2), np.int64)
    state = np.zeros(6, np.int64) if state is None else state.copy()
    compare_buckets(
        first.hashes,
        first.starts,
        second.hashes,
        second.starts,
        task.first == task.second,
        task.flips,
        rule.max_distance,
        rule.earlier,
        rule.earlier_probes,
        rule.max_compares,
        state,
        found,
        giants,
    )
    places = found[: state[3]]
    pairs = np.stack([first.rows[places[:, 0]], second.rows[places[:, 1]]], axis=1).astype(np.int64)
    return _Found(task, pairs, giants[: state[4]].copy(), None if state[5] else state)


def _taken_apart(
    layout: _Block, first: int, second: int, max_distance: int, hands: Hands, max_compares: int, depth: int
) -> Iterator[Pairs]:
    """Join two giant buckets, or one with itself, by bands of the bits that tell their hashes apart."""
    left, right = (slice(int(layout.starts[bucket]), int(layout.starts[bucket + 1])) for bucket in (first, second))
    if first == second:
        hashes, rows = layout.hashes[left], layout.rows[left]
    else:
        hashes = np.concatenate([layout.hashes[left], layout.hashes[right]])
        rows = np.concatenate([layout.rows[left], layout.rows[right]])
    num_left = left.stop - left.start
    for pairs in _join(hashes, max_distance, hands, max_compares, depth=depth + 1):
        if first != second:
            pairs = pairs[(pairs[:, 0] < num_left) != (pairs[:, 1] < num_left)]
        yield rows[pairs].astype(np.int64)


def _not_earlier(pairs: Pairs, moved: Hashes, rule: _Rule) -> Pairs:
    """Leave out what an earlier band finds."""
    differing = moved[pairs[:, 0]] ^ moved[pairs[:, 1]]
    kept = np.ones(len(pairs), np.bool_)
    for mask, probes in zip(rule.earlier, rule.earlier_probes, strict=True):
        kept &= np.bitwise_count(differing & mask) > probes
    return pairs[kept]
