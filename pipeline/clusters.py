"""Unite the edges of all tiers in `duplicates/`: one row a stored photo, which cluster it is in, whether it stays.

Edges are stars: each copy is tied to one photo before it in canonical order (most source pixels, then the smallest
key), exact copies to an exact representative, those to a near one, those to one of the copy tier. So a cluster is what
three joins reach, and its top, which stays, is first in canonical order.

Reads: photos, listings (vin), edges/hash, and edges/copy where it was made from these edges/hash. Writes: duplicates.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog import Catalog, CatalogSettings
from pipeline.global_stage import WHOLE, run_global_stage
from pipeline.photo_outcomes import COUNT_OF_REASON
from pipeline.table_file import written
from schemas.errors import IntegrityError, ReconcileError, UsageError
from schemas.receipts import Inputs, PartWriter, committed_inputs, inputs_of, read_receipt
from schemas.settings import Section, result, result_settings
from schemas.storage import Root
from schemas.tables import DUPLICATES

STAGE, HASH_STAGE, COPY_STAGE = "duplicates", "dedup", "copies"
# Why a photo of a cluster is dropped.
REASONS = ("exact_duplicate", "near_duplicate", "copy", "stock_photo")

log = logging.getLogger("forecourt.clusters")


class ClusterSettings(Section):
    """Which copies stay."""

    policy: Literal["keep_one", "drop_all"] = result(
        "keep_one", "keep one copy of a photo, or none of those that are exactly equal, as the original did"
    )
    stock_listings: int = result(
        4, "different cars from which on a picture is a stock photo; dealers relist a car", ge=2
    )


def unite(
    root: Root, settings: ClusterSettings, limits: CatalogSettings | None = None, *, ingest: Inputs | None = None
) -> dict[str, Any]:
    """Bring `duplicates` up to date with the edges there are; return its counts, and whether it was `unchanged`.

    `ingest` is what the edges were made of, where the caller knows; what a crawl has committed since then stays out.

    Raises:
        UsageError: dedup has not run, or not over all photos.
        ReconcileError: photos in are not photos kept and dropped.
        IntegrityError: edges that are no stars, or of photos that are not stored.
        LeaseError: another run unites this root.
    """
    chosen = ClusterSettings(policy=settings.policy, stock_listings=settings.stock_listings)
    read: dict[str, Inputs] = {}

    def look() -> dict[str, str]:
        read.update(_inputs(root, ingest or committed_inputs(root)))
        return {name: one.fingerprint for name, one in read.items()}

    receipt, unchanged = run_global_stage(
        root,
        STAGE,
        ("duplicates",),
        inputs=look,
        settings={"dedup": result_settings(chosen)},
        write=lambda writer: _write(root, writer, read, chosen, limits),
    )
    return {**receipt.counts, "unchanged": unchanged}


def conflicts(catalog: Catalog) -> pa.Table:
    """List the clusters over several listings that disagree on the car: a wrong listing, a price changed, a habit.

    Columns `cluster_id, listings, photos`, and whether `make`, `model`, `price_usd` differ. A stock photo shows many
    cars by its nature; letter case and blanks are no disagreement, nor is what a listing does not say.
    """
    return catalog.query(_CONFLICTS)


_CONFLICTS = """
SELECT cluster_id, count(DISTINCT (l.site, l.listing_id)) AS listings, count(*) AS photos,
       count(DISTINCT lower(trim(l.make))) > 1 AS make, count(DISTINCT lower(trim(l.model))) > 1 AS model,
       count(DISTINCT l.price_usd) > 1 AS price_usd
