"""What the demo site knows of its photos: labels to learn from, and what the curation is held against.

The drawn site is a function of its seed, so that what /truth.json serves can be asked for after the site has stopped.
"""

import csv
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from heapq import nsmallest
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.catalog import Catalog
from pipeline.drawn_site.server import FIRST_ID
from pipeline.drawn_site.stock import DrawnStock
from pipeline.drawn_site.truth import Truth
from schemas.storage import Root

_SEED = 0
HELD_AGAINST = pa.schema([("planted", pa.string()), ("right", pa.int64()), ("of", pa.int64())])
_EDITED = "changed copies found (re-encoded, resized, brighter, cropped, under a banner)"
_FOUND = """
SELECT key, cluster_id, duplicates.drop_reason AS why_duplicate, scores.drop_reason AS why_scored
FROM duplicates LEFT JOIN scores USING (key)
"""


def stored_photos(num_ids: int) -> dict[str, dict[str, Any]]:
    """Return what is true about each photo that a crawl of the site's ids must store, by key."""
    stock = DrawnStock(seed=_SEED, first=FIRST_ID, last=FIRST_ID + num_ids - 1)
    photos: dict[str, dict[str, Any]] = Truth(stock, None).of(range(stock.first, stock.last + 1))["photos"]
    return {key: photo for key, photo in photos.items() if photo["outcome"] == "stored"}


def write_labels(photos: Mapping[str, Mapping[str, Any]], path: Path, count: int) -> int:
    """Write the labels of `count` photos drawn at random, as a labeller would give them; return how many there are."""
    drawn = sorted(nsmallest(count, photos, key=lambda key: blake2b(key.encode(), digest_size=8).digest()))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("key", "label"))
        writer.writerows((key, "junk" if _is_junk(photos[key]) else "keep") for key in drawn)
    return len(drawn)


def hold_against(root: Root, photos: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """Count how often the curation of a root is right: columns `planted, right, of`."""
    with Catalog(root) as catalog:
        found = {row["key"]: row for row in catalog.query(_FOUND).to_pylist()}
    right, of = Counter[str](), Counter[str]()
    for key, photo in photos.items():
        for what, is_right in _judged(key, photo, found, photos):
            of[what] += 1
            right[what] += is_right
    rows = [{"planted": what, "right": right[what], "of": of[what]} for what in sorted(of)]
    return pa.Table.from_pylist(rows, schema=HELD_AGAINST)


def _judged(
    key: str,
    photo: Mapping[str, Any],
    found: Mapping[str, Mapping[str, Any]],
    photos: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, bool]]:
    """Say of one photo in which ways it counts, and whether what was found is right."""
    row, judged = found[key], []
    original = photo["copy_of"]
    if photo["copy"] is not None and original in found:
        what = "exact copies found" if photo["copy"] == "exact" else _EDITED
        tied = row["cluster_id"] is not None and row["cluster_id"] == found[original]["cluster_id"]
        judged.append((what, tied))
    if photo["stock"] is not None:
        judged.append(("stock photos dropped", row["why_duplicate"] == "stock_photo"))
    elif row["cluster_id"] is not None:
        same = photos[row["cluster_id"]]["picture"] == photo["picture"]
        judged.append(("photos called a copy that are one", same))
    if row["why_duplicate"] is None:
        dropped = row["why_scored"] == "junk"
        judged.append(("junk removed", dropped) if _is_junk(photo) else ("photos of cars kept", not dropped))
    return judged


def _is_junk(photo: Mapping[str, Any]) -> bool:
    return bool(photo["kind"] != "exterior")
