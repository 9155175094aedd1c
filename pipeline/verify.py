"""Check that a root is what its receipts say, and put aside what is not.

For every part: files, sizes, checksums, schemas, counts, photos against shard values both ways, every photo opened.
Over the root: keys and listing ids are there once, duplicates cover the stored photos, each file has its receipt.

    python pipeline/verify.py --root data
    python pipeline/verify.py --root data --digest
    python pipeline/verify.py --root data --quick
    python pipeline/verify.py --root data --repair

`--digest` adds one SHA-256 of all committed rows; it does not depend on parts, order, generations, workers or restarts.
`--quick` opens one photo in a hundred and checks all else in full. `--repair` removes files that no receipt names (what
a killed run left) and moves damaged parts into ROOT/quarantine/, so that the next crawl or dedup makes them again; then
it checks once more. Exit 1 where problems are left. Last line: `ok`, `parts`, `photos`, `problems`, `digest`.
"""

import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from tqdm import tqdm

from pipeline.catalog import TABLE_STAGES, Catalog, CatalogSettings
from pipeline.digest import digest
from pipeline.lease import hold_lease, is_held
from pipeline.verify_part import STAGE_FOLDERS, Problem, check_part
from schemas.command import EXIT_DONE, EXIT_FAILED, run_script, script_parser
from schemas.errors import IntegrityError
from schemas.receipts import INGEST_STAGES, Receipt, inputs_fingerprint, read_receipt, receipt_name
from schemas.settings import Section, load_settings
from schemas.storage import TEMPORARY_SUFFIX, Root

# The last line stays readable however broken a root is; `num_problems` counts them all.
MAX_LISTED = 100
_MAX_DOUBLED = 10_000
_FOLDER_STAGES: Mapping[str, tuple[str, ...]] = {
    **TABLE_STAGES,
    "shards": INGEST_STAGES,
    **{f"receipts/{stage}": (stage,) for stage in STAGE_FOLDERS},
}
_FILE_NAME = re.compile(r"(?P<part>.+?)(\.g\d+)?\.(parquet|lmdb)")

log = logging.getLogger("forecourt.verify")


def main(argv: Sequence[str] | None = None) -> int:
    """Check, repair or digest a root."""
    parser = script_parser(__doc__ or "")
    parser.add_argument("--digest", action="store_true", help="add the digest of all committed rows")
    parser.add_argument("--repair", action="store_true", help="remove leftovers and put damaged parts aside")
    parser.add_argument("--quick", action="store_true", help="open one photo in a hundred")

    def body(args: Any) -> Mapping[str, Any]:
        limits = load_settings(_Settings, config=args.config, sets=args.sets).catalog
        root = Root.open(args.root)
        done = repair(root, limits, quick=args.quick) if args.repair else []
        findings = verify(root, limits, quick=args.quick)
        answer = {**findings.as_dict(), "digest": None}
        if args.digest and not findings.damaged:
            digested = digest(root, limits)
            answer |= {"digest": digested.whole, "table_digests": digested.tables}
        if args.repair:
            answer["repaired"] = done[:MAX_LISTED]
        return {**answer, "exit_code": EXIT_DONE if findings.ok else EXIT_FAILED}

    return run_script(parser, body, argv=argv)


class _Settings(Section):
    """The sections this script reads."""

    catalog: CatalogSettings = CatalogSettings()


@dataclass(slots=True)
class Findings:
    """What a check of a root found."""

    parts: int = 0
    photos: int = 0
    num_problems: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    damaged: set[tuple[str, str]] = field(default_factory=set)  # (stage, part)
    unreadable: set[tuple[str, str]] = field(default_factory=set)  # those of them whose receipt says nothing
    orphans: list[str] = field(default_factory=list)
    files: dict[str, list[str]] = field(default_factory=dict)  # sound files by folder

    @property
    def ok(self) -> bool:
        """No problem was found."""
        return not self.num_problems

    def add(self, problem: Problem, part: tuple[str, str] | None = None) -> None:
        """Count a problem, and mark the part that it damages."""
        self.num_problems += 1
        if len(self.problems) < MAX_LISTED:
            self.problems.append(problem)
        if part is not None:
            self.damaged.add(part)
        log.error("event=problem what=%s where=%s why=%r", problem.what, problem.where, problem.why)

    def as_dict(self) -> dict[str, Any]:
        """Return what the last line says of it."""
        return {
            "ok": self.ok,
            "parts": self.parts,
            "photos": self.photos,
            "problems": [problem.as_dict() for problem in self.problems],
            "num_problems": self.num_problems,
            "notes": self.notes,
        }


def verify(root: Root, limits: CatalogSettings | None = None, *, quick: bool = False, alone: bool = False) -> Findings:
    """Check a whole root, one part in memory at a time; `alone` says that the caller holds every lease."""
    findings = Findings()
    named: set[str] = set()
    names = [(stage, name) for stage in STAGE_FOLDERS for name in root.list(f"receipts/{stage}", suffix=".json")]
    for stage, name in tqdm(names, desc="parts", unit="part", disable=None, file=sys.stderr):
        named.update(_verify_part(root, findings, stage, PurePosixPath(name).stem, quick=quick))
    _find_orphans(root, findings, named, alone=alone)
    _verify_whole(root, findings, limits)
    log.info("event=verified root=%s parts=%d problems=%d", root.text, findings.parts, findings.num_problems)
    return findings


