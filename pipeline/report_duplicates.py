"""The report on duplicates: how many of each tier, and what clusters look like."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from pipeline.report_blocks import Block, DataTable, Gallery, Photo, ReportSection, Row, Words, headings, share
from pipeline.report_source import ReportSource

NUM_CLUSTERS, NUM_OF_CLUSTER = 6, 6
_KINDS: Mapping[str, str] = {
    "exact": "Exact duplicates: the same picture",
    "near": "Near duplicates: encoded, resized or brightened anew",
    "copy": "Copies: cropped, or under a banner",
    "stock": "Stock photos: one picture for many cars, dropped whole",
}
_SHORT: Mapping[str, str] = {"exact": "exact", "near": "near", "copy": "copy", "stock": "stock photo"}
# A cluster is shown under the weakest tier that it needs; a stock photo is one whatever ties it.
_CLUSTERS = """
CREATE OR REPLACE TEMP TABLE report_clusters AS
SELECT cluster_id, any_value(cluster_size) AS photos, any_value(cluster_listings) AS listings,
       count(*) FILTER (NOT kept) AS dropped,
       CASE WHEN bool_or(drop_reason = 'stock_photo') THEN 'stock' WHEN bool_or(tier = 'copy') THEN 'copy'
            WHEN bool_or(tier = 'near') THEN 'near' ELSE 'exact' END AS kind
FROM duplicates WHERE cluster_id IS NOT NULL GROUP BY cluster_id
"""
_BY_KIND = """
SELECT kind, count(*) AS clusters, sum(photos)::BIGINT AS photos, sum(dropped)::BIGINT AS dropped,
       count(*) FILTER (listings > 1) AS across, max(photos) AS largest
FROM report_clusters GROUP BY kind
"""
_SHOWN = f"""
WITH picked AS (
    SELECT * FROM report_clusters
    QUALIFY row_number() OVER (PARTITION BY kind ORDER BY md5(cluster_id), cluster_id) <= {NUM_CLUSTERS})
SELECT picked.*, d.key, d.kept, d.tier, d.drop_reason, p.part, p.source_width_px, p.source_height_px, l.title,
       l.price_usd
FROM picked JOIN duplicates d USING (cluster_id) JOIN photos p USING (key) JOIN listings l USING (site, listing_id)
QUALIFY row_number() OVER (PARTITION BY cluster_id ORDER BY d.kept DESC, md5(d.key), d.key) <= {NUM_OF_CLUSTER}
ORDER BY kind, md5(cluster_id), cluster_id, d.kept DESC, md5(d.key), d.key
"""


def duplicates_section(source: ReportSource) -> ReportSection:
    """Report the duplicates."""
    anchor, title = "duplicates", "Duplicates"
    stored = source.number("SELECT count(*) FROM duplicates")
    if not stored:
        return ReportSection(anchor, title, [source.absent("duplicates", "Duplicates were not looked for yet.")])
    source.catalog.execute(_CLUSTERS)
    by_kind = {row["kind"]: row for row in source.rows(_BY_KIND)}
    if not by_kind:
        return ReportSection(anchor, title, [Words(f"None of the {stored:,} stored photos is a copy of another.")])
    table = DataTable(
        f"Clusters of equal pictures among the {stored:,} stored photos",
        headings("what", "clusters|count", "photos|count", "dropped|count", "of all|percent")
        + headings("over several listings|count", "largest|count"),
        [
            [
                *(_SHORT[kind], row["clusters"], row["photos"], row["dropped"], share(row["dropped"], stored)),
                *(row["across"], row["largest"]),
            ]
            for kind in _KINDS
            if (row := by_kind.get(kind)) is not None
        ],
    )
    blocks: list[Block] = [table]
    if not source.number("SELECT count(*) FROM edges_copy") and "copy" not in by_kind:
        text = "No crops or banners are among them: pipeline/copies.py has not looked for any, or found none."
        blocks.append(Words(text))
    shown = source.rows(_SHOWN)
    for kind, caption in _KINDS.items():
        if mine := [row for row in shown if row["kind"] == kind]:
            note = f"{caption} ({len({row['cluster_id'] for row in mine})} of {by_kind[kind]['clusters']:,} clusters)"
            blocks.append(Gallery(note, _rows(mine)))
    return ReportSection(anchor, title, blocks)


def _rows(rows: Sequence[dict[str, Any]]) -> list[Row]:
    found = []
    for _, members in groupby(rows, key=lambda row: row["cluster_id"]):
        photos = list(members)
        first = photos[0]
        more = f", {len(photos)} shown" if first["photos"] > len(photos) else ""
        title = f"{first['photos']:,} photos of {_listings(first['listings'])}{more}"
        found.append(Row(title, [_photo(row) for row in photos]))
    return found


def _photo(row: Mapping[str, Any]) -> Photo:
    mark = "kept" if row["kept"] else f"dropped: {row['drop_reason']}"
    size = f"{row['source_width_px']} x {row['source_height_px']} px"
    return Photo(row["key"], row["part"], f"{car_words(row)}, {size}", mark, dropped=not row["kept"])


def car_words(row: Mapping[str, Any]) -> str:
    """Say what a photo's listing is called and costs."""
    price = "" if row["price_usd"] is None else f", ${float(row['price_usd']):,.0f}"
    return f"{row['title'] or 'untitled'}{price}"


def _listings(count: int) -> str:
    return "1 listing" if count == 1 else f"{count:,} listings"
