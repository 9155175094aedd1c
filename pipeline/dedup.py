"""Find photos that are copies of each other and decide which stays: the exact tier.

Photos whose coarse hash is equal are copies where their stored bytes are equal (byte-equal sources always are), or
else their stored pixels are the same picture; flat images and cut-outs that differ are told apart by that.

Reads: photos, listings (vin), and single shard values where hash and bytes disagree. Writes one row in `duplicates/`
for each stored photo, and `edges/hash/` (the copy that would stay - each other copy).

    python pipeline/dedup.py --root data
    python pipeline/dedup.py --root data --set dedup.policy=drop_all
    python pipeline/dedup.py --root data --set dedup.stock_listings=6 --set catalog.memory_gib=1

A cluster that shows at least `dedup.stock_listings` different cars is a stock photo and is dropped whole; listings that
share a VIN are one car, a listing without a VIN is a car of its own. Of other clusters `keep_one` keeps the copy with
most source pixels, then the smallest key; `drop_all` keeps none. Running again does nothing where neither the photos
nor the settings have changed. Last line: `photos` (stored) = `kept` + `exact_dropped` + `stock_dropped`.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.catalog import Catalog, CatalogSettings
from pipeline.global_stage import run_global_stage
from pipeline.same_picture import StoredPhotos, first_match, thumbnail
from schemas.command import run_script, script_parser
from schemas.errors import IntegrityError, ReconcileError
from schemas.receipts import PartWriter, inputs_fingerprint
from schemas.settings import Section, load_settings, result, result_settings
from schemas.storage import Root
from schemas.tables import DUPLICATES, EDGES

# The duplicates of a root have a receipt of their own: other tiers than the hashes' will write them too.
STAGE, CLUSTERS_STAGE = "dedup", "duplicates"


def main(argv: Sequence[str] | None = None) -> int:
    """Deduplicate a root."""

    def body(args: Any) -> Mapping[str, Any]:
        settings = load_settings(_Settings, config=args.config, sets=args.sets)
        return dedup(Root.open(args.root), settings.dedup, settings.catalog)

    return run_script(script_parser(__doc__ or ""), body, argv=argv)


class DedupSettings(Section):
    """Which copies stay."""

    policy: Literal["keep_one", "drop_all"] = result(
        "keep_one", "keep one copy of a photo, or none as the original did"
    )
    stock_listings: int = result(
        4, "different cars from which on a picture is a stock photo; dealers relist a car", ge=2
    )


class _Settings(Section):
    """The sections this script reads."""

    dedup: DedupSettings = DedupSettings()
    catalog: CatalogSettings = CatalogSettings()


def dedup(root: Root, settings: DedupSettings, catalog: CatalogSettings | None = None) -> dict[str, Any]:
    """Write `duplicates` and `edges/hash` of all stored photos, unless they are up to date; return the last line.

    Raises:
        ReconcileError: photos in are not photos kept and dropped.
        IntegrityError: a stored photo has no hash, or no bytes where they are needed.
        LeaseError: another run deduplicates this root.
    """
    started_s = time.monotonic()
    chosen = {"dedup": result_settings(settings)}
    receipt, same_edges = run_global_stage(
        root,
        STAGE,
        ("edges/hash",),
        inputs=lambda: {"ingest": inputs_fingerprint(root)},
        settings=chosen,
        write=lambda writer: _edges(root, writer, catalog),
    )
    duplicates, same_duplicates = run_global_stage(
        root,
        CLUSTERS_STAGE,
        ("duplicates",),
        inputs=lambda: {"ingest": inputs_fingerprint(root), STAGE: inputs_fingerprint(root, (STAGE,))},
        settings=chosen,
        write=lambda writer: _duplicates(root, writer, settings, catalog),
    )
    unchanged = same_edges and same_duplicates
    counts = {**receipt.counts, **duplicates.counts}
    return {**counts, "unchanged": unchanged, "seconds": round(time.monotonic() - started_s, 3)}


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
# The listings of a cluster first, then the clusters: what COUNT(DISTINCT) would hold in memory goes to disk this way.
_CLUSTERS = """
CREATE TEMP TABLE clusters AS
WITH cars AS (
         SELECT site, listing_id, nullif(upper(trim(vin)), '') AS vin
         FROM listings SEMI JOIN (SELECT DISTINCT site, listing_id FROM members) USING (site, listing_id)),
     shown AS (
         SELECT coarse_hash, coalesce(picture, sha256) AS picture, site, listing_id,
                count(*) AS num_photos, min(key) AS first_key, min((-num_pixels, key)) AS best
         FROM members LEFT JOIN same USING (coarse_hash, sha256) GROUP BY ALL),
     by_car AS (
         SELECT coarse_hash, picture, coalesce('vin ' || vin, site || '/' || listing_id) AS car,
                sum(num_photos) AS num_photos, count(*) AS num_listings, min(first_key) AS first_key, min(best) AS best
         FROM shown LEFT JOIN cars USING (site, listing_id) GROUP BY ALL)
SELECT coarse_hash, picture, min(first_key) AS cluster_id, sum(num_photos)::INTEGER AS cluster_size,
       sum(num_listings)::INTEGER AS cluster_listings, count(*) AS num_cars, min(best)[2] AS best_key
