"""Write one self-contained HTML page of a root's photos: some kept, duplicate clusters, stock photos.

Reads: photos, listings, duplicates and the shards. Writes: one HTML file.

    python pipeline/contact_sheet.py --root data --out sheet.html
"""

import argparse
import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.catalog import query
from schemas.command import run_script, script_parser
from schemas.receipts import INGEST_STAGES, read_receipt
from schemas.shards import Shard
from schemas.storage import Root

NUM_KEPT, NUM_CLUSTERS, NUM_OF_CLUSTER = 48, 8, 6

# Which photos stand under which heading; equal content gives an equal page, so the order is by key.
_KEPT = f"""
    SELECT p.key, p.part, l.title, l.price, l.currency FROM photos p JOIN listings l USING (site, listing_id)
    LEFT JOIN duplicates d USING (key)
    WHERE p.outcome = 'stored' AND coalesce(d.kept, true) ORDER BY md5(p.key), p.key LIMIT {NUM_KEPT}"""
_DROPPED = f"""
    WITH shown AS (
        SELECT cluster_id, bool_or(drop_reason = 'stock_photo') AS stock FROM duplicates WHERE cluster_id IS NOT NULL
        GROUP BY cluster_id),
    picked AS (
        SELECT * FROM shown QUALIFY row_number() OVER (PARTITION BY stock ORDER BY cluster_id) <= {NUM_CLUSTERS})
    SELECT d.key, p.part, l.title, l.price, l.currency, d.kept, d.drop_reason, d.cluster_id, d.cluster_size
    FROM duplicates d JOIN picked USING (cluster_id) JOIN photos p USING (key) JOIN listings l USING (site, listing_id)
    QUALIFY row_number() OVER (PARTITION BY d.cluster_id ORDER BY d.key) <= {NUM_OF_CLUSTER}
    ORDER BY cluster_id, d.key"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Contact sheet</title><style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1rem; color: #222; background: #fff }}
.row {{ display: flex; flex-wrap: wrap; gap: 8px; margin-bottom: 12px }}
figure {{ margin: 0; width: 160px }} img {{ width: 100%; height: 120px; object-fit: cover; border-radius: 4px }}
figcaption {{ font-size: 12px; overflow-wrap: anywhere }} .dropped img {{ opacity: .55 }}
</style></head><body><h1>Contact sheet</h1>
<p>{summary}</p>
<h2>Some of the photos that are kept</h2><div class="row">{kept}</div>
<h2>Exact duplicates</h2>{exact}
<h2>Stock photos, dropped whole</h2>{stock}
</body></html>
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = script_parser(__doc__, settings=False)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.html", help="where to write the page")
    return run_script(parser, _run, argv=argv)


def contact_sheet(root: Root) -> str:
    """Return the page as HTML."""
    kept = query(root, _KEPT).to_pylist()
    dropped = query(root, _DROPPED).to_pylist()
    pictures = _pictures(root, [*kept, *dropped])
    stored = query(root, "SELECT count(*) AS n FROM photos WHERE outcome = 'stored'").to_pylist()[0]["n"]
    gone = query(root, "SELECT count(*) AS n FROM duplicates WHERE NOT kept").to_pylist()[0]["n"]
    stock = [row for row in dropped if row["drop_reason"] == "stock_photo"]
    exact = [row for row in dropped if row["drop_reason"] != "stock_photo"]
    return _PAGE.format(
        summary=html.escape(
            f"{stored:,} photos stored in {root.text}; {gone:,} dropped as duplicates or stock photos."
        ),
        kept="".join(_figure(row, pictures) for row in kept),
        exact=_clusters(exact, pictures),
        stock=_clusters(stock, pictures),
    )


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    page = contact_sheet(Root.open(arguments.root))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(page, encoding="utf-8")
    return {"contact_sheet": str(arguments.out)}


def _pictures(root: Root, rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    keys_of: dict[str, list[str]] = {}
    for row in rows:
        keys_of.setdefault(row["part"], []).append(row["key"])
    pictures: dict[str, bytes] = {}
    for part, keys in keys_of.items():
        receipt = next(r for stage in INGEST_STAGES if (r := read_receipt(root, stage, part)) is not None)
        with Shard.open(root, receipt.file("shards")) as shard:
            pictures |= zip(keys, shard.get_many(keys), strict=True)
    return pictures


def _clusters(rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, bytes]) -> str:
    return "".join(_cluster_rows(rows, pictures)) or "<p>None.</p>"


def _cluster_rows(rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, bytes]) -> Iterator[str]:
    for cluster in dict.fromkeys(row["cluster_id"] for row in rows):
        members = [row for row in rows if row["cluster_id"] == cluster]
        yield f"<p>{html.escape(cluster)}: {members[0]['cluster_size']} photos</p>"
        yield f'<div class="row">{"".join(_figure(row, pictures) for row in members)}</div>'


def _figure(row: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    price = "" if row["price"] is None else f", {row['price']:,.0f} {row['currency']}"
    title = html.escape(f"{row['title'] or 'untitled'}{price}")
    reason = row.get("drop_reason")
    style, note = (' class="dropped"', f"<br>{reason}") if reason else ("", "")
    data = base64.b64encode(pictures[row["key"]]).decode()
    return (
        f'<figure{style}><img alt="{title}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{title}<br>{html.escape(row['key'])}{note}</figcaption></figure>"
    )


if __name__ == "__main__":
    raise SystemExit(main())
