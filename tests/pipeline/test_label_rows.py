from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path

from pipeline.label_rows import LabelRow, Settled, label_rows, read_labels, settle, settled_labels
from schemas.receipts import PartWriter
from schemas.storage import Root
from schemas.tables import LABELS, table_of
from tests.pipeline.roots import new_root

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


def row(
    label: str,
    *,
    key: str = "demo/1/000",
    labeller: str = "ann",
    minute: int = 0,
    sampled_by: str = "random",
    junk_type: str | None = None,
) -> LabelRow:
    return LabelRow(key, label, junk_type, sampled_by, labeller, NOON + timedelta(minutes=minute))


def write_labels(root: Root, part: str, rows: Sequence[LabelRow]) -> None:
    writer = PartWriter(root, "label", part, token="test", fence=lambda: None)
    writer.write_table("labels", table_of([one._asdict() for one in rows], LABELS))
    counts = {label: sum(one.label == label for one in rows) for label in ("keep", "junk", "unsure")}
    writer.commit(counts={"labels": len(rows), **counts}, settings={}, code_version="test")


def test_the_latest_label_of_a_labeller_counts_in_whatever_order_rows_lie() -> None:
    rows = [row("keep"), row("unsure", minute=1), row("junk", minute=2, junk_type="wheel")]
    for order in permutations(rows):
        assert settle(order) == Settled("junk", "wheel", "random", 1)


def test_disagreement_between_labellers_makes_a_photo_unsure() -> None:
    assert settle([row("junk", junk_type="wheel"), row("keep", labeller="bob")]) == Settled("unsure", None, "random", 2)


def test_an_early_disagreement_that_was_taken_back_does_not_count() -> None:
    assert settle([row("junk"), row("keep", minute=5), row("keep", labeller="bob", minute=1)]).label == "keep"


def test_labels_of_one_labeller_at_one_moment_that_differ_make_unsure() -> None:
    assert settle([row("junk"), row("keep")]) == settle([row("keep"), row("junk")])
    assert settle([row("junk"), row("keep")]).label == "unsure"


def test_a_junk_type_that_labellers_see_differently_is_null() -> None:
    rows = [row("junk", junk_type="wheel"), row("junk", labeller="bob", junk_type="interior")]
    assert settle(rows).junk_type is None
    assert settle([rows[0], row("junk", labeller="bob")]).junk_type == "wheel"


def test_a_photo_drawn_at_random_stays_so_when_it_is_looked_at_again() -> None:
    rows = [row("keep"), row("junk", labeller="bob", minute=3, sampled_by="uncertain")]
    assert settle(rows) == Settled("unsure", None, "random", 2)
    assert settle([row("keep", sampled_by="prompt"), row("keep", minute=1, sampled_by="import")]).sampled_by == "import"


def test_labels_are_settled_over_all_parts_in_order_of_key(tmp_path: Path) -> None:
    root = new_root(tmp_path)
    write_labels(root, "b", [row("keep", key="demo/2/000"), row("junk", minute=9)])
    write_labels(root, "a", [row("keep")])
    settled = settled_labels(root)
    assert settled["key"].to_pylist() == ["demo/1/000", "demo/2/000"]
    assert settled["label"].to_pylist() == ["junk", "keep"]
    assert len(list(label_rows(read_labels(root)))) == 3


def test_a_root_without_labels_has_no_settled_rows(tmp_path: Path) -> None:
    settled = settled_labels(new_root(tmp_path))
    assert settled.num_rows == 0
    assert settled.column_names == ["key", "label", "junk_type", "sampled_by", "num_labellers"]
