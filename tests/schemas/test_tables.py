from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import IntegrityError
from schemas.tables import ATTEMPTS, DIGEST_COLUMNS, LISTINGS, PHOTOS, SCHEMAS, photo_key, table_of

ATTEMPT = {"site": "demo", "listing_id": "1", "outcome": "found", "num_tries": 1}


def test_a_key_names_site_listing_and_padded_index() -> None:
    assert photo_key("demo", "660000001", 7) == "demo/660000001/007"
    assert photo_key("demo", "a", 1234) == "demo/a/1234"


def test_a_table_has_exactly_the_schema_and_missing_values_are_null() -> None:
    table = table_of([ATTEMPT, {**ATTEMPT, "listing_id": "2", "status": 404}], ATTEMPTS)
    assert table.schema.equals(ATTEMPTS)
    assert table["status"].to_pylist() == [None, 404]
    assert table["policy"].null_count == 2


def test_an_empty_table_has_the_schema_too() -> None:
    for schema in SCHEMAS.values():
        table = table_of([], schema)
        assert table.schema.equals(schema)
        assert table.num_rows == 0


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(IntegrityError, match=r"columns \['colour'\] are not in the schema; it has \['site'"):
        table_of([{**ATTEMPT, "colour": "red"}], ATTEMPTS)


def test_a_null_where_none_may_be_is_refused() -> None:
    with pytest.raises(IntegrityError, match="column outcome holds 1 nulls and may hold none"):
        table_of([{"site": "demo", "listing_id": "1", "num_tries": 1}], ATTEMPTS)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("num_tries", 1 << 15),
        ("num_tries", "many"),
        ("num_tries", 1.5),
        ("num_tries", float("nan")),
        ("status", 1 << 70),
        ("error", 7),
        ("error", "\ud800"),
        ("fetched_at", "today"),
    ],
)
def test_a_value_that_does_not_fit_names_its_column(column: str, value: object) -> None:
    with pytest.raises(IntegrityError, match=f"a value does not fit column {column}, "):
        table_of([{**ATTEMPT, column: value}], ATTEMPTS)


def test_prices_keep_their_cents_and_times_are_utc() -> None:
    row = {"site": "demo", "listing_id": "1", "url": "u", "num_photos": 0}
    at = datetime(2026, 11, 1, 12, tzinfo=UTC)
    table = table_of([{**row, "price": Decimal("34990.10"), "fetched_at": at}], LISTINGS)
    assert table["price"].to_pylist() == [Decimal("34990.10")]
    assert table["fetched_at"].to_pylist() == [at]
    for price in (Decimal("1.234"), Decimal("12345678901.00")):
        with pytest.raises(IntegrityError, match="column price"):
            table_of([{**row, "price": price}], LISTINGS)


def test_a_perceptual_hash_uses_all_64_bits() -> None:
    photo = {"key": "k", "site": "s", "listing_id": "1", "photo_index": 0, "outcome": "stored", "part": "p"}
    assert table_of([{**photo, "phash": (1 << 64) - 1}], PHOTOS)["phash"].to_pylist() == [(1 << 64) - 1]


def test_no_column_is_of_null_type_and_all_survive_parquet(tmp_path: Path) -> None:
    for name, schema in SCHEMAS.items():
        path = tmp_path / f"{name.replace('/', '-')}.parquet"
        pq.write_table(table_of([], schema), path)
        assert pq.read_schema(path).equals(schema)
        assert pa.null() not in schema.types


def test_the_digest_reads_columns_that_are_there_and_none_of_time_or_place() -> None:
    for name, columns in DIGEST_COLUMNS.items():
        assert set(columns) <= set(SCHEMAS[name].names)
        assert not {"fetched_at", "etag", "part", "policy"} & set(columns)
