import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from schemas.errors import DiskFullError, IntegrityError, LeaseError, RootError
from schemas.receipts import (
    PartWriter,
    Receipt,
    committed_files,
    file_sha256,
    inputs_fingerprint,
    part_file,
    read_receipt,
    read_receipts,
    receipt_name,
)
from schemas.shards import Shard, ShardSettings, ShardWriter
from schemas.storage import Root
from schemas.tables import ATTEMPTS, PHOTOS, table_of

STAGE, PART = "crawl", "demo-1"
FOLDERS = ["shards", "photos", "attempts"]
NUM_FENCES = len(FOLDERS) + 1
SETTINGS = ShardSettings(min_free_bytes=0)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path / "set"), create=True)


def write_part(
    root: Root, version: int, fence: Callable[[], None] = lambda: None, *, part: str = PART, token: str = "run"
) -> Receipt:
    """Commit a part whose every file says `version`."""
    writer = PartWriter(root, STAGE, part, token=token, fence=fence)
    with ShardWriter(writer.stage_path("shards", ".lmdb"), SETTINGS) as shard:
        shard.put("demo/1/000", f"version {version}".encode())
        shard.seal()
    photo = {
        "key": "demo/1/000",
        "site": "demo",
        "listing_id": "1",
        "photo_index": 0,
        "outcome": "stored",
        "part": part,
    }
    writer.write_table("photos", table_of([{**photo, "size_bytes": version}], PHOTOS))
    attempt = {"site": "demo", "listing_id": "1", "outcome": "found", "num_tries": version}
    writer.write_table("attempts", table_of([attempt], ATTEMPTS))
    return writer.commit(counts={"photos": 1}, settings={"image": {"quality": 90}}, code_version="1")


def read_part(root: Root, part: str = PART) -> int | None:
    """Return the version that all committed files agree on; None where the part is not committed."""
    receipt = read_receipt(root, STAGE, part)
    if receipt is None:
        return None
    for name, entry in receipt.files.items():
        copy = root.local_copy(name)
        assert (copy.stat().st_size, file_sha256(copy)) == (entry.bytes, entry.sha256)
    with Shard.open(root, receipt.file("shards")) as shard:
        in_shard = int(shard.get("demo/1/000").split()[1])
    in_tables = {
        root.read_table(receipt.file("photos"))["size_bytes"][0].as_py(),
        root.read_table(receipt.file("attempts"))["num_tries"][0].as_py(),
    }
    assert in_tables == {in_shard}
    return in_shard


def stage_all(root: Root, version: int, attempt: int, fence: Callable[[], None] = lambda: None) -> PartWriter:
    """Do an attempt up to its commit."""
    writer = PartWriter(root, STAGE, PART, token="run", fence=fence, attempt=attempt)
    with ShardWriter(writer.stage_path("shards", ".lmdb"), SETTINGS) as shard:
        shard.put("demo/1/000", f"version {version}".encode())
        shard.seal()
    key = {"key": "demo/1/000", "site": "demo", "listing_id": "1", "photo_index": 0, "outcome": "stored", "part": PART}
    writer.write_table("photos", table_of([{**key, "size_bytes": version}], PHOTOS))
    row = {"site": "demo", "listing_id": "1", "outcome": "found", "num_tries": version}
    writer.write_table("attempts", table_of([row], ATTEMPTS))
    return writer


def part_files(root: Root) -> list[str]:
    return sorted(name for folder in FOLDERS for name in root.list(folder))


def test_a_part_is_named_by_its_generation() -> None:
    assert part_file("photos", "demo-1", 1, ".parquet") == "photos/demo-1.parquet"
    assert part_file("shards", "demo-1", 2, ".lmdb") == "shards/demo-1.g2.lmdb"
    assert receipt_name("crawl", "demo-1") == "receipts/crawl/demo-1.json"


def test_a_committed_part_has_its_files_and_a_receipt_that_describes_them(root: Root) -> None:
    written = write_part(root, 1)
    assert read_receipt(root, STAGE, PART) == written
    assert list(written.files) == ["shards/demo-1.lmdb", "photos/demo-1.parquet", "attempts/demo-1.parquet"]
    assert (written.generation, written.run, written.counts) == (1, "run", {"photos": 1})
    assert written.created_at.tzinfo is not None
    assert read_part(root) == 1
    assert part_files(root) == sorted(written.files)


