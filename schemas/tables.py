"""The fixed, versioned Arrow schema of every table, and the one way to make a table that has it."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from schemas.errors import IntegrityError

FORMAT_VERSION = 1
INDEX_DIGITS = 3

_UTC = pa.timestamp("us", tz="UTC")
_PRICE = pa.decimal128(12, 2)

ATTEMPTS = pa.schema(
    [
        pa.field("site", pa.string(), nullable=False),
        pa.field("listing_id", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("status", pa.int16()),
        pa.field("error", pa.string()),
        pa.field("num_tries", pa.int16(), nullable=False),
        pa.field("latency_s", pa.float32()),
        pa.field("policy", pa.string()),
        pa.field("etag", pa.string()),
        pa.field("last_modified", pa.string()),
        pa.field("fetched_at", _UTC),
    ]
)

LISTINGS = pa.schema(
    [
        pa.field("site", pa.string(), nullable=False),
        pa.field("listing_id", pa.string(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("title", pa.string()),
        pa.field("make", pa.string()),
        pa.field("model", pa.string()),
        pa.field("trim", pa.string()),
        pa.field("year", pa.int16()),
        pa.field("body_style", pa.string()),
        pa.field("price", _PRICE),
        pa.field("currency", pa.string()),
        pa.field("price_usd", _PRICE),
        pa.field("odometer", pa.float64()),
        pa.field("odometer_unit", pa.string()),
        pa.field("odometer_mi", pa.float64()),
        pa.field("exterior_color", pa.string()),
        pa.field("interior_color", pa.string()),
        pa.field("engine", pa.string()),
        pa.field("transmission", pa.string()),
        pa.field("drive_type", pa.string()),
        pa.field("fuel_type", pa.string()),
        pa.field("city_mpg", pa.float32()),
        pa.field("highway_mpg", pa.float32()),
        pa.field("vin", pa.string()),
        pa.field("stock_number", pa.string()),
        pa.field("description", pa.string()),
        pa.field("num_photos", pa.int32(), nullable=False),
        pa.field("fetched_at", _UTC),
    ]
)

PHOTOS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("listing_id", pa.string(), nullable=False),
        pa.field("photo_index", pa.int32(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("policy", pa.string()),
        pa.field("source_format", pa.string()),
        pa.field("source_width_px", pa.int32()),
        pa.field("source_height_px", pa.int32()),
        pa.field("source_bytes", pa.int64()),
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
        pa.field("size_bytes", pa.int32()),
        pa.field("sha256", pa.string()),
        pa.field("coarse_hash", pa.string()),
        pa.field("phash", pa.uint64()),
        pa.field("etag", pa.string()),
        pa.field("part", pa.string(), nullable=False),
        pa.field("fetched_at", _UTC),
    ]
)

EDGES = pa.schema(
    [
        pa.field("key_a", pa.string(), nullable=False),
        pa.field("key_b", pa.string(), nullable=False),
        pa.field("tier", pa.string(), nullable=False),
        pa.field("distance", pa.float32(), nullable=False),
    ]
)

DUPLICATES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("tier", pa.string()),
        pa.field("cluster_id", pa.string()),
        pa.field("cluster_size", pa.int32()),
        pa.field("cluster_listings", pa.int32()),
        pa.field("kept", pa.bool_(), nullable=False),
        pa.field("drop_reason", pa.string()),
    ]
)

LABELS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),  # keep, junk, unsure
        pa.field("junk_type", pa.string()),  # where the labeller knew: interior, wheel, ...
        pa.field(
            "sampled_by", pa.string(), nullable=False
        ),  # random, uncertain, likely_junk, likely_keep, prompt, import
        pa.field("labeller", pa.string(), nullable=False),
        pa.field("labelled_at", _UTC, nullable=False),
    ]
)

SCORES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("score", pa.float32()),  # more is more like junk; null where there is no filter
        pa.field("drop_reason", pa.string()),
    ]
)

DATASET_PHOTOS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("listing_id", pa.string(), nullable=False),
        pa.field("make", pa.string()),
        pa.field("model", pa.string()),
        pa.field("year", pa.int16()),
        pa.field("price_usd", _PRICE),
        pa.field("odometer_mi", pa.float64()),
        pa.field("price_bin", pa.int16()),
        pa.field("make_model", pa.string()),
        pa.field("make_model_id", pa.int16()),
        pa.field("year_id", pa.int16()),
        pa.field("sha256", pa.string(), nullable=False),  # of the stored bytes that this version means
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
    ]
)

# Beside a data set's photos: what became of every stored photo, kept ones too.
DATASET_OUTCOMES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("listing_id", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),  # kept, dropped, unreadable
        pa.field("drop_reason", pa.string()),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # of the group, which a later version inherits
    ]
)

# Folder under the root -> schema, for every table of fixed columns; embeddings differ in width, see `schema_of`.
SCHEMAS: Mapping[str, pa.Schema] = {
    "attempts": ATTEMPTS,
    "listings": LISTINGS,
    "photos": PHOTOS,
    "edges/hash": EDGES,
    "edges/copy": EDGES,
    "duplicates": DUPLICATES,
    "labels": LABELS,
    "scores": SCORES,
}
EMBEDDINGS_FOLDER = "embeddings"

# What the digest leaves out: times, places and evidence that may differ between two equal data sets.
DIGEST_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "attempts": ("site", "listing_id", "outcome", "error"),
    "listings": tuple(name for name in LISTINGS.names if name != "fetched_at"),
    "photos": tuple(name for name in PHOTOS.names if name not in {"part", "policy", "etag", "fetched_at"}),
    "duplicates": tuple(DUPLICATES.names),
    "scores": tuple(SCORES.names),
}
# The two tables of a published data set, by folder within its version.
DATASET_SCHEMAS: Mapping[str, pa.Schema] = {"photos": DATASET_PHOTOS, "outcomes": DATASET_OUTCOMES}
# In a data set too: the part is where the photo lies.
DATASET_DIGEST_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "photos": tuple(name for name in DATASET_PHOTOS.names if name != "part"),
    "outcomes": tuple(DATASET_OUTCOMES.names),
}


def embeddings_schema(dim: int) -> pa.Schema:
    """Return the schema of one encoder's embeddings: `key`, and `embedding` of `dim` float16 with L2 norm 1."""
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float16(), dim), nullable=False),
        ]
    )


