"""Rows streamed into a Parquet file of exactly one schema, so that a table of any length takes little memory."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import IntegrityError
from schemas.storage import reported


def written(batches: Iterable[pa.RecordBatch], path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Write batches to a file, cast to `schema`, yielding each once it is written; read it to the end.

    Raises:
        IntegrityError: a null where none may be.
        DiskFullError: the disk is full.
    """
    with reported(str(path), writing=True), pq.ParquetWriter(path, schema, compression="zstd") as file:
        for batch in batches:
            columns = [batch.column(field.name).cast(field.type) for field in schema]
            for field, column in zip(schema, columns, strict=True):
                if column.null_count and not field.nullable:
                    raise IntegrityError(f"column {field.name} holds {column.null_count} nulls and may hold none")
            shaped = pa.RecordBatch.from_arrays(columns, schema=schema)
            file.write_batch(shaped)
            yield shaped