def test_the_next_generation_takes_the_place_of_the_one_before(root: Root) -> None:
    write_part(root, 1)
    write_part(root, 2)
    receipt = write_part(root, 3)
    assert receipt.generation == 3
    assert read_part(root) == 3
    assert part_files(root) == sorted(part_file(f, PART, 3, ".lmdb" if f == "shards" else ".parquet") for f in FOLDERS)


@pytest.mark.parametrize("step", range(NUM_FENCES + 1))
def test_an_attempt_given_up_for_lost_cannot_commit_once_the_next_has_begun(root: Root, step: int) -> None:
    steps, later = iter(range(NUM_FENCES)), []

    def fence() -> None:
        if next(steps) == step:
            later.append(stage_all(root, 2, attempt=2))

    lost = stage_all(root, 1, attempt=1, fence=fence)
    root.write_bytes("shards/demo-1.lmdb.run-1.compact.tmp", b"half")
    if step == NUM_FENCES:
        later.append(stage_all(root, 2, attempt=2))
    with pytest.raises(RootError, match=r"run-1\.tmp"):
        lost.commit(counts={}, settings={})
    lost.abandon()
    assert read_part(root) is None
    later[0].commit(counts={}, settings={})
    assert read_part(root) == 2
    assert part_files(root) == sorted(committed_by_folder(root))


def test_a_reader_who_opened_the_old_generation_keeps_reading_it(root: Root) -> None:
    with Shard.open(root, write_part(root, 1).file("shards")) as old:
        write_part(root, 2)
        assert old.get("demo/1/000") == b"version 1"
        assert read_part(root) == 2


def test_nothing_is_real_before_the_commit(root: Root) -> None:
    writer = PartWriter(root, STAGE, PART, token="run", fence=lambda: None)
    writer.write_table("photos", table_of([], PHOTOS))
    assert read_receipt(root, STAGE, PART) is None
    assert root.list("photos", suffix=".parquet") == []
    writer.abandon()
    assert root.list("photos") == []


@pytest.mark.parametrize("committed", [None, 1])
@pytest.mark.parametrize("call", range(1, NUM_FENCES + 1))
def test_a_run_that_lost_the_root_changes_nothing_that_is_read(root: Root, call: int, committed: int | None) -> None:
    if committed:
        write_part(root, committed)
    with pytest.raises(LeaseError):
        write_part(root, 2, fence=fails_at(call), token="dead")
    assert read_part(root) == committed
    assert write_part(root, 3, token="rerun").generation == (2 if committed else 1)
    assert read_part(root) == 3
    assert [name for name in part_files(root) if not name.endswith(".tmp")] == sorted(committed_by_folder(root))


KILL_SCRIPT = """
import os, pathlib, signal, sys
from schemas.storage import Root
from tests.schemas.test_receipts import write_part

calls = 0
def dies(kind, name, real):
    def call(*args, **named):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **named)
    setattr(kind, name, call)

dies(pathlib.Path, "replace", pathlib.Path.replace)
dies(Root, "publish", Root.publish)
dies(Root, "remove", Root.remove)
dies(Root, "write_bytes", Root.write_bytes)
write_part(Root(sys.argv[1]), 2, token="dead")
print(calls)
"""


def run_killed(root: Root, call: int) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "ignore", "-c", KILL_SCRIPT, root.text, str(call)]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])


@pytest.mark.slow
@pytest.mark.parametrize("committed", [None, 1])
def test_a_kill_at_any_step_leaves_the_old_part_or_the_new(root: Root, committed: int | None) -> None:
    seen = set()
    for call in range(1, 100):
        if committed:
            write_part(root, committed)
        done = run_killed(root, call)
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        found = read_part(root)
        assert found in (committed, 2)
        seen.add(found)
        # Whatever a kill leaves is told from what is real: a staged name, or a file that no receipt names.
        write_part(root, 3, token="rerun")
        assert read_part(root) == 3
        left = set(part_files(root)) - set(committed_by_folder(root))
        assert all(name.endswith(".tmp") for name in left)
        for name in [*part_files(root), receipt_name(STAGE, PART)]:
            root.remove(name)
    assert seen >= {committed}
    assert call > NUM_FENCES + 3


