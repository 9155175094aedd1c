"""The inner loops of the hash join, compiled at their first call: bits moved, buckets laid out, buckets compared.

They hold no Python lock while they run, so that threads run them side by side.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


@njit(nogil=True, cache=True)
def _ones(bits: np.uint64) -> np.int64:
    """Count the bits that are set; LLVM knows these lines and makes them one instruction."""
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((bits * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(nogil=True, cache=True)
def count_bits(hashes: Hashes, counts: Places) -> None:
    """Add to `counts` (64,) how many hashes have each bit, the highest first."""
    for row in range(len(hashes)):
        for bit in range(64):
            counts[bit] += np.int64((hashes[row] >> np.uint64(63 - bit)) & np.uint64(1))


@njit(nogil=True, cache=True)
def move_bits(hashes: Hashes, sources: Places, moved: Hashes) -> None:
    """Give each bit of `moved` (N,), the highest first, the value of the bit that `sources` (64,) names."""
    for row in range(len(hashes)):
        bits = np.uint64(0)
        for place in range(64):
            bits = (bits << np.uint64(1)) | ((hashes[row] >> np.uint64(63 - sources[place])) & np.uint64(1))
        moved[row] = bits


@njit(nogil=True, cache=True)
def lay_out(hashes: Hashes, shift: int, width: int, ordered: Hashes, order: NDArray[np.uint32], starts: Places) -> None:
    """Sort hashes by the `width` bits above `shift`: `ordered` (N,), where each stood, and where each value starts.

    `starts` (2 ** width + 1,) begins as zeros.
    """
    mask = np.uint64((1 << width) - 1)
    for row in range(len(hashes)):
        starts[np.int64((hashes[row] >> np.uint64(shift)) & mask) + 1] += 1
    for value in range(1, len(starts)):
        starts[value] += starts[value - 1]
    # The starts run ahead as the buckets fill, and are moved back by one bucket at the end.
    for row in range(len(hashes)):
        bucket = np.int64((hashes[row] >> np.uint64(shift)) & mask)
        ordered[starts[bucket]] = hashes[row]
        order[starts[bucket]] = row
        starts[bucket] += 1
    for value in range(len(starts) - 1, 0, -1):
        starts[value] = starts[value - 1]
    starts[0] = 0


@njit(nogil=True, cache=True)
def _compare(
    bits: np.uint64,
    place: int,
    second: Hashes,
    begin: int,
    end: int,
    max_distance: int,
    earlier: Hashes,
    probes: Places,
    found: Places,
    num_found: int,
) -> int:
    """Compare one hash with those of the second block from `begin` to `end`; return how many pairs are found by now."""
    for other in range(begin, end):
        differing = bits ^ second[other]
        if _ones(differing) <= max_distance:
            is_new = True
            for band in range(len(earlier)):
                if _ones(differing & earlier[band]) <= probes[band]:
                    is_new = False
                    break
            if is_new:
                found[num_found, 0], found[num_found, 1] = place, other
                num_found += 1
    return num_found


@njit(nogil=True, cache=True)
def compare_buckets(
    first: Hashes,
    first_starts: Places,
    second: Hashes,
    second_starts: Places,
    is_same: bool,
    flips: Places,
    max_distance: int,
    earlier: Hashes,
    probes: Places,
    max_compares: int,
    state: Places,
    found: Places,
    giants: Places,
) -> None:
    """Compare each bucket of the first block with those of the second whose value is its own, some bits flipped.

    Pairs that an earlier band finds (at most `probes` differing bits under its mask) are left to it. Puts rows
    (place in first, place in second) into `found` (C, 2), and pairs of buckets too large to compare, as values, into
    `giants` (G, 2); stops where either is full. `state` says where to go on: bucket, flip, row, then how many were
    found, how many giants, and 1 in the end.
    """
    num_found, num_giants = 0, 0
    bucket, flip, row = state[0], state[1], state[2]
    while bucket < len(first_starts) - 1:
        start, end = first_starts[bucket] - first_starts[0], first_starts[bucket + 1] - first_starts[0]
        if start == end:
            flip = len(flips)
        while flip < len(flips):
            other = bucket ^ flips[flip]
            other_start = second_starts[other] - second_starts[0]
            other_end = second_starts[other + 1] - second_starts[0]
            size = other_end - other_start
            if size == 0 or (is_same and other < bucket):
                flip += 1
                continue
            if (end - start) * size > max_compares or size > len(found):
                if num_giants == len(giants):
                    state[0], state[1], state[2], state[3], state[4] = bucket, flip, 0, num_found, num_giants
                    return
                giants[num_giants, 0], giants[num_giants, 1] = bucket, other
                num_giants += 1
                flip += 1
                continue
            while start + row < end:
                place = start + row
                begin = place + 1 if is_same and other == bucket else other_start
                if num_found + other_end - begin > len(found):
                    state[0], state[1], state[2], state[3], state[4] = bucket, flip, row, num_found, num_giants
                    return
                num_found = _compare(
                    first[place], place, second, begin, other_end, max_distance, earlier, probes, found, num_found
                )
                row += 1
            row = 0
            flip += 1
        flip = 0
        bucket += 1
    state[0], state[3], state[4], state[5] = bucket, num_found, num_giants, 1
