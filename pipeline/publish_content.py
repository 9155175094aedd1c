"""What a version of a data set holds, worked out in DuckDB's temporary tables: outcomes, groups, splits, classes."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.catalog import TABLE_STAGES, Catalog
from pipeline.digest import digest_rows
from pipeline.photo_outcomes import COUNT_OF_REASON, MAKE_MODEL, Target, outcomes_sql, unreadable_photos
from pipeline.publish_groups import count_inherited, require_one_side, split_groups, tie_groups
from schemas.errors import IntegrityError, ReconcileError
from schemas.manifest import SPLITS, UNKNOWN, UNKNOWN_ID, Inheritance, Manifest, SplitCounts, Vocabulary, rows_reader
from schemas.receipts import read_receipts
from schemas.settings import Section, operational, result, result_settings
from schemas.storage import Root
from schemas.tables import DATASET_OUTCOMES, DATASET_PHOTOS

_ORIGINAL_CUTS_USD = [10_000.0, 15_000.0, 20_000.0, 25_000.0, 30_000.0, 35_000.0, 40_000.0, 50_000.0, 60_000.0]
_VERSION_DIGITS = 12
# In the content, and so in the version: how photos lie in parts is not.
_LAYOUT_COLUMNS = frozenset({"part"})
# The year's column is 16 bits wide, and so are ids.
_MAX_CLASSES = 32_766


class Fractions(Section):
    """How the groups are shared out."""

    train: float = result(0.8, "share of groups to learn from", ge=0, le=1)
    val: float = result(0.1, "share of groups to choose by", ge=0, le=1)
    test: float = result(0.1, "share of groups to report on", ge=0, le=1)

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train, val and test must sum to 1, found {total:g}")
        return self


class PublishSettings(Section):
    """What a data set holds, and how it is split."""

    fractions: Fractions = Field(default=Fractions(), description="shares of the splits")
    price_cuts: list[float] = result(
        _ORIGINAL_CUTS_USD, "USD, rising: where price bins end; n cuts make n + 1 bins", max_length=_MAX_CLASSES
    )
    num_make_models: int = result(512, "classes of make and model, the most frequent in train", ge=0, le=_MAX_CLASSES)
    require: Literal["any"] | list[Target] = result(
        "any", "targets a photo must have: any of them, or a list of price, make_model, year"
    )
    max_vin_listings: int = result(5, "listings up to which a VIN is a car; more share a placeholder", ge=1)
    parent: str | None = operational(
        None, "NAME[@VERSION] whose splits go on, `none` for no parent; the latest of the same name where not given"
    )

    @model_validator(mode="after")
    def _cuts_rise(self) -> Self:
        if any(low >= high for low, high in zip(self.price_cuts, self.price_cuts[1:], strict=False)):
            raise ValueError(f"price_cuts must rise, found {self.price_cuts}")
        return self


class Content:
    """The rows of one data set, in the tables of a catalog that stays open.

    Raises:
        ReconcileError: a stored photo has no row, or more than one, in a table that must have one.
    """

    def __init__(self, root: Root, catalog: Catalog, settings: PublishSettings, parent: Manifest | None) -> None:
        self._catalog, self._settings = catalog, settings
        self.notes = _notes(root)
        catalog.load("unreadable", unreadable_photos(root))
        _require_rows(root, catalog)
        catalog.execute(f"CREATE OR REPLACE TEMP TABLE stored AS {_STORED.format(outcomes_sql(settings.require))}")
        self.counts = _reconciled(catalog)
        tie_groups(catalog, max_vin_listings=settings.max_vin_listings)
        shares = settings.fractions
        before = None if parent is None else rows_reader(root, parent, "outcomes")
        split_groups(catalog, before, train=shares.train, val=shares.val)
        self.inheritance = Inheritance(**count_inherited(catalog))
        catalog.execute(_KEPT, {"cuts": settings.price_cuts})
        self.vocabulary = _vocabulary(catalog, settings)
        groups = require_one_side(catalog)
        self.splits = {split: _split_counts(catalog, split, groups[split]) for split in SPLITS}
        self.counts |= {"groups": sum(groups.values()), **{split: self.splits[split].photos for split in SPLITS}}
        kept = self.counts["kept"]
        if sum(self.counts[split] for split in SPLITS) != kept or _count(catalog, _PHOTO_ROWS) != kept:
            raise ReconcileError(f"{kept:,} photos are kept, and splits and rows count otherwise: {self.counts}")

    def photos(self) -> Iterator[pa.RecordBatch]:
        """Stream the kept photos in order of key."""
        return self._catalog.stream(f"{_PHOTO_ROWS} ORDER BY kept.key")

    def outcomes(self) -> Iterator[pa.RecordBatch]:
        """Stream what became of every stored photo, in order of key."""
        return self._catalog.stream(f"{_OUTCOME_ROWS} ORDER BY key")

    def version(self) -> str:
        """Hash the content: rows, vocabulary and settings that change it, and no time, place or part."""
        schema = pa.schema([field for field in DATASET_PHOTOS if field.name not in _LAYOUT_COLUMNS])
        content = {
            "photos": digest_rows("photos", schema, self.photos()),
            "outcomes": digest_rows("outcomes", DATASET_OUTCOMES, self.outcomes()),
            "vocabulary": self.vocabulary.model_dump(mode="json"),
            "settings": result_settings(self._settings),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_VERSION_DIGITS]

    def photos_by(self, column: Literal["site", "part"]) -> dict[str, int]:
        """Count the kept photos by a column."""
        rows = self._catalog.query(f"SELECT {column} AS name, count(*) AS n FROM kept GROUP BY ALL ORDER BY name")
        return {row["name"]: int(row["n"]) for row in rows.to_pylist()}

    def layout(self) -> str:
        """Fingerprint which part holds each kept photo: where that changes, the files are written again."""
        fields = [DATASET_PHOTOS.field(name) for name in ("key", "part")]
        return digest_rows("layout", pa.schema(fields), self._catalog.stream("SELECT key, part FROM kept ORDER BY key"))


_STORED = """
SELECT key, site, listing_id, part, outcome, reason FROM ({}) WHERE outcome IN ('kept', 'dropped', 'unreadable')
"""
# Two spellings that differ in case or blanks are one class, shown as most photos of the training split spell it.
_KEPT = f"""
CREATE OR REPLACE TEMP TABLE kept AS
SELECT stored.key, stored.part, grouped.split, grouped.group_id, stored.site, stored.listing_id, listings.make,
       listings.model, listings.year, listings.price_usd, listings.odometer_mi, photos.sha256, photos.width_px,
       photos.height_px, {MAKE_MODEL} AS spelled, lower({MAKE_MODEL}) AS folded,
       CASE WHEN listings.price_usd > 0
            THEN len(list_filter($cuts::DOUBLE[], lambda cut: cut <= listings.price_usd)) END AS price_bin
