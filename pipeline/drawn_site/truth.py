"""What is true about the demo site and what a crawl of it must come to: the content of /truth.json."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from pipeline.drawn_site.faults import FaultPlan, robots_forbids
from pipeline.drawn_site.stock import BROKEN, Listing, Photo, Stock

SITE_NAME = "demo"

Ending = tuple[str, str | None]


class Truth:
    """Expected endings with faults (`plan` given) or without."""

    def __init__(self, stock: Stock, plan: FaultPlan | None) -> None:
        self._stock = stock
        self._plan = plan

    def of(self, ids: Iterable[int]) -> dict[str, Any]:
        """Return what is true about `ids`: `ids`, `photos` by key, and `stock` photos with the keys that show them."""
        truth: dict[str, Any] = {
            "site": SITE_NAME,
            "faults": self._plan is not None,
            "ids": {},
            "photos": {},
            "stock": {},
        }
        for listing_id in ids:
            self._add(truth, listing_id)
        return truth

    def _add(self, truth: dict[str, Any], listing_id: int) -> None:
        state = self._stock.state(listing_id)
        outcome, error = self.page_ending(listing_id)
        entry: dict[str, Any] = {"state": state, "outcome": outcome, "error": error}
        truth["ids"][str(listing_id)] = entry
        if state != "live":
            return
        listing = self._stock.listing(listing_id)
        entry |= {"fields": {k: _plain(v) for k, v in listing.fields.items()}, "num_photos": len(listing.photos)}
        entry |= {"relisted_from": listing.relisted_from, **listing.extra}
        for index, photo in enumerate(listing.photos):
            key = f"{SITE_NAME}/{listing_id}/{index:03d}"
            truth["photos"][key] = self._photo(photo, listed=outcome == "found")
            if photo.stock is not None:
                truth["stock"].setdefault(photo.stock, []).append(key)

    def _photo(self, photo: Photo, *, listed: bool) -> dict[str, Any]:
        outcome, error = self.photo_ending(photo) if listed else (None, None)
        return {
            "url": photo.path,
            "outcome": outcome,
            "error": error,
            "kind": photo.kind,
            "junk_type": photo.junk_type,
            "content": photo.content,
            "picture": photo.picture.name if photo.picture is not None else photo.content,
            "subject": photo.picture.subject if photo.picture is not None else None,
            "copy": photo.copy,
            "copy_of": _key(photo.copy_of),
            "near_of": _key(photo.near_of),
            "stock": photo.stock,
            "broken": photo.broken,
            "file": photo.file,
        }

    def page_ending(self, listing_id: int) -> Ending:
        """Tell outcome and error of an id."""
        live = self._stock.state(listing_id) == "live"
        path = f"/listing/{listing_id}"
        if self._plan is not None:
            if robots_forbids(path):
                return "disallowed", "robots"
            fault = self._plan.of(path, "page" if live else "gone")
            if fault is not None and fault.outcome is not None:
                return fault.outcome, fault.error
        return ("found", None) if live else ("gone", None)

    def photo_ending(self, photo: Photo) -> Ending:
        """Tell outcome and error of a photo whose listing was found."""
        if self._plan is not None:
            if robots_forbids(photo.path):
                return "disallowed", "robots"
            if photo.path.startswith("/photos/reserved/"):
                return "disallowed", "tdm"
            fault = self._plan.of(photo.path, "photo")
            if fault is not None and fault.outcome is not None:
                return fault.outcome, fault.error
        if photo.broken is None:
            return "stored", None
        error = BROKEN[photo.broken]
        return ("failed" if error in ("http_404", "too_large") else "rejected"), error


def expected_counts(truth: dict[str, Any]) -> dict[str, int]:
    """Count endings as the crawl's last line does."""
    counts = dict.fromkeys(
        ("found", "gone", "failed", "disallowed", "stored", "photos_failed", "rejected", "photos_disallowed"), 0
    )
    for entry in truth["ids"].values():
        counts[entry["outcome"]] += 1
    for photo in truth["photos"].values():
        if photo["outcome"] is not None:
            counts[
                photo["outcome"] if photo["outcome"] in ("stored", "rejected") else f"photos_{photo['outcome']}"
            ] += 1
    return counts


def _key(at: tuple[int, int] | None) -> str | None:
    return None if at is None else f"{SITE_NAME}/{at[0]}/{at[1]:03d}"


def _plain(value: Any) -> Any:
    return f"{value:.2f}" if isinstance(value, Decimal) else value


__all__ = ["SITE_NAME", "Listing", "Truth", "expected_counts"]
