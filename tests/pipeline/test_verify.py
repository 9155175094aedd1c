import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import verify as script
from pipeline.dedup import DedupSettings, dedup
from pipeline.digest import digest
from pipeline.lease import hold_lease
from pipeline.verify import repair, verify
from pipeline.verify_part import MAX_LISTED
from schemas.errors import LeaseError
from schemas.receipts import FileEntry, Receipt, file_sha256, read_receipt, receipt_name
from schemas.shards import Shard, ShardSettings, ShardWriter
from schemas.storage import Root
from tests.pipeline.roots import Listing, Missed, new_root, noise, write_part

ROWS: dict[str, list[Listing | Missed]] = {
    "demo-0": [Listing("1", [noise(1), noise(1), None]), Missed("2")],
    "demo-10": [Listing("11", [noise(2)]), Listing("12", []), Missed("13", "failed", "timeout")],
}
# What the receipt of demo-0 counts.
COUNTS: dict[str, int] = {
    **{"ids": 2, "found": 1, "gone": 1, "failed": 0, "disallowed": 0},
    **{"photos": 3, "stored": 2, "photos_failed": 1, "rejected": 0, "photos_disallowed": 0},
}


def fill(root: Root) -> None:
    for part, rows in ROWS.items():
        if read_receipt(root, "crawl", part) is None:
            write_part(root, part, rows)
    dedup(root, DedupSettings())


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = new_root(tmp_path / "root")
    fill(root)
    return root


def commit_again(
    root: Root, part: str, name: str, *, counts: dict[str, int] | None = None, stage: str = "crawl"
) -> None:
    """Make the receipt agree with a file that was changed, as a faulty writer would have done."""
    receipt = read_receipt(root, stage, part)
    assert receipt is not None
    path = Path(root.path(name))
    files = {**receipt.files, name: FileEntry(bytes=path.stat().st_size, sha256=file_sha256(path))}
    changed = receipt.model_copy(update={"files": files, "counts": {**receipt.counts, **(counts or {})}})
    write_receipt(root, changed)


def write_receipt(root: Root, receipt: Receipt) -> None:
    root.write_bytes(receipt_name(receipt.stage, receipt.part), receipt.model_dump_json().encode())


def rewrite(
    root: Root, name: str, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], **counts: int
) -> None:
    """Change the rows of a committed table and its receipt with it."""
    table = root.read_table(name)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), root.path(name))
    stage = {"duplicates": "duplicates", "edges": "dedup"}.get(name.split("/")[0], "crawl")
    part = Path(name).stem
    commit_again(root, part, name, stage=stage, counts=counts)


