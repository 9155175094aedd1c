"""Measure embedding from shards to Parquet beside the bare model, and beside what a user would write instead.

    python -m benchmarks.embed
    python -m benchmarks.embed --photos ../shared/data/cars --num-photos 2000 --rounds 5

The photos are those of a folder with a labels.csv, again and again until there are enough, or drawn ones; they are
stored as a crawl stores them. `stage` is pipeline/embed.py: photos over the time from the begin of the first part to
the commit of the last, so that starting Ray and loading the model are aside. `bare` is the same architecture at the
same precision and batch on inputs that lie ready. They take turns, and the medians make the ratio; the claim is 0.9.
`usual` is the recipe of tutorials: a DataLoader over files, Pillow, float32. Then the stage runs again, which must
embed nothing, and once more on an empty folder with SIGKILL half-way and a rerun, which must make the same bytes.
The last line is one JSON object.
"""

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from benchmarks import lab
from pipeline.demo_truth import stored_photos
from pipeline.drawn_site.photos import encode_picture
from pipeline.drawn_site.server import FIRST_ID
from pipeline.drawn_site.stock import DrawnStock
from pipeline.embed_encoders import load_encoder
from pipeline.embeddings import DEFAULT_ENCODER, embed_stage, embeddings_folder
from schemas.image import ImageSettings, store
from schemas.receipts import PartWriter, read_receipts
from schemas.shards import ShardSettings, ShardWriter
from schemas.storage import Root
from schemas.tables import ATTEMPTS, LISTINGS, PHOTOS, photo_key, table_of

MIN_RATIO = 0.9
_PHOTOS = lab.ROOM.parent / "shared" / "data" / "cars"
_ARCHITECTURE = "tf_efficientnet_lite0"
_PER_PART = 250
_KILLED_AFTER_PARTS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; exit 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=_PHOTOS, help=f"folder of photos with a labels.csv ({_PHOTOS})")
    parser.add_argument("--num-photos", type=int, default=2000, help="photos embedded (2000)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (3)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="forecourt-embed-") as text:
        folder = Path(text)
        root = Root.open(str(folder / "root"), create=True)
        files = _fill(root, folder / "files", args.photos, args.num_photos)
        answer = _measured(root, args.rounds)
        answer["usual_per_s"] = round(usual_rate(files[:256]), 1)
        answer["times_usual"] = round(answer["stage_per_s"] / answer["usual_per_s"], 2)
        answer["again_embedded"] = lab.run("embed.py", "--root", root.text)["done_now"]
        answer["killed_is_equal"] = _killed_is_equal(root)
    ok = answer["ratio"] >= MIN_RATIO and answer["again_embedded"] == 0 and answer["killed_is_equal"]
    print(json.dumps({"ok": ok, **answer}))
    return 0 if ok else 1


def _measured(root: Root, rounds: int) -> dict[str, Any]:
    encoder = load_encoder(DEFAULT_ENCODER)
    bare, stage = [], []
    for _ in range(rounds):
        bare.append(bare_rate(encoder.device, encoder.precision, encoder.batch_size))
        stage.append(stage_rate(root))
        print(json.dumps({"bare_per_s": round(bare[-1], 1), "stage_per_s": round(stage[-1], 1)}), flush=True)
    bare_per_s, stage_per_s = statistics.median(bare), statistics.median(stage)
    return {
        "photos": sum(receipt.counts["stored"] for receipt in read_receipts(root, "crawl")),
        "device": encoder.device,
        "precision": encoder.precision,
        "bare_per_s": round(bare_per_s, 1),
        "stage_per_s": round(stage_per_s, 1),
        "ratio": round(stage_per_s / bare_per_s, 3),
    }


def bare_rate(device: str, precision: str, batch_size: int, *, seconds: float = 12.0) -> float:
    """Run the architecture alone on inputs that lie ready; return photos a second."""
    model = timm.create_model(_ARCHITECTURE, pretrained=False, num_classes=0).eval()
    model = model.to(device).to(memory_format=torch.channels_last)
    ready = torch.randn(batch_size, 3, 224, 224, device=device).to(memory_format=torch.channels_last)
    half = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    done = 0
    with torch.inference_mode(), torch.autocast(device, dtype=half, enabled=precision != "fp32"):
        for _ in range(5):
            model(ready)
        _settle(device)
        started_s = time.perf_counter()
        while time.perf_counter() - started_s < seconds:
            model(ready)
            done += batch_size
        _settle(device)
        return done / (time.perf_counter() - started_s)


def stage_rate(root: Root) -> float:
    """Embed the whole root by the stage; return photos a second, start-up aside."""
    _forget(root)
    lab.run("embed.py", "--root", root.text)
    receipts = list(read_receipts(root, embed_stage(DEFAULT_ENCODER)))
    ended_s = max(receipt.created_at.timestamp() for receipt in receipts)
    begun_s = min(receipt.created_at.timestamp() - receipt.seconds for receipt in receipts)
    return sum(receipt.counts["embedded"] for receipt in receipts) / (ended_s - begun_s)


class _Files(torch.utils.data.Dataset[torch.Tensor]):
    """Photos of a folder as tutorials read them."""

    def __init__(self, files: Sequence[Path], transform: Any) -> None:
        self._files, self._transform = files, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self._files[index]) as image:
            return torch.as_tensor(self._transform(image.convert("RGB")))