FROM by_car GROUP BY coarse_hash, picture HAVING sum(num_photos) > 1
"""
_CLUSTERED = """
SELECT members.key, clusters.*
FROM members LEFT JOIN same USING (coarse_hash, sha256)
     LEFT JOIN clusters ON members.coarse_hash = clusters.coarse_hash
                       AND coalesce(same.picture, members.sha256) = clusters.picture
"""
_ALONE_ROWS = """
SELECT key, NULL AS tier, NULL AS cluster_id, NULL AS cluster_size, NULL AS cluster_listings, true AS kept,
       NULL AS drop_reason
FROM photos ANTI JOIN repeated ON hash(coarse_hash) = hashed WHERE outcome = 'stored'
"""
_MEMBER_ROWS = f"""
SELECT key, CASE WHEN cluster_id IS NOT NULL THEN 'exact' END AS tier, cluster_id, cluster_size, cluster_listings,
       drop_reason IS NULL AS kept, drop_reason
FROM (SELECT *, CASE WHEN cluster_id IS NULL THEN NULL
                     WHEN num_cars >= $stock_listings THEN 'stock_photo'
                     WHEN $policy = 'drop_all' OR key <> best_key THEN 'exact_duplicate' END AS drop_reason
      FROM ({_CLUSTERED}))
ORDER BY key
"""
_EDGE_ROWS = f"""
SELECT best_key AS key_a, key AS key_b, 'exact' AS tier, 0 AS distance
FROM ({_CLUSTERED}) WHERE cluster_id IS NOT NULL AND key <> best_key ORDER BY key_a, key_b
"""


@contextmanager
def _clustered(root: Root, limits: CatalogSettings | None) -> Iterator[Catalog]:
    """Open the tables with the clusters of exact copies beside them."""
    with Catalog(root, limits) as catalog:
        _require_hashes(catalog)
        catalog.execute(_REPEATED)
        catalog.execute(_MEMBERS)
        _require_single(catalog)
        catalog.load("same", _same_pictures(root, catalog.query(_CONTENTS)))
        catalog.execute(_CLUSTERS)
        yield catalog


def _edges(root: Root, writer: PartWriter, limits: CatalogSettings | None) -> dict[str, int]:
    """Write `edges/hash` and return the receipt's counts."""
    with _clustered(root, limits) as catalog:
        edges = _written(catalog.stream(_EDGE_ROWS), writer.stage_path("edges/hash"), EDGES)
        num_edges = sum(batch.num_rows for batch in edges)
        clusters = int(catalog.query("SELECT count(*) AS n FROM clusters")["n"][0].as_py())
    return {"clusters": clusters, "edges": num_edges}


def _duplicates(
    root: Root, writer: PartWriter, settings: DedupSettings, limits: CatalogSettings | None
) -> dict[str, int]:
    """Write `duplicates` and return the receipt's counts."""
    with _clustered(root, limits) as catalog:
        chosen = {"policy": settings.policy, "stock_listings": settings.stock_listings}
        rows = chain(catalog.stream(_ALONE_ROWS), catalog.stream(_MEMBER_ROWS, chosen))
        reasons = Counter[str | None]()
        for batch in _written(rows, writer.stage_path("duplicates"), DUPLICATES):
            for counted in pc.value_counts(batch.column("drop_reason")).to_pylist():
                reasons[counted["values"]] += counted["counts"]
        stored = int(catalog.query("SELECT count(*) AS n FROM photos WHERE outcome = 'stored'")["n"][0].as_py())
    return _reconciled(reasons, stored=stored)


def _require_hashes(catalog: Catalog) -> None:
    bad = catalog.query(
        "SELECT key FROM photos WHERE outcome = 'stored' AND (coarse_hash IS NULL OR sha256 IS NULL"
        " OR source_width_px IS NULL OR source_height_px IS NULL) LIMIT 3"
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


def _written(batches: Iterable[pa.RecordBatch], path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Write batches to a Parquet file with exactly `schema`, yielding each once it is written.

    Raises:
        IntegrityError: a null where none may be.
    """
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        for batch in batches:
            columns = [batch.column(field.name).cast(field.type) for field in schema]
            for field, column in zip(schema, columns, strict=True):
                if column.null_count and not field.nullable:
                    raise IntegrityError(f"column {field.name} holds {column.null_count} nulls and may hold none")
            shaped = pa.RecordBatch.from_arrays(columns, schema=schema)
            file.write_batch(shaped)
            yield shaped


def _reconciled(reasons: Mapping[str | None, int], *, stored: int) -> dict[str, int]:
    """Return the counts of a run whose rows add up to the photos that ingest says it stored."""
    counts = {
        "photos": sum(reasons.values()),
        "exact_dropped": reasons.get("exact_duplicate", 0),
        "near_dropped": 0,
        "copy_dropped": 0,
        "stock_dropped": reasons.get("stock_photo", 0),
        "kept": reasons.get(None, 0),
    }
    if counts["photos"] != stored or stored != counts["exact_dropped"] + counts["stock_dropped"] + counts["kept"]:
        raise ReconcileError(
            f"{stored:,} photos are stored, and duplicates has rows for {counts}; nothing was committed, "
            "see pipeline/verify.py for rows that are doubled"
        )
    return counts


if __name__ == "__main__":
    raise SystemExit(main())