def fits_folder(schema: pa.Schema, folder: str) -> bool:
    """Tell whether a table of that schema may lie in `folder`: its own, or of any width under `embeddings/`."""
    if not folder.startswith(f"{EMBEDDINGS_FOLDER}/"):
        return folder in SCHEMAS and bool(schema.equals(SCHEMAS[folder]))
    index = schema.get_field_index("embedding")
    if index < 0 or not pa.types.is_fixed_size_list(schema.field(index).type):
        return False
    return bool(schema.equals(embeddings_schema(schema.field(index).type.list_size)))


def photo_key(site: str, listing_id: str, photo_index: int) -> str:
    """Name a photo `SITE/LISTING_ID/INDEX`, the index padded so that keys sort as photos do."""
    return f"{site}/{listing_id}/{photo_index:0{INDEX_DIGITS}d}"


def table_of(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Build a table with exactly `schema`; a missing value is null, an unknown column an error.

    Raises:
        IntegrityError: a value that does not fit its column, or a null where none may be.
    """
    listed = list(rows)
    known = set(schema.names)
    for row in listed:
        if unknown := row.keys() - known:
            raise IntegrityError(f"columns {sorted(unknown)} are not in the schema; it has {schema.names}")
    columns = [_column_of([row.get(field.name) for row in listed], field) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _column_of(values: list[Any], field: pa.Field) -> pa.Array:
    # Arrow would cut the fraction off without a word.
    if pa.types.is_integer(field.type) and (cut := [v for v in values if isinstance(v, float) and v % 1]):
        raise IntegrityError(f"a value does not fit column {field.name}, {field.type}: {cut[0]!r} is no whole number")
    try:
        column = pa.array(values, field.type)
    except (ValueError, TypeError, OverflowError) as error:
        # ValueError: Arrow's own, and that of text which is no Unicode.
        raise IntegrityError(f"a value does not fit column {field.name}, {field.type}: {error}") from error
    if not field.nullable and column.null_count:
        raise IntegrityError(f"column {field.name} holds {column.null_count} nulls and may hold none")
    return column