def _verify_part(root: Root, findings: Findings, stage: str, part: str, *, quick: bool) -> list[str]:
    """Check a part, again where a running crawl has just replaced it; return the files it names."""
    while True:
        try:
            receipt = read_receipt(root, stage, part)
        except IntegrityError as error:
            fix = "verify.py --repair puts the part aside, then the same command as before makes it again"
            findings.add(Problem("receipt_unreadable", receipt_name(stage, part), str(error), fix), (stage, part))
            findings.unreadable.add((stage, part))
            return []
        if receipt is None:
            return []
        problems = list(check_part(root, receipt, quick=quick))
        if not problems or not _was_replaced(root, receipt):
            break
    findings.parts += 1
    for problem in problems:
        findings.add(problem, (stage, part))
    if not problems:
        findings.photos += receipt.counts["photos"] if stage in INGEST_STAGES else 0
        for name in receipt.files:
            findings.files.setdefault(str(PurePosixPath(name).parent), []).append(name)
    return list(receipt.files)


def _was_replaced(root: Root, receipt: Receipt) -> bool:
    try:
        now = read_receipt(root, receipt.stage, receipt.part)
    except IntegrityError:
        return False
    return now is not None and now.generation != receipt.generation


def _find_orphans(root: Root, findings: Findings, named: set[str], *, alone: bool) -> None:
    """Find files that no receipt names; those of a part whose receipt cannot be read belong to it."""
    in_flight = 0
    for folder, stages in _FOLDER_STAGES.items():
        suffix = TEMPORARY_SUFFIX if folder.startswith("receipts/") else ""
        found = [name for name in root.list(folder, suffix=suffix) if name not in named]
        found = [name for name in found if not any((stage, _part_of(name)) in findings.unreadable for stage in stages)]
        if found and not alone and any(is_held(root, stage) for stage in stages):
            in_flight += len(found)
            continue
        for name in found:
            findings.orphans.append(name)
            why = "no receipt names it: a killed run left it"
            findings.add(Problem("orphan", name, why, "verify.py --repair removes it, a rerun may too"))
    if in_flight:
        findings.notes.append(f"{in_flight:,} files of a run that is alive have no receipt yet")


def _part_of(name: str) -> str | None:
    matched = _FILE_NAME.fullmatch(PurePosixPath(name).name)
    return matched["part"] if matched else None


def _verify_whole(root: Root, findings: Findings, limits: CatalogSettings | None) -> None:
    """Check what no part can know of itself, over the sound parts."""
    with Catalog(root, limits, files=findings.files) as catalog:
        for table, columns in (("photos", ["key"]), ("attempts", ["site", "listing_id"])):
            for row, parts in _doubled(root, catalog, table, columns).items():
                why = f"{row} is in parts {', '.join(f'{stage}/{part}' for stage, part in parts)}"
                fix = "verify.py --repair keeps it in the part made first and puts the others aside"
                problem = Problem("key_twice" if table == "photos" else "listing_twice", table, why, fix)
                findings.add(problem)
                findings.damaged.update(parts[1:] or parts)
        if findings.damaged:
            findings.notes.append("duplicates were not compared with photos, since a part is damaged")
        elif (receipt := read_receipt(root, "dedup", "all")) is None:
            findings.notes.append("not deduplicated yet; run pipeline/dedup.py")
        elif receipt.inputs.get("ingest") != inputs_fingerprint(root):
            findings.notes.append("duplicates are of an earlier state of the photos; run pipeline/dedup.py")
        else:
            _verify_coverage(findings, catalog, receipt)


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


def _verify_coverage(findings: Findings, catalog: Catalog, receipt: Receipt) -> None:
    """Each stored photo has a row, and there are no more rows than photos: then each has just one."""
    row = catalog.query(
        "WITH stored AS (SELECT key FROM photos WHERE outcome = 'stored')"
        " SELECT (SELECT count(*) FROM stored) AS stored, (SELECT count(*) FROM duplicates) AS rows,"
        " (SELECT count(*) FROM stored ANTI JOIN duplicates USING (key)) AS missing"
    ).to_pylist()[0]
    if row["missing"] or row["rows"] != row["stored"]:
        why = f"{row['stored']:,} photos are stored, {row['missing']:,} have no row of the {row['rows']:,} there are"
        fix = "verify.py --repair puts it aside, then pipeline/dedup.py makes it again"
        findings.add(Problem("duplicates_coverage", "duplicates", why, fix), (receipt.stage, receipt.part))


def repair(root: Root, limits: CatalogSettings | None = None, *, quick: bool = False) -> list[str]:
    """Remove leftovers and put damaged parts aside, holding every stage's lease; return what was done.

    Raises:
        LeaseError: a run is alive on this root; nothing was touched.
    """
    done: list[str] = []
    with ExitStack() as leases:
        for stage in STAGE_FOLDERS:
            leases.enter_context(hold_lease(root, stage))
        findings = verify(root, limits, quick=quick, alone=True)
        for name in findings.orphans:
            root.remove(name)
            done.append(f"removed {name}")
        stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
        for stage, part in sorted(findings.damaged):
            done += _quarantine(root, stage, part, f"quarantine/{stamp}")
    for line in done:
        log.info("event=repaired did=%r", line)
    return done


def _quarantine(root: Root, stage: str, part: str, target: str) -> list[str]:
    """Move a part out of the tables, its receipt first, so that it is never half there; nothing is deleted."""
    try:
        receipt = read_receipt(root, stage, part)
        files = list(receipt.files) if receipt is not None else []
    except IntegrityError:
        folders = [folder for folder, stages in _FOLDER_STAGES.items() if stage in stages]
        files = [name for folder in folders for name in root.list(folder) if _part_of(name) == part]
    filesystem, _ = root.dataset_source()
    done = []
    for name in [receipt_name(stage, part), *files]:
        if root.exists(name):
            moved = f"{target}/{name}"
            filesystem.create_dir(str(PurePosixPath(root.path(moved)).parent))
            filesystem.move(root.path(name), root.path(moved))
            done.append(f"moved {name} to {moved}")
    return done


if __name__ == "__main__":
    raise SystemExit(main())
