"""Publish a data set: the photos that are kept, with targets and a split by group that leaks nothing.

Reads: photos, listings, duplicates, scores, and which photos embed could not open. Writes datasets/NAME/VERSION/
(photos/, outcomes/, manifest.json, README.md, croissant.json) and, last, datasets/NAME/LATEST.

    python pipeline/publish.py --root data --dataset cars
    python pipeline/publish.py --root data --dataset cars --set publish.require=[price,make_model]
    python pipeline/publish.py --root data --diff cars@0123456789ab cars
    python pipeline/publish.py --root data --dataset cars --export webdataset --out cars-tar
    python pipeline/publish.py --root data --dataset cars --export datasets --out cars-parquet

VERSION is a hash of the content: rows, targets, vocabulary, settings. Versions never change and live side by side;
publishing what is published already does nothing. A photo is out for one reason, the first of: unreadable, exact,
near-duplicate, copy, stock photo, junk, no target. Groups keep the split they had in the parent (the latest version,
or `publish.parent`); groups that merge take train before val before test, and are counted.
Last line: `photos` (stored) = `unreadable` + all `..._dropped` + `kept`; `kept` = `train` + `val` + `test`; `groups`,
`dataset`, `version`. With `--diff`: what the second version has gained, lost and changed. With `--export`: `exported`.
"""

import argparse
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.catalog import TABLE_STAGES, Catalog, CatalogSettings, committed_tables, embedding_stages
from pipeline.global_stage import is_current
from pipeline.lease import Lease, hold_lease
from pipeline.leftovers import remove_half_written
from pipeline.publish_card import card, croissant
from pipeline.publish_content import Content, PublishSettings, require_shape
from pipeline.publish_diff import diff, diff_table
from pipeline.publish_export import EXPORTS, export
from schemas.command import run_script, script_parser
from schemas.errors import RunError, UsageError
from schemas.manifest import (
    DATASETS,
    LATEST,
    STAGE,
    Manifest,
    is_dataset_name,
    latest_version,
    read_manifest,
    version_folder,
)
from schemas.receipts import (
    FileEntry,
    PartWriter,
    Receipt,
    file_sha256,
    inputs_fingerprint,
    installed_version,
    read_receipt,
)
from schemas.settings import Section, load_settings, result_settings
from schemas.storage import Root
from schemas.tables import DATASET_OUTCOMES, DATASET_PHOTOS, FORMAT_VERSION

_ROWS_PER_FILE = 1_000_000

log = logging.getLogger("forecourt.publish")


def main(argv: Sequence[str] | None = None) -> int:
    """Publish, compare or export a data set."""
    return run_script(_parser(), _run, argv=argv)


def _run(args: argparse.Namespace) -> Mapping[str, Any]:
    settings = load_settings(_Settings, config=args.config, sets=args.sets)
    root = Root.open(args.root)
    if args.diff is not None:
        first, second = _references(args)
        answer = diff(root, first, second, settings.catalog)
        print(diff_table(answer))
        return answer
    if args.dataset is None:
        raise UsageError("publish.py takes --dataset NAME (or --diff A B); see publish.py --help")
    if args.export is None:
        return publish(root, args.dataset, settings.publish, settings.catalog)
    if args.out is None:
        raise UsageError(f"--export {args.export} takes --out FOLDER; see publish.py --help")
    return export(root, read_manifest(root, args.dataset), args.export, Path(args.out))


def _references(args: argparse.Namespace) -> tuple[str, str]:
    """Name both versions whole; beside --dataset NAME a bare version will do."""
    name = args.dataset
    first, second = (one if name is None or "@" in one or one == name else f"{name}@{one}" for one in args.diff)
    return first, second


class _Settings(Section):
    """The sections this script reads."""

    publish: PublishSettings = PublishSettings()
    catalog: CatalogSettings = CatalogSettings()


