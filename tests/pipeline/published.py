"""Build roots to publish: rows of ingest without pixels, and what dedup and score say of them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline.catalog import TABLE_STAGES
from schemas.receipts import PartWriter, Receipt
from schemas.storage import Root
from schemas.tables import ATTEMPTS, DUPLICATES, LISTINGS, PHOTOS, SCORES, photo_key, table_of

_FETCHED_AT = datetime(2026, 11, 30, tzinfo=UTC)
CAR = {"make": "Volvo", "model": "V70", "year": 2011, "price_usd": 12_500}


@dataclass(frozen=True)
class Car:
    """A found listing of some stored photos; columns of CAR but for those given."""

    listing_id: str
    num_photos: int = 1
    vin: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


def commit(root: Root, stage: str, part: str, tables: Mapping[str, pa.Table]) -> Receipt:
    """Commit tables as a stage does."""
    writer = PartWriter(root, stage, part, token="test", fence=lambda: None)
    for folder, table in tables.items():
        writer.write_table(folder, table)
    return writer.commit(counts={}, settings={}, code_version="test")


def ingest(root: Root, part: str, cars: Iterable[Car], *, site: str = "demo") -> Receipt:
    """Commit a part of listings and their photos; no shard goes with it."""
    attempts, listings, photos = [], [], []
    for car in cars:
        identity = {"site": site, "listing_id": car.listing_id}
        attempts.append({**identity, "outcome": "found", "num_tries": 1})
        listings.append({**identity, **CAR, "vin": car.vin, "num_photos": car.num_photos, **car.columns})
        for index in range(car.num_photos):
            key = photo_key(site, car.listing_id, index)
            size = {"source_width_px": 400, "source_height_px": 300, "width_px": 341, "height_px": 256}
            content = hashlib.sha256(key.encode()).hexdigest()
            names = {"key": key, "photo_index": index, "part": part, "outcome": "stored", "sha256": content}
            photos.append({**identity, **size, **names})
    tables = {
        "photos": table_of(photos, PHOTOS),
        "listings": table_of(listings, LISTINGS),
        "attempts": table_of(attempts, ATTEMPTS),
    }
    return commit(root, "crawl", part, tables)


def keys_of(root: Root) -> list[str]:
    """Name all stored photos of a root."""
    return [key for name in root.list("photos") for key in root.read_table(name, ["key"])["key"].to_pylist()]


def write_duplicates(root: Root, clusters: Sequence[Sequence[str]] = (), *, reason: str = "near_duplicate") -> None:
    """Commit a row for each stored photo; of a cluster the first stays, of stock photos none."""
    rows: dict[str, dict[str, Any]] = {key: {"key": key, "kept": True} for key in keys_of(root)}
    tiers = {"exact_duplicate": "exact", "near_duplicate": "near", "copy": "copy", "stock_photo": "exact"}
    for cluster in clusters:
        for position, key in enumerate(cluster):
            kept = position == 0 and reason != "stock_photo"
            about = {"tier": tiers[reason], "cluster_id": min(cluster), "cluster_size": len(cluster)}
            drop_reason = None if kept else reason
            rows[key] |= {**about, "cluster_listings": 1, "kept": kept, "drop_reason": drop_reason}
    commit(root, TABLE_STAGES["duplicates"][0], "all", {"duplicates": table_of(rows.values(), DUPLICATES)})


def write_scores(root: Root, junk: Iterable[str] = ()) -> None:
    """Commit a score for each stored photo."""
    reasons: dict[str, str | None] = dict.fromkeys(keys_of(root)) | dict.fromkeys(junk, "junk")
    rows = [{"key": key, "score": float(reason is not None), "drop_reason": reason} for key, reason in reasons.items()]
    commit(root, "score", "all", {"scores": table_of(rows, SCORES)})
