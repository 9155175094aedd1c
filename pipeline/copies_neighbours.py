"""Which photos may be copies of each other: the nearest neighbours by embedding, each pair once.

Small sets are searched whole. A large one goes through an inverted file of coarse cells, whose lists stay about as long
however many photos there are, with vectors reduced to 96 bytes a photo, so that cost grows about linearly and memory
is that of the index. The embeddings themselves are read part by part, and never held all together.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from heapq import nsmallest

import faiss
import numpy as np
from numpy.typing import NDArray

# Gives each part's keys and their embeddings (N, D), as often as it is asked.
Parts = Callable[[], Iterable[tuple[Sequence[str], NDArray[np.float16]]]]
Vectors = NDArray[np.float32]

# Up to here comparing all with all is faster than an index: 170 MB at 1,280 dimensions, 20 s on two cores.
MAX_SEARCHED_WHOLE = 32_768
_QUERIES_AT_ONCE = 1_024
# The index of a large set: dimensions kept, photos a cell, most cells, cells looked into, examples a cell learns from.
_DIMENSIONS = 96
_PHOTOS_PER_CELL = 256
_MAX_CELLS = 65_536
_PROBED_CELLS = 24
_EXAMPLES_PER_CELL = 40


def candidate_pairs(
    places: dict[str, int], parts: Parts, *, neighbours: int, min_cosine: float, whole: int = MAX_SEARCHED_WHOLE
) -> NDArray[np.int64]:
    """Return pairs (N, 2) of places, the smaller first, sorted, each once: near neighbours of one or the other.

    `places` says which photos take part, and the place of each; sets above `whole` are searched through an index.
    """
    if len(places) < 2:
        return np.empty((0, 2), np.int64)
    search = _whole(places, parts) if len(places) <= whole else _indexed(places, parts)
    found = [np.empty(0, np.int64)]
    for asked, near, cosines in search(neighbours + 1):
        rows, columns = np.nonzero((near >= 0) & (near != asked[:, None]) & (cosines >= min_cosine))
        ours, theirs = asked[rows], near[rows, columns]
        found.append(np.unique(np.minimum(ours, theirs) * len(places) + np.maximum(ours, theirs)))
    packed = np.unique(np.concatenate(found))
    return np.stack([packed // len(places), packed % len(places)], axis=1)


_Found = tuple[NDArray[np.int64], NDArray[np.int64], Vectors]
# Given how many neighbours, yields the places asked for, those of their neighbours (-1 for none), and the cosines.
_Search = Callable[[int], Iterator[_Found]]


def _whole(places: dict[str, int], parts: Parts) -> _Search:
    blocks = list(_chosen(places, parts))
    order = np.argsort(np.concatenate([block[0] for block in blocks]))
    vectors = np.ascontiguousarray(np.concatenate([block[1] for block in blocks])[order])
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)

    def search(count: int) -> Iterator[_Found]:
        for start in range(0, len(vectors), _QUERIES_AT_ONCE):
            cosines, near = index.search(vectors[start : start + _QUERIES_AT_ONCE], min(count, len(vectors)))
            yield np.arange(start, start + len(near)), near, cosines

    return search


def _indexed(places: dict[str, int], parts: Parts) -> _Search:
    index = _trained(places, parts)
    for rows, vectors in _chosen(places, parts):
        index.add_with_ids(vectors, rows)

    def search(count: int) -> Iterator[_Found]:
        for rows, vectors in _chosen(places, parts):
            for start in range(0, len(rows), _QUERIES_AT_ONCE):
                squares, near = index.search(vectors[start : start + _QUERIES_AT_ONCE], count)
                # Of unit vectors; what the reduction leaves out makes two photos seem nearer, never farther.
                yield rows[start : start + _QUERIES_AT_ONCE], near, np.float32(1) - squares / np.float32(2)

    return search


def _trained(places: dict[str, int], parts: Parts) -> "faiss.IndexPreTransform":
    """Make an empty index whose cells are learnt from the photos of smallest key hash, whatever part they lie in."""
    num_cells = min(_MAX_CELLS, max(1, len(places) // _PHOTOS_PER_CELL))
    num_examples = min(len(places), num_cells * _EXAMPLES_PER_CELL)
    drawn = nsmallest(num_examples, places, key=lambda key: blake2b(key.encode(), digest_size=8).digest())
    blocks = list(_chosen({key: places[key] for key in drawn}, parts))
    order = np.argsort(np.concatenate([block[0] for block in blocks]))
    examples = np.concatenate([block[1] for block in blocks])[order]
    reduction = faiss.PCAMatrix(examples.shape[1], min(_DIMENSIONS, examples.shape[1]))
    reduction.train(examples)
    reduced = reduction.apply(examples)
    inverted = faiss.IndexIVFScalarQuantizer(
        _cells(reduced, num_cells), reduction.d_out, num_cells, faiss.ScalarQuantizer.QT_8bit
    )
    inverted.train(reduced)
    inverted.nprobe = _PROBED_CELLS
    return faiss.IndexPreTransform(reduction, inverted)


def _cells(examples: Vectors, num_cells: int) -> "faiss.IndexHNSWFlat":
    """Learn the cells, and tie their centres in a graph: to find the nearest costs the logarithm of their number."""
    means = faiss.Kmeans(
        examples.shape[1], num_cells, niter=8, seed=1, max_points_per_centroid=_EXAMPLES_PER_CELL, verbose=False
    )
    means.train(examples)
    assert means.centroids is not None
    cells = faiss.IndexHNSWFlat(examples.shape[1], 32)
    cells.hnsw.efSearch = 2 * _PROBED_CELLS
    # Threads would tie it otherwise each time.
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        cells.add(means.centroids)
    finally:
        faiss.omp_set_num_threads(threads)
    return cells


def _chosen(places: dict[str, int], parts: Parts) -> Iterator[tuple[NDArray[np.int64], Vectors]]:
    """Yield the places and float32 vectors of the photos that take part, part by part."""
    for keys, vectors in parts():
        rows = [row for row, key in enumerate(keys) if key in places]
        if rows:
            yield np.array([places[keys[row]] for row in rows], np.int64), vectors[rows].astype(np.float32)
