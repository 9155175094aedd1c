"""What killed runs left goes; what is committed or may be alive stays."""

from pathlib import Path

from pipeline.lease import hold_lease
from pipeline.leftovers import remove_leftovers
from schemas.receipts import PartWriter
from schemas.storage import Root
from schemas.tables import PHOTOS, table_of


def commit(root: Root, part: str) -> None:
    writer = PartWriter(root, "crawl", part, token="t", fence=lambda: None)
    writer.write_table("photos", table_of([], PHOTOS))
    writer.commit(counts={}, settings={})


def test_half_written_files_of_dead_runs_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path / "data"), create=True)
    with hold_lease(root, "importers") as living:
        for name in (f"photos/a.parquet.{living.token}.tmp", "photos/b.parquet.dead.tmp"):
            root.write_bytes(name, b"x")
        remove_leftovers(root, "crawl", "demo")
        assert root.list("photos") == [f"photos/a.parquet.{living.token}.tmp"]


def test_whole_files_that_no_receipt_names_go_but_only_this_sites(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path / "data"), create=True)
    commit(root, "demo-0")
    commit(root, "demo-1000")
    commit(root, "demo-1000")
    names = ["demo-0.g2.parquet", "demo-1000.parquet", "demo-2000.parquet", "demo-list-x.parquet"]
    others = ["demo-two-0.parquet", "other-0.parquet", "notes.txt"]
    for name in (*names, *others):
        root.write_bytes(f"photos/{name}", b"x")
    remove_leftovers(root, "crawl", "demo")
    kept = sorted(["demo-0.parquet", "demo-1000.g2.parquet", *others])
    assert [name.removeprefix("photos/") for name in root.list("photos")] == kept