def rewrite_shard(root: Root, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    name = "shards/demo-0.lmdb"
    with Shard.open(root, name) as shard:
        values = change(dict(shard.items()))
    Path(root.path(name)).unlink()
    writer = ShardWriter(Path(root.path(name)), ShardSettings(initial_map_bytes=1 << 20, min_free_bytes=0))
    for key, jpeg in values.items():
        writer.put(key, jpeg)
    writer.seal()
    commit_again(root, "demo-0", name)


def set_columns(key: str, **columns: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda rows: [{**row, **columns} if row["key"] == key else row for row in rows]


def flip_a_byte(path: str) -> None:
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    Path(path).write_bytes(data)


def edit_receipt(root: Root, **columns: Any) -> None:
    receipt = read_receipt(root, "crawl", "demo-0")
    assert receipt is not None
    write_receipt(root, receipt.model_copy(update=columns))


def drop_a_file_from_the_receipt(root: Root) -> None:
    receipt = read_receipt(root, "crawl", "demo-0")
    assert receipt is not None
    edit_receipt(root, files={name: entry for name, entry in receipt.files.items() if "listings" not in name})


def change_the_schema(root: Root) -> None:
    name = "listings/demo-0.parquet"
    table = root.read_table(name)
    pq.write_table(table.set_column(0, "site", table["site"].cast(pa.large_string())), root.path(name))
    commit_again(root, "demo-0", name)


def write_no_parquet(root: Root) -> None:
    root.write_bytes("photos/demo-0.parquet", b"PAR1, or is it")
    commit_again(root, "demo-0", "photos/demo-0.parquet")


def write_no_shard(root: Root) -> None:
    root.write_bytes("shards/demo-0.lmdb", b"\0" * 8192)
    commit_again(root, "demo-0", "shards/demo-0.lmdb")


def not_a_jpeg(root: Root) -> None:
    jpeg = b"\xff\xd8 and no more"
    rewrite_shard(root, lambda values: {**values, "demo/1/000": jpeg})
    columns = {"sha256": hashlib.sha256(jpeg).hexdigest(), "size_bytes": len(jpeg)}
    rewrite(root, "photos/demo-0.parquet", set_columns("demo/1/000", **columns))


def without(key: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda values: {name: jpeg for name, jpeg in values.items() if name != key}


PHOTOS = "photos/demo-0.parquet"
DAMAGES: dict[str, tuple[str, Callable[[Root], object]]] = {
    "an unreadable receipt": ("receipt_unreadable", lambda r: r.write_bytes("receipts/crawl/demo-0.json", b"{")),
    "a receipt of another version": ("receipt_version", lambda r: edit_receipt(r, format_version=0)),
    "a receipt that names too few files": ("receipt_incomplete", drop_a_file_from_the_receipt),
    "a missing file": ("file_missing", lambda r: r.remove("listings/demo-0.parquet")),
    "a missing shard": ("file_missing", lambda r: r.remove("shards/demo-0.lmdb")),
    "a cut file": ("file_size", lambda r: r.write_bytes(PHOTOS, r.read_bytes(PHOTOS)[:-9])),
    "a flipped bit in a table": ("file_checksum", lambda r: flip_a_byte(r.path("attempts/demo-0.parquet"))),
    "a flipped bit in a shard": ("file_checksum", lambda r: flip_a_byte(r.path("shards/demo-0.lmdb"))),
    "a file that is no Parquet": ("file_unreadable", write_no_parquet),
    "a file that is no shard": ("file_unreadable", write_no_shard),
    "another schema": ("schema", change_the_schema),
    "another count": ("counts", lambda r: edit_receipt(r, counts={**COUNTS, "stored": 3})),
    "a missing count": ("counts", lambda r: edit_receipt(r, counts={"ids": 2, "photos": 3})),
    "a lost row": ("counts", lambda r: rewrite(r, PHOTOS, lambda rows: rows[1:])),
    "a lost row and its count": (
        "rows",
        lambda r: rewrite(r, PHOTOS, lambda rows: rows[:-1], photos=2, photos_failed=0),
    ),
    "a lost listing": ("rows", lambda r: rewrite(r, "listings/demo-0.parquet", lambda rows: [])),
    "an unknown outcome": (
        "counts",
        lambda r: rewrite(r, PHOTOS, set_columns("demo/1/002", outcome="odd"), photos_failed=0),
    ),
    "a key that is not its row's": ("rows", lambda r: rewrite(r, PHOTOS, set_columns("demo/1/002", photo_index=7))),
    "a row of another part": ("rows", lambda r: rewrite(r, PHOTOS, set_columns("demo/1/002", part="demo-10"))),
    "a failure without its reason": ("rows", lambda r: rewrite(r, PHOTOS, set_columns("demo/1/002", error=None))),
    "a value lost from a shard": ("photo_missing", lambda r: rewrite_shard(r, without("demo/1/000"))),
    "a value no row names": ("photo_extra", lambda r: rewrite_shard(r, lambda values: {**values, "demo/9/000": b"x"})),
    "a value that is another photo": (
        "photo_checksum",
        lambda r: rewrite_shard(r, lambda values: {**values, "demo/1/000": b"x"}),
    ),
    "a value that is no JPEG": ("photo_unreadable", not_a_jpeg),
    "a size that is not the photo's": (
        "photo_size",
        lambda r: rewrite(r, PHOTOS, set_columns("demo/1/000", width_px=1)),
    ),
    "a key in two parts": ("key_twice", lambda r: write_part(r, "demo-20", [ROWS["demo-0"][0]])),
    "an id in two parts": ("listing_twice", lambda r: write_part(r, "demo-20", [Missed("2")])),
    "a lost row of duplicates": (
        "duplicates_coverage",
        lambda r: rewrite(r, "duplicates/all.parquet", lambda rows: rows[1:], photos=2, kept=1),
    ),
    "duplicates that do not add up": ("counts", lambda r: rewrite(r, "duplicates/all.parquet", lambda rows: rows[1:])),
    "a table no receipt names": ("orphan", lambda r: r.write_bytes("photos/demo-30.parquet", b"x")),
    "an older generation": ("orphan", lambda r: r.write_bytes("listings/demo-0.g9.parquet", b"x")),
    "a file left half-written": ("orphan", lambda r: r.write_bytes("shards/demo-30.lmdb.0a1b.tmp", b"x")),
    "a receipt left half-written": ("orphan", lambda r: r.write_bytes("receipts/crawl/demo-30.json.77.tmp", b"x")),
    "a lock file beside a shard": ("orphan", lambda r: r.write_bytes("shards/demo-0.lmdb-lock", b"x")),
    "an edge file no receipt names": ("orphan", lambda r: r.write_bytes("edges/hash/all.g7.parquet", b"x")),
}


def test_a_sound_root_has_no_problems(root: Root) -> None:
    findings = verify(root)
    assert (findings.ok, findings.parts, findings.photos, findings.notes) == (True, 4, 4, [])
    assert verify(root, quick=True).ok


@pytest.mark.parametrize(("what", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_a_damage_is_found_repaired_and_made_again(root: Root, what: str, damage: Callable[[Root], object]) -> None:
    before = digest(root)
    damage(root)
    findings = verify(root)
    assert what in {problem.what for problem in findings.problems}
    assert all(problem.where and problem.why and problem.fix for problem in findings.problems)
    done = repair(root)
    assert done
    assert verify(root).problems == []
    fill(root)
    assert verify(root).problems == []
    assert digest(root) == before


def test_repair_deletes_nothing_that_was_committed(root: Root) -> None:
    committed = {name: root.read_bytes(name) for name in read_files(root, "demo-0")}
    flip_a_byte(root.path("attempts/demo-0.parquet"))
    done = repair(root)
    assert len(done) == 5
    assert done[0].startswith("moved receipts/crawl/demo-0.json to quarantine/"), "the receipt goes first"
    folder = next(Path(root.path("quarantine")).iterdir())
    kept = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {name for name in committed if kept[name] == committed[name]} == committed.keys() - {
        "attempts/demo-0.parquet"
    }


def test_the_part_made_first_keeps_a_doubled_key(root: Root) -> None:
    write_part(root, "aaa-later", [ROWS["demo-0"][0]])
    repair(root)
    assert root.exists("receipts/crawl/demo-0.json")
    assert not root.exists("receipts/crawl/aaa-later.json")


def test_files_in_flight_of_a_live_run_are_no_problem_and_repair_leaves_them(root: Root) -> None:
    root.write_bytes("photos/demo-30.parquet.0a1b.tmp", b"x")
    with hold_lease(root, "crawl"):
        findings = verify(root)
        assert findings.ok
        assert "1 files of a run that is alive" in findings.notes[0]
        with pytest.raises(LeaseError):
            repair(root)
    assert root.exists("photos/demo-30.parquet.0a1b.tmp")
    assert not verify(root).ok


def test_stale_or_missing_duplicates_are_a_note_not_a_problem(root: Root) -> None:
    write_part(root, "demo-20", [Listing("21", [noise(5)])])
    findings = verify(root)
    assert findings.ok
    assert "earlier state" in findings.notes[0]
    root.remove("receipts/dedup/all.json")
    root.remove("receipts/duplicates/all.json")
    root.remove("duplicates/all.parquet")
    root.remove("edges/hash/all.parquet")
    assert "not deduplicated" in verify(root).notes[0]


def test_an_empty_root_is_sound(tmp_path: Path) -> None:
    findings = verify(new_root(tmp_path / "empty"))
    assert (findings.ok, findings.parts, findings.photos) == (True, 0, 0)


def test_the_list_of_problems_is_bounded_and_its_count_is_not(root: Root) -> None:
    for i in range(MAX_LISTED + 5):
        root.write_bytes(f"photos/left-{i}.parquet", b"", durable=False)
    findings = verify(root).as_dict()
    assert (len(findings["problems"]), findings["num_problems"]) == (MAX_LISTED, MAX_LISTED + 5)


def test_the_script_exits_1_on_problems_and_0_once_they_are_repaired(
    root: Root, capsys: pytest.CaptureFixture[str]
) -> None:
    def last_line(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = script.main(["--root", root.text, *arguments])
        answer: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return code, answer

    code, answer = last_line("--digest")
    assert (code, answer["ok"], answer["problems"], answer["digest"]) == (0, True, [], digest(root).whole)
    flip_a_byte(root.path("attempts/demo-0.parquet"))
    root.write_bytes("photos/left.parquet", b"")
    code, answer = last_line("--digest")
    assert (code, answer["ok"], answer["digest"], answer["num_problems"]) == (1, False, None, 2)
    assert set(answer["problems"][0]) == {"what", "where", "why", "fix"}
    code, answer = last_line("--repair")
    assert (code, answer["ok"], len(answer["repaired"])) == (0, True, 6)


def read_files(root: Root, part: str) -> list[str]:
    receipt = read_receipt(root, "crawl", part)
    assert receipt is not None
    return list(receipt.files)