FROM duplicates d JOIN photos p USING (key) JOIN listings l USING (site, listing_id)
WHERE cluster_id IS NOT NULL AND cluster_listings > 1
GROUP BY cluster_id
HAVING NOT coalesce(bool_or(drop_reason = 'stock_photo'), false) AND (make OR model OR price_usd)
ORDER BY cluster_id
"""


def hash_edges(root: Root, ingest: Inputs) -> Inputs:
    """Look at the edges of the hash tiers, which must be of these photos.

    Raises:
        UsageError: dedup has not run, or not over all photos.
    """
    deduplicated = read_receipt(root, HASH_STAGE, WHOLE)
    if deduplicated is None or deduplicated.inputs.get("ingest") != ingest.fingerprint:
        found = "has not run" if deduplicated is None else "has not seen all photos, since a crawl has committed more"
        raise UsageError(f"dedup {found}; run: python pipeline/dedup.py --root {root.text}")
    return inputs_of([deduplicated])


def _inputs(root: Root, ingest: Inputs) -> dict[str, Inputs]:
    """Name what is read; copies found among other clusters than today's count for nothing."""
    hashed = hash_edges(root, ingest)
    inputs = {"ingest": ingest, HASH_STAGE: hashed}
    copied = read_receipt(root, COPY_STAGE, WHOLE)
    if copied is None:
        return inputs
    if copied.inputs.get(HASH_STAGE) != hashed.fingerprint:
        log.info("event=copies_passed_by root=%s why='edges/copy is of an earlier edges/hash'", root.text)
        return inputs
    return {**inputs, COPY_STAGE: committed_inputs(root, (COPY_STAGE,))}


_TIES = "SELECT key_b AS key, key_a AS parent, tier FROM edges_hash UNION ALL SELECT key_b, key_a, tier FROM edges_copy"
# Which tier a photo is tied by: the strongest of the edge to its parent and of those to its own copies.
_MEMBERS = """
CREATE TEMP TABLE members AS
WITH tied AS (
         SELECT key, tier, coalesce(third.parent, second.parent, first.parent) AS top
         FROM ties AS first
              LEFT JOIN (SELECT key AS parent_key, parent FROM ties) AS second ON second.parent_key = first.parent
              LEFT JOIN (SELECT key AS parent_key, parent FROM ties) AS third ON third.parent_key = second.parent),
     ranks AS (
         SELECT key, min(rank) AS rank
         FROM (SELECT unnest([key, parent]) AS key, CASE tier WHEN 'exact' THEN 1 WHEN 'near' THEN 2 ELSE 3 END AS rank
               FROM ties)
         GROUP BY key)
SELECT key, top, parent_tier, CASE rank WHEN 1 THEN 'exact' WHEN 2 THEN 'near' ELSE 'copy' END AS tier
FROM (SELECT key, top, tier AS parent_tier FROM tied UNION ALL SELECT DISTINCT top, top, NULL FROM tied)
     JOIN ranks USING (key)
"""
# The listings of a cluster first, then the clusters: what COUNT(DISTINCT) would hold in memory goes to disk this way.
_CLUSTERS = """
CREATE TEMP TABLE clusters AS
WITH shown AS (
         SELECT top, site, listing_id, count(*) AS num_photos, min(key) AS first_key
         FROM members JOIN photos USING (key) WHERE outcome = 'stored' GROUP BY ALL),
     cars AS (
         SELECT site, listing_id, nullif(upper(trim(vin)), '') AS vin
         FROM listings SEMI JOIN (SELECT DISTINCT site, listing_id FROM shown) USING (site, listing_id)),
     by_car AS (
         SELECT top, coalesce('vin ' || vin, site || '/' || listing_id) AS car,
                sum(num_photos) AS num_photos, count(*) AS num_listings, min(first_key) AS first_key
         FROM shown LEFT JOIN cars USING (site, listing_id) GROUP BY ALL)
SELECT top, min(first_key) AS cluster_id, sum(num_photos)::INTEGER AS cluster_size,
       sum(num_listings)::INTEGER AS cluster_listings, count(*) AS num_cars
FROM by_car GROUP BY top
"""
_ALONE_ROWS = """
SELECT key, NULL AS tier, NULL AS cluster_id, NULL AS cluster_size, NULL AS cluster_listings, true AS kept,
       NULL AS drop_reason
FROM photos ANTI JOIN members USING (key) WHERE outcome = 'stored'
"""
_MEMBER_ROWS = """
SELECT key, tier, cluster_id, cluster_size, cluster_listings, drop_reason IS NULL AS kept, drop_reason
FROM (SELECT *, CASE WHEN num_cars >= $stock_listings THEN 'stock_photo'
                     WHEN parent_tier = 'exact' THEN 'exact_duplicate'
                     WHEN parent_tier = 'near' THEN 'near_duplicate'
                     WHEN parent_tier = 'copy' THEN 'copy'
                     WHEN $policy = 'drop_all' AND tier = 'exact' THEN 'exact_duplicate' END AS drop_reason
      FROM members JOIN clusters USING (top))
ORDER BY key
"""


