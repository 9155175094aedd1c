"""Check what no part can know of itself: keys over all parts, and the tables of later stages against the photos."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

import pyarrow.parquet as pq

from pipeline.catalog import Catalog, CatalogSettings, view_of
from pipeline.verify_part import Findings, Problem
from pipeline.verify_stages import some
from schemas.errors import IntegrityError
from schemas.manifest import STAGE as PUBLISH_STAGE
from schemas.manifest import version_folder
from schemas.receipts import INGEST_STAGES, Receipt, inputs_fingerprint, read_receipt, read_receipts
from schemas.storage import Root
from schemas.tables import EMBEDDINGS_FOLDER

_MAX_DOUBLED = 10_000
_MAX_SHOWN = 4
_REDO = "verify.py --repair puts it aside, then {script} makes it again"


def check_whole(root: Root, findings: Findings, limits: CatalogSettings | None) -> None:
    """Check the sound parts together."""
    tables = {folder: _parquet(names) for folder, names in findings.files.items()}
    with Catalog(root, limits, files={folder: names for folder, names in tables.items() if names}) as catalog:
        for table, columns in (("photos", ["key"]), ("attempts", ["site", "listing_id"])):
            for row, parts in _doubled(root, catalog, table, columns).items():
                why = f"{row} is in parts {', '.join(f'{stage}/{part}' for stage, part in parts)}"
                fix = "verify.py --repair keeps it in the part made first and puts the others aside"
                problem = Problem("key_twice" if table == "photos" else "listing_twice", table, why, fix)
                findings.add(problem)
                findings.damaged.update(parts[1:] or parts)
        if findings.damaged:
            findings.notes.append("tables were not compared with each other, since a part is damaged")
            return
        catalog.execute("CREATE TEMP VIEW stored AS SELECT key, part, sha256 FROM photos WHERE outcome = 'stored'")
        _Whole(root, catalog, findings).check(tables)


def _parquet(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.endswith(".parquet")]


class _Whole:
    """The tables of later stages beside the stored photos; what is of an earlier state of them is a note."""

    def __init__(self, root: Root, catalog: Catalog, findings: Findings) -> None:
        self._root, self._catalog, self._findings = root, catalog, findings
        self._ingest = inputs_fingerprint(root)

    def check(self, tables: Mapping[str, Sequence[str]]) -> None:
        self._check_duplicates()
        for stage, folder, script in (
            ("dedup", "edges/hash", "pipeline/dedup.py"),
            ("copies", "edges/copy", "pipeline/copies.py"),
        ):
            self._check_edges(stage, folder, script)
        encoders = [folder for folder in tables if folder.startswith(f"{EMBEDDINGS_FOLDER}/")]
        for folder in encoders:
            self._check_embeddings(folder)
        self._check_scores(encoders)
        self._check_labels()
        for receipt in read_receipts(self._root, PUBLISH_STAGE):
            if f"{version_folder(*receipt.part.split('@'))}/photos" in tables:
                self._check_dataset(receipt)

    def _check_duplicates(self) -> None:
        """Each stored photo has a row, and there are no more rows than photos: then each has just one."""
        receipt = self._current("duplicates", "duplicates", "pipeline/dedup.py")
        if receipt is None:
            if read_receipt(self._root, "duplicates", "all") is None:
                self._findings.notes.append("not deduplicated yet; run pipeline/dedup.py")
            return
        row = self._row(
            "SELECT (SELECT count(*) FROM stored) AS stored, (SELECT count(*) FROM duplicates) AS rows,"
            " (SELECT count(*) FROM stored ANTI JOIN duplicates USING (key)) AS missing"
        )
        if row["missing"] or row["rows"] != row["stored"]:
            why = (
                f"{row['stored']:,} photos are stored, {row['missing']:,} have no row of the {row['rows']:,} there are"
            )
            self._problem("duplicates_coverage", "duplicates", why, receipt, "pipeline/dedup.py")
        if odd := self._keys(
            "SELECT cluster_id AS key FROM duplicates WHERE cluster_id IS NOT NULL GROUP BY cluster_id, cluster_size"
            " HAVING count(*) <> cluster_size OR min(duplicates.key) <> cluster_id"
        ):
            why = f"clusters whose rows are not as many as they say, or not named by the smallest key: {some(odd)}"
            self._problem("duplicates_clusters", "duplicates", why, receipt, "pipeline/dedup.py")

    def _check_edges(self, stage: str, folder: str, script: str) -> None:
        if (receipt := self._current(stage, folder, script)) is None:
            return
        view = view_of(folder)
        keys = f"SELECT key_a AS key FROM {view} UNION ALL SELECT key_b FROM {view}"
        if strangers := self._keys(f"SELECT DISTINCT key FROM ({keys}) ANTI JOIN stored USING (key) ORDER BY key"):
            self._problem("edges_keys", folder, f"edges of photos not stored: {some(strangers)}", receipt, script)
        twice = self._keys(
            f"SELECT key_a || ' - ' || key_b AS key FROM {view} GROUP BY ALL HAVING count(*) > 1 ORDER BY key"
        )
        if twice:
            self._problem("edges_twice", folder, f"edges there more than once: {some(twice)}", receipt, script)

    def _check_embeddings(self, folder: str) -> None:
        """Compare the rows of each part with its stored photos but for those that the encoder could not read."""
        stage = f"embed/{PurePosixPath(folder).name}"
        view, script = view_of(folder), "pipeline/embed.py with that encoder"
        stored = self._by_part("SELECT part, count(*) AS n FROM stored GROUP BY part")
        embedded = self._by_part(f"SELECT part, count(*) AS n FROM {view} JOIN stored USING (key) GROUP BY part")
        old = 0
        seen = set()
        for receipt in read_receipts(self._root, stage):
            seen.add(receipt.part)
            if receipt.part not in stored and receipt.counts.get("embedded") == 0:
                continue
            if not self._is_of_part(receipt):
                old += 1
                continue
            unreadable = receipt.counts.get("unreadable", 0)
            expected, found = stored.get(receipt.part, 0), embedded.get(receipt.part, 0)
            rows = pq.read_metadata(self._root.local_copy(next(iter(receipt.files)))).num_rows
            if found != rows or found != expected - unreadable:
                why = (
                    f"{rows:,} rows, {found:,} of them of stored photos of {receipt.part}, which has {expected:,},"
                    f" {unreadable:,} of them unreadable"
                )
                self._problem("embeddings_keys", next(iter(receipt.files)), why, receipt, script)
        if missing := sorted(stored.keys() - seen):
            self._findings.notes.append(f"{len(missing):,} parts are not in {folder} yet; run {script}")
        if old:
            self._findings.notes.append(f"{old:,} parts of {folder} are of an earlier state; run {script}")

    def _is_of_part(self, receipt: Receipt) -> bool:
        """Tell whether embeddings are of the part's photos as they are now."""
        for stage in INGEST_STAGES:
            if (part := read_receipt(self._root, stage, receipt.part)) is not None:
                return any(entry.sha256 in receipt.inputs.values() for entry in part.files.values())
        return False

    def _check_scores(self, encoders: Sequence[str]) -> None:
        """Scores are of the photos of one encoder, each once."""
        if (receipt := self._current("score", "scores", "pipeline/score.py")) is None:
            return
        names = [view_of(folder) for folder in encoders]
        if self._keys("SELECT key FROM scores GROUP BY key HAVING count(*) > 1"):
            self._problem("scores_keys", "scores", "photos with more than one row", receipt, "pipeline/score.py")
        elif not any(self._same_keys("scores", view) for view in [*names, "stored"]):
            why = "its photos are not those of any encoder's embeddings"
            self._problem("scores_keys", "scores", why, receipt, "pipeline/score.py")

    def _same_keys(self, one: str, other: str) -> bool:
        row = self._row(
            f"SELECT (SELECT count(*) FROM {one}) = (SELECT count(*) FROM {other})"
            f" AND NOT EXISTS (SELECT key FROM {one} ANTI JOIN {other} USING (key)) AS same"
        )
        return bool(row["same"])

    def _check_labels(self) -> None:
        gone = self._keys("SELECT DISTINCT key FROM labels ANTI JOIN stored USING (key) ORDER BY key")
        if gone:
            self._findings.notes.append(
                f"{len(gone):,} labels are of photos that are not stored (any more): {some(gone)}"
            )

    def _check_dataset(self, receipt: Receipt) -> None:
        place = version_folder(*receipt.part.split("@"))
        photos, outcomes = view_of(f"{place}/photos"), view_of(f"{place}/outcomes")
        faults = []
        if twice := self._keys(f"SELECT key FROM {photos} GROUP BY key HAVING count(*) > 1 ORDER BY key"):
            faults.append(f"photos there more than once: {some(twice)}")
        if split := self._keys(
            f"SELECT group_id AS key FROM {photos} GROUP BY group_id HAVING count(DISTINCT split) > 1 ORDER BY key"
        ):
            faults.append(f"groups on more than one split, which is a leak: {some(split)}")
        if strangers := self._keys(
            f"SELECT key FROM {photos} ANTI JOIN (SELECT key, split FROM {outcomes} WHERE outcome = 'kept')"
            " USING (key, split) ORDER BY key"
        ):
            faults.append(f"photos that outcomes does not keep on that split: {some(strangers)}")
        for why in faults:
            self._problem("dataset_rows", f"{place}/photos", why, receipt, "pipeline/publish.py")
        # Its photos are never changed: what the crawl has since made of them is another version's matter.
        gone = self._keys(f"SELECT key FROM {photos} ANTI JOIN stored USING (key, sha256) ORDER BY key")
        if gone and receipt.inputs.get("ingest") == self._ingest:
            why = f"photos that are not stored with those bytes: {some(gone)}"
            self._problem("dataset_rows", f"{place}/photos", why, receipt, "pipeline/publish.py")
        elif gone:
            self._findings.notes.append(f"{len(gone):,} photos of {place} are no longer stored as they were")

    def _current(self, stage: str, folder: str, script: str) -> Receipt | None:
        """Return a global stage's receipt where it is of the photos as they are now, else note that it is not."""
        receipt = read_receipt(self._root, stage, "all")
        if receipt is None:
            return None
        if receipt.inputs.get("ingest", self._ingest) != self._ingest:
            self._findings.notes.append(f"{folder} is of an earlier state of the photos; run {script}")
            return None
        edges = [name for name in ("dedup", "copies") if name in receipt.inputs]
        if any(receipt.inputs[name] != inputs_fingerprint(self._root, (name,)) for name in edges):
            self._findings.notes.append(f"{folder} is of an earlier state of the edges; run {script}")
            return None
        return receipt

    def _problem(self, what: str, where: str, why: str, receipt: Receipt, script: str) -> None:
        self._findings.add(Problem(what, where, why, _REDO.format(script=script)), (receipt.stage, receipt.part))

    def _row(self, sql: str) -> dict[str, int]:
        row: dict[str, int] = self._catalog.query(sql).to_pylist()[0]
        return row

    def _keys(self, sql: str) -> list[str]:
        """Return keys that are wrong, the first few thousand."""
        keys: list[str] = self._catalog.query(f"{sql} LIMIT {_MAX_DOUBLED}")["key"].to_pylist()
        return keys

    def _by_part(self, sql: str) -> dict[str, int]:
        return {row["part"]: row["n"] for row in self._catalog.query(sql).to_pylist()}


