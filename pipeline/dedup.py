"""Find photos that are the same picture, by their hash and then their pixels: the exact tier.

The coarse hash is equal, and the stored bytes or else the stored pixels are the same picture; flat images and cut-outs
that differ are told apart by that.

Reads: photos, listings (vin), and shard values where hash and bytes disagree. Writes `edges/hash/` (the copy that would
stay - each other copy) and, as its last step, one row a stored photo in `duplicates/`.

    python pipeline/dedup.py --root data
    python pipeline/dedup.py --root data --set dedup.policy=drop_all
    python pipeline/dedup.py --root data --set dedup.stock_listings=6 --set catalog.memory_gib=1

A cluster that shows at least `dedup.stock_listings` different cars is a stock photo and is dropped whole; listings that
share a VIN are one car, a listing without a VIN is a car of its own. Of other clusters `keep_one` keeps the copy with
most source pixels, then the smallest key; `drop_all` keeps none of those that are exactly equal. Running again does
nothing where neither the photos nor the settings have changed. Last line: `photos` (stored) = `kept` +
`exact_dropped` + `near_dropped` + `copy_dropped` + `stock_dropped`.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import clusters
from pipeline.catalog import Catalog, CatalogSettings
from pipeline.clusters import ClusterSettings
from pipeline.dedup_exact import find_exact
from pipeline.global_stage import run_global_stage
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
        return dedup(Root.open(args.root), settings.dedup, settings.catalog)

    return run_script(script_parser(__doc__ or ""), body, argv=argv)


class DedupSettings(ClusterSettings):
    """What counts as the same picture, and which copies stay."""


class _Settings(Section):
    """The sections this script reads."""

    dedup: DedupSettings = DedupSettings()
    catalog: CatalogSettings = CatalogSettings()


def dedup(
    root: Root, settings: DedupSettings, limits: CatalogSettings | None = None, *, unite: bool = True
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
        write=lambda writer: _write(root, writer, seen[-1], limits),
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


_EXACT_ROWS = "SELECT key_a, key_b, 'exact' AS tier, 0 AS distance FROM exact_edges ORDER BY key_a, key_b"


def _write(root: Root, writer: PartWriter, ingest: Inputs, limits: CatalogSettings | None) -> dict[str, int]:
    """Write `edges/hash` and return the receipt's counts."""
    with Catalog(root, limits, files=ingest.files) as catalog:
        find_exact(root, catalog)
        edges = written(catalog.stream(_EXACT_ROWS), writer.stage_path("edges/hash"), EDGES)
        return {"edges": sum(batch.num_rows for batch in edges)}


if __name__ == "__main__":
    raise SystemExit(main())