def _write(
    root: Root,
    writer: PartWriter,
    read: Mapping[str, Inputs],
    settings: ClusterSettings,
    limits: CatalogSettings | None,
) -> dict[str, int]:
    """Write `duplicates` and return the receipt's counts."""
    files = {folder: names for inputs in read.values() for folder, names in inputs.files.items()}
    with Catalog(root, limits, files=files) as catalog:
        catalog.execute(f"CREATE TEMP TABLE ties AS {_TIES}")
        _require_stars(catalog)
        catalog.execute(_MEMBERS)
        catalog.execute(_CLUSTERS)
        _require_all_stored(catalog)
        chosen = {"policy": settings.policy, "stock_listings": settings.stock_listings}
        rows = chain(catalog.stream(_ALONE_ROWS), catalog.stream(_MEMBER_ROWS, chosen))
        reasons = Counter[str | None]()
        for batch in written(rows, writer.stage_path("duplicates"), DUPLICATES):
            for counted in pc.value_counts(batch.column("drop_reason")).to_pylist():
                reasons[counted["values"]] += counted["counts"]
        clusters = _number(catalog, "SELECT count(*) FROM clusters")
        stored = _number(catalog, "SELECT count(*) FROM photos WHERE outcome = 'stored'")
    return {**_reconciled(reasons, stored=stored), "clusters": clusters}


def _require_stars(catalog: Catalog) -> None:
    """Stop where a photo is tied to two others, or a tie leads on from what three joins reach."""
    twice = catalog.query("SELECT key FROM ties GROUP BY key HAVING count(*) > 1 ORDER BY key LIMIT 3")
    if keys := twice["key"].to_pylist():
        raise IntegrityError(f"edges tie {', '.join(keys)}, ... to more than one photo; see pipeline/verify.py")
    # An exact copy hangs on anything; a near one on none that is an exact or near copy; a copy on none that is tied.
    wrong = catalog.query(
        "SELECT lower.key FROM ties AS lower JOIN ties AS upper ON upper.key = lower.parent"
        " WHERE NOT (lower.tier = 'exact' AND upper.tier <> 'exact' OR lower.tier = 'near' AND upper.tier = 'copy')"
        " ORDER BY lower.key LIMIT 3"
    )
    if keys := wrong["key"].to_pylist():
        raise IntegrityError(f"edges tie {', '.join(keys)}, ... to a copy of their own tier; see pipeline/verify.py")


def _require_all_stored(catalog: Catalog) -> None:
    """Stop where a photo of an edge has not just one row among the stored photos."""
    members = _number(catalog, "SELECT count(*) FROM members")
    found = _number(catalog, "SELECT coalesce(sum(cluster_size), 0) FROM clusters")
    if members != found:
        raise ReconcileError(
            f"edges tie {members:,} photos, which have {found:,} rows among the stored photos; nothing was committed, "
            "see pipeline/verify.py for rows that are lost or doubled"
        )


def _number(catalog: Catalog, sql: str) -> int:
    return int(catalog.query(sql).column(0)[0].as_py())


def _reconciled(reasons: Mapping[str | None, int], *, stored: int) -> dict[str, int]:
    """Return the counts of rows that add up to the photos that ingest says it stored."""
    dropped = {COUNT_OF_REASON[reason]: reasons.get(reason, 0) for reason in REASONS}
    counts = {"photos": sum(reasons.values()), **dropped, "kept": reasons.get(None, 0)}
    if counts["photos"] != stored or stored != sum(dropped.values()) + counts["kept"]:
        raise ReconcileError(
            f"{stored:,} photos are stored, and duplicates has rows for {counts}; nothing was committed, "
            "see pipeline/verify.py for rows that are doubled"
        )
    return counts