FROM stored
     JOIN photos USING (key)
     JOIN listings ON listings.site = stored.site AND listings.listing_id = stored.listing_id
     JOIN grouped ON grouped.site = stored.site AND grouped.listing_id = stored.listing_id
WHERE stored.reason IS NULL
"""
_MAKE_MODELS = """
CREATE OR REPLACE TEMP TABLE make_models AS
WITH spellings AS (SELECT folded, spelled, count(*) AS n FROM kept WHERE split = 'train' AND folded IS NOT NULL
                   GROUP BY ALL),
     classes AS (SELECT folded, arg_min(spelled, (-n, spelled)) AS name, sum(n) AS n FROM spellings GROUP BY folded)
SELECT folded, name, row_number() OVER (ORDER BY n DESC, folded) AS id FROM classes
ORDER BY n DESC, folded LIMIT $num_make_models
"""
_YEARS = """
CREATE OR REPLACE TEMP TABLE years AS
SELECT year, row_number() OVER (ORDER BY year) AS id
FROM (SELECT DISTINCT year FROM kept WHERE split = 'train' AND year IS NOT NULL)
"""
_PHOTO_ROWS = f"""
SELECT kept.* EXCLUDE (spelled, folded),
       CASE WHEN kept.folded IS NOT NULL THEN coalesce(make_models.name, '{UNKNOWN}') END AS make_model,
       CASE WHEN kept.folded IS NOT NULL THEN coalesce(make_models.id, {UNKNOWN_ID}) END AS make_model_id,
       CASE WHEN kept.year IS NOT NULL THEN coalesce(years.id, {UNKNOWN_ID}) END AS year_id
FROM kept LEFT JOIN make_models USING (folded) LEFT JOIN years ON years.year = kept.year
"""
_OUTCOME_ROWS = """
SELECT key, site, listing_id, outcome, reason AS drop_reason, group_id, split
FROM stored JOIN grouped USING (site, listing_id)
"""
_SPLIT_COUNTS = """
SELECT count(*) AS photos, count(DISTINCT (site, listing_id)) AS listings, count(price_bin) AS with_price,
       count(kept.folded) AS with_make_model, count(kept.year) AS with_year,
       count(make_models.id) / nullif(count(kept.folded), 0) AS make_model_coverage,
       count(years.id) / nullif(count(kept.year), 0) AS year_coverage
