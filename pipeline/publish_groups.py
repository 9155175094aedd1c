"""Tie listings into groups that must stay on one side, and give each group its split.

A group is a connected component over listings: tied are those with the same VIN and those that show one picture (a
cluster of `duplicates`, whatever its tier). A stock photo ties nothing. Photos that are dropped tie as kept ones do.

Memory, beside DuckDB's own limit: some 30 bytes a tie and 20 a listing. A whole publish of ten million photos of two
million listings took 107 s on two cores and 2.5 GiB with `catalog.memory_gib=2`.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.catalog import Catalog
from schemas.manifest import SPLITS
from schemas.tables import DATASET_OUTCOMES

# Listings that stored a photo, numbered in order of (site, listing_id): the smallest number of a group names it.
_NODES = """
CREATE OR REPLACE TEMP TABLE nodes AS
SELECT site, listing_id, row_number() OVER (ORDER BY site, listing_id) - 1 AS node
FROM (SELECT DISTINCT site, listing_id FROM stored)
"""
# A vehicle identification number of 17 characters with the check digit at its ninth place: 49 CFR 565.15 (c), whose
# numbers are those of ISO 3779. Most cars sold outside North America have none, and their VIN ties nothing. A row of
# one character passes the check and is a placeholder; so is what too many listings have.
_VINS = """
WITH read AS (SELECT site, listing_id, upper(trim(vin)) AS vin FROM listings WHERE vin IS NOT NULL),
     whole AS (SELECT * FROM read WHERE regexp_full_match(vin, '[A-HJ-NPR-Z0-9]{17}') AND vin <> repeat(vin[1], 17)),
     summed AS (
         SELECT *, translate(vin, 'ABCDEFGHJKLMNPRSTUVWXYZ', '12345678123457923456789') AS digits,
                list_sum(list_transform(range(1, 18),
                         lambda i: coalesce(try_cast(digits[i] AS INTEGER), 0)
                                   * [8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2][i]))::INTEGER AS total
         FROM whole),
     valid AS (SELECT vin, site, listing_id FROM summed WHERE vin[9] = '0123456789X'[total % 11 + 1]),
     few AS (SELECT vin FROM valid GROUP BY vin HAVING count(*) BETWEEN 2 AND $max_vin_listings)
SELECT vin AS tie, node FROM valid SEMI JOIN few USING (vin) JOIN nodes USING (site, listing_id)
"""
_CLUSTERS = """
WITH ties AS (SELECT cluster_id FROM duplicates WHERE cluster_id IS NOT NULL
              GROUP BY cluster_id HAVING NOT coalesce(bool_or(drop_reason = 'stock_photo'), false))
SELECT DISTINCT cluster_id AS tie, node
FROM duplicates SEMI JOIN ties USING (cluster_id) JOIN stored USING (key) JOIN nodes USING (site, listing_id)
"""
# Stars, not all pairs: each listing of a tie with the first of them.
_STARS = """
WITH members AS ({members}), centres AS (SELECT tie, min(node) AS centre FROM members GROUP BY tie)
SELECT centre::INTEGER AS a, node::INTEGER AS b FROM members JOIN centres USING (tie) WHERE node <> centre
"""
# The split of a group: its share of the first 48 bits of SHA-256, against the cumulated fractions.
_HASHED = "(('0x' || sha256(group_id)[1:12])::UBIGINT)::DOUBLE / 281474976710656"
_RANK = "CASE split WHEN 'train' THEN 0 WHEN 'val' THEN 1 ELSE 2 END"
# A group takes the first of train, val, test that a listing of it had in the parent.
_SPLIT_GROUPS = f"""
CREATE OR REPLACE TEMP TABLE groups AS
WITH inherited AS (
         SELECT first, min({_RANK}) AS rank, count(DISTINCT group_id) AS num_parents
         FROM parent_listings JOIN nodes USING (site, listing_id) JOIN firsts USING (node) GROUP BY first),
     named AS (SELECT node AS first, site || '/' || listing_id AS group_id
               FROM nodes SEMI JOIN firsts ON nodes.node = firsts.first)
SELECT first, group_id, coalesce(num_parents, 0) AS num_parents,
       CASE coalesce(rank, CASE WHEN {_HASHED} < $train THEN 0 WHEN {_HASHED} < $train_val THEN 1 ELSE 2 END)
            WHEN 0 THEN 'train' WHEN 1 THEN 'val' ELSE 'test' END AS split
