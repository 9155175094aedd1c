"""Publish small real data sets to train on."""

from decimal import Decimal
from pathlib import Path

from pipeline.publish import publish
from pipeline.publish_content import PublishSettings
from schemas.manifest import Manifest, read_manifest
from schemas.storage import Root
from tests.pipeline.roots import Listing, new_root, noise, write_part

MAKES = (("Volvo", "V70"), ("Saab", "900"), ("BMW", "M3"))


def published(folder: Path, *, listings: int = 24, parts: int = 4) -> tuple[Root, Manifest]:
    """Publish `listings` cars of two photos; every fifth has no price, every seventh no make, model and year."""
    root = new_root(folder)
    per_part = listings // parts
    for part in range(parts):
        write_part(
            root, f"demo-{part * per_part}", [_listing(n) for n in range(part * per_part, (part + 1) * per_part)]
        )
    publish(root, "cars", PublishSettings())
    return root, read_manifest(root, "cars")


def _listing(number: int) -> Listing:
    make, model = MAKES[number % 3]
    known: dict[str, object] = {"make": None, "model": None}
    if number % 7:
        known = {"make": make, "model": model, "year": 2000 + number % 4}
    if number % 5:
        known |= {"price": Decimal(8000 + 1000 * number), "currency": "USD", "price_usd": Decimal(8000 + 1000 * number)}
    photos = [noise(100 + 2 * number, width_px=96 + number), noise(101 + 2 * number, height_px=72 + number)]
    return Listing(f"{number:03d}", photos, columns=known)
