"""Write a published data set with its photos in the formats of other loaders, one file at a time.

`webdataset`: SPLIT-00000.tar with a KEY.jpg and a KEY.json for each photo. `datasets`: data/SPLIT-00000.parquet with
the JPEG in a column `image`, which that library opens as pictures. Both with manifest.json and README.md. The folder
appears whole: it is written beside, under a name with `.forecourt-partial`, and renamed at the end. Neither the time of
export nor the machine shows in it.
"""

import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.catalog import Catalog
from schemas.command import Progress
from schemas.errors import IntegrityError, ReconcileError, UsageError
from schemas.manifest import SPLITS, Manifest, rows_reader
from schemas.receipts import INGEST_STAGES, file_sha256, read_receipt
from schemas.shards import Shard
from schemas.storage import Root, reported, sync_file, sync_folder

EXPORTS = ("webdataset", "datasets")
_MARK = "export.json"
_PHOTOS_PER_FILE = 5_000
# Photos whose bytes are in memory at once: some 10 MB.
_PHOTOS_AT_ONCE = 500
# What `datasets` calls the splits.
_HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}
# Columns of a data set that mean nothing outside its root.
_LEFT_OUT = frozenset({"part"})


@dataclass(frozen=True, slots=True)
class _Photo:
    row: Mapping[str, Any]
    jpeg: bytes


def export(root: Root, manifest: Manifest, form: str, out: Path) -> dict[str, Any]:
    """Write the data set with its photos into the new folder `out`, unless it is there already; return the last line.

    Photos that were withdrawn or replaced since the version was published are left out and counted.

    Raises:
        UsageError: `out` holds something else.
        IntegrityError: a photo's part is committed no more.
    """
    asked = {"dataset": manifest.name, "version": manifest.version, "format": form}
    if (done := _done(out)) is not None:
        if {name: done.get(name) for name in asked} != asked:
            raise UsageError(
                f"{out} holds another export, {done.get('dataset')}@{done.get('version')}; name a new folder"
            )
        return {**_last_line(done), "out": str(out), "unchanged": True}
    with reported(str(out), writing=True):
        beside = _beside(out)
        counts, files = Counter[str](), {}
        photos = _photos(root, manifest, counts)
        for name in (_write_tars if form == "webdataset" else _write_parquets)(photos, beside, manifest):
            files[name] = _sealed(beside, name)
        if counts.total() != manifest.counts["kept"]:
            raise ReconcileError(
                f"{manifest.counts['kept']:,} photos are in {manifest.reference}, found {dict(counts)}"
            )
        for name, text in _documents(root, manifest, form).items():
            (beside / name).write_bytes(text)
            files[name] = _sealed(beside, name)
        done = {**asked, **{name: counts[name] for name in ("exported", "withdrawn", "replaced")}, "files": files}
        (beside / _MARK).write_text(json.dumps(done, indent=1) + "\n", encoding="ascii")
        sync_file(beside / _MARK)
        beside.rename(out)
        sync_folder(out.parent)
    return {**_last_line(done), "out": str(out), "unchanged": False}


def _last_line(done: Mapping[str, Any]) -> dict[str, Any]:
    return {**done, "files": len(done["files"])}


