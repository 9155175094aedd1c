"""One digest of all committed rows of a root: equal data sets have equal digests, however they were made.

Rows are sorted by key and hashed column by column in blocks of 65,536 rows, in a fixed encoding: validity as a byte a
row; text as lengths (int32) and UTF-8; numbers as little-endian, NaN as one pattern; decimals as 128-bit integers of
their scale. Null is told from empty and zero. Parts, their order and generations, DuckDB's version and the number of
workers do not show.

Of labels counts what they settle to, `key, label`; of data sets the latest version of each.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog import Catalog, CatalogSettings
from pipeline.label_rows import settled_labels
from schemas.manifest import DATASETS, latest_version, read_manifest, read_rows
from schemas.receipts import INGEST_STAGES, read_receipts
from schemas.shards import Shard
from schemas.storage import Root
from schemas.tables import DATASET_DIGEST_COLUMNS, DATASET_SCHEMAS, DIGEST_COLUMNS, SCHEMAS

BLOCK_ROWS = 65_536
_BY_LISTING = frozenset({"attempts", "listings"})
_SHARDS = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("sha256", pa.binary(32), nullable=False)])


@dataclass(frozen=True, slots=True)
class Digest:
    """The digest of a root, and of each of its tables (`shards` is key -> SHA-256 of the value).

    A data set is `datasets/NAME`.
    """

    whole: str
    tables: dict[str, str]


def digest(root: Root, settings: CatalogSettings | None = None) -> Digest:
    """Digest the committed rows of a root; every shard value is read and hashed again.

    Raises:
        IntegrityError: a receipt or a shard cannot be read.
        RootError: a committed table cannot be read.
    """
    tables = {}
    with Catalog(root, settings) as catalog:
        for folder, columns in DIGEST_COLUMNS.items():
            schema = pa.schema([SCHEMAS[folder].field(name) for name in columns])
            view = folder.replace("/", "_")
            order = "site, listing_id" if folder in _BY_LISTING else "key"
            rows = catalog.stream(f"SELECT {', '.join(columns)} FROM {view} ORDER BY {order}")
            tables[folder] = digest_rows(folder, schema, rows)
        catalog.load("shard_values", pa.RecordBatchReader.from_batches(_SHARDS, _shard_values(root)))
        rows = catalog.stream("SELECT key, sha256 FROM shard_values ORDER BY key")
        tables["shards"] = digest_rows("shards", _SHARDS, rows)
    labels = settled_labels(root).select(["key", "label"])
    tables["labels"] = digest_rows("labels", labels.schema, labels.to_batches())
    for folder in root.list_folders(DATASETS):
        if latest_version(root, name := PurePosixPath(folder).name) is not None:
            tables[folder] = _digest_dataset(root, name)
    lines = "".join(f"{name} {tables[name]}\n" for name in sorted(tables))
    return Digest(hashlib.sha256(lines.encode()).hexdigest(), tables)


def _digest_dataset(root: Root, name: str) -> str:
    """Digest the latest version of a data set: what it is called by its content, its photos, and every outcome."""
    manifest = read_manifest(root, name)
    lines = f"version {manifest.version}\n"
    for table, columns in DATASET_DIGEST_COLUMNS.items():
        batches = (batch.select(list(columns)) for batch in read_rows(root, manifest, table))
        schema = pa.schema([DATASET_SCHEMAS[table].field(column) for column in columns])
        lines += f"{table} {digest_rows(table, schema, batches)}\n"
    return hashlib.sha256(lines.encode()).hexdigest()


def digest_rows(name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> str:
    """Digest sorted rows; how they are cut into batches does not show."""
    hasher = hashlib.sha256(name.encode())
    for field in schema:
        hasher.update(f"\n{field.name}:{field.type}".encode())
    for block in _blocks(batches, schema):
        hasher.update(f"\n{block.num_rows}\n".encode())
        for column in block.columns:
            for piece in _encoded(column):
                hasher.update(piece)
    return hasher.hexdigest()


def _blocks(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Cut rows anew into blocks of exactly `BLOCK_ROWS`, the last one shorter."""
    waiting: list[pa.RecordBatch] = []
    num_waiting = 0
    for batch in batches:
        columns = [batch.column(field.name).cast(field.type) for field in schema]
        waiting.append(pa.RecordBatch.from_arrays(columns, schema=schema))
        num_waiting += batch.num_rows
        while num_waiting >= BLOCK_ROWS:
            whole = pa.concat_batches(waiting)
            yield whole.slice(0, BLOCK_ROWS)
            waiting, num_waiting = [whole.slice(BLOCK_ROWS)], num_waiting - BLOCK_ROWS
    if num_waiting:
        yield pa.concat_batches(waiting)


def _encoded(column: pa.Array) -> Iterator[bytes]:
    """Encode a column's values: its validity, then its values, a null's as zero or empty."""
    yield pc.is_valid(column).cast(pa.uint8()).to_numpy(zero_copy_only=False).tobytes()
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        filled = pc.fill_null(column.cast(pa.binary()), b"")
        lengths = pc.binary_length(filled).to_numpy(zero_copy_only=False)
        yield lengths.astype("<i4").tobytes()
        _, offsets, data = filled.buffers()
        ends = np.frombuffer(offsets, dtype=np.int32)[filled.offset : filled.offset + len(filled) + 1]
        if data is not None and len(filled):
            yield bytes(memoryview(data)[ends[0] : ends[-1]])
    elif pa.types.is_fixed_size_binary(kind):
        yield b"".join(column.to_pylist())
    elif pa.types.is_decimal(kind):
        # Arrow's decimals lie in memory as little-endian 128-bit integers; a null's bytes may be anything.
        filled = pc.fill_null(column, pa.scalar(0, kind))
        width_bytes = kind.bit_width // 8
        yield bytes(filled.buffers()[1])[filled.offset * width_bytes : (filled.offset + len(filled)) * width_bytes]
    elif pa.types.is_floating(kind):
        values = pc.fill_null(column, pa.scalar(0, kind)).to_numpy(zero_copy_only=False)
        values = np.where(np.isnan(values), values.dtype.type(np.nan), values)
        yield values.astype(values.dtype.newbyteorder("<")).tobytes()
    elif pa.types.is_boolean(kind):
        yield pc.fill_null(column, False).cast(pa.uint8()).to_numpy(zero_copy_only=False).tobytes()
    else:
        values = pc.fill_null(column, pa.scalar(0, kind)).to_numpy(zero_copy_only=False)
        yield values.astype(values.dtype.newbyteorder("<")).tobytes()


def _shard_values(root: Root) -> Iterator[pa.RecordBatch]:
    """Hash every committed shard value, a batch a shard at most."""
    for stage in INGEST_STAGES:
        for receipt in read_receipts(root, stage):
            with Shard.open(root, receipt.file("shards")) as shard:
                yield from shard_digests(shard)


def shard_digests(shard: Shard) -> Iterator[pa.RecordBatch]:
    """Hash the values of one shard, in order of key; columns `key, sha256` (32 bytes)."""
    keys: list[str] = []
    hashes: list[bytes] = []
    for key, jpeg in shard.items():
        keys.append(key)
        hashes.append(hashlib.sha256(jpeg).digest())
        if len(keys) == BLOCK_ROWS:
            yield _shard_batch(keys, hashes)
            keys, hashes = [], []
    yield _shard_batch(keys, hashes)


def _shard_batch(keys: list[str], hashes: list[bytes]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(keys, pa.string()), pa.array(hashes, pa.binary(32))], schema=_SHARDS)
