"""Query a root with SQL: a DuckDB view per table, over committed files only. The one door to duckdb.

Views: attempts, listings, photos (crawl and importers), edges_hash, edges_copy, duplicates, labels, scores, each there
from the start, empty where nothing is committed; embeddings_ENCODER for each encoder that ran, with `_` for what is no
letter or digit; and two that are made when a query names them: datasets (the photos of the latest version of each data
set) and outcomes (what became of each photo, and why). Without SQL: the funnel, which must reconcile.

    python pipeline/catalog.py --root data
    python pipeline/catalog.py --root data "SELECT make, model, count(*) AS n FROM listings GROUP BY ALL ORDER BY n"
    python pipeline/catalog.py --root data --format csv "FROM photos WHERE error = 'truncated'" > truncated.csv
    python pipeline/catalog.py --root data "SELECT kept, drop_reason FROM duplicates WHERE key = 'demo/660000007/000'"

SQL is one SELECT (also FROM, WITH, DESCRIBE, SUMMARIZE, SHOW TABLES) and cannot write. It may join files of yours, as
in read_csv('labels.csv'); nothing is fetched from the network. The rows alone go to stdout; a failure is one JSON line.
"""

import argparse
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from pipeline.funnel import funnel
from pipeline.label_rows import FOLDER as LABELS_FOLDER
from pipeline.label_rows import read_labels
from pipeline.photo_outcomes import outcomes_sql, unreadable_photos
from pipeline.tabular import FORMATS, render
from schemas.command import EXIT_FAILED, run_script, script_parser
from schemas.errors import RootError, RunError, UsageError
from schemas.manifest import DATASETS, latest_version, version_folder
from schemas.manifest import STAGE as PUBLISH_STAGE
from schemas.receipts import INGEST_STAGES, read_receipt, read_receipts
from schemas.settings import Section, load_settings, operational
from schemas.storage import Root
from schemas.tables import DATASET_PHOTOS, EMBEDDINGS_FOLDER, SCHEMAS

# Folder of a table -> the stages that commit its files.
TABLE_STAGES: Mapping[str, tuple[str, ...]] = {
    "attempts": INGEST_STAGES,
    "listings": INGEST_STAGES,
    "photos": INGEST_STAGES,
    "edges/hash": ("dedup",),
    "edges/copy": ("copies",),
    "duplicates": ("duplicates",),
    "labels": ("label",),
    "scores": ("score",),
}
# A stage computes in DuckDB and streams rows out: large enough that Arrow's costs vanish, small enough for any memory.
ROWS_PER_BATCH = 65_536

# What DuckDB calls the errors of a query that it meets only in the rows.
_SQL_ERRORS = frozenset({"Conversion", "Invalid Input", "Out of Range", "Constraint", "Binder", "Not implemented"})

Params = Sequence[Any] | Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rows of a query, or the funnel."""
    return run_script(_parser(), _print_rows, argv=argv)


def _print_rows(args: argparse.Namespace) -> Mapping[str, Any] | None:
    settings = load_settings(_Settings, config=args.config, sets=args.sets).catalog
    try:
        with Catalog(Root.open(args.root), settings) as catalog:
            batches = funnel(catalog.query).to_batches() if args.sql is None else catalog.select(args.sql)
            for text in render(batches, args.format, max_rows=args.rows):
                sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` closed it; what is left to print goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return {"exit_code": EXIT_FAILED}
    return None


class CatalogSettings(Section):
    """What DuckDB may use of the machine."""

    memory_gib: float = operational(
        2.0, "GiB DuckDB holds before it goes to disk; result batches come on top", ge=0.125
    )
    threads: int | None = operational(None, "threads; None is one a core", ge=1)
    temp_folder: str | None = operational(None, "folder for what outgrows memory; None is the system's")


class _Settings(Section):
    """The sections this script reads."""

    catalog: CatalogSettings = CatalogSettings()


def query(root: Root, sql: str, params: Params = (), *, settings: CatalogSettings | None = None) -> pa.Table:
    """Run one query over the committed tables of a root; see `Catalog.query`."""
    with Catalog(root, settings) as catalog:
        return catalog.query(sql, params)


def committed_tables(root: Root) -> dict[str, list[str]]:
    """Name the committed files of every table, by folder; each stage's receipts are read once."""
    folder_stages = {**TABLE_STAGES, **embedding_stages(root)}
    files: dict[str, list[str]] = {folder: [] for folder in folder_stages}
    for stage in sorted({stage for stages in folder_stages.values() for stage in stages}):
        for receipt in read_receipts(root, stage):
            for name in receipt.files:
                folder = str(PurePosixPath(name).parent)
                if stage in folder_stages.get(folder, ()):
                    files[folder].append(name)
    return files


