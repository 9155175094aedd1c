from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipeline.copies_neighbours import candidate_pairs

Block = tuple[NDArray[np.int64], NDArray[np.float16]]
DIMENSIONS = 64


def embedded(num_photos: int, *, seed: int = 0) -> tuple[pa.Array, NDArray[np.float16]]:
    """Make photos in groups of like ones; every tenth has a copy right after it."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(num_photos // 50 + 1, DIMENSIONS))
    vectors = centres[draw.integers(0, len(centres), num_photos)] + draw.normal(size=(num_photos, DIMENSIONS))
    vectors[1::10] = vectors[0::10][: len(vectors[1::10])] + 0.1 * draw.normal(size=(len(vectors[1::10]), DIMENSIONS))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return pa.array([f"{place:06d}" for place in range(num_photos)], pa.large_string()), vectors.astype(np.float16)


def in_parts(vectors: NDArray[np.float16], size: int, *, turned: bool = False) -> Callable[[], Iterator[Block]]:
    starts = list(range(0, len(vectors), size))

    def blocks() -> Iterator[Block]:
        for start in reversed(starts) if turned else starts:
            part = vectors[start : start + size]
            yield np.arange(start, start + len(part)), part

    return blocks


def test_each_pair_comes_once_in_order_and_nothing_is_its_own_neighbour() -> None:
    keys, vectors = embedded(200)
    pairs = candidate_pairs(keys, in_parts(vectors, 30, turned=True), neighbours=5, min_cosine=-1)
    listed = list(map(tuple, pairs.tolist()))
    assert listed == sorted(set(listed))
    assert all(first < second for first, second in listed)
    assert set(range(200)) == {place for pair in listed for place in pair}


def test_pairs_are_exactly_the_nearest_above_the_floor() -> None:
    keys, vectors = embedded(100)
    cosines = vectors.astype(np.float32) @ vectors.astype(np.float32).T
    np.fill_diagonal(cosines, -2)
    wanted = {
        (min(row, int(other)), max(row, int(other)))
        for row in range(100)
        for other in np.argsort(-cosines[row])[:3]
        if cosines[row, other] >= 0.6
    }
    pairs = candidate_pairs(keys, in_parts(vectors, 100), neighbours=3, min_cosine=0.6)
    assert set(map(tuple, pairs.tolist())) == wanted


def test_more_neighbours_than_photos_make_all_pairs() -> None:
    keys, vectors = embedded(30)
    pairs = candidate_pairs(keys, in_parts(vectors, 7), neighbours=40, min_cosine=-1)
    assert len(pairs) == 30 * 29 // 2


@pytest.mark.parametrize("num_photos", [0, 1])
def test_fewer_than_two_photos_have_no_pairs(num_photos: int) -> None:
    keys, vectors = embedded(num_photos)
    assert candidate_pairs(keys, in_parts(vectors, 10), neighbours=3, min_cosine=0).shape == (0, 2)


def test_an_index_finds_the_copies_that_a_whole_search_finds_whatever_the_parts() -> None:
    keys, vectors = embedded(6_000)

    def found(size: int, *, turned: bool = False, whole: int = 100) -> set[tuple[int, int]]:
        parts = in_parts(vectors, size, turned=turned)
        pairs = candidate_pairs(keys, parts, neighbours=10, min_cosine=0.9, whole=whole)
        return set(map(tuple, pairs.tolist()))

    copies = {(place, place + 1) for place in range(0, 6_000, 10)}
    indexed = found(1_000)
    assert copies <= found(1_000, whole=10_000)
    assert len(copies - indexed) <= 3
    assert indexed == found(1_000), "the same every time"
    assert indexed == found(700, turned=True)