def publish(root: Root, name: str, settings: PublishSettings, limits: CatalogSettings | None = None) -> dict[str, Any]:
    """Publish the data set `name` as the committed tables make it, unless its latest version is just that.

    Raises:
        UsageError: `name` cannot name a folder, or the parent is not there.
        ReconcileError: a photo has no outcome or two; nothing was committed.
        RunError: no photo is left to publish.
        LeaseError: another run publishes on this root.
    """
    started_s = time.monotonic()
    if not is_dataset_name(name):
        raise UsageError(f"a data set's name is letters, digits, '.', '_' and '-', found {name!r}")
    with hold_lease(root, STAGE) as lease:
        _remove_leftovers(root)
        inputs = _inputs(root, settings)
        asked = {**result_settings(settings), "parent": settings.parent}
        manifest = _current(root, name, inputs, asked)
        unchanged = manifest is not None
        if manifest is None:
            with Catalog(root, limits, files=committed_tables(root)) as catalog:  # no data set: one may be damaged
                parent = _parent(root, name, settings)
                content = Content(root, catalog, settings, parent)
                manifest, unchanged = _commit(root, name, content, lease, inputs=inputs, settings=asked, parent=parent)
            lease.check()
            if latest_version(root, name) != manifest.version:
                root.write_bytes(f"{DATASETS}/{name}/{LATEST}", f"{manifest.version}\n".encode())
    log.info("event=published dataset=%s unchanged=%s", manifest.reference, unchanged)
    return {**_answer(manifest), "unchanged": unchanged, "seconds": round(time.monotonic() - started_s, 3)}


def _answer(manifest: Manifest) -> dict[str, Any]:
    train = manifest.splits["train"]
    return {
        **manifest.counts,
        "dataset": manifest.name,
        "version": manifest.version,
        "parent": manifest.parent,
        "make_models": len(manifest.vocabulary.make_models),
        "make_model_coverage": train.make_model_coverage,
        "groups_merged": manifest.inheritance.merged,
        "groups_moved": manifest.inheritance.moved,
        "withdrawn": manifest.inheritance.withdrawn,
        "notes": manifest.notes,
    }


def _inputs(root: Root, settings: PublishSettings) -> dict[str, str]:
    """Fingerprint all that publish reads; a parent that was asked for by its name may have a new version."""
    parent = _parent(root, "", settings) if settings.parent is not None else None
    embed = tuple(stage for stages in embedding_stages(root).values() for stage in stages)
    return {
        "ingest": inputs_fingerprint(root),
        "duplicates": inputs_fingerprint(root, TABLE_STAGES["duplicates"]),
        "embeddings": inputs_fingerprint(root, embed),
        "scores": inputs_fingerprint(root, TABLE_STAGES.get("scores", ())),
        "parent": "" if parent is None else parent.reference,
    }


def _current(root: Root, name: str, inputs: Mapping[str, str], asked: Mapping[str, Any]) -> Manifest | None:
    """Return the latest version where it was made from these inputs and settings and its files are whole.

    Its splits are then what they would be again: each group was in it, and takes the split it has there.
    """
    version = latest_version(root, name)
    receipt = None if version is None else read_receipt(root, STAGE, f"{name}@{version}")
    if receipt is None or not is_current(root, receipt, {**receipt.inputs, **inputs}, asked):
        return None
    return read_manifest(root, receipt.part)


def _parent(root: Root, name: str, settings: PublishSettings) -> Manifest | None:
    """Return the version whose splits go on, None for the first one."""
    if settings.parent is None:
        return None if latest_version(root, name) is None else read_manifest(root, name)
    return None if settings.parent == "none" else read_manifest(root, settings.parent)


def _commit(
    root: Root,
    name: str,
    content: Content,
    lease: Lease,
    *,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    parent: Manifest | None,
) -> tuple[Manifest, bool]:
    """Write the version that the content is, unless it is there; return its manifest, and whether it was there."""
    if not content.counts["kept"]:
        raise RunError(f"no photo is left to publish: {content.counts}; see pipeline/catalog.py for why each is out")
    version = content.version()
    part, read = f"{name}@{version}", {**inputs, "layout": content.layout()}
    receipt = read_receipt(root, STAGE, part)
    if receipt is not None and _holds(root, receipt, read["layout"]):
        return read_manifest(root, part), True
    writer = PartWriter(root, STAGE, part, token=lease.token, fence=lease.check)
    try:
        manifest = _stage(writer, name, version, content, inputs=inputs, settings=settings, parent=parent)
        writer.commit(counts=manifest.counts, settings=settings, inputs=read)
    except BaseException:
        writer.abandon()
        raise
    return manifest, False