def _done(out: Path) -> dict[str, Any] | None:
    """Read what a finished export says of itself; None where there is nothing yet.

    Raises:
        UsageError: something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        read: dict[str, Any] = json.loads((out / _MARK).read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{out} is no export of a data set; --out names a folder that is new or empty") from error
    return read


def _beside(out: Path) -> Path:
    """Make the folder to write in, in the place of one that a killed run left."""
    beside = out.with_name(f".{out.name}.forecourt-partial")
    if beside.exists():
        shutil.rmtree(beside)
    (beside / "data").mkdir(parents=True)
    return beside


def _sealed(folder: Path, name: str) -> dict[str, Any]:
    sync_file(folder / name)
    return {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}


def _photos(root: Root, manifest: Manifest, counts: Counter[str]) -> Iterator[_Photo]:
    """Yield the photos by split, part and key, so that each shard is opened once a split and read as it lies."""
    progress = Progress(manifest.counts["kept"], "photos")
    columns = ", ".join(f"'{split}'" for split in SPLITS)
    with Catalog(root, files={}) as catalog:
        catalog.load("rows", rows_reader(root, manifest))
        sql = f"FROM rows ORDER BY list_position([{columns}], split), part, key"
        batches = catalog.stream(sql, rows_per_batch=_PHOTOS_AT_ONCE)
        for part, rows in groupby((row for batch in batches for row in batch.to_pylist()), key=lambda row: row["part"]):
            with Shard.open(root, _shard_name(root, part)) as shard:
                for row in rows:
                    what, photo = _read(shard, row)
                    counts[what] += 1
                    if photo is not None:
                        yield photo
                    progress.show(counts.total())
    progress.close()


def _read(shard: Shard, row: Mapping[str, Any]) -> tuple[str, _Photo | None]:
    if row["key"] not in shard:
        return "withdrawn", None
    jpeg = shard.get(row["key"])
    if hashlib.sha256(jpeg).hexdigest() != row["sha256"]:
        return "replaced", None
    return "exported", _Photo({name: value for name, value in row.items() if name not in _LEFT_OUT}, jpeg)


def _shard_name(root: Root, part: str) -> str:
    for stage in INGEST_STAGES:
        if (receipt := read_receipt(root, stage, part)) is not None:
            return receipt.file("shards")
    raise IntegrityError(f"the data set's photos are in part {part!r}, which is committed no more; publish it again")


def _files_of(photos: Iterator[_Photo]) -> Iterator[tuple[str, int, Iterator[_Photo]]]:
    """Cut photos into files: the split, the file's number in it, and its photos, to be read before the next."""
    for split, of_split in groupby(photos, key=lambda photo: photo.row["split"]):
        numbered = groupby(enumerate(of_split), key=lambda pair: pair[0] // _PHOTOS_PER_FILE)
        for number, pairs in numbered:
            yield split, number, (photo for _, photo in pairs)


def _write_tars(photos: Iterator[_Photo], folder: Path, manifest: Manifest) -> Iterator[str]:
    """Write and name tar files; a sample's name is its key with `/` and `.` escaped, where WebDataset cuts names."""
    for split, number, of_file in _files_of(photos):
        name = f"data/{split}-{number:05d}.tar"
        with tarfile.open(folder / name, "w", format=tarfile.PAX_FORMAT) as tar:
            for photo in of_file:
                sample = quote(photo.row["key"], safe="").replace(".", "%2E")
                targets = json.dumps(_json_row(photo.row), ensure_ascii=True).encode()
                for suffix, data in ((".jpg", photo.jpeg), (".json", targets)):
                    member = tarfile.TarInfo(sample + suffix)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        yield name


def _json_row(row: Mapping[str, Any]) -> dict[str, Any]:
    price = row["price_usd"]
    return {**row, "price_usd": None if price is None else float(price)}


def _write_parquets(photos: Iterator[_Photo], folder: Path, manifest: Manifest) -> Iterator[str]:
    """Write and name Parquet files whose schema tells `datasets` what is a picture and what a class."""
    schema = _hub_schema(manifest)
    for split, number, of_file in _files_of(photos):
        name = f"data/{_HUB_SPLITS[split]}-{number:05d}.parquet"
        with pq.ParquetWriter(folder / name, schema, compression="zstd") as file:
            for rows in _cut(of_file, _PHOTOS_AT_ONCE):
                file.write_table(pa.Table.from_pylist([_hub_row(photo) for photo in rows], schema=schema))
        yield name


def _cut(photos: Iterator[_Photo], size: int) -> Iterator[list[_Photo]]:
    chunk: list[_Photo] = []
    for photo in photos:
        chunk.append(photo)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _hub_row(photo: _Photo) -> dict[str, Any]:
    path = f"{quote(photo.row['key'], safe='')}.jpg"
    return {"image": {"bytes": photo.jpeg, "path": path}, **_json_row(photo.row)}


def _hub_schema(manifest: Manifest) -> pa.Schema:
    """Return the columns, with the features of `datasets` in the metadata where that library looks for them."""
    words = manifest.vocabulary
    classes = {
        "price_bin": words.price_classes,
        "make_model_id": words.make_model_classes,
        "year_id": words.year_classes,
    }
    kinds: dict[str, pa.DataType] = {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()})}
    texts = "key split group_id site listing_id make model make_model sha256".split()
    kinds |= dict.fromkeys(texts, pa.string())
    kinds |= dict.fromkeys(("year", "width_px", "height_px"), pa.int32())
    kinds |= dict.fromkeys(("price_usd", "odometer_mi"), pa.float64())
    kinds |= dict.fromkeys(classes, pa.int64())
    names = {pa.string(): "string", pa.int32(): "int32", pa.float64(): "float64"}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features |= {name: {"dtype": names[kind], "_type": "Value"} for name, kind in kinds.items() if kind in names}
    features |= {name: {"names": list(labels), "_type": "ClassLabel"} for name, labels in classes.items()}
    info = json.dumps({"info": {"features": {name: features[name] for name in kinds}}})
    return pa.schema(list(kinds.items()), metadata={"huggingface": info})


def _documents(root: Root, manifest: Manifest, form: str) -> dict[str, bytes]:
    """Return the files beside the photos."""
    card = root.read_bytes(f"{manifest.folder}/README.md")
    if form == "datasets":
        card = _hub_head(manifest).encode("ascii") + card
    return {"manifest.json": root.read_bytes(f"{manifest.folder}/manifest.json"), "README.md": card}


def _hub_head(manifest: Manifest) -> str:
    """Say where each split's files are, as `datasets` reads it from a card."""
    splits: Sequence[str] = [split for split in SPLITS if manifest.splits[split].photos]
    places = "".join(f"  - split: {_HUB_SPLITS[one]}\n    path: data/{_HUB_SPLITS[one]}-*.parquet\n" for one in splits)
    return f"---\nconfigs:\n- config_name: default\n  data_files:\n{places}---\n\n"
