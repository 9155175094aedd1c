"""What one version of a data set has that another has not: photos by reason, splits, targets, classes, settings."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.catalog import Catalog, CatalogSettings
from pipeline.tabular import render
from schemas.manifest import Manifest, read_manifest, rows_reader
from schemas.settings import differing_settings
from schemas.storage import Root

# A photo new to the data set was not stored, or out for a reason; one gone from it is out for a reason, or withdrawn.
_ADDED = """
SELECT coalesce(old.drop_reason, 'new') AS why, count(*) AS n
FROM b_photos ANTI JOIN a_photos USING (key) LEFT JOIN a_outcomes AS old USING (key) GROUP BY why ORDER BY why
"""
_REMOVED = """
SELECT coalesce(now.drop_reason, 'withdrawn') AS why, count(*) AS n
FROM a_photos ANTI JOIN b_photos USING (key) LEFT JOIN b_outcomes AS now USING (key) GROUP BY why ORDER BY why
"""
_MOVED = """
SELECT a_photos.split || ' to ' || b_photos.split AS why, count(*) AS n
FROM a_photos JOIN b_photos USING (key) WHERE a_photos.split <> b_photos.split GROUP BY why ORDER BY why
"""
# Makes and models are compared by name: their ids follow the vocabulary.
_CHANGED = """
SELECT count(*) FILTER (a.price_bin IS DISTINCT FROM b.price_bin) AS price_bin,
       count(*) FILTER (a.make_model IS DISTINCT FROM b.make_model) AS make_model,
       count(*) FILTER (a.year IS DISTINCT FROM b.year) AS year,
       count(*) FILTER (a.price_usd IS DISTINCT FROM b.price_usd) AS price_usd,
       count(*) FILTER (a.sha256 <> b.sha256) AS picture,
       count(*) FILTER (a.group_id <> b.group_id) AS group_id
FROM a_photos AS a JOIN b_photos AS b USING (key)
"""


def diff(root: Root, first: str, second: str, limits: CatalogSettings | None = None) -> dict[str, Any]:
    """Compare two published versions; `added` and `removed` tell what the second has and lacks, by reason.

    Raises:
        UsageError: one of them is not there.
    """
    a, b = read_manifest(root, first), read_manifest(root, second)
    with Catalog(root, limits, files={}) as catalog:
        for name, manifest in (("a", a), ("b", b)):
            for table in ("photos", "outcomes"):
                catalog.load(f"{name}_{table}", rows_reader(root, manifest, table))
        counted = {
            what: {row["why"]: int(row["n"]) for row in catalog.query(sql).to_pylist()}
            for what, sql in (("added", _ADDED), ("removed", _REMOVED), ("moved", _MOVED))
        }
        changed = {name: int(n) for name, n in catalog.query(_CHANGED).to_pylist()[0].items()}
    kept = {"kept_a": a.counts["kept"], "kept_b": b.counts["kept"]}
    return {"a": a.reference, "b": b.reference, **kept, **counted, "changed": changed, **_words(a, b)}


def _words(a: Manifest, b: Manifest) -> dict[str, Any]:
    old, new = a.vocabulary, b.vocabulary
    return {
        "make_models_added": sorted(set(new.make_models) - set(old.make_models)),
        "make_models_removed": sorted(set(old.make_models) - set(new.make_models)),
        "make_model_ids_changed": old.make_models != new.make_models,
        "years_added": sorted(set(new.years) - set(old.years)),
        "years_removed": sorted(set(old.years) - set(new.years)),
        "price_cuts_changed": old.price_cuts_usd != new.price_cuts_usd,
        # Each reads `there` as the first version's.
        "settings": differing_settings(b.settings, a.settings),
    }


def diff_table(answer: Mapping[str, Any]) -> str:
    """Show a comparison as a table of photos by what became of them."""
    rows: list[dict[str, Any]] = [{"what": "kept", "why": answer["a"], "photos": answer["kept_a"]}]
    for what in ("added", "removed", "moved"):
        rows += [{"what": what, "why": why, "photos": n} for why, n in answer[what].items()]
    rows += [{"what": "changed", "why": why, "photos": n} for why, n in answer["changed"].items() if n]
    rows.append({"what": "kept", "why": answer["b"], "photos": answer["kept_b"]})
    return "".join(render(pa.Table.from_pylist(rows).to_batches(), "table", max_rows=len(rows))).rstrip("\n")
