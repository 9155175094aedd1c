"""Make a root of real photos and planted changes of them, through what a crawl ingests with."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.image import ImageSettings, StoredPhoto, store
from schemas.receipts import PartWriter
from schemas.shards import ShardSettings, ShardWriter
from schemas.storage import Root
from schemas.tables import ATTEMPTS, LISTINGS, PHOTOS, photo_key, table_of

SITE = "cars"
_LISTINGS_PER_PART = 500
_FETCHED_AT = datetime(2026, 11, 30, tzinfo=UTC)
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Shown:
    """One photo of the root: the labelled file it comes from, and what was done to it (None for the photo itself)."""

    listing_id: str
    index: int
    file: str
    change: str | None = None

    @property
    def key(self) -> str:
        """Return the photo's key in the root."""
        return photo_key(SITE, self.listing_id, self.index)


def read_labels(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a folder's labels.csv in order of file."""
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as lines:
        return sorted(csv.DictReader(lines), key=lambda row: row["file"])


def plan(labels: Sequence[Mapping[str, str]], per_change: int) -> list[Shown]:
    """Choose what the root shows: each photo in its listing, and `per_change` photos of each change in their own."""
    shown: list[Shown] = []
    used: dict[str, int] = {}
    for row in labels:
        listing_id = row["listing_id"] or f"file-{row['file']}"
        index = used[listing_id] = used.get(listing_id, -1) + 1
        shown.append(Shown(listing_id, index, row["file"]))
    draw = np.random.default_rng(0)
    for change in CHANGES:
        for place in sorted(draw.choice(len(labels), min(per_change, len(labels)), replace=False)):
            file = labels[place]["file"]
            shown.append(Shown(f"{change}-{file}", 0, file, change))
    return shown


def write_root(root: Root, folder: Path, shown: Sequence[Shown], *, threads: int = 2) -> None:
    """Store the photos as a crawl does and commit them in parts."""
    listings: dict[str, list[Shown]] = {}
    for photo in shown:
        listings.setdefault(photo.listing_id, []).append(photo)
    named = sorted(listings)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(named), _LISTINGS_PER_PART):
            chosen = [photo for name in named[start : start + _LISTINGS_PER_PART] for photo in listings[name]]
            stored = list(pool.map(lambda photo: store(_source(folder, photo), ImageSettings()), chosen))
            _write_part(root, f"{SITE}-{start:06d}", chosen, stored)


def _write_part(root: Root, part: str, shown: Sequence[Shown], stored: Sequence[StoredPhoto]) -> None:
    writer = PartWriter(root, "crawl", part, token="bench", fence=lambda: None)
    photos: list[dict[str, Any]] = []
    with ShardWriter(writer.stage_path("shards", ".lmdb"), ShardSettings()) as shard:
        for photo, columns in zip(shown, stored, strict=True):
            shard.put(photo.key, columns.jpeg)
            identity = {"key": photo.key, "site": SITE, "listing_id": photo.listing_id, "photo_index": photo.index}
            photos.append(
                {**identity, "outcome": "stored", "part": part, "fetched_at": _FETCHED_AT, **columns.columns()}
            )
        shard.seal()
    names = Counter(photo.listing_id for photo in shown)
    known = {"site": SITE, "fetched_at": _FETCHED_AT}
    listings = [{**known, "listing_id": name, "num_photos": count} for name, count in names.items()]
    writer.write_table("photos", table_of(photos, PHOTOS))
    writer.write_table("listings", table_of(listings, LISTINGS))
    attempts = [{**known, "listing_id": name, "outcome": "found", "num_tries": 1} for name in names]
    writer.write_table("attempts", table_of(attempts, ATTEMPTS))
    counts = {"ids": len(names), "found": len(names), "photos": len(photos), "stored": len(photos)}
    none = ("gone", "failed", "disallowed", "photos_failed", "rejected", "photos_disallowed")
    writer.commit(counts={**counts, **dict.fromkeys(none, 0)}, settings={})


def _source(folder: Path, photo: Shown) -> bytes:
    source = (folder / photo.file).read_bytes()
    return source if photo.change is None else CHANGES[photo.change](source)


def _pixels(source: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(source)).convert("RGB"))


def _jpeg(pixels: Pixels, quality: int = 92) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _saved(quality: int) -> Callable[[bytes], bytes]:
    return lambda source: _jpeg(_pixels(source), quality)


def _resized(share: float) -> Callable[[bytes], bytes]:
    def change(source: bytes) -> bytes:
        pixels = _pixels(source)
        return _jpeg(np.asarray(cv2.resize(pixels, None, fx=share, fy=share, interpolation=cv2.INTER_AREA), np.uint8))

    return change


def _cropped(share: float) -> Callable[[bytes], bytes]:
    def change(source: bytes) -> bytes:
        pixels = _pixels(source)
        down, right = round(share * pixels.shape[0]), round(share * pixels.shape[1])
        return _jpeg(pixels[down : pixels.shape[0] - down, right : pixels.shape[1] - right])

    return change


def _brighter(source: bytes) -> bytes:
    return _jpeg(np.clip(_pixels(source) * 1.1, 0, 255).astype(np.uint8))


def _under_banner(source: bytes) -> bytes:
    """Lay a banner of half the width and a seventh of the height over a corner; which one and its colour are drawn."""
    pixels = _pixels(source).copy()
    draw = np.random.default_rng(len(source))
    height, width = pixels.shape[0] // 7, pixels.shape[1] // 2
    top = int(draw.integers(2)) * (pixels.shape[0] - height)
    left = int(draw.integers(2)) * (pixels.shape[1] - width)
    pixels[top : top + height, left : left + width] = draw.integers(0, 256, 3)
    place, size = (left + width // 30, top + height * 2 // 3), width / 330
    thickness = max(1, width // 150)
    cv2.putText(pixels, "CITY MOTORS 555-0123", place, cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), thickness)
    return _jpeg(pixels)


# What is planted; the near tier must see the first seven, the last two are the copy tier's.
CHANGES: Mapping[str, Callable[[bytes], bytes]] = {
    "q90": _saved(90),
    "q75": _saved(75),
    "q50": _saved(50),
    "resize80": _resized(0.8),
    "resize50": _resized(0.5),
    "crop1": _cropped(0.01),
    "bright10": _brighter,
    "crop5": _cropped(0.05),
    "banner": _under_banner,
}
NEAR_CHANGES = tuple(CHANGES)[:7]