def _holds(root: Root, receipt: Receipt, layout: str) -> bool:
    """Tell whether a version's files are whole, and name the parts where the photos lie now."""
    return is_current(root, receipt, {**receipt.inputs, "layout": layout}, receipt.settings)


def _stage(
    writer: PartWriter,
    name: str,
    version: str,
    content: Content,
    *,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    parent: Manifest | None,
) -> Manifest:
    """Stage all files of a version; a later generation, of photos that lie elsewhere, has its mark in its names."""
    folder = version_folder(name, version)
    files = {
        **_write_rows(writer, f"{folder}/photos", content.photos(), DATASET_PHOTOS),
        **_write_rows(writer, f"{folder}/outcomes", content.outcomes(), DATASET_OUTCOMES),
    }
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        version=version,
        parent=None if parent is None or parent.version == version else parent.reference,
        code_version=installed_version(),
        created_at=datetime.now(UTC),
        settings=dict(settings),
        inputs=dict(inputs),
        counts=content.counts,
        splits=content.splits,
        inheritance=content.inheritance,
        vocabulary=content.vocabulary,
        sites=content.photos_by("site"),
        parts=content.photos_by("part"),
        files=files,
        notes=content.notes,
    )
    for beside, text in (
        ("manifest.json", manifest.model_dump_json(indent=1) + "\n"),
        ("README.md", card(manifest)),
        ("croissant.json", croissant(manifest)),
    ):
        writer.stage_file(f"{folder}/{beside}").write_text(text, encoding="utf-8")
    return manifest


def _write_rows(
    writer: PartWriter, folder: str, batches: Iterator[pa.RecordBatch], schema: pa.Schema
) -> dict[str, FileEntry]:
    """Write sorted rows as Parquet files of a million each; return them by name."""
    mark = "" if writer.generation == 1 else f".g{writer.generation}"
    files: dict[str, Path] = {}
    for number, rows in _cut(batches):
        name = f"{folder}/{number:05d}{mark}.parquet"
        files[name] = writer.stage_file(name)
        with pq.ParquetWriter(files[name], schema, compression="zstd") as file:
            for batch in rows:
                file.write_batch(require_shape(batch, schema))
    return {name: FileEntry(bytes=path.stat().st_size, sha256=file_sha256(path)) for name, path in files.items()}


def _cut(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, Iterator[pa.RecordBatch]]]:
    """Cut rows into files, wherever batches end: the number of each, and its rows, to be read before the next."""

    def slices() -> Iterator[tuple[int, pa.RecordBatch]]:
        done = 0
        for batch in batches:
            start = 0
            while start < batch.num_rows:
                room = min(_ROWS_PER_FILE - done % _ROWS_PER_FILE, batch.num_rows - start)
                yield done // _ROWS_PER_FILE, batch.slice(start, room)
                start, done = start + room, done + room

    for number, rows in groupby(slices(), key=itemgetter(0)):
        yield number, map(itemgetter(1), rows)


def _remove_leftovers(root: Root) -> None:
    """Remove what killed runs left: half-written files, and whole ones of a version that no receipt names."""
    remove_half_written(root, [f"receipts/{STAGE}"])
    for data_set in root.list_folders(DATASETS):
        for folder in root.list_folders(data_set):
            remove_half_written(root, [folder, *root.list_folders(folder)])
            receipt = read_receipt(root, STAGE, f"{PurePosixPath(data_set).name}@{PurePosixPath(folder).name}")
            for name in (name for table in ("photos", "outcomes") for name in root.list(f"{folder}/{table}")):
                if receipt is None or name not in receipt.files:
                    log.info("event=leftover_removed file=%s", name)
                    root.remove(name)


def _parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__ or "")
    parser.add_argument("--dataset", metavar="NAME", help="the data set; NAME@VERSION names a version to export")
    parser.add_argument("--diff", nargs=2, metavar=("A", "B"), help="compare two versions, NAME[@VERSION] each")
    parser.add_argument("--export", choices=EXPORTS, help="write the data set with its photos in another format")
    parser.add_argument("--out", metavar="FOLDER", help="where --export writes; made by it")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