def usual_rate(files: Sequence[Path]) -> float:
    """Embed files as timm's documentation does, with a DataLoader; return photos a second."""
    model = timm.create_model(_ARCHITECTURE, pretrained=False, num_classes=0).eval()
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]  # as timm wrote it
    transform = create_transform(**config, is_training=False)
    loader = torch.utils.data.DataLoader(_Files(files, transform), batch_size=64, num_workers=os.cpu_count() or 1)
    started_s = time.perf_counter()
    with torch.inference_mode():
        for batch in loader:
            model(batch)
    return len(files) / (time.perf_counter() - started_s)


def _killed_is_equal(root: Root) -> bool:
    """Kill the stage half-way with SIGKILL, run it again, and compare every file's checksum with those before."""
    before = _checksums(root)
    _forget(root)
    process = lab.start("embed.py", "--root", root.text)
    receipts = Path(root.path(f"receipts/{embed_stage(DEFAULT_ENCODER)}"))
    while process.poll() is None and len(list(receipts.glob("*.json"))) < _KILLED_AFTER_PARTS:
        time.sleep(0.05)
    family = lab.family(process.pid)
    process.kill()
    process.wait()
    for one in lab.wait_gone(family, 10.0):
        with suppress(psutil.NoSuchProcess):
            one.kill()
    lab.run("embed.py", "--root", root.text)
    return _checksums(root) == before


def _checksums(root: Root) -> dict[str, str]:
    folder = embeddings_folder(DEFAULT_ENCODER)
    receipts = read_receipts(root, embed_stage(DEFAULT_ENCODER))
    return {receipt.part: receipt.files[receipt.file(folder)].sha256 for receipt in receipts}


def _forget(root: Root) -> None:
    """Take all embeddings away."""
    for folder in (f"receipts/{embed_stage(DEFAULT_ENCODER)}", embeddings_folder(DEFAULT_ENCODER)):
        for name in root.list(folder):
            root.remove(name)


def _settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _fill(root: Root, folder: Path, photos: Path, count: int) -> list[Path]:
    """Store photos in parts as a crawl does, and as files; return the files."""
    folder.mkdir()
    files = []
    sources = islice(_sources(photos, count), count)
    for start in range(0, count, _PER_PART):
        writer = PartWriter(root, "crawl", f"cars-{start:06d}", token="bench", fence=lambda: None)
        rows = []
        with ShardWriter(writer.stage_path("shards", ".lmdb"), ShardSettings(min_free_bytes=0)) as shard:
            for number, source in zip(range(start, min(start + _PER_PART, count)), sources, strict=False):
                key, photo = photo_key("cars", f"{number:06d}", 0), store(source, ImageSettings())
                shard.put(key, photo.jpeg)
                files.append(folder / f"{number:06d}.jpg")
                files[-1].write_bytes(photo.jpeg)
                place = {"key": key, "site": "cars", "listing_id": f"{number:06d}", "photo_index": 0}
                rows.append({**place, "part": writer.part, "outcome": "stored", **photo.columns()})
            shard.seal()
        writer.write_table("photos", table_of(rows, PHOTOS))
        writer.write_table("listings", LISTINGS.empty_table())
        writer.write_table("attempts", ATTEMPTS.empty_table())
        writer.commit(counts={"photos": len(rows), "stored": len(rows)}, settings={}, code_version="benchmark")
    return files


def _sources(photos: Path, count: int) -> Iterator[bytes]:
    """Give the photos of a folder again and again, or drawn ones where there is no folder."""
    if (photos / "labels.csv").is_file():
        with (photos / "labels.csv").open(encoding="utf-8", newline="") as file:
            names = [row["file"] for row in csv.DictReader(file)]
        yield from ((photos / name).read_bytes() for name in cycle(names))
    stock = DrawnStock(seed=0, first=FIRST_ID, last=FIRST_ID + count)
    for key in cycle(sorted(stored_photos(count))):
        photo = stock.listing(int(key.split("/")[1])).photos[int(key.split("/")[2])]
        assert photo.picture is not None
        yield encode_picture(0, photo.picture)


if __name__ == "__main__":
    raise SystemExit(main())
