"""What a report reads: the catalog, the published data set where there is one, and the photos the report is about.

The photos reported on are the table `shown`: those of the data set or, before one is published, those that would be
kept as things stand: the view `outcomes` says which.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, ClassVar

from pipeline.catalog import Catalog
from pipeline.report_blocks import Absent
from schemas.errors import UsageError
from schemas.manifest import DATASETS, Manifest, is_dataset_name, latest_version, read_manifest, rows_reader
from schemas.storage import Root

_PUBLISHED = """
CREATE OR REPLACE TEMP TABLE shown AS
SELECT d.key, d.part, d.split, d.group_id, d.site, d.listing_id, d.make, d.model, d.year, d.price_usd, d.odometer_mi,
       d.price_bin, d.make_model, lower(trim(l.exterior_color)) AS colour
FROM published d LEFT JOIN listings l USING (site, listing_id)
"""
_SO_FAR = """
CREATE OR REPLACE TEMP TABLE shown AS
SELECT o.key, o.part, NULL::VARCHAR AS split, NULL::VARCHAR AS group_id, o.site, o.listing_id, l.make, l.model, l.year,
       l.price_usd, l.odometer_mi, NULL::SMALLINT AS price_bin, l.make || ' ' || l.model AS make_model,
       lower(trim(l.exterior_color)) AS colour
FROM outcomes o JOIN listings l USING (site, listing_id) WHERE o.outcome = 'kept'
"""


class ReportSource:
    """The tables of a root, with `shown` beside them."""

    _COMMANDS: ClassVar[Mapping[str, str]] = {
        "attempts": "python pipeline/crawl.py --root {root} --site SITE.yaml",
        "duplicates": "python pipeline/dedup.py --root {root}",
        "embeddings": "python pipeline/embed.py --root {root}",
        "labels": "python pipeline/label.py --root {root}",
        "scores": "python pipeline/score.py --root {root}",
        "dataset": "python pipeline/curate.py --root {root} --dataset NAME",
    }

    def __init__(self, root: Root, catalog: Catalog, dataset: Manifest | None) -> None:
        self.root, self.catalog, self.dataset = root, catalog, dataset
        if dataset is None:
            catalog.query("SELECT key FROM outcomes LIMIT 0")  # which makes the view
            catalog.execute(_SO_FAR)
        else:
            catalog.load("published", rows_reader(root, dataset))
            catalog.execute(_PUBLISHED)
        self.num_shown = self.number("SELECT count(*) FROM shown")
        self.num_listings = self.number("SELECT count(*) FROM (SELECT DISTINCT site, listing_id FROM shown)")

    def rows(self, sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """Return the rows of a query that yields few."""
        found: list[dict[str, Any]] = self.catalog.query(sql, params).to_pylist()
        return found

    def number(self, sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> int:
        """Return the one value of a query, 0 for null."""
        return int(self.catalog.query(sql, params).column(0)[0].as_py() or 0)

    def absent(self, what: str, text: str) -> Absent:
        """Say that something is not there, with the command that makes it."""
        return Absent(text, self._COMMANDS[what].format(root=self.root.text))

    @property
    def population(self) -> str:
        """Say which photos the report is about."""
        if self.dataset is not None:
            return f"the {self.num_shown:,} photos of data set {self.dataset.name}"
        return f"the {self.num_shown:,} stored photos that are kept so far"


def find_dataset(root: Root, asked: str | None) -> Manifest | None:
    """Find the data set asked for as NAME or NAME@VERSION; without, the only one there is, None where there is none.

    Raises:
        UsageError: it is not there, or there are several to choose from.
    """
    if asked is not None:
        return read_manifest(root, asked)
    names = [PurePosixPath(folder).name for folder in root.list_folders(DATASETS)]
    names = [name for name in names if is_dataset_name(name) and latest_version(root, name) is not None]
    if len(names) > 1:
        raise UsageError(f"the root holds data sets {', '.join(names)}; name one with --dataset")
    return read_manifest(root, names[0]) if names else None