FROM kept LEFT JOIN make_models USING (folded) LEFT JOIN years ON years.year = kept.year WHERE split = $split
"""


def _notes(root: Root) -> list[str]:
    """Say which stages have written nothing, so that publish goes without them."""
    notes = []
    if not any(True for stage in TABLE_STAGES["duplicates"] for _ in read_receipts(root, stage)):
        notes.append("no duplicates are known: copies of a photo are all kept, and tie nothing; see dedup.py")
    if not any(True for folder in root.list_folders("receipts/embed") for _ in root.list(folder, suffix=".json")):
        notes.append("no embeddings: photos that do not open are not known; see embed.py")
    if not any(True for stage in TABLE_STAGES.get("scores", ()) for _ in read_receipts(root, stage)):
        notes.append("no scores: no junk is dropped; see score.py")
    return notes


def _require_rows(root: Root, catalog: Catalog) -> None:
    """Check each table that a stage has written against the stored photos.

    Raises:
        ReconcileError: a row is missing, doubled, or of a photo that is not stored.
    """
    catalog.execute("CREATE OR REPLACE TEMP TABLE stored_keys AS SELECT key FROM photos WHERE outcome = 'stored'")
    _require_keys(catalog, "photos", "stored_keys", exact=True)
    for table in ("duplicates", "scores"):
        if any(True for stage in TABLE_STAGES.get(table, ()) for _ in read_receipts(root, stage)):
            _require_keys(catalog, table, table, exact=table == "duplicates")
    lost = catalog.query("SELECT key FROM photos ANTI JOIN listings USING (site, listing_id) ORDER BY key LIMIT 3")
    if lost.num_rows:
        raise ReconcileError(f"photos without a listing: {', '.join(lost['key'].to_pylist())}; see pipeline/verify.py")


def _require_keys(catalog: Catalog, what: str, table: str, *, exact: bool) -> None:
    """Each stored photo has one row of a table; with no `exact` those that are unreadable may lack it."""
    checks = {
        "have more than one row in": f"SELECT key FROM {table} GROUP BY key HAVING count(*) > 1",
        "are not stored and have a row in": f"SELECT key FROM {table} AS rows ANTI JOIN stored_keys USING (key)",
        "are stored and have no row in": f"SELECT key FROM stored_keys ANTI JOIN {table} AS rows USING (key)"
        + ("" if exact else " ANTI JOIN unreadable USING (key)"),
    }
    for fault, sql in checks.items():
        if keys := catalog.query(f"{sql} ORDER BY key LIMIT 3")["key"].to_pylist():
            raise ReconcileError(
                f"photos {fault} {what}: {', '.join(keys)}, ...; run the stages again with pipeline/curate.py, "
                "or see pipeline/verify.py"
            )


def _reconciled(catalog: Catalog) -> dict[str, int]:
    """Return the count of each outcome; together they are the photos that ingest stored.

    Raises:
        ReconcileError: they are not, or a reason is none that publish knows.
    """
    rows = catalog.query("SELECT reason, count(*) AS n FROM stored GROUP BY reason").to_pylist()
    by_reason = {row["reason"]: int(row["n"]) for row in rows}
    kept = by_reason.pop(None, 0)
    if strangers := by_reason.keys() - COUNT_OF_REASON.keys():
        raise ReconcileError(f"photos are dropped for {sorted(strangers)}; publish knows {list(COUNT_OF_REASON)}")
    counts = {"photos": _count(catalog, "FROM stored_keys")}
    counts |= {count: by_reason.get(reason, 0) for reason, count in COUNT_OF_REASON.items()} | {"kept": kept}
    if counts["photos"] != sum(counts.values()) - counts["photos"]:
        raise ReconcileError(f"stored photos are not unreadable, dropped and kept: {counts}; see pipeline/verify.py")
    return counts


def _vocabulary(catalog: Catalog, settings: PublishSettings) -> Vocabulary:
    catalog.execute(_MAKE_MODELS, {"num_make_models": settings.num_make_models})
    catalog.execute(_YEARS)
    return Vocabulary(
        price_cuts_usd=settings.price_cuts,
        make_models=catalog.query("SELECT name FROM make_models ORDER BY id")["name"].to_pylist(),
        years=catalog.query("SELECT year FROM years ORDER BY id")["year"].to_pylist(),
    )


def _split_counts(catalog: Catalog, split: str, groups: int) -> SplitCounts:
    row: dict[str, Any] = catalog.query(_SPLIT_COUNTS, {"split": split}).to_pylist()[0]
    return SplitCounts(groups=groups, **row)


def _count(catalog: Catalog, relation: str, params: Sequence[Any] = ()) -> int:
    rows: int = catalog.query(f"SELECT count(*) AS n FROM ({relation})", params)["n"][0].as_py()
    return rows


def require_shape(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch with exactly the columns of `schema`.

    Raises:
        IntegrityError: a null where none may be.
    """
    columns = [batch.column(field.name).cast(field.type) for field in schema]
    for field, column in zip(schema, columns, strict=True):
        if column.null_count and not field.nullable:
            raise IntegrityError(f"column {field.name} holds {column.null_count} nulls and may hold none")
    return pa.RecordBatch.from_arrays(columns, schema=schema)