FROM named LEFT JOIN inherited USING (first)
"""
_GROUPED = """
CREATE OR REPLACE TEMP TABLE grouped AS
SELECT site, listing_id, group_id, split
FROM nodes JOIN firsts USING (node) JOIN groups USING (first)
"""


def tie_groups(catalog: Catalog, *, max_vin_listings: int) -> None:
    """Find the groups of the listings in table `stored`: tables `nodes` (listings by number) and `firsts`.

    `firsts` has for each node the smallest node of its group.
    """
    catalog.execute(_NODES)
    num_nodes = int(catalog.query("SELECT count(*) AS n FROM nodes")["n"][0].as_py())
    vins = catalog.stream(_STARS.format(members=_VINS), {"max_vin_listings": max_vin_listings})
    pairs = [
        np.stack(columns) for columns in (*_pairs(vins), *_pairs(catalog.stream(_STARS.format(members=_CLUSTERS))))
    ]
    ties = np.concatenate(pairs, axis=1) if pairs else np.empty((2, 0), np.int32)
    first = first_of_component(num_nodes, ties)
    catalog.load("firsts", pa.table({"node": np.arange(num_nodes, dtype=np.int32), "first": first}))


def _pairs(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    for batch in batches:
        yield batch.column("a").to_numpy(), batch.column("b").to_numpy()


def first_of_component(num_nodes: int, ties: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return for each node the smallest node that ties (2, T) connect it with."""
    graph = coo_array((np.ones(ties.shape[1], np.bool_), (ties[0], ties[1])), shape=(num_nodes, num_nodes))
    num_components, labels = connected_components(graph, directed=False)
    first = np.empty(num_components, np.int32)
    # Of equal indices numpy keeps the last assignment: the smallest node, in falling order.
    first[labels[::-1]] = np.arange(num_nodes - 1, -1, -1, dtype=np.int32)
    found: NDArray[np.int32] = first[labels]
    return found


def split_groups(catalog: Catalog, parent: pa.RecordBatchReader | None, *, train: float, val: float) -> None:
    """Give each group its id and split: tables `groups`, and `grouped` (site, listing_id, group_id, split).

    `parent` is the outcomes of the parent version. Where a listing of the group was in it, its split there counts, also
    where none of its photos was kept.
    """
    catalog.load("parent_rows", DATASET_OUTCOMES.empty_table() if parent is None else parent)
    columns = "site, listing_id, group_id, split"
    catalog.execute(f"CREATE OR REPLACE TEMP TABLE parent_listings AS SELECT DISTINCT {columns} FROM parent_rows")
    catalog.execute("CREATE OR REPLACE TEMP TABLE parent_kept AS SELECT key FROM parent_rows WHERE outcome = 'kept'")
    catalog.execute("DROP TABLE parent_rows")
    catalog.execute(_SPLIT_GROUPS, {"train": train, "train_val": train + val})
    catalog.execute(_GROUPED)


def count_inherited(catalog: Catalog) -> dict[str, int]:
    """Count what the parent decided, and where groups that merged had to leave its splits."""
    row = catalog.query(
        "SELECT (SELECT count(*) FROM groups WHERE num_parents > 0) AS groups,"
        " (SELECT count(*) FROM groups WHERE num_parents > 1) AS merged,"
        " (SELECT count(DISTINCT parent_listings.group_id) FROM parent_listings JOIN grouped USING (site, listing_id)"
        "  WHERE parent_listings.split <> grouped.split) AS moved,"
        " (SELECT count(*) FROM parent_kept ANTI JOIN stored USING (key)) AS withdrawn"
    ).to_pylist()[0]
    return {name: int(value) for name, value in row.items()}


def require_one_side(catalog: Catalog) -> dict[str, int]:
    """Return the groups with kept photos by split.

    Raises:
        AssertionError: a group has photos on two sides, which would be our mistake.
    """
    rows = catalog.query(
        "SELECT split, count(*) AS n FROM (SELECT group_id, min(split) AS split, max(split) AS other FROM kept"
        " GROUP BY group_id) GROUP BY split"
    ).to_pylist()
    both = catalog.query("SELECT group_id FROM kept GROUP BY group_id HAVING count(DISTINCT split) > 1 LIMIT 1")
    assert not both.num_rows, both
    return {split: sum(int(row["n"]) for row in rows if row["split"] == split) for split in SPLITS}
