"""Which photos may be copies of each other: the nearest neighbours by embedding, each pair once.

Small sets are searched whole. A large one goes through an inverted file of coarse cells, whose lists stay about as long
however many photos there are, with vectors reduced to 96 bytes a photo, so that cost grows about linearly and memory
is that of the index. The embeddings themselves are read part by part, and never held all together.
"""

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.command import Progress

Places = NDArray[np.int64]
Vectors = NDArray[np.float32]
# Gives blocks of photos, as often as it is asked: their places, and their embeddings (N, D).
Blocks = Callable[[], Iterable[tuple[Places, NDArray[np.float16]]]]

# Up to here comparing all with all is faster than an index: 170 MB at 1,280 dimensions, 20 s on two cores.
MAX_SEARCHED_WHOLE = 32_768
_ROWS_AT_ONCE = 1_024
# The index of a large set: dimensions kept, photos a cell, most cells, cells looked into, examples a cell learns from.
_DIMENSIONS = 96
_PHOTOS_PER_CELL = 256
_MAX_CELLS = 65_536
_PROBED_CELLS = 24
_EXAMPLES_PER_CELL = 40
# What the reduction learns from; more examples than this are only seen reduced.
_MAX_WHOLE_EXAMPLES = 65_536


def candidate_pairs(
    keys: pa.Array, blocks: Blocks, *, neighbours: int, min_cosine: float, whole: int = MAX_SEARCHED_WHOLE
) -> NDArray[np.uint32]:
    """Return pairs (N, 2) of places, the smaller first, sorted, each once: near neighbours of one or the other.

    A photo's place is that of its key in `keys`; sets above `whole` are searched through an index.
    """
    num_photos = len(keys)
    if num_photos < 2:
        return np.empty((0, 2), np.uint32)
    search = _whole(blocks) if num_photos <= whole else _indexed(keys, blocks)
    found = [np.empty(0, np.uint64)]
    progress, done = Progress(num_photos, "photos searched"), 0
    for asked, near, cosines in search(neighbours + 1):
        rows, columns = np.nonzero((near >= 0) & (near != asked[:, None]) & (cosines >= min_cosine))
        ours, theirs = asked[rows], near[rows, columns]
        found.append(np.unique(np.minimum(ours, theirs) * num_photos + np.maximum(ours, theirs)).astype(np.uint64))
        done += len(asked)
        progress.show(done)
    progress.close()
    packed = np.unique(np.concatenate(found))
    pairs = np.empty((len(packed), 2), np.uint32)
    np.floor_divide(packed, num_photos, out=pairs[:, 0], casting="unsafe")
    np.remainder(packed, num_photos, out=pairs[:, 1], casting="unsafe")
    return pairs


_Found = tuple[Places, Places, Vectors]
# Given how many neighbours, yields the places asked for, those of their neighbours (-1 for none), and the cosines.
_Search = Callable[[int], Iterator[_Found]]


def _whole(blocks: Blocks) -> _Search:
    read = list(blocks())
    order = np.argsort(np.concatenate([places for places, _ in read]))
    vectors = np.ascontiguousarray(np.concatenate([part for _, part in read])[order], np.float32)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)

    def search(count: int) -> Iterator[_Found]:
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            cosines, near = index.search(vectors[start : start + _ROWS_AT_ONCE], min(count, len(vectors)))
            yield np.arange(start, start + len(near)), near, cosines

    return search


def _indexed(keys: pa.Array, blocks: Blocks) -> _Search:
    reduction, index = _trained(keys, blocks)
    progress, done = Progress(len(keys), "photos indexed"), 0
    for places, vectors in blocks():
        index.add_with_ids(_reduced(reduction, vectors), places)
        done += len(places)
        progress.show(done)
    progress.close()

    def search(count: int) -> Iterator[_Found]:
        for places, vectors in blocks():
            for start in range(0, len(places), _ROWS_AT_ONCE):
                asked = slice(start, start + _ROWS_AT_ONCE)
                squares, near = index.search(_reduced(reduction, vectors[asked]), count)
                # Of unit vectors; what the reduction leaves out makes two photos seem nearer, never farther.
                yield places[asked], near, np.float32(1) - squares / np.float32(2)

    return search


def _trained(keys: pa.Array, blocks: Blocks) -> "tuple[faiss.PCAMatrix, faiss.IndexIVFScalarQuantizer]":
    """Make an empty index whose cells are learnt from the photos of smallest key hash, whatever part they lie in."""
    num_cells = min(_MAX_CELLS, max(1, len(keys) // _PHOTOS_PER_CELL))
    hashed = np.fromiter(map(_key_hash, keys), np.uint64, len(keys))
    drawn = np.argsort(hashed, kind="stable")[: num_cells * _EXAMPLES_PER_CELL]
    first = _examples(np.sort(drawn[:_MAX_WHOLE_EXAMPLES]), blocks, lambda vectors: vectors.astype(np.float32))
    reduction = faiss.PCAMatrix(first.shape[1], min(_DIMENSIONS, first.shape[1]))
    reduction.train(first)
    examples = _examples(np.sort(drawn), blocks, lambda vectors: _reduced(reduction, vectors))
    index = faiss.IndexIVFScalarQuantizer(
        _cells(examples, num_cells), reduction.d_out, num_cells, faiss.ScalarQuantizer.QT_8bit
    )
    index.train(examples)
    index.nprobe = _PROBED_CELLS
    return reduction, index


def _reduced(reduction: "faiss.PCAMatrix", vectors: NDArray[np.float16]) -> Vectors:
    """Reduce embeddings, as many at once each time: a product's last bits can depend on how many rows it has."""
    found = np.empty((len(vectors), reduction.d_out), np.float32)
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        rows = vectors[start : start + _ROWS_AT_ONCE]
        filled = np.zeros((_ROWS_AT_ONCE, vectors.shape[1]), np.float32)
        filled[: len(rows)] = rows
        found[start : start + len(rows)] = reduction.apply(filled)[: len(rows)]
    return found


def _key_hash(key: pa.Scalar) -> int:
    return int.from_bytes(blake2b(key.as_py().encode(), digest_size=8).digest())


def _examples(drawn: Places, blocks: Blocks, shaped: Callable[[NDArray[np.float16]], Vectors]) -> Vectors:
    """Return the embeddings of the places drawn, which are sorted, each as `shaped` makes it."""
    rows: list[Places] = []
    found: list[Vectors] = []
    for places, vectors in blocks():
        at = np.searchsorted(drawn, places)
        is_drawn = drawn[np.minimum(at, len(drawn) - 1)] == places
        if is_drawn.any():
            rows.append(at[is_drawn])
            found.append(shaped(vectors[is_drawn]))
    return np.ascontiguousarray(np.concatenate(found)[np.argsort(np.concatenate(rows))])


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
