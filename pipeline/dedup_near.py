"""The near tier: photos whose perceptual hashes differ in a few bits and whose stored pixels are one photo.

It works on photos that are alone or at the top of an exact star. Leaves the table `near_edges` (key_a, key_b,
distance) in the catalog: stars around the photo that is first in canonical order, each copy confirmed against it.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.catalog import Catalog
from pipeline.dedup_pixels import PhotoPairs
from pipeline.dedup_stars import find_candidates, find_stars
from pipeline.hash_join import Hands, ThreadHands
from pipeline.runner import RaySettings, connected
from pipeline.runner_calls import RayHands, names_cluster
from schemas.settings import Section, operational, result
from schemas.storage import Root

# In canonical order: most source pixels, then the smallest key.
_RANKED = """
CREATE TEMP TABLE ranked AS
SELECT row_number() OVER (ORDER BY source_width_px::BIGINT * source_height_px DESC, key) - 1 AS rank, key, part, phash
FROM photos ANTI JOIN (SELECT key_b AS key FROM exact_edges) USING (key) WHERE outcome = 'stored'
"""
_EDGES = """
CREATE TEMP TABLE near_edges AS
SELECT top.key AS key_a, copy.key AS key_b, star.distance
FROM stars AS star JOIN ranked AS copy ON copy.rank = star.copy JOIN ranked AS top ON top.rank = star.top
"""
_STARS = pa.schema([("copy", pa.int64()), ("top", pa.int64()), ("distance", pa.uint8())])

log = logging.getLogger("forecourt.dedup")


class NearSettings(Section):
    """What counts as a near copy, and how copies are sought."""

    max_distance: int = result(
        8, "bits of 64 by which the perceptual hashes of near copies differ at most; 0 leaves them out", ge=0, le=12
    )
    mirrored: bool = result(False, "whether a mirrored photo is a near copy too; its hash is known to a few bits only")
    max_compared: int = result(32, "photos a photo is compared with before it is no near copy", ge=1, le=255)
    ray_from_photos: int = operational(
        1_000_000,
        "photos from which on a cluster, where one is named, joins the hashes",
        ge=0,
    )
    threads: int | None = operational(None, "threads that join hashes and compare photos; None is one a core", ge=1)


def find_near(root: Root, catalog: Catalog, settings: NearSettings, ray: RaySettings) -> None:
    """Make the table `near_edges` of the photos that `exact_edges` leaves.

    Raises:
        IntegrityError: a photo that is needed has no bytes.
        RunError: the cluster does not answer, where it is asked.
    """
    catalog.execute(_RANKED)
    hashes = _hashes(catalog)
    threads = settings.threads or os.cpu_count() or 1
    with _hands(len(hashes) >= settings.ray_from_photos and names_cluster(ray), threads, ray) as hands:
        candidates = find_candidates(hashes, settings.max_distance, hands, mirrored=settings.mirrored)
    with PhotoPairs(root, lambda ranks: _located(catalog, ranks), threads=threads, mirrored=settings.mirrored) as pairs:
        stars = find_stars(candidates, pairs.confirm, max_compared=settings.max_compared)
    log.info("event=near_tier photos=%d compared=%d copies=%d", len(hashes), stars.num_compared, len(stars.copies))
    columns = [stars.copies, stars.tops, stars.distances]
    catalog.load("stars", pa.Table.from_arrays([pa.array(column) for column in columns], schema=_STARS))
    catalog.execute(_EDGES)


@contextmanager
def _hands(on_ray: bool, threads: int, ray: RaySettings) -> Iterator[Hands]:
    """Give who joins the hashes: tasks of the cluster, or threads, which do as well on one machine."""
    if on_ray:
        with connected(ray) as num_slots:
            yield RayHands(num_slots, ray)
    else:
        with ThreadHands(threads) as hands:
            yield hands


def _hashes(catalog: Catalog) -> NDArray[np.uint64]:
    """Return the perceptual hashes in order of rank."""
    blocks = [batch.column("phash").to_numpy() for batch in catalog.stream("SELECT phash FROM ranked ORDER BY rank")]
    return np.concatenate([np.empty(0, np.uint64), *blocks])


def _located(catalog: Catalog, ranks: NDArray[np.int64]) -> Iterator[tuple[int, str, str]]:
    catalog.load("wanted", pa.table({"rank": ranks}))
    for batch in catalog.stream("SELECT rank, part, key FROM ranked SEMI JOIN wanted USING (rank) ORDER BY part, key"):
        yield from zip(*(batch.column(name).to_pylist() for name in ("rank", "part", "key")), strict=True)