def _doubled(root: Root, catalog: Catalog, table: str, columns: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Find values that are in a table more than once, each with its parts, the one made first in front."""
    key = " || '/' || ".join(columns)
    # Hashes first: they are small, and all but the doubled rows are done with.
    found = catalog.query(
        f"WITH twice AS (SELECT hash({key}) AS hashed FROM {table} GROUP BY hashed HAVING count(*) > 1)"
        f" SELECT {key} AS value FROM {table} SEMI JOIN twice ON hash({key}) = hashed"
        f" GROUP BY value HAVING count(*) > 1 ORDER BY value LIMIT {_MAX_DOUBLED}"
    )["value"].to_pylist()
    holders: dict[str, list[Receipt]] = {value: [] for value in found}
    for receipt in _ingest_receipts(root) if found else ():
        rows = root.read_table(receipt.file(table), list(columns))
        values = {"/".join(row.values()) for row in rows.to_pylist()}
        for value in values & holders.keys():
            holders[value].append(receipt)
    return {
        value: [(r.stage, r.part) for r in sorted(receipts, key=lambda r: (r.created_at, r.stage, r.part))]
        for value, receipts in holders.items()
    }


def _ingest_receipts(root: Root) -> Iterator[Receipt]:
    """Read the receipts that can be read and whose files are there."""
    for stage in INGEST_STAGES:
        for name in root.list(f"receipts/{stage}", suffix=".json"):
            try:
                receipt = read_receipt(root, stage, PurePosixPath(name).stem)
            except IntegrityError:
                continue
            if receipt is not None and all(root.exists(file) for file in receipt.files):
                yield receipt
