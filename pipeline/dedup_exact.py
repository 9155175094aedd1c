"""The exact tier: photos of equal coarse hash whose stored bytes, or else stored pixels, are the same picture.

Byte-equal sources always are; flat images and cut-outs that differ and share a hash are told apart by their pixels.
Leaves two tables in the catalog: `exact_edges` (key_a - key_b), and `members`, the photos that share a hash.
"""

from itertools import groupby

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.catalog import Catalog
from pipeline.same_picture import StoredPhotos, first_match, thumbnail
from schemas.errors import IntegrityError, ReconcileError
from schemas.storage import Root

# Rows of 64-bit hashes fit memory where rows of hex would not; a collision only lets in a photo that turns out alone.
_REPEATED = """
CREATE TEMP TABLE repeated AS
SELECT hash(coarse_hash) AS hashed FROM photos WHERE outcome = 'stored' GROUP BY hashed HAVING count(*) > 1
"""
_MEMBERS = """
CREATE TEMP TABLE members AS
SELECT key, site, listing_id, part, coarse_hash, sha256, source_width_px::BIGINT * source_height_px AS num_pixels
FROM photos SEMI JOIN repeated ON hash(coarse_hash) = hashed WHERE outcome = 'stored'
"""
# One photo of each content where photos of equal hash have unequal bytes, the one that would stay first.
_CONTENTS = """
WITH unsure AS (SELECT coarse_hash FROM members GROUP BY coarse_hash HAVING min(sha256) <> max(sha256)),
     firsts AS (
         SELECT coarse_hash, sha256, arg_min({'key': key, 'part': part}, (-num_pixels, key)) AS photo,
                min((-num_pixels, key)) AS rank
         FROM members SEMI JOIN unsure USING (coarse_hash) GROUP BY coarse_hash, sha256)
SELECT coarse_hash, sha256, photo.key AS key, photo.part AS part FROM firsts ORDER BY coarse_hash, rank
"""
# The first of a picture in canonical order, and each other copy of it.
_EDGES = """
CREATE TEMP TABLE exact_edges AS
WITH shown AS (
         SELECT key, num_pixels, coarse_hash, coalesce(picture, sha256) AS picture
         FROM members LEFT JOIN same USING (coarse_hash, sha256)),
     tops AS (
         SELECT coarse_hash, picture, min((-num_pixels, key))[2] AS top
         FROM shown GROUP BY coarse_hash, picture HAVING count(*) > 1)
SELECT top AS key_a, key AS key_b FROM shown JOIN tops USING (coarse_hash, picture) WHERE key <> top
"""


def find_exact(root: Root, catalog: Catalog) -> None:
    """Make the table `exact_edges` of all stored photos.

    Raises:
        ReconcileError: a photo has more than one row.
        IntegrityError: a stored photo has no hash, or no bytes where they are needed.
    """
    _require_hashes(catalog)
    catalog.execute(_REPEATED)
    catalog.execute(_MEMBERS)
    _require_single(catalog)
    catalog.load("same", _same_pictures(root, catalog.query(_CONTENTS)))
    catalog.execute(_EDGES)


def _require_hashes(catalog: Catalog) -> None:
    bad = catalog.query(
        "SELECT key FROM photos WHERE outcome = 'stored' AND (coarse_hash IS NULL OR sha256 IS NULL"
        " OR phash IS NULL OR source_width_px IS NULL OR source_height_px IS NULL) LIMIT 3"
    )
    if bad.num_rows:
        keys = ", ".join(bad["key"].to_pylist())
        raise IntegrityError(
            f"stored photos without hashes or source size: {keys}, ...; see pipeline/verify.py --repair"
        )


def _require_single(catalog: Catalog) -> None:
    """Stop where a photo has two rows: it would be its own duplicate."""
    sql = "SELECT key FROM members GROUP BY key HAVING count(*) > 1 ORDER BY key LIMIT 3"
    if twice := catalog.query(sql)["key"].to_pylist():
        raise ReconcileError(f"photos have more than one row: {', '.join(twice)}, ...; see pipeline/verify.py --repair")


def _same_pictures(root: Root, contents: pa.Table) -> pa.Table:
    """Give each content that is the same picture as an earlier one of its hash that one's `sha256` as its `picture`."""
    photos = StoredPhotos(root)
    found: list[dict[str, str]] = []
    try:
        for coarse_hash, rows in groupby(contents.to_pylist(), key=lambda row: row["coarse_hash"]):
            names: list[str] = []
            pictures: list[NDArray[np.int16]] = []
            for row in rows:
                picture = thumbnail(photos.get(row["part"], row["key"]))
                if (match := first_match(picture, pictures)) is None:
                    names.append(row["sha256"])
                    pictures.append(picture)
                else:
                    found.append({"coarse_hash": coarse_hash, "sha256": row["sha256"], "picture": names[match]})
    finally:
        photos.close()
    return pa.Table.from_pylist(found, schema=pa.schema([(name, pa.string()) for name in _SAME_COLUMNS]))


_SAME_COLUMNS = ("coarse_hash", "sha256", "picture")
