"""The report on conflicts: one picture in listings that disagree on make, model or price."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from pipeline.clusters import conflicts
from pipeline.report_blocks import Block, DataTable, Gallery, Photo, ReportSection, Row, Words, headings
from pipeline.report_duplicates import car_words
from pipeline.report_source import ReportSource

NUM_CLUSTERS, NUM_OF_CLUSTER = 12, 4
_DIFFERS = ("make", "model", "price_usd")
_WORDS = {"make": "make", "model": "model", "price_usd": "price"}

_COUNTS = """
SELECT make, model, price_usd, count(*) AS clusters, sum(photos)::BIGINT AS photos
FROM report_conflicts GROUP BY ALL ORDER BY clusters DESC, make DESC, model DESC
"""
_SHOWN = f"""
WITH picked AS (
    SELECT * FROM report_conflicts ORDER BY make DESC, model DESC, md5(cluster_id), cluster_id LIMIT {NUM_CLUSTERS}),
firsts AS (
    SELECT picked.*, d.key, d.kept, p.part, l.title, l.price_usd AS listed_usd,
           row_number() OVER (PARTITION BY picked.cluster_id, l.site, l.listing_id ORDER BY d.kept DESC, d.key) AS nth
    FROM picked JOIN duplicates d USING (cluster_id) JOIN photos p USING (key) JOIN listings l USING (site, listing_id))
SELECT * FROM firsts WHERE nth = 1
QUALIFY row_number() OVER (PARTITION BY cluster_id ORDER BY kept DESC, key) <= {NUM_OF_CLUSTER}
ORDER BY make DESC, model DESC, md5(cluster_id), cluster_id, kept DESC, key
"""


def conflicts_section(source: ReportSource) -> ReportSection:
    """Report the conflicts."""
    anchor, title = "conflicts", "Conflicts"
    if not source.number("SELECT count(*) FROM duplicates"):
        return ReportSection(anchor, title, [source.absent("duplicates", "Duplicates were not looked for yet.")])
    source.catalog.load("report_conflicts", conflicts(source.catalog))
    counts = source.rows(_COUNTS)
    if not counts:
        return ReportSection(anchor, title, [Words("No picture is in two listings that disagree on the car.")])
    total = sum(row["clusters"] for row in counts)
    blocks: list[Block] = [
        Words("One picture in listings that disagree: a wrong listing, a price changed, or a dealer's habit."),
        DataTable(
            "Clusters whose listings disagree",
            headings("on", "clusters|count", "photos|count"),
            [[_differing(row), row["clusters"], row["photos"]] for row in counts],
        ),
    ]
    rows = _rows(source.rows(_SHOWN))
    blocks.append(Gallery(f"The same picture, another car or price ({len(rows)} of {total:,})", rows))
    return ReportSection(anchor, title, blocks)


def _differing(row: Mapping[str, Any]) -> str:
    return ", ".join(_WORDS[name] for name in _DIFFERS if row[name])


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    found = []
    for _, members in groupby(rows, key=lambda row: row["cluster_id"]):
        photos = list(members)
        title = f"Another {_differing(photos[0])} in {photos[0]['listings']:,} listings"
        found.append(Row(title, [_photo(row) for row in photos]))
    return found


def _photo(row: Mapping[str, Any]) -> Photo:
    words = car_words({"title": row["title"], "price_usd": row["listed_usd"]})
    return Photo(row["key"], row["part"], words, "kept" if row["kept"] else "dropped", dropped=not row["kept"])