def test_a_table_of_another_schema_is_refused(root: Root) -> None:
    writer = PartWriter(root, STAGE, PART, token="run", fence=lambda: None)
    with pytest.raises(IntegrityError, match="photos: the table's schema is"):
        writer.write_table("photos", pa.table({"key": ["a"]}))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_fills_up_while_a_table_is_written_is_told(root: Root) -> None:
    writer = PartWriter(root, STAGE, PART, token="run", fence=lambda: None)
    os.symlink("/dev/full", writer.stage_path("photos"))
    with pytest.raises(DiskFullError, match="the disk is full at"):
        writer.write_table("photos", table_of([], PHOTOS))


def test_receipts_come_in_order_of_part_and_by_prefix(root: Root) -> None:
    for part in ("demo-2", "other-1", "demo-1"):
        write_part(root, 1, part=part)
    assert [r.part for r in read_receipts(root, STAGE)] == ["demo-1", "demo-2", "other-1"]
    assert [r.part for r in read_receipts(root, STAGE, prefix="demo-")] == ["demo-1", "demo-2"]
    assert list(read_receipts(root, "importers")) == []
    assert committed_files(root, "photos") == [f"photos/{part}.parquet" for part in ("demo-1", "demo-2", "other-1")]
    assert committed_files(root, "photos", stages=("importers",)) == []


def test_files_without_a_receipt_are_not_committed(root: Root) -> None:
    write_part(root, 1)
    root.write_bytes("photos/demo-2.parquet", b"in flight")
    assert committed_files(root, "photos") == ["photos/demo-1.parquet"]


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"\xff", b"[1]"])
def test_a_receipt_that_cannot_be_read_is_named(root: Root, data: bytes) -> None:
    root.write_bytes(receipt_name(STAGE, PART), data)
    with pytest.raises(IntegrityError, match=r"receipts/crawl/demo-1\.json is no receipt.*--repair"):
        read_receipt(root, STAGE, PART)


def test_a_receipt_says_which_file_is_in_which_folder(root: Root) -> None:
    receipt = write_part(root, 1)
    assert receipt.file("photos") == "photos/demo-1.parquet"
    with pytest.raises(IntegrityError, match=r"receipts/crawl/demo-1\.json names no file in listings/"):
        receipt.file("listings")


def test_a_receipt_with_an_unknown_field_is_not_read_as_if_it_were_ours(root: Root) -> None:
    write_part(root, 1)
    name = receipt_name(STAGE, PART)
    root.write_bytes(name, json.dumps({**json.loads(root.read_bytes(name)), "new": 1}).encode())
    with pytest.raises(IntegrityError, match="new"):
        read_receipt(root, STAGE, PART)


def test_the_fingerprint_of_inputs_follows_the_files_alone(root: Root) -> None:
    write_part(root, 1, part="demo-1")
    first = inputs_fingerprint(root)
    name = receipt_name(STAGE, "demo-1")
    receipt = read_receipt(root, STAGE, "demo-1")
    assert receipt is not None
    root.write_bytes(name, receipt.model_copy(update={"run": "other", "seconds": 9.0}).model_dump_json().encode())
    assert inputs_fingerprint(root) == first
    write_part(root, 1, part="demo-2")
    second = inputs_fingerprint(root)
    write_part(root, 2, part="demo-2")
    assert len({first, second, inputs_fingerprint(root)}) == 3


def test_a_part_is_committed_to_an_object_store_and_read_from_there(new_bucket: Callable[[], str]) -> None:
    root = Root.open(new_bucket(), create=True)
    write_part(root, 1)
    assert read_part(root) == 1
    write_part(root, 2)
    assert read_part(root) == 2
    assert part_files(root) == sorted(committed_by_folder(root))
    with pytest.raises(LeaseError):
        write_part(root, 3, fence=fails_at(NUM_FENCES))
    assert read_part(root) == 2


def fails_at(call: int) -> Callable[[], None]:
    calls: Iterator[int] = iter(range(1, call + 1))

    def fence() -> None:
        if next(calls) == call:
            raise LeaseError("another run owns this root")

    return fence


def committed_by_folder(root: Root) -> list[str]:
    return [name for folder in FOLDERS for name in committed_files(root, folder)]
