"""Listings of the demo site made of real photos: a folder with images and a labels.csv.

Columns used: file, listing_id, make, model, year, price_usd, price_native, currency, mileage_km, body. Photos of one
listing_id make one listing, every other photo one of its own; the order of listings is that of their first file names.
"""

import csv
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipeline.drawn_site.stock import Listing, Photo
from schemas.errors import UsageError

_SUFFIX_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
_NEEDED = ("file", "make", "model", "year", "price_usd", "listing_id")


class RealStock:
    """The listings of a labelled folder at ids `first` onwards, all of them live."""

    def __init__(self, folder: Path, *, first: int) -> None:
        self.folder = folder
        self.first = first
        self._listings = [_listing(first + place, rows) for place, rows in enumerate(_grouped(_read(folder)))]
        self.last = first + len(self._listings) - 1

    def state(self, listing_id: int) -> str:
        """Tell `live` or `gone_404`."""
        return "live" if self.first <= listing_id <= self.last else "gone_404"

    def listing(self, listing_id: int) -> Listing:
        """Return a live listing."""
        return self._listings[listing_id - self.first]

    def photo_bytes(self, photo: Photo) -> bytes:
        """Read a photo's file as it is."""
        assert photo.file is not None
        return (self.folder / photo.file).read_bytes()


def _read(folder: Path) -> list[dict[str, str]]:
    path = folder / "labels.csv"
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except OSError as error:
        raise UsageError(f"--photos needs a folder with a labels.csv; cannot read {path}: {error.strerror}") from error
    missing = [name for name in _NEEDED if not rows or name not in rows[0]]
    if missing:
        raise UsageError(f"{path} must have rows with the columns {', '.join(_NEEDED)}; missing: {', '.join(missing)}")
    return rows


def _grouped(rows: Sequence[dict[str, str]]) -> list[list[dict[str, str]]]:
    groups: dict[str, list[dict[str, str]]] = {}
    for row in sorted(rows, key=lambda row: row["file"]):
        groups.setdefault(row["listing_id"] or f"file {row['file']}", []).append(row)
    return list(groups.values())


def _listing(listing_id: int, rows: Sequence[Mapping[str, str]]) -> Listing:
    def first(column: str) -> str:
        return next((row[column] for row in rows if row.get(column)), "")

    fields: dict[str, Any] = {name: first(name) for name in ("make", "model") if first(name)}
    if first("year"):
        fields["year"] = int(first("year"))
    if first("price_native") and first("currency"):
        fields |= {"price": Decimal(first("price_native")), "currency": first("currency")}
    elif first("price_usd"):
        fields |= {"price": Decimal(first("price_usd")), "currency": "USD"}
    if first("mileage_km"):
        fields |= {"odometer": int(float(first("mileage_km"))), "odometer_unit": "km"}
    if first("body"):
        fields["body_style"] = first("body")
    words = [str(fields[part]) for part in ("year", "make", "model") if part in fields]
    if words:
        fields["title"] = " ".join(words)
    photos = tuple(_photo(listing_id, index, row) for index, row in enumerate(rows))
    extra = {"listing_id": first("listing_id") or None}
    return Listing(listing_id, fields, photos, extra=extra)


def _photo(listing_id: int, index: int, row: Mapping[str, str]) -> Photo:
    suffix = Path(row["file"]).suffix.lower()
    path = f"/photos/{listing_id}/{index}-{row['file']}"
    kind, junk_type = row.get("kind") or "unknown", row.get("junk_type") or None
    content_type = _SUFFIX_TYPES.get(suffix, "application/octet-stream")
    return Photo(path, content_type, None, row["file"], kind, junk_type, file=row["file"])
