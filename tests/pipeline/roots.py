"""Build small real roots: rows and JPEGs go through PartWriter and ShardWriter as a crawl's do."""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from schemas.image import ImageSettings, StoredPhoto, store
from schemas.receipts import PartWriter, Receipt
from schemas.shards import ShardSettings, ShardWriter
from schemas.storage import Root
from schemas.tables import ATTEMPTS, LISTINGS, PHOTOS, photo_key, table_of

SITE = "demo"
FETCHED_AT = datetime(2026, 11, 30, tzinfo=UTC)


@dataclass(frozen=True)
class Listing:
    """A found listing: its photos' source bytes in order, None for one that could not be fetched."""

    listing_id: str
    photos: Sequence[bytes | None] = ()
    vin: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Missed:
    """An id that is no listing."""

    listing_id: str
    outcome: str = "gone"
    error: str | None = None


def new_root(folder: Path) -> Root:
    return Root.open(str(folder), create=True)


def write_part(
    root: Root,
    part: str,
    rows: Iterable[Listing | Missed],
    *,
    stage: str = "crawl",
    fetched_at: datetime = FETCHED_AT,
    site: str = SITE,
) -> Receipt:
    """Commit one part as a crawl does; again for the next generation."""
    attempts: list[dict[str, Any]] = []
    listings: list[dict[str, Any]] = []
    photos: list[dict[str, Any]] = []
    writer = PartWriter(root, stage, part, token="test", fence=lambda: None)
    with ShardWriter(
        writer.stage_path("shards", ".lmdb"), ShardSettings(initial_map_bytes=1 << 20, min_free_bytes=0)
    ) as shard:
        for row in rows:
            identity = {"site": site, "listing_id": row.listing_id}
            times = {"num_tries": 1, "fetched_at": fetched_at}
            if isinstance(row, Missed):
                attempts.append({**identity, **times, "outcome": row.outcome, "error": row.error})
                continue
            attempts.append({**identity, **times, "outcome": "found"})
            known = {"make": "Volvo", "num_photos": len(row.photos), "vin": row.vin, "fetched_at": fetched_at}
            listings.append({**identity, **known, **row.columns})
            for index, source in enumerate(row.photos):
                key = photo_key(site, row.listing_id, index)
                photo = {**identity, "key": key, "photo_index": index, "part": part, "fetched_at": fetched_at}
                photos.append({**photo, **_stored(shard, key, source)})
        shard.seal()
    writer.write_table("photos", table_of(photos, PHOTOS))
    writer.write_table("listings", table_of(listings, LISTINGS))
    writer.write_table("attempts", table_of(attempts, ATTEMPTS))
    return writer.commit(counts=_counts(attempts, photos), settings={}, code_version="test")


def noise(seed: int, *, width_px: int = 96, height_px: int = 72) -> bytes:
    """A photo unlike any other seed's: smooth colours, as PNG."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return png(Image.fromarray(small).resize((width_px, height_px), Image.Resampling.BICUBIC))


def flat(level: int) -> bytes:
    """One grey all over, as PNG."""
    return png(Image.new("RGB", (96, 72), (level, level, level)))


def cut_out(*, plate: str = "", scale: int = 1) -> bytes:
    """A drawn car on white, as PNG; `scale` draws it larger."""
    picture = Image.new("RGB", (400, 300), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((120, 120, 290, 175), fill=(180, 20, 20))
    draw.rectangle((155, 95, 250, 120), fill=(180, 20, 20))
    for x in (155, 255):
        draw.ellipse((x - 20, 155, x + 20, 195), fill=(20, 20, 20))
    if plate:
        draw.text((190, 140), plate, fill="white")
    return png(picture.resize((400 * scale, 300 * scale), Image.Resampling.LANCZOS))


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@cache
def stored_photo(source: bytes) -> StoredPhoto:
    return store(source, ImageSettings())


def _stored(shard: ShardWriter, key: str, source: bytes | None) -> dict[str, Any]:
    if source is None:
        return {"outcome": "failed", "error": "http_404"}
    photo = stored_photo(source)
    assert hashlib.sha256(photo.jpeg).hexdigest() == photo.sha256
    shard.put(key, photo.jpeg)
    return {"outcome": "stored", **photo.columns()}


def _counts(attempts: list[dict[str, Any]], photos: list[dict[str, Any]]) -> dict[str, int]:
    def of(rows: list[dict[str, Any]], outcome: str) -> int:
        return sum(row["outcome"] == outcome for row in rows)

    return {
        "ids": len(attempts),
        **{outcome: of(attempts, outcome) for outcome in ("found", "gone", "failed", "disallowed")},
        "photos": len(photos),
        "stored": of(photos, "stored"),
        "photos_failed": of(photos, "failed"),
        "rejected": of(photos, "rejected"),
        "photos_disallowed": of(photos, "disallowed"),
    }
