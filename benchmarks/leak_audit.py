"""Measure what a split by photo flatters on real dealer photos: a linear probe in folds by photo and by listing.

    python -m benchmarks.leak_audit ../shared/data/cars

FOLDER holds photos and a labels.csv with the columns file, kind, make, model, listing_id, price_usd, price_kind and
currency. Taken are dealer photos of cars from outside: for make and model those that at least three listings have, for
price asking prices in US dollars. They are stored as a crawl stores them and embedded by pipeline/embed.py; the probe
is that of the report's leak audit. The last line is one JSON object.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipeline.embeddings import read_embeddings
from pipeline.leak_audit import Probe, probe
from schemas.image import ImageSettings, store
from schemas.receipts import PartWriter
from schemas.shards import ShardSettings, ShardWriter
from schemas.storage import Root
from schemas.tables import ATTEMPTS, LISTINGS, PHOTOS, photo_key, table_of

ROOM = Path(__file__).resolve().parent.parent
ENCODER = "efficientnet_lite0"
SITE, PART = "dealers", "dealers-0"
MIN_LISTINGS = 3
# Where price bins end, in dollars: those of the original work.
CUTS_USD = [10_000, 15_000, 20_000, 25_000, 30_000, 35_000, 40_000, 50_000, 60_000]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOM.parent / "shared" / "data" / "cars"
    parser.add_argument("folder", nargs="?", type=Path, default=default, metavar="FOLDER", help=f"({default})")
    arguments = parser.parse_args(argv)
    if not (arguments.folder / "labels.csv").is_file():
        print(json.dumps({"skipped": f"no labels.csv in {arguments.folder}"}))
        return 0
    print(json.dumps({one.target: {**asdict(one), "inflation": one.inflation} for one in audit(arguments.folder)}))
    return 0


def audit(folder: Path) -> tuple[Probe, Probe]:
    """Probe make and model, then price."""
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "exterior" and row["listing_id"]]
    keyed = {photo_key(SITE, row["listing_id"], index): row for index, row in enumerate(rows)}
    with tempfile.TemporaryDirectory(prefix="forecourt-leak-") as scratch:
        root = Root.open(scratch, create=True)
        _store(root, folder, keyed)
        command = [sys.executable, str(ROOM / "pipeline" / "embed.py"), "--root", scratch]
        subprocess.run([*command, "--set", f"embed.encoder={ENCODER}"], check=True, stdout=subprocess.DEVNULL)
        parts = list(read_embeddings(root, ENCODER))
    found = [keyed[key] for keys, _ in parts for key in keys]
    features = np.concatenate([vectors for _, vectors in parts]).astype(np.float64)
    listings = [row["listing_id"] for row in found]
    make_models = [f"{row['make']} {row['model']}" if row["make"] and row["model"] else None for row in found]
    return (
        probe("make_model", features, make_models, listings, min_groups=MIN_LISTINGS),
        probe("price", features, [_price_bin(row) for row in found], listings),
    )


def _price_bin(row: Mapping[str, str]) -> int | None:
    if row["price_kind"] != "asking" or not row["price_usd"]:
        return None
    return int(np.searchsorted(CUTS_USD, float(row["price_usd"]), side="right"))


def _store(root: Root, folder: Path, keyed: Mapping[str, Mapping[str, str]]) -> None:
    """Commit the photos as one crawled part."""
    writer = PartWriter(root, "crawl", PART, token="leak", fence=lambda: None)
    photos = []
    with ShardWriter(writer.stage_path("shards", ".lmdb"), ShardSettings(min_free_bytes=0)) as shard:
        for index, (key, row) in enumerate(keyed.items()):
            photo = store((folder / row["file"]).read_bytes(), ImageSettings())
            shard.put(key, photo.jpeg)
            place = {"key": key, "site": SITE, "listing_id": row["listing_id"], "photo_index": index, "part": PART}
            photos.append({**place, "outcome": "stored", **photo.columns()})
        shard.seal()
    listings = sorted({row["listing_id"] for row in keyed.values()})
    counted = {name: sum(photo["listing_id"] == name for photo in photos) for name in listings}
    named = [{"site": SITE, "listing_id": name} for name in listings]
    writer.write_table("photos", table_of(photos, PHOTOS))
    writer.write_table("listings", table_of([{**n, "num_photos": counted[n["listing_id"]]} for n in named], LISTINGS))
    writer.write_table("attempts", table_of([{**n, "outcome": "found", "num_tries": 1} for n in named], ATTEMPTS))
    counts = {"ids": len(listings), "found": len(listings), "photos": len(photos), "stored": len(photos)}
    writer.commit(counts=counts, settings={}, code_version="benchmark")


if __name__ == "__main__":
    raise SystemExit(main())
