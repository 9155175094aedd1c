"""Build a small root for reports with the real stages: some listings, copies, embeddings, labels, filter, data set."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.catalog import query
from pipeline.dedup import DedupSettings, dedup
from pipeline.embeddings import DEFAULT_ENCODER, embed_stage, embeddings_folder, embeddings_table
from pipeline.publish import publish
from pipeline.publish_content import PublishSettings
from pipeline.score import ScoreSettings, score
from schemas.receipts import PartWriter
from schemas.storage import Root
from schemas.tables import LABELS, table_of
from tests.pipeline.roots import FETCHED_AT, Listing, Missed, flat, new_root, noise, write_part

HOSTILE_MAKE = "<script>alert('make')</script>"
PART, DIM, PHOTOS_OF_LISTING = "demo-0", 16, 4
MAKES = (HOSTILE_MAKE, "Volvo", "Saab", "$kod$a", "Renault")


def crawled(folder: Path, *, num_listings: int = 40) -> Root:
    """Write listings of four photos: the third is junk, and each tenth listing shows a photo of the one before."""
    root = new_root(folder)
    rows: list[Listing | Missed] = [
        Missed("900"),
        Missed("901", "disallowed", "robots"),
        Missed("902", "failed", "http_429"),
    ]
    for number in range(num_listings):
        first = 10 * (number - 1) if number % 10 == 9 else 10 * number
        photos: list[bytes | None] = [
            noise(first),
            *(noise(10 * number + index) for index in range(1, PHOTOS_OF_LISTING)),
        ]
        if number == 0:
            photos.append(None)
        if number < 5:
            photos.append(flat(120))
        rows.append(Listing(f"{number:03d}", photos, columns=_columns(number)))
    write_part(root, PART, rows)
    return root


def _columns(number: int) -> dict[str, Any]:
    make = MAKES[number % len(MAKES)]
    price = None if number == 3 else 5_000 + 2_100 * number
    return {
        "title": f"{make} & <b>Model</b> {number}",
        "make": make,
        "model": "A\u0416\U0001f697" if number % 2 else "B",
        "year": 2000 + number % 25,
        "price": price,
        "currency": "USD",
        "price_usd": price,
        "odometer_mi": 6_000.0 * number,
        "exterior_color": ("White", "<i>black</i>", "red")[number % 3],
    }


def deduplicated(root: Root) -> None:
    """Run the exact tier."""
    dedup(root, DedupSettings())


def embedded(root: Root) -> None:
    """Write embeddings that tell junk from keepers and, less, one listing from another."""
    keys = query(root, "SELECT key FROM photos WHERE outcome = 'stored' ORDER BY key")["key"].to_pylist()
    vectors = np.stack([_vector(key) for key in keys])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    writer = PartWriter(root, embed_stage(DEFAULT_ENCODER), PART, token="test", fence=lambda: None)
    writer.write_table(embeddings_folder(DEFAULT_ENCODER), embeddings_table(keys, vectors.astype(np.float16)))
    writer.commit(counts={"embedded": len(keys), "unreadable": 0}, settings={}, code_version="test")


def is_junk(key: str) -> bool:
    return key.endswith("/002")


def _vector(key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    listing = np.random.default_rng(int(key.split("/")[1]))
    own = np.random.default_rng(int(hashlib.md5(key.encode()).hexdigest()[:8], 16))
    vector = listing.normal(size=DIM) + 0.5 * own.normal(size=DIM)
    vector[0] = 6.0 if is_junk(key) else -6.0
    return vector


def labelled(root: Root) -> None:
    """Label all photos but those of every third listing, two keepers as junk."""
    keys = query(root, "SELECT key FROM photos WHERE outcome = 'stored' ORDER BY key")["key"].to_pylist()
    wrong = {"demo/004/001", "demo/010/001"}
    rows = [
        {
            "key": key,
            "label": "junk" if is_junk(key) != (key in wrong) else "keep",
            "junk_type": "<u>seats</u>" if is_junk(key) and key not in wrong else None,
            "sampled_by": "random",
            "labeller": "someone",
            "labelled_at": FETCHED_AT,
        }
        for key in keys
        if int(key.split("/")[1]) % 3
    ]
    writer = PartWriter(root, "label", "all", token="test", fence=lambda: None)
    writer.write_table("labels", table_of(rows, LABELS))
    writer.commit(counts={"labels": len(rows)}, settings={}, code_version="test")


def scored(root: Root) -> None:
    """Fit the filter and score all photos."""
    score(root, ScoreSettings())


def published(root: Root, name: str = "cars") -> None:
    """Publish a data set."""
    publish(root, name, PublishSettings())


def curated(folder: Path) -> Root:
    """Run all of it."""
    root = crawled(folder)
    for stage in (deduplicated, embedded, labelled, scored, published):
        stage(root)
    return root
