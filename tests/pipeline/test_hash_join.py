from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.hash_join import ThreadHands, differing_bits, near_pairs

Hashes = NDArray[np.uint64]


@pytest.fixture(scope="module")
def hands() -> Iterator[ThreadHands]:
    with ThreadHands(2) as threads:
        yield threads


def near_copies(hashes: Hashes, draw: np.random.Generator, most: int) -> Hashes:
    """Flip up to `most` bits of each hash."""
    copies = hashes.copy()
    for row, count in enumerate(draw.integers(0, most + 1, len(hashes))):
        for bit in draw.choice(64, count, replace=False):
            copies[row] ^= np.uint64(1) << np.uint64(bit)
    return copies


def found(hashes: Hashes, distance: int, hands: ThreadHands, **limits: int) -> list[tuple[int, int]]:
    blocks = near_pairs(hashes, distance, hands, **limits)
    return sorted((min(pair), max(pair)) for block in blocks for pair in block.tolist())


def all_near(hashes: Hashes, distance: int) -> list[tuple[int, int]]:
    """Compare every hash with every other."""
    return [
        (row, row + 1 + int(other))
        for row in range(len(hashes))
        for other in np.flatnonzero(differing_bits(hashes[row + 1 :], hashes[row]) <= distance)
    ]


def uniform(draw: np.random.Generator) -> Hashes:
    hashes = draw.integers(0, 2**64, 1_200, dtype=np.uint64)
    return np.concatenate([hashes, near_copies(hashes[:400], draw, 12)])


def of_a_few_bits(draw: np.random.Generator) -> Hashes:
    """Hashes that share all but 16 bits, as drawings on white do."""
    return np.uint64(0xABCD_1234_5678_0000) | draw.integers(0, 2**16, 400, dtype=np.uint64)


def sharing_half(draw: np.random.Generator) -> Hashes:
    """Half of the hashes share their upper 32 bits."""
    hashes = draw.integers(0, 2**64, 1_500, dtype=np.uint64)
    hashes[:750] = hashes[:750] & np.uint64(0xFFFF_FFFF) | np.uint64(0xFEED_BEEF << 32)
    return hashes


@pytest.mark.parametrize("distance", [1, 2, 3, 5, 8, 12])
@pytest.mark.parametrize("drawn", [uniform, of_a_few_bits, sharing_half])
def test_all_pairs_are_found_each_once(drawn: object, distance: int, hands: ThreadHands) -> None:
    assert callable(drawn)
    for seed in range(3):
        hashes = np.unique(drawn(np.random.default_rng(seed)))
        assert found(hashes, distance, hands) == all_near(hashes, distance)


@pytest.mark.parametrize("drawn", [uniform, of_a_few_bits, sharing_half])
def test_giant_buckets_are_taken_apart_and_nothing_is_lost_or_doubled(drawn: object, hands: ThreadHands) -> None:
    assert callable(drawn)
    hashes = np.unique(drawn(np.random.default_rng(7)))
    assert found(hashes, 8, hands, max_compares=5_000) == all_near(hashes, 8)


def test_three_wide_bands_find_what_four_find(hands: ThreadHands, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.unique(uniform(np.random.default_rng(3)))
    monkeypatch.setattr("pipeline.hash_join._MANY_HASHES", 1_000)
    assert found(hashes, 8, hands) == all_near(hashes, 8)


def test_more_pairs_than_a_call_holds_come_in_several(hands: ThreadHands, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.unique(of_a_few_bits(np.random.default_rng(5)))
    monkeypatch.setattr("pipeline.hash_join._FOUND_AT_ONCE", 100)
    blocks = list(near_pairs(hashes, 8, hands))
    assert 1 < max(map(len, blocks)) <= 100
    assert sorted((min(pair), max(pair)) for block in blocks for pair in block.tolist()) == all_near(hashes, 8)


def test_hashes_that_share_32_bits_are_not_compared_each_with_each(hands: ThreadHands) -> None:
    # Two of four bands have them all in one bucket, 450 million pairs each.
    draw = np.random.default_rng(2)
    shared = np.uint64(0xABCD_EF01 << 32) | draw.integers(0, 2**32, 30_000, dtype=np.uint64)
    copies = near_copies(shared[:300], draw, 8)
    hashes = np.unique(np.concatenate([shared, copies]))
    pairs = set(found(hashes, 8, hands, max_compares=1 << 20))
    places = np.sort(np.searchsorted(hashes, np.stack([shared[:300], copies], axis=1)), axis=1)
    planted = {(first, second) for first, second in places.tolist() if first != second}
    assert len(planted) > 200
    assert planted <= pairs


def test_few_hashes_and_no_distance_give_nothing(hands: ThreadHands) -> None:
    hashes = np.array([3, 1], np.uint64)
    assert found(hashes, 0, hands) == found(hashes[:1], 8, hands) == found(hashes[:0], 8, hands) == []
    assert found(hashes, 1, hands) == [(0, 1)]


def test_a_distance_that_no_bands_hold_is_refused(hands: ThreadHands) -> None:
    with pytest.raises(ValueError, match="0 to 12"):
        list(near_pairs(np.arange(3, dtype=np.uint64), 13, hands))
