from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.dedup_stars import MIRRORED_BITS, Stars, find_candidates, find_stars
from pipeline.hash_join import Pairs, ThreadHands

Hashes = NDArray[np.uint64]


@pytest.fixture(scope="module")
def hands() -> Iterator[ThreadHands]:
    with ThreadHands(2) as threads:
        yield threads


class Pictures:
    """Says which photos show the same picture, and counts who was asked about."""

    def __init__(self, pictures: NDArray[np.int64]) -> None:
        self.pictures = pictures
        self.asked: list[tuple[int, int]] = []

    def __call__(self, pairs: Pairs) -> NDArray[np.bool_]:
        self.asked += [(copy, top) for copy, top in pairs.tolist()]
        same: NDArray[np.bool_] = self.pictures[pairs[:, 0]] == self.pictures[pairs[:, 1]]
        return same


def one_by_one(hashes: Hashes, pictures: NDArray[np.int64], distance: int) -> dict[int, tuple[int, int]]:
    """Take the photos in order: the nearest, then earliest representative that shows the same has a photo."""
    tops: list[int] = []
    tied: dict[int, tuple[int, int]] = {}
    for photo in range(len(hashes)):
        near = sorted((int(np.bitwise_count(hashes[photo] ^ hashes[top])), top) for top in tops)
        for apart, top in near:
            if apart <= distance and pictures[photo] == pictures[top]:
                tied[photo] = top, apart
                break
        else:
            tops.append(photo)
    return tied


def as_ties(stars: Stars) -> dict[int, tuple[int, int]]:
    columns = (stars.copies.tolist(), stars.tops.tolist(), stars.distances.tolist())
    return {copy: (top, apart) for copy, top, apart in zip(*columns, strict=True)}


def drawn(draw: np.random.Generator, num_photos: int = 300) -> Hashes:
    """Photos whose hashes lie around 40 centres, few bits away."""
    hashes = draw.integers(0, 2**64, 40, dtype=np.uint64)[draw.integers(0, 40, num_photos)]
    for row in range(num_photos):
        for bit in draw.choice(64, draw.integers(0, 4), replace=False):
            hashes[row] ^= np.uint64(1) << np.uint64(bit)
    return hashes


@pytest.mark.parametrize("num_pictures", [1, 2, 5])
def test_rounds_come_to_what_taking_photos_one_by_one_comes_to(num_pictures: int, hands: ThreadHands) -> None:
    for seed in range(5):
        draw = np.random.default_rng(seed)
        hashes, pictures = drawn(draw), draw.integers(0, num_pictures, 300)
        stars = find_stars(find_candidates(hashes, 8, hands), Pictures(pictures), max_compared=255)
        assert as_ties(stars) == one_by_one(hashes, pictures, 8)


def test_each_copy_was_confirmed_against_its_representative_and_no_representative_is_a_copy(
    hands: ThreadHands,
) -> None:
    draw = np.random.default_rng(11)
    confirm = Pictures(draw.integers(0, 3, 300))
    stars = find_stars(find_candidates(drawn(draw), 8, hands), confirm, max_compared=32)
    assert set(zip(stars.copies.tolist(), stars.tops.tolist(), strict=True)) <= set(confirm.asked)
    assert not set(stars.copies.tolist()) & set(stars.tops.tolist())
    assert (stars.tops < stars.copies).all()
    assert len(confirm.asked) == len(set(confirm.asked)) == stars.num_compared


def test_two_hundred_thousand_photos_of_one_hash_take_about_one_comparison_each(hands: ThreadHands) -> None:
    hashes = np.full(200_000, 0xFEED, np.uint64)
    pictures = np.arange(200_000) % 3
    stars = find_stars(
        find_candidates(hashes, 8, hands), lambda pairs: pictures[pairs[:, 0]] == pictures[pairs[:, 1]], max_compared=32
    )
    assert len(stars.copies) == 199_997
    assert stars.num_compared <= 2 * 200_000


def test_a_photo_unlike_all_of_its_hash_is_given_up_after_so_many_comparisons(hands: ThreadHands) -> None:
    confirm = Pictures(np.arange(100))
    stars = find_stars(find_candidates(np.zeros(100, np.uint64), 8, hands), confirm, max_compared=4)
    assert len(stars.copies) == 0
    assert max(np.bincount([copy for copy, _ in confirm.asked])) == 4


def test_no_photos_and_photos_alone_have_no_candidates(hands: ThreadHands) -> None:
    for hashes in (np.empty(0, np.uint64), np.array([0, 2**40 - 1], np.uint64)):
        candidates = find_candidates(hashes, 8, hands)
        assert len(candidates.ranks()) == 0
        assert len(find_stars(candidates, Pictures(np.zeros(2, np.int64)), max_compared=4).copies) == 0


def test_mirrored_hashes_are_candidates_where_asked(hands: ThreadHands) -> None:
    first = np.uint64(0x0123_4567_89AB_CDEF)
    hashes = np.array([first, first ^ MIRRORED_BITS ^ np.uint64(0b101), np.uint64(0xFF << 40)], np.uint64)
    same = Pictures(np.zeros(3, np.int64))
    assert as_ties(find_stars(find_candidates(hashes, 8, hands), same, max_compared=4)) == {}
    mirrored = find_candidates(hashes, 8, hands, mirrored=True)
    assert as_ties(find_stars(mirrored, same, max_compared=4)) == {1: (0, 2)}
    assert mirrored.ranks().tolist() == [0, 1]
