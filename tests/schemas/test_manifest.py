import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import IntegrityError, UsageError
from schemas.manifest import (
    Inheritance,
    Manifest,
    Vocabulary,
    latest_version,
    read_manifest,
    read_rows,
    split_reference,
    version_folder,
)
from schemas.receipts import FileEntry, PartWriter, file_sha256
from schemas.storage import Root
from schemas.tables import DATASET_PHOTOS, FORMAT_VERSION, table_of

WORDS = Vocabulary(price_cuts_usd=[10_000, 12_500], make_models=["Volvo V70"], years=[2011, 2012])


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path / "root"), create=True)


def publish(root: Root, version: str, keys: list[str], *, committed: bool = True) -> Manifest:
    """Write a version as publish does, the rows in a file each."""
    folder = version_folder("cars", version)
    writer = PartWriter(root, "publish", f"cars@{version}", token="test", fence=lambda: None)
    files = {}
    for number, key in enumerate(keys):
        name = f"{folder}/photos/{number:05d}.parquet"
        row = {"key": key, "part": "demo-0", "split": "train", "group_id": key, "site": "demo", "listing_id": key}
        pq.write_table(table_of([{**row, "sha256": ""}], DATASET_PHOTOS), writer.stage_file(name))
        staged = writer.stage_file(name)
        files[name] = FileEntry(bytes=staged.stat().st_size, sha256=file_sha256(staged))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name="cars",
        version=version,
        parent=None,
        code_version="test",
        created_at=datetime(2026, 11, 30, tzinfo=UTC),
        settings={},
        inputs={},
        counts={"kept": len(keys)},
        splits={},
        inheritance=Inheritance(groups=0, merged=0, moved=0, withdrawn=0),
        vocabulary=WORDS,
        sites={},
        parts={},
        files=files,
    )
    writer.stage_file(f"{folder}/manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    if committed:
        writer.commit(counts=manifest.counts, settings={})
        root.write_bytes("datasets/cars/LATEST", f"{version}\n".encode())
    return manifest


def test_a_name_alone_is_its_latest_version_and_any_other_can_be_named(root: Root) -> None:
    first, second = publish(root, "aaa", ["k1"]), publish(root, "bbb", ["k1", "k2"])
    assert latest_version(root, "cars") == "bbb"
    assert read_manifest(root, "cars") == read_manifest(root, "cars@bbb") == second
    assert read_manifest(root, "cars@aaa") == first
    assert (second.reference, second.folder) == ("cars@bbb", "datasets/cars/bbb")


def test_rows_come_in_order_of_key_over_all_files(root: Root) -> None:
    publish(root, "aaa", ["k1", "k2", "k3"])
    rows = pa.Table.from_batches(read_rows(root, read_manifest(root, "cars")))
    assert rows["key"].to_pylist() == ["k1", "k2", "k3"]
    assert rows.schema.equals(DATASET_PHOTOS)


def test_a_version_without_a_receipt_is_none(root: Root) -> None:
    publish(root, "aaa", ["k1"])
    publish(root, "bbb", ["k1"], committed=False)
    with pytest.raises(UsageError, match="no version 'bbb' of data set 'cars'"):
        read_manifest(root, "cars@bbb")


def test_what_is_not_published_is_a_usage_error(root: Root) -> None:
    assert latest_version(root, "cars") is None
    with pytest.raises(UsageError, match="no data set 'cars'"):
        read_manifest(root, "cars")


@pytest.mark.parametrize("reference", ["", "@aaa", "cars@", "../cars", "cars@../x", "a b", "cars@a@b", ".hidden"])
def test_what_cannot_name_a_folder_is_refused(reference: str) -> None:
    with pytest.raises(UsageError, match="NAME or NAME@VERSION"):
        split_reference(reference)


def test_a_manifest_or_file_that_is_not_its_receipts_is_found_out(root: Root) -> None:
    manifest = publish(root, "aaa", ["k1"])
    name = manifest.files_of("photos")[0]
    place = f"{manifest.folder}/manifest.json"
    data = root.read_bytes(place)
    root.write_bytes(name, b"no rows")
    with pytest.raises(IntegrityError, match="cannot be read"):
        list(read_rows(root, manifest))
    root.remove(name)
    with pytest.raises(IntegrityError, match="cannot be read"):
        list(read_rows(root, manifest))
    root.write_bytes(place, data.replace(b'"k1"', b'"k2"') + b" ")
    with pytest.raises(IntegrityError, match="not what its receipt says"):
        read_manifest(root, "cars")
    root.remove(place)
    with pytest.raises(IntegrityError, match="is not there"):
        read_manifest(root, "cars")


def test_a_manifest_of_another_shape_says_so(root: Root) -> None:
    writer = PartWriter(root, "publish", "cars@aaa", token="test", fence=lambda: None)
    writer.stage_file("datasets/cars/aaa/manifest.json").write_text('{"name": "cars"}', encoding="ascii")
    receipt = writer.commit(counts={}, settings={})
    assert receipt.files["datasets/cars/aaa/manifest.json"].sha256 == hashlib.sha256(b'{"name": "cars"}').hexdigest()
    with pytest.raises(IntegrityError, match="no manifest of this version"):
        read_manifest(root, "cars@aaa")


def test_ids_are_positions_in_the_classes_and_unknown_is_the_first() -> None:
    assert WORDS.price_classes == ["below $10,000", "$10,000 to $12,500", "$12,500 and more"]
    assert WORDS.make_model_classes == ["Unknown", "Volvo V70"]
    assert WORDS.year_classes == ["Unknown", "2011", "2012"]
