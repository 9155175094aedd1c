"""Find photos that are the same picture, by their hashes and then their pixels: the exact and the near tier.

Exact: the coarse hash is equal, and the stored bytes or else the stored pixels are the same picture; flat images and
cut-outs that differ are told apart by that. Near: the perceptual hashes differ in at most `dedup.max_distance` bits,
and the stored pixels, laid over each other, are one photo: re-encoded, resized, brighter, or cropped by about 1 %.

Reads: photos, listings (vin), and shard values of photos whose hashes are near. Writes `edges/hash/` (the copy that
would stay - each other copy) and, as its last step, one row a stored photo in `duplicates/`.

    python pipeline/dedup.py --root data
    python pipeline/dedup.py --root data --set dedup.policy=drop_all
    python pipeline/dedup.py --root data --set dedup.max_distance=0
    python pipeline/dedup.py --root data --set dedup.mirrored=true
    python pipeline/dedup.py --root data --set dedup.stock_listings=6 --set catalog.memory_gib=1

A cluster that shows at least `dedup.stock_listings` different cars is a stock photo and is dropped whole; listings that
share a VIN are one car, a listing without a VIN is a car of its own. Of other clusters `keep_one` keeps the copy with
most source pixels, then the smallest key; `drop_all` keeps none of those that are exactly equal. Running again does
nothing where neither the photos nor the settings have changed. Last line: `photos` (stored) = `kept` +
`exact_dropped` + `near_dropped` + `copy_dropped` + `stock_dropped`.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from pipeline import clusters
from pipeline.catalog import Catalog, CatalogSettings
from pipeline.clusters import ClusterSettings
from pipeline.dedup_exact import find_exact
from pipeline.dedup_near import NearSettings, find_near
from pipeline.global_stage import run_global_stage
from pipeline.runner import RaySettings
from pipeline.table_file import written
from schemas.command import run_script, script_parser
from schemas.receipts import Inputs, PartWriter, committed_inputs
from schemas.settings import Section, load_settings, result_settings
from schemas.storage import Root
from schemas.tables import EDGES

STAGE = "dedup"


def main(argv: Sequence[str] | None = None) -> int:
    """Deduplicate a root."""

    def body(args: Any) -> Mapping[str, Any]:
        settings = load_settings(_Settings, config=args.config, sets=args.sets)
        return dedup(Root.open(args.root), settings.dedup, settings.catalog, ray=settings.ray)

    return run_script(script_parser(__doc__ or ""), body, argv=argv)


class DedupSettings(NearSettings, ClusterSettings):
    """What counts as the same picture, and which copies stay."""


class _Settings(Section):
    """The sections this script reads."""

    dedup: DedupSettings = DedupSettings()
    catalog: CatalogSettings = CatalogSettings()
    ray: RaySettings = RaySettings()


def dedup(
    root: Root,
    settings: DedupSettings,
    limits: CatalogSettings | None = None,
    *,
    ray: RaySettings | None = None,
    unite: bool = True,
) -> dict[str, Any]:
    """Write `edges/hash` of all stored photos and unite it in `duplicates`, where not up to date; return the last line.

    Without `unite` another stage does that, once it has found more edges.

    Raises:
        ReconcileError: photos in are not photos kept and dropped.
        IntegrityError: a stored photo has no hash, or no bytes where they are needed.
        LeaseError: another run deduplicates this root.
    """
    started_s = time.monotonic()
    seen: list[Inputs] = []

    def look() -> dict[str, str]:
        seen.append(committed_inputs(root))
        return {"ingest": seen[-1].fingerprint}

    receipt, unchanged = run_global_stage(
        root,
        STAGE,
        ("edges/hash",),
        inputs=look,
        settings={"dedup": _result_settings(settings)},
        write=lambda writer: _write(root, writer, settings, seen[-1], limits, ray or RaySettings()),
    )
    answer: dict[str, Any] = {**receipt.counts, "unchanged": unchanged}
    if unite:
        # Of the photos that the edges are of: what a crawl has committed since is the next run's.
        united = clusters.unite(root, settings, limits, ingest=seen[-1])
        answer |= {**united, "unchanged": unchanged and united["unchanged"]}
    return {**answer, "seconds": round(time.monotonic() - started_s, 3)}


def _result_settings(settings: DedupSettings) -> dict[str, Any]:
    """Return what decides the edges; which copies stay is decided later."""
    return {
        name: value for name, value in result_settings(settings).items() if name not in ClusterSettings.model_fields
    }


_EXACT_ROWS = "SELECT key_a, key_b, 'exact' AS tier, 0 AS distance FROM exact_edges"
_NEAR_ROWS = "SELECT key_a, key_b, 'near' AS tier, distance FROM near_edges"


def _write(
    root: Root,
    writer: PartWriter,
    settings: DedupSettings,
    ingest: Inputs,
    limits: CatalogSettings | None,
    ray: RaySettings,
) -> dict[str, int]:
    """Write `edges/hash` and return the receipt's counts."""
    tiers = Counter[str]()
    selects = [_EXACT_ROWS]
    with Catalog(root, limits, files=ingest.files) as catalog:
        find_exact(root, catalog)
        if settings.max_distance:
            find_near(root, catalog, settings, ray)
            selects.append(_NEAR_ROWS)
        rows = catalog.stream(f"{' UNION ALL '.join(selects)} ORDER BY key_a, key_b")
        for batch in written(rows, writer.stage_path("edges/hash"), EDGES):
            for counted in pc.value_counts(batch.column("tier")).to_pylist():
                tiers[counted["values"]] += counted["counts"]
    return {"edges": tiers.total(), "exact_edges": tiers["exact"], "near_edges": tiers["near"]}


if __name__ == "__main__":
    raise SystemExit(main())
