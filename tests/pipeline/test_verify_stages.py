"""What verify knows of the stages after ingest: each damage is found, put aside, and made again."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.digest import digest
from pipeline.embeddings import embeddings_table
from pipeline.publish import publish
from pipeline.publish_content import PublishSettings
from pipeline.verify import repair, verify
from schemas.manifest import latest_version, read_manifest
from schemas.receipts import FileEntry, PartWriter, file_sha256, inputs_fingerprint, read_receipt, receipt_name
from schemas.storage import Root
from schemas.tables import DUPLICATES, EDGES, LABELS, SCORES, table_of
from tests.pipeline.roots import Listing, new_root, noise, write_part

AT = datetime(2026, 11, 30, tzinfo=UTC)
CAR = {"make": "Volvo", "model": "V70", "year": 2011}
LISTINGS = {
    "demo-0": [Listing("1", [noise(1), noise(2)], columns=CAR), Listing("2", [noise(1)], columns=CAR)],
    "demo-10": [Listing("11", [noise(3), None], columns=CAR), Listing("12", [noise(4)], columns=CAR)],
}
KEYS = {"demo-0": ["demo/1/000", "demo/1/001", "demo/2/000"], "demo-10": ["demo/11/000", "demo/12/000"]}
ALL_KEYS = sorted(key for keys in KEYS.values() for key in keys)
HALVES = PublishSettings.model_validate({"fractions": {"train": 0.5, "val": 0, "test": 0.5}})
ENCODER = "embed/timm-small"
NUMBERS = 8


def commit(root: Root, stage: str, part: str, tables: Mapping[str, pa.Table], counts: Mapping[str, int]) -> None:
    """Commit a part as its stage does, unless it is there."""
    if read_receipt(root, stage, part) is not None:
        return
    writer = PartWriter(root, stage, part, token="test", fence=lambda: None)
    for folder, table in tables.items():
        writer.write_table(folder, table)
    if stage == "score":
        writer.stage_file("filters/all.json").write_text("{}", encoding="ascii")
    ingest = read_receipt(root, "crawl", part)
    fingerprint = inputs_fingerprint(root) if ingest is None else ingest.files[ingest.file("shards")].sha256
    writer.commit(counts=counts, settings={}, inputs={"ingest": fingerprint}, code_version="test")


def edges(*pairs: tuple[str, str], tier: str = "exact") -> pa.Table:
    return table_of([{"key_a": a, "key_b": b, "tier": tier, "distance": 0} for a, b in pairs], EDGES)


def unit_vectors(count: int) -> Any:
    vectors = np.random.default_rng(count).normal(size=(count, NUMBERS))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def duplicates() -> pa.Table:
    alone = [{"key": key, "kept": True} for key in ALL_KEYS if key not in ("demo/1/000", "demo/2/000")]
    cluster = {"tier": "exact", "cluster_id": "demo/1/000", "cluster_size": 2, "cluster_listings": 2}
    kept = {"key": "demo/1/000", "kept": True, **cluster}
    dropped = {"key": "demo/2/000", "kept": False, "drop_reason": "exact_duplicate", **cluster}
    return table_of([*alone, kept, dropped], DUPLICATES)


def fill(root: Root) -> None:
    for part, rows in LISTINGS.items():
        if read_receipt(root, "crawl", part) is None:
            write_part(root, part, rows)
    found = {"edges": 1, "exact_edges": 1, "near_edges": 0}
    commit(root, "dedup", "all", {"edges/hash": edges(("demo/1/000", "demo/2/000"))}, found)
    for part, keys in KEYS.items():
        table = embeddings_table(keys, unit_vectors(len(keys)))
        commit(root, ENCODER, part, {"embeddings/timm-small": table}, {"embedded": len(keys), "unreadable": 0})
    commit(root, "copies", "all", {"edges/copy": edges()}, {"edges": 0})
    dropped = {"exact_dropped": 1, "near_dropped": 0, "copy_dropped": 0, "stock_dropped": 0}
    commit(root, "duplicates", "all", {"duplicates": duplicates()}, {"photos": 5, "kept": 4, **dropped})
    clicks = [
        {"key": key, "label": label, "sampled_by": "random", "labeller": "ann", "labelled_at": AT}
        for key, label in (("demo/1/000", "keep"), ("demo/11/000", "junk"))
    ]
    labels = {"labels": 2, "keep": 1, "junk": 1, "unsure": 0}
    commit(root, "label", "ann", {"labels": table_of(clicks, LABELS)}, labels)
    scored = [{"key": key, "score": 0.5, "drop_reason": "junk" if "/11/" in key else None} for key in ALL_KEYS]
    commit(root, "score", "all", {"scores": table_of(scored, SCORES)}, {"photos": 5, "junk_dropped": 1})
    publish(root, "cars", HALVES)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curated") / "root"
    fill(new_root(folder))
    return folder


@pytest.fixture
def root(made_once: Path, tmp_path: Path) -> Root:
    shutil.copytree(made_once, tmp_path / "root")
    return Root.open(str(tmp_path / "root"))


def rewrite(
    root: Root, stage: str, part: str, folder: str, change: Callable[[pa.Table], pa.Table], **counts: int
) -> None:
    """Change a committed table and its receipt with it, as a faulty stage would have done."""
    receipt = read_receipt(root, stage, part)
    assert receipt is not None
    name = receipt.file(folder)
    pq.write_table(change(root.read_table(name)), root.path(name))
    path = Path(root.path(name))
    files = {**receipt.files, name: FileEntry(bytes=path.stat().st_size, sha256=file_sha256(path))}
    changed = receipt.model_copy(update={"files": files, "counts": {**receipt.counts, **counts}})
    root.write_bytes(receipt_name(stage, part), changed.model_dump_json().encode())


def doubled(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table.slice(0, 1)])


def shorter(table: pa.Table) -> pa.Table:
    return table.slice(1)


def with_column(name: str, *values: Any) -> Callable[[pa.Table], pa.Table]:
    """Set the first values of a column."""

    def change(table: pa.Table) -> pa.Table:
        column = [*values, *table[name].to_pylist()[len(values) :]]
        index = table.schema.get_field_index(name)
        return table.set_column(index, table.schema.field(index), pa.array(column, table.schema.field(index).type))

    return change


def longer_vectors(table: pa.Table) -> pa.Table:
    return embeddings_table(table["key"].to_pylist(), unit_vectors(table.num_rows) * np.float16(2))


def as_doubles(table: pa.Table) -> pa.Table:
    return pa.table({"key": table["key"], "embedding": table["embedding"].cast(pa.list_(pa.float64(), NUMBERS))})


def place_of(root: Root) -> str:
    return read_manifest(root, "cars").folder


def version_part(root: Root) -> str:
    return read_manifest(root, "cars").reference


def of_dataset(change: Callable[[pa.Table], pa.Table], **counts: int) -> Callable[[Root], None]:
    return lambda r: rewrite(r, "publish", version_part(r), f"{place_of(r)}/photos", change, **counts)


def cut_a_file(root: Root, name: str) -> None:
    root.write_bytes(name, root.read_bytes(name)[:-1])


def all_one_group(table: pa.Table) -> pa.Table:
    assert len(set(table["split"].to_pylist())) > 1
    return with_column("group_id", *["demo/1"] * table.num_rows)(table)


DAMAGES: dict[str, tuple[str, Callable[[Root], object]]] = {
    "an edge to a photo that is not there": (
        "edges_keys",
        lambda r: rewrite(r, "dedup", "all", "edges/hash", with_column("key_b", "demo/9/000")),
    ),
    "an edge from a photo to itself": (
        "rows",
        lambda r: rewrite(r, "dedup", "all", "edges/hash", with_column("key_b", "demo/1/000")),
    ),
    "an edge of a tier that is not the stage's": (
        "rows",
        lambda r: rewrite(r, "copies", "all", "edges/copy", lambda _: edges(("demo/1/000", "demo/2/000")), edges=1),
    ),
    "a doubled edge": (
        "edges_twice",
        lambda r: rewrite(r, "dedup", "all", "edges/hash", doubled, edges=2, exact_edges=2),
    ),
    "a lost edge": ("counts", lambda r: rewrite(r, "dedup", "all", "edges/hash", shorter)),
    "a lost row of duplicates and its count": (
        "duplicates_coverage",
        lambda r: rewrite(r, "duplicates", "all", "duplicates", shorter, photos=4, kept=3),
    ),
    "a doubled row of duplicates and its count": (
        "duplicates_coverage",
        lambda r: rewrite(r, "duplicates", "all", "duplicates", doubled, photos=6, kept=5),
    ),
    "a cluster that says another size": (
        "duplicates_clusters",
        lambda r: rewrite(r, "duplicates", "all", "duplicates", with_column("cluster_size", *[None] * 3, 3, 3)),
    ),
    "a reason that duplicates does not have": (
        "rows",
        lambda r: rewrite(r, "duplicates", "all", "duplicates", with_column("drop_reason", *[None] * 4, "ugly")),
    ),
    "an embedding that is not of norm 1": (
        "rows",
        lambda r: rewrite(r, ENCODER, "demo-0", "embeddings/timm-small", longer_vectors),
    ),
    "embeddings of another type": (
        "schema",
        lambda r: rewrite(r, ENCODER, "demo-0", "embeddings/timm-small", as_doubles),
    ),
    "a doubled embedding": (
        "rows",
        lambda r: rewrite(r, ENCODER, "demo-0", "embeddings/timm-small", doubled, embedded=4),
    ),
    "a lost embedding and its count": (
        "embeddings_keys",
        lambda r: rewrite(r, ENCODER, "demo-0", "embeddings/timm-small", shorter, embedded=2),
    ),
    "an embedding of a photo that is not the part's": (
        "embeddings_keys",
        lambda r: rewrite(r, ENCODER, "demo-0", "embeddings/timm-small", with_column("key", "demo/9/000")),
    ),
    "an embedding file cut short": ("file_size", lambda r: cut_a_file(r, "embeddings/timm-small/demo-0.parquet")),
    "an embedding file no receipt names": ("orphan", lambda r: r.write_bytes("embeddings/timm-small/x.parquet", b"x")),
    "an encoder no receipt names": ("orphan", lambda r: r.write_bytes("embeddings/other/demo-0.parquet", b"x")),
    "a half-written receipt of an encoder": (
        "orphan",
        lambda r: r.write_bytes("receipts/embed/timm-small/demo-0.json.t.tmp", b"x"),
    ),
    "an unreadable receipt of an encoder": (
        "receipt_unreadable",
        lambda r: r.write_bytes("receipts/embed/timm-small/demo-0.json", b"{"),
    ),
    "a lost score and its count": (
        "scores_keys",
        lambda r: rewrite(r, "score", "all", "scores", shorter, photos=4),
    ),
    "a doubled score and its count": (
        "scores_keys",
        lambda r: rewrite(r, "score", "all", "scores", doubled, photos=6),
    ),
    "a reason that scores does not have": (
        "rows",
        lambda r: rewrite(r, "score", "all", "scores", with_column("drop_reason", "dull")),
    ),
    "a filter cut short": ("file_size", lambda r: cut_a_file(r, "filters/all.json")),
    "a filter no receipt names": ("orphan", lambda r: r.write_bytes("filters/all.g7.json", b"{}")),
    "a manifest cut short": ("file_size", lambda r: cut_a_file(r, f"{place_of(r)}/manifest.json")),
    "a card that is gone": ("file_missing", lambda r: r.remove(f"{place_of(r)}/README.md")),
    "a photo lost from a data set": ("counts", of_dataset(shorter)),
    "a photo twice in a data set": ("counts", of_dataset(doubled)),
    "a photo in a data set in place of another": ("dataset_rows", of_dataset(with_column("key", "demo/1/001"))),
    "a group on two splits": ("dataset_rows", of_dataset(all_one_group)),
    "a published photo that outcomes does not keep": ("dataset_rows", of_dataset(with_column("key", "demo/11/000"))),
    "published bytes that are not the stored ones": (
        "dataset_rows",
        of_dataset(with_column("sha256", hashlib.sha256(b"").hexdigest())),
    ),
    "a version no receipt names": ("orphan", lambda r: r.write_bytes("datasets/cars/0123/photos/00000.parquet", b"x")),
    "an older file of a version": ("orphan", lambda r: r.write_bytes(f"{place_of(r)}/photos/00000.g9.parquet", b"x")),
    "a latest version that is not there": ("latest_missing", lambda r: r.write_bytes("datasets/cars/LATEST", b"0123")),
    "an unreadable receipt of a version": (
        "receipt_unreadable",
        lambda r: r.write_bytes(f"receipts/publish/{version_part(r)}.json", b"{"),
    ),
}


def test_a_sound_root_with_all_stages_has_no_problems(root: Root) -> None:
    findings = verify(root)
    assert (findings.problems, findings.notes) == ([], [])
    assert findings.parts == 2 + 1 + 2 + 1 + 1 + 1 + 1 + 1


@pytest.mark.parametrize(("what", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_a_damage_is_found_put_aside_and_made_again(root: Root, what: str, damage: Callable[[Root], object]) -> None:
    before = digest(root)
    damage(root)
    findings = verify(root)
    assert what in {problem.what for problem in findings.problems}
    assert all(problem.where and problem.why and problem.fix for problem in findings.problems)
    assert repair(root)
    assert verify(root).problems == []
    fill(root)
    assert (verify(root).problems, verify(root).notes) == ([], [])
    assert digest(root) == before


def test_damaged_labels_are_put_aside_and_said_to_be_lost_to_the_stages(
    root: Root, caplog: pytest.LogCaptureFixture
) -> None:
    committed = root.read_bytes("labels/ann.parquet")
    rewrite(root, "label", "ann", "labels", with_column("label", "pretty"))
    problems = verify(root).problems
    assert {problem.what for problem in problems} == {"counts", "rows"}
    assert all("no stage can make labels again" in problem.fix for problem in problems)
    done = repair(root)
    assert verify(root).problems == []
    assert any("labels_put_aside" in record.getMessage() for record in caplog.records)
    (moved,) = [line.split(" to ")[1] for line in done if line.startswith("moved labels/")]
    assert len(root.read_bytes(moved)) > len(committed) // 2, "nothing is deleted"


def test_a_report_beside_a_data_set_needs_no_receipt(root: Root) -> None:
    root.write_bytes(f"{place_of(root)}/report.html", b"<!doctype html>")
    root.write_bytes(f"{place_of(root)}/report/prices.png", b"png")
    assert verify(root).ok


def test_a_label_of_a_photo_that_was_withdrawn_is_a_note(root: Root) -> None:
    write_part(root, "demo-10", [Listing("12", [noise(4)], columns=CAR)])
    findings = verify(root)
    assert findings.ok
    assert any("1 labels are of photos that are not stored" in note for note in findings.notes)
    assert any("photos of datasets/cars" in note for note in findings.notes) or latest_version(root, "cars")


def test_what_is_of_an_earlier_state_of_the_photos_is_a_note(root: Root) -> None:
    write_part(root, "demo-10", [Listing("13", [noise(5)], columns=CAR)])
    write_part(root, "demo-20", [Listing("21", [noise(6)], columns=CAR)])
    findings = verify(root)
    assert findings.ok
    for folder in ("edges/hash", "edges/copy", "duplicates", "scores"):
        assert any(note.startswith(f"{folder} is of an earlier state") for note in findings.notes), folder
    assert any("1 parts are not in embeddings/timm-small yet" in note for note in findings.notes)
    assert any("1 parts of embeddings/timm-small are of an earlier state" in note for note in findings.notes)


def test_an_encoder_that_could_not_read_a_photo_lacks_just_that_one(root: Root) -> None:
    rewrite(root, ENCODER, "demo-0", "embeddings/timm-small", shorter, embedded=2, unreadable=1)
    assert "embeddings_keys" not in {problem.what for problem in verify(root).problems}


def test_a_version_put_aside_is_the_latest_no_more(root: Root) -> None:
    cut_a_file(root, f"{place_of(root)}/croissant.json")
    repair(root)
    assert latest_version(root, "cars") is None
    assert "cars" not in {name.split("/")[1] for name in digest(root).tables if name.startswith("datasets/")}
