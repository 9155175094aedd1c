"""Measure the exact tier on synthetic rows: seconds and peak memory, beside pandas doing the same in the same run.

    python benchmarks/exact_tier.py --rows 50000000 --naive-rows 5000000
    python benchmarks/exact_tier.py --rows 1000000 --share 0.5

Makes a root of N stored photos without bytes (about 90 bytes a row on disk), runs pipeline/dedup.py on it in a process
of its own, and the few lines of pandas one would write instead on the first rows. The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.receipts import PartWriter
from schemas.storage import Root
from schemas.tables import LISTINGS, PHOTOS

ROWS_PER_PART = 500_000
PHOTOS_PER_LISTING = 10
GIB = 1 << 30

NAIVE = """
import sys, glob, json, pandas as pd
root, rows = sys.argv[1], int(sys.argv[2])
names = sorted(glob.glob(root + "/photos/*.parquet"))
columns = ["key", "site", "listing_id", "coarse_hash", "source_width_px", "source_height_px"]
photos = pd.concat([pd.read_parquet(name, columns=columns) for name in names]).head(rows)
names = [name.replace("/photos/", "/listings/") for name in names]
cars = pd.concat([pd.read_parquet(name, columns=["site", "listing_id", "vin"]) for name in names])
photos = photos.merge(cars, on=["site", "listing_id"], how="left")
photos["car"] = photos.vin.fillna(photos.listing_id)
photos["pixels"] = photos.source_width_px * photos.source_height_px
photos = photos.sort_values(["pixels", "key"], ascending=[False, True])
groups = photos.groupby("coarse_hash")
stock = groups.car.transform("nunique") >= 4
dropped = photos.duplicated("coarse_hash") & ~stock
print(json.dumps({"photos": len(photos), "exact_dropped": int(dropped.sum()), "stock_dropped": int(stock.sum())}))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Make the roots, run both, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000, help="stored photos (default: 5,000,000)")
    parser.add_argument("--naive-rows", type=int, default=2_000_000, help="rows for pandas; 0 leaves it out")
    parser.add_argument("--share", type=float, default=0.1, help="share of rows that show an earlier picture")
    parser.add_argument("--memory-gib", type=float, default=2.0, help="catalog.memory_gib")
    parser.add_argument("--folder", help="where to make the root (default: the system's temporary folder)")
    args = parser.parse_args(argv)
    answer: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        answer["ours"] = _measure_ours(Path(folder), args.rows, args)
        if args.naive_rows:
            rows = min(args.rows, args.naive_rows)
            ours = answer["ours"] if rows == args.rows else _measure_ours(Path(folder), rows, args)
            naive = _measure([sys.executable, "-c", NAIVE, str(Path(folder) / str(rows)), str(rows)])
            answer |= {"ours_same_rows": ours, "pandas": naive}
            answer["agrees"] = all(ours[name] == naive[name] for name in ("photos", "exact_dropped", "stock_dropped"))
            answer["seconds_ratio"] = round(naive["wall_s"] / ours["wall_s"], 2)
            answer["memory_ratio"] = round(naive["peak_gib"] / ours["peak_gib"], 2)
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


def _measure_ours(folder: Path, rows: int, args: argparse.Namespace) -> dict[str, Any]:
    root = folder / str(rows)
    _make_root(Root.open(str(root), create=True), rows, args.share)
    script = Path(__file__).resolve().parent.parent / "pipeline" / "dedup.py"
    limits = ["--set", f"catalog.memory_gib={args.memory_gib}"]
    if args.folder:
        limits += ["--set", f"catalog.temp_folder={args.folder}"]
    return _measure([sys.executable, str(script), "--root", str(root), *limits])


def _measure(command: list[str]) -> dict[str, Any]:
    """Run a command; return its last line, its wall time and its largest resident size, mapped files included."""
    started_s = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:2]} failed: {lines[-1:]}")
    peak = round(usage.ru_maxrss * 1024 / GIB, 2)
    return {**json.loads(lines[-1]), "wall_s": round(time.monotonic() - started_s, 1), "peak_gib": peak}


def _make_root(root: Root, rows: int, share: float) -> None:
    for first in range(0, rows, ROWS_PER_PART):
        ids = np.arange(first, min(rows, first + ROWS_PER_PART), dtype=np.uint64)
        writer = PartWriter(root, "crawl", f"bench-{first:012d}", token="bench", fence=lambda: None)
        writer.write_table("photos", _photos(ids, share, writer.part))
        writer.write_table("listings", _listings(ids))
        writer.commit(counts={"photos": len(ids), "stored": len(ids)}, settings={}, code_version="bench")


def _photos(ids: NDArray[np.uint64], share: float, part: str) -> pa.Table:
    noise = _mix(ids)
    copied = (noise >> np.uint64(11)).astype(np.float64) / 2**53 < share
    # Half of the copies are of a few hundred stock pictures, the others of any earlier photo.
    stock = (noise & np.uint64(1)) == 1
    source = np.where(stock, noise % np.uint64(300), _mix(noise) % (ids + np.uint64(1)))
    content = np.where(copied, source, ids)
    listing_id = pa.array(ids // np.uint64(PHOTOS_PER_LISTING)).cast(pa.string())
    index = pa.array((ids % np.uint64(PHOTOS_PER_LISTING)).astype(np.int32))
    padded = pc.utf8_lpad(index.cast(pa.string()), 3, "0")
    width = (1200 + _mix(content + np.uint64(7)) % np.uint64(3)).astype(np.int32)
    known: dict[str, Any] = {
        "key": pc.binary_join_element_wise("bench", listing_id, padded, "/"),
        "site": pa.repeat("bench", len(ids)),
        "listing_id": listing_id,
        "photo_index": index,
        "outcome": pa.repeat("stored", len(ids)),
        "source_width_px": pa.array(width),
        "source_height_px": pa.repeat(pa.scalar(900, pa.int32()), len(ids)),
        "sha256": _hex(content, salt=1),
        "coarse_hash": _hex(content, salt=2),
        "phash": pa.array(_mix(content)),
        "part": pa.repeat(part, len(ids)),
    }
    return _table(known, PHOTOS, len(ids))


def _listings(ids: NDArray[np.uint64]) -> pa.Table:
    listings = np.unique(ids // np.uint64(PHOTOS_PER_LISTING))
    known: dict[str, Any] = {
        "site": pa.repeat("bench", len(listings)),
        "listing_id": pa.array(listings).cast(pa.string()),
        "vin": pa.array(listings // np.uint64(2)).cast(pa.string()),  # every car is listed twice
        "num_photos": pa.repeat(pa.scalar(PHOTOS_PER_LISTING, pa.int32()), len(listings)),
    }
    return _table(known, LISTINGS, len(listings))


def _table(known: dict[str, Any], schema: pa.Schema, rows: int) -> pa.Table:
    columns = [known.get(field.name, pa.nulls(rows, field.type)) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit numbers one to one (splitmix64's finaliser)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hex(content: NDArray[np.uint64], *, salt: int) -> pa.Array:
    """Return 64 hex digits that are one to one with `content`."""
    words = np.stack([_mix(content + np.uint64(salt * 4 + i << 40)) for i in range(4)], axis=1)
    digits = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), dtype=np.uint16)
    text = digits[words.view(np.uint8)]
    offsets = np.arange(len(content) + 1, dtype=np.int32) * 64
    return pa.StringArray.from_buffers(len(content), pa.py_buffer(offsets), pa.py_buffer(text))


if __name__ == "__main__":
    raise SystemExit(main())
