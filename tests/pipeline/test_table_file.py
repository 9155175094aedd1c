from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.table_file import written
from schemas.errors import DiskFullError, IntegrityError

SCHEMA = pa.schema([pa.field("key", pa.int32(), nullable=False)])


def batches(*values: object) -> list[pa.RecordBatch]:
    return [pa.RecordBatch.from_pydict({"key": pa.array([value], pa.int64())}) for value in values]


def test_rows_are_written_in_the_schemas_types(tmp_path: Path) -> None:
    assert sum(batch.num_rows for batch in written(batches(1, 2, 3), tmp_path / "a", SCHEMA)) == 3
    table = pq.read_table(tmp_path / "a")
    assert (table.schema, table["key"].to_pylist()) == (SCHEMA, [1, 2, 3])


def test_a_null_where_none_may_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="column key holds 1 nulls"):
        list(written(batches(1, None), tmp_path / "a", SCHEMA))


def test_a_full_disk_is_an_error_that_says_so() -> None:
    random = np.random.default_rng(0).integers(0, 2**31, (20, 10_000))
    rows = (pa.RecordBatch.from_pydict({"key": pa.array(some, pa.int32())}) for some in random)
    with pytest.raises(DiskFullError, match="the disk is full at /dev/full"):
        list(written(rows, Path("/dev/full"), SCHEMA))  # a device that takes no byte