def embedding_stages(root: Root) -> dict[str, tuple[str, ...]]:
    """Find the encoders that ran: `embeddings/SLUG` -> its stage, `embed/SLUG`."""
    slugs = [PurePosixPath(folder).name for folder in root.list_folders("receipts/embed")]
    return {f"{EMBEDDINGS_FOLDER}/{slug}": (f"embed/{slug}",) for slug in slugs}


class Catalog:
    """The tables of a root in DuckDB, as committed when it was opened; a context manager.

    `files` (folder -> names) takes the place of what the receipts say, those of shards passed by; then there is no
    view `datasets`.

    Raises:
        IntegrityError: a receipt cannot be read.
    """

    def __init__(
        self, root: Root, settings: CatalogSettings | None = None, *, files: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        settings = settings or CatalogSettings()
        self._root = root
        # Made when a query names them: they read more than the tables, and a damaged data set stops no other query.
        self._when_named = {"outcomes": self._add_outcomes}
        if files is None:
            self._when_named["datasets"] = self._add_datasets
        self._files = root.path("")
        named = committed_tables(root) if files is None else files
        with _reported(self._files):
            self._temp_folder = tempfile.mkdtemp(prefix="forecourt-catalog-", dir=settings.temp_folder)
            try:
                self._connection = _connect(settings, self._temp_folder)
                for folder in SCHEMAS:
                    if folder == LABELS_FOLDER and files is None:
                        # A labelling page replaces its file at each click: the rows are taken now, they are few.
                        self._connection.register(folder, read_labels(root))
                    else:
                        self._add_view(root, folder, named.get(folder, ()))
                # How wide an encoder's embeddings are stands in its files alone.
                for folder, names in named.items():
                    if names and folder.startswith((f"{EMBEDDINGS_FOLDER}/", f"{DATASETS}/")):
                        self._add_view(root, folder, names)
            except BaseException:
                shutil.rmtree(self._temp_folder, ignore_errors=True)
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database and remove what it had put on disk."""
        self._connection.close()
        shutil.rmtree(self._temp_folder, ignore_errors=True)

    def query(self, sql: str, params: Params = ()) -> pa.Table:
        """Run one query and return all its rows.

        Raises:
            UsageError: DuckDB does not take the SQL; the message is DuckDB's.
            RootError: a committed file cannot be read.
        """
        self._prepare(sql)
        with _reported(self._files):
            relation = self._connection.sql(sql, params=_as_params(params))
            return pa.table({}) if relation is None else relation.to_arrow_table()

    def stream(
        self, sql: str, params: Params = (), *, rows_per_batch: int = ROWS_PER_BATCH
    ) -> Iterator[pa.RecordBatch]:
        """Run one query and yield its rows in batches, memory flat; read it to the end before the next query.

        Raises:
            UsageError, RootError: as `query`.
        """
        self._prepare(sql)
        with _reported(self._files):
            yield from self._connection.sql(sql, params=_as_params(params)).to_arrow_reader(rows_per_batch)

    def select(self, sql: str) -> Iterator[pa.RecordBatch]:
        """Run a user's SQL, which may only read; no batch at all where it has no columns.

        Raises:
            UsageError: it is not one SELECT, or DuckDB does not take it.
        """
        with _reported(self._files):
            statements = self._connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
            raise UsageError(
                f"catalog takes one SELECT (or FROM, WITH, DESCRIBE, SUMMARIZE, SHOW TABLES), found: {kinds}"
            )
        self._prepare(sql)
        with _reported(self._files):
            reader = self._connection.sql(sql).to_arrow_reader(ROWS_PER_BATCH)
            yield pa.RecordBatch.from_pylist([], schema=reader.schema)
            yield from reader

    def execute(self, sql: str, params: Params = ()) -> None:
        """Run a stage's own statement, such as CREATE TEMP TABLE."""
        with _reported(self._files):
            self._connection.execute(sql, _as_params(params))

    def load(self, name: str, rows: pa.Table | pa.RecordBatchReader) -> None:
        """Make a temporary table of Arrow rows; it may outgrow memory."""
        with _reported(self._files):
            self._connection.register("_rows", rows)
            self._connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS FROM _rows")
            self._connection.unregister("_rows")

    def _prepare(self, sql: str) -> None:
        """Add the views that a query asks for and that were not asked for before."""
        for view in [name for name in self._when_named if re.search(rf"\b{name}\b", sql, re.IGNORECASE)]:
            with _reported(self._files):
                self._when_named.pop(view)()

    def _add_outcomes(self) -> None:
        """Add the view `outcomes`; what embed could not read is looked up part by part."""
        self.load("unreadable", unreadable_photos(self._root))
        self.execute(f"CREATE OR REPLACE TEMP VIEW outcomes AS {outcomes_sql()}")

    def _add_datasets(self) -> None:
        """Add the view `datasets`: the photos of the latest version of each data set, named in front."""
        root, selects = self._root, []
        for folder in root.list_folders(DATASETS):
            name = PurePosixPath(folder).name
            version = latest_version(root, name)
            receipt = None if version is None else read_receipt(root, PUBLISH_STAGE, f"{name}@{version}")
            if version is None or receipt is None:
                continue
            place = f"{version_folder(name, version)}/photos"
            self._add_view(root, place, sorted(file for file in receipt.files if file.startswith(f"{place}/")))
            selects.append(f"SELECT {_quoted(name)} AS dataset, {_quoted(version)} AS version, * FROM {view_of(place)}")
        if not selects:
            self._connection.register("no_photos", DATASET_PHOTOS.empty_table())
            selects.append("SELECT '' AS dataset, '' AS version, * FROM no_photos")
        self._connection.execute(f"CREATE TEMP VIEW datasets AS {' UNION ALL '.join(selects)}")

    def _add_view(self, root: Root, folder: str, names: Sequence[str]) -> None:
        view = view_of(folder)
        if not names:
            self._connection.register(view, SCHEMAS[folder].empty_table())
        elif root.is_local:
            listed = ", ".join(_quoted(root.path(name)) for name in names)
            self._connection.execute(
                f"CREATE TEMP VIEW {view} AS FROM read_parquet([{listed}], hive_partitioning = false, filename = false)"
            )
        else:
            filesystem, _ = root.dataset_source()
            paths = [root.path(name) for name in names]
            schema = SCHEMAS.get(folder)
            dataset = pads.dataset(paths, schema=schema, format="parquet", filesystem=filesystem)
            self._connection.register(view, dataset)


def view_of(folder: str) -> str:
    """Name the view of a table's folder; names of data sets may differ in what a view's name does not show."""
    mark = f"_{hashlib.sha256(folder.encode()).hexdigest()[:12]}" if folder.startswith(f"{DATASETS}/") else ""
    return re.sub(r"\W", "_", folder) + mark


def _connect(settings: CatalogSettings, temp_folder: str) -> duckdb.DuckDBPyConnection:
    """Open a database that stays within its memory, knows no Python variable, and loads nothing from anywhere."""
    config: dict[str, Any] = {
        "memory_limit": f"{int(settings.memory_gib * 1024)}MiB",
        "temp_directory": temp_folder,
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "python_enable_replacements": "false",
    }
    if settings.threads is not None:
        config["threads"] = settings.threads
    connection = duckdb.connect(":memory:", config=config)
    connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
    connection.execute("SET lock_configuration = true")
    return connection


@contextmanager
def _reported(files: str) -> Iterator[None]:
    """Turn DuckDB's errors into ours, its message kept; `files` is what the paths of committed files begin with."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        # Of what fails while rows stream, Arrow keeps DuckDB's words only, as an OSError.
        kind = "" if isinstance(error, duckdb.Error) else str(error).partition(" Error: ")[0]
        if isinstance(error, duckdb.OutOfMemoryException) or kind == "Out of Memory":
            raise RunError(f"{error}; raise catalog.memory_gib, or give catalog.temp_folder more disk") from error
        lost = isinstance(error, duckdb.IOException) or (isinstance(error, OSError) and kind not in _SQL_ERRORS)
        # What DuckDB says of a damaged file is of the same class as what it says of wrong SQL.
        if lost or files in str(error):
            raise RootError(f"{error}; see pipeline/verify.py, or run again if a crawl just replaced a part") from error
        raise UsageError(str(error)) from error


def _as_params(params: Params) -> Any:
    """DuckDB takes null for none, a list or a dict."""
    if not params:
        return None
    return dict(params) if isinstance(params, Mapping) else list(params)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__ or "")
    parser.add_argument("sql", nargs="?", metavar="SQL", help="one SELECT; without it the funnel is printed")
    parser.add_argument("--format", choices=FORMATS, default="table", help="how rows are printed (default: table)")
    parser.add_argument(
        "--rows", type=int, default=1000, metavar="N", help="rows a table shows; json and csv print all (default: 1000)"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
