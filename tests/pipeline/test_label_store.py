from pathlib import Path

import pytest

from pipeline import label_store
from pipeline.catalog import Catalog
from pipeline.label_rows import LabelRow, read_labels, settled_labels
from pipeline.label_store import LabelStore, open_store
from pipeline.verify import verify
from schemas.errors import LeaseError
from schemas.receipts import read_receipts
from schemas.storage import Root
from tests.pipeline.roots import new_root

KEYS = [f"demo/{listing}/{index:03}" for listing in range(3) for index in range(2)]


def a_store(root: Root, *, token: str = "run1") -> LabelStore:
    return LabelStore(root, token=token, fence=lambda: None)


def click(store: LabelStore, number: int, label: str, *, key: str = KEYS[0], labeller: str = "ann") -> LabelRow:
    return store.label(f"{number:016x}", key=key, label=label, junk_type=None, sampled_by="random", labeller=labeller)


def settled(root: Root) -> dict[str, str]:
    table = settled_labels(root)
    return dict(zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True))


def test_a_click_is_on_disk_when_it_is_answered(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    store = a_store(root)
    for number, key in enumerate(KEYS):
        click(store, number, "keep", key=key)
        assert key in settled(root)


def test_a_click_sent_again_is_stored_once_also_by_the_run_after_a_kill(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    store = a_store(root)
    first = click(store, 1, "junk")
    assert click(store, 1, "junk") == first
    after = a_store(root, token="run2")
    assert click(after, 1, "junk") == first
    assert read_labels(root).num_rows == 1


def test_the_latest_label_counts_and_an_undo_brings_the_one_before_back(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    store = a_store(root)
    click(store, 1, "keep")
    second = click(store, 2, "junk")
    assert settled(root) == {KEYS[0]: "junk"}
    assert store.undo(labeller="ann", key=KEYS[0], labelled_at=second.labelled_at) == second
    assert settled(root) == {KEYS[0]: "keep"}
    assert store.undo(labeller="ann", key=KEYS[0], labelled_at=second.labelled_at) is None, "sent again"
    assert settled(root) == {KEYS[0]: "keep"}


def test_an_undo_reaches_a_label_of_the_run_before(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    click(a_store(root), 1, "keep", key=KEYS[0])
    click(a_store(root, token="run2"), 2, "junk", key=KEYS[1])
    store = a_store(root, token="run3")
    for key in (KEYS[1], KEYS[0]):
        last = store.last_click("ann")
        assert last is not None
        assert store.undo(labeller="ann", key=last.key, labelled_at=last.labelled_at) is not None
        assert key not in settled(root)
    assert store.last_click("ann") is None
    assert store.counts() == {"labels": 0, "keep": 0, "junk": 0, "unsure": 0}
    assert verify(root).ok


def test_nobody_takes_back_what_another_said(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    store = a_store(root)
    row = click(store, 1, "keep", labeller="ann")
    assert store.undo(labeller="bob", key=row.key, labelled_at=row.labelled_at) is None
    assert settled(root) == {KEYS[0]: "keep"}


def test_a_full_part_is_left_alone_and_a_new_one_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_store, "ROWS_PER_PART", 2)
    root = new_root(tmp_path)
    store = a_store(root)
    for number, key in enumerate(KEYS[:5]):
        click(store, number, "keep", key=key)
    receipts = list(read_receipts(root, "label"))
    assert [(receipt.part, receipt.generation) for receipt in receipts] == [("run1-0", 2), ("run1-1", 2), ("run1-2", 1)]
    assert [receipt.counts["labels"] for receipt in receipts] == [2, 2, 1]
    assert sorted(root.list("labels")) == sorted(receipt.file("labels") for receipt in receipts)


def test_the_counts_kept_by_click_are_those_of_the_settled_labels(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    store = a_store(root)
    said = ["keep", "junk", "keep", "unsure", "junk", "keep", "keep"]
    for number, label in enumerate(said * 3):
        click(store, number, label, key=KEYS[number % 5], labeller="ann" if number % 3 else "bob")
    values = list(settled(root).values())
    expected = {"labels": len(values), **{label: values.count(label) for label in ("keep", "junk", "unsure")}}
    assert store.counts() == a_store(root).counts() == expected


def test_the_bound_counts_listings_with_a_keeper_drawn_at_random(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    store = a_store(root)
    click(store, 1, "keep", key="demo/1/000")
    click(store, 2, "keep", key="demo/1/001")
    click(store, 3, "junk", key="demo/2/000")
    store.label("f" * 16, key="demo/3/000", label="keep", junk_type=None, sampled_by="uncertain", labeller="ann")
    assert store.bound(0.01) == {"listings": 1, "needed": 299, "more": 298}, "1 - 0.05 ** (1 / 299) <= 0.01"


def test_a_click_that_cannot_be_written_is_not_counted_and_can_be_sent_again(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    lost = True

    def fence() -> None:
        if lost:
            raise LeaseError("another run took it over")

    store = LabelStore(root, token="run1", fence=fence)
    with pytest.raises(LeaseError):
        click(store, 1, "keep")
    assert store.counts()["labels"] == 0
    assert root.list("labels") == []
    lost = False
    click(store, 1, "keep")
    assert settled(root) == {KEYS[0]: "keep"}


def test_labels_have_one_owner_and_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    with open_store(root) as store:
        click(store, 1, "keep")
        root.write_bytes("labels/run0-0.g2.parquet", b"renamed, its receipt never written")
        with pytest.raises(LeaseError, match="stage label"), open_store(root):
            pass
    with open_store(root) as store:
        assert store.counts()["keep"] == 1
    assert len(root.list("labels")) == 1


def test_a_catalog_keeps_the_labels_it_was_opened_with_while_people_click(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    store = a_store(root)
    click(store, 1, "keep")
    with Catalog(root) as catalog:
        click(store, 2, "junk", key=KEYS[1])
        assert catalog.query("SELECT label FROM labels")["label"].to_pylist() == ["keep"]
    with Catalog(root) as catalog:
        assert catalog.query("SELECT count(*) AS n FROM labels")["n"].to_pylist() == [2]
