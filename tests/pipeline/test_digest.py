from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.catalog import CatalogSettings
from pipeline.dedup import DedupSettings, dedup
from pipeline.digest import BLOCK_ROWS, digest, digest_rows
from tests.pipeline.roots import FETCHED_AT, Listing, Missed, new_root, noise, write_part

CAR: dict[str, Any] = {"price": Decimal("12500.00"), "odometer": 1.5, "year": 2019}
ONE = Listing("1", [noise(1), None], vin="V1", columns=CAR)
TEN = Listing("10", [noise(2), noise(1)], columns={"title": "", "city_mpg": 30.5})
REST: list[Listing | Missed] = [
    Listing("2", [], columns={"price": Decimal("-1.05")}),
    Missed("3"),
    Missed("4", "failed", "timeout"),
]
ROWS = [ONE, TEN, *REST]


def test_parts_order_generations_and_times_do_not_show(tmp_path: Path) -> None:
    one, many = new_root(tmp_path / "one"), new_root(tmp_path / "many")
    write_part(one, "demo-0", ROWS)
    later = FETCHED_AT + timedelta(days=9)
    for i, row in enumerate(reversed(ROWS)):
        write_part(many, f"demo-{i}", [row], fetched_at=later)
    write_part(many, "demo-0", [ROWS[-1]], fetched_at=datetime.now(UTC))
    for root in (one, many):
        dedup(root, DedupSettings())
    assert digest(one) == digest(many, CatalogSettings(threads=1, memory_gib=0.25))


def test_rows_without_a_receipt_do_not_show(tmp_path: Path) -> None:
    root = new_root(tmp_path / "root")
    write_part(root, "demo-0", ROWS)
    before = digest(root)
    write_part(root, "demo-1", [Missed("7")])
    assert digest(root) != before
    root.remove("receipts/crawl/demo-1.json")
    assert digest(root) == before


@pytest.mark.parametrize(
    ("rows", "changed"),
    [
        ([*ROWS[:-1], Missed("4", "failed", "dns")], {"attempts"}),
        ([*ROWS[:-2], Missed("3", "failed", "dns"), ROWS[-1]], {"attempts"}),
        ([*ROWS, Missed("5")], {"attempts"}),
        ([replace(ONE, vin=None), TEN, *REST], {"listings"}),
        ([replace(ONE, columns={**CAR, "price": Decimal("12500.01")}), TEN, *REST], {"listings"}),
        ([replace(ONE, columns={**CAR, "odometer": None}), TEN, *REST], {"listings"}),
        ([ONE, replace(TEN, columns={"city_mpg": 30.5}), *REST], {"listings"}),
        ([replace(ONE, photos=[noise(3), None]), TEN, *REST], {"photos", "shards"}),
    ],
    ids=["error", "outcome", "row", "null_vin", "cent", "null", "null_for_empty", "photo"],
)
def test_any_changed_value_shows_in_its_table(tmp_path: Path, rows: list[Any], changed: set[str]) -> None:
    before, after = new_root(tmp_path / "before"), new_root(tmp_path / "after")
    write_part(before, "demo-0", ROWS)
    write_part(after, "demo-0", rows)
    first, second = digest(before), digest(after)
    assert {name for name in first.tables if first.tables[name] != second.tables[name]} == changed
    assert first.whole != second.whole


def test_what_dedup_decided_shows(tmp_path: Path) -> None:
    root = new_root(tmp_path / "root")
    write_part(root, "demo-0", ROWS)
    found = [digest(root)]
    for policy in ("keep_one", "drop_all"):
        dedup(root, DedupSettings.model_validate({"policy": policy}))
        found.append(digest(root))
    assert len({one.tables["duplicates"] for one in found}) == 3


def test_shard_values_are_read_not_trusted(tmp_path: Path) -> None:
    one, other = new_root(tmp_path / "one"), new_root(tmp_path / "other")
    write_part(one, "demo-0", [Listing("1", [noise(1)])])
    write_part(other, "demo-0", [Listing("1", [noise(2)])])
    Path(one.path("shards/demo-0.lmdb")).write_bytes(Path(other.path("shards/demo-0.lmdb")).read_bytes())
    assert digest(one).tables["shards"] == digest(other).tables["shards"]
    assert digest(one).tables["photos"] != digest(other).tables["photos"]


def test_an_empty_root_has_a_digest(tmp_path: Path) -> None:
    empty = digest(new_root(tmp_path / "a"))
    assert empty == digest(new_root(tmp_path / "b"))
    assert set(empty.tables) == {"attempts", "listings", "photos", "duplicates", "labels", "scores", "shards"}


SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("price", pa.decimal128(12, 2)),
        ("number", pa.float32()),
        ("flag", pa.bool_()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("hash", pa.uint64()),
    ]
)


def a_batch(rows: int) -> pa.RecordBatch:
    listed = [
        {
            "text": None if i % 7 == 0 else "x" * (i % 5),
            "price": None if i % 3 == 0 else Decimal(i) / 100,
            "number": None if i % 5 == 0 else i / 3,
            "flag": None if i % 4 == 0 else i % 2 == 0,
            "time": None if i % 6 == 0 else FETCHED_AT + timedelta(seconds=i),
            "hash": None if i % 8 == 0 else 2**64 - 1 - i,
        }
        for i in range(rows)
    ]
    return pa.RecordBatch.from_pylist(listed, schema=SCHEMA)


def test_how_rows_are_cut_into_batches_does_not_show() -> None:
    whole = a_batch(BLOCK_ROWS + 1000)
    cut = [whole.slice(start, 777) for start in range(0, whole.num_rows, 777)]
    digests = {digest_rows("t", SCHEMA, batches) for batches in ([whole], cut, [whole.slice(0, 0), whole])}
    assert len(digests) == 1


def test_bytes_under_a_null_do_not_show() -> None:
    schema = pa.schema([("number", pa.float64()), ("price", pa.decimal128(12, 2))])
    valid = pa.py_buffer(b"\x01")  # of two values the first
    digests = set()
    for hidden in (0, 7):
        numbers = pa.Array.from_buffers(pa.float64(), 2, [valid, pa.array([1.0, hidden]).buffers()[1]])
        prices = pa.array([Decimal("1.00"), Decimal(hidden)], pa.decimal128(12, 2))
        prices = pa.Array.from_buffers(pa.decimal128(12, 2), 2, [valid, prices.buffers()[1]])
        digests.add(digest_rows("t", schema, [pa.RecordBatch.from_arrays([numbers, prices], schema=schema)]))
    assert len(digests) == 1


def test_the_encoding_is_the_one_that_earlier_digests_were_made_with() -> None:
    # Changing this value changes every digest ever noted down: that takes a new format version.
    assert (
        digest_rows("t", SCHEMA, [a_batch(100)]) == "f34619f6a733fa987a0c7c2f363e67c595111c6fe5c037ad7371e70aa92ef66b"
    )


def test_the_table_of_a_value_and_its_neighbours_show() -> None:
    schema = pa.schema([("a", pa.string()), ("b", pa.string())])
    pairs = [("ab", "c"), ("a", "bc"), ("abc", ""), ("abc", None)]
    batches = [pa.RecordBatch.from_pylist([{"a": a, "b": b}], schema=schema) for a, b in pairs]
    assert len({digest_rows("t", schema, [batch]) for batch in batches}) == len(pairs)
