"""Check that a root is what its receipts say, and put aside what is not.

For every part of every stage: files, sizes, checksums, schemas, counts; photos against shard values both ways, every
photo opened; embeddings of norm 1. Over the root: keys and listing ids are there once, each file has its receipt,
duplicates cover the stored photos, embeddings and scores too; edges and data sets are of stored photos, no group on
two splits. What is of an earlier state of the photos, or not made yet, is a note.

    python pipeline/verify.py --root data
    python pipeline/verify.py --root data --digest
    python pipeline/verify.py --root data --quick
    python pipeline/verify.py --root data --repair

`--digest` adds one SHA-256 of all committed rows; it does not depend on parts, order, generations, workers or restarts.
`--quick` opens one photo in a hundred and checks all else in full. `--repair` removes files that no receipt names (what
a killed run left) and moves damaged parts into ROOT/quarantine/, so that the next run of their stage makes them again;
then it checks once more. Labels cannot be made again: that they were put aside is said loudly, and nothing is deleted.
Exit 1 where problems are left. Last line: `ok`, `parts`, `photos`, `problems`, `digest`.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from tqdm import tqdm

from pipeline.catalog import CatalogSettings
from pipeline.digest import digest
from pipeline.label_rows import STAGE as LABEL_STAGE
from pipeline.lease import hold_lease, is_held
from pipeline.verify_part import MAX_LISTED, Findings, Problem, check_part
from pipeline.verify_stages import StageRule, is_owned, part_of, stage_rules
from pipeline.verify_whole import check_whole
from schemas.command import EXIT_DONE, EXIT_FAILED, run_script, script_parser
from schemas.errors import IntegrityError
from schemas.manifest import DATASETS, LATEST, latest_version
from schemas.manifest import STAGE as PUBLISH_STAGE
from schemas.receipts import INGEST_STAGES, Receipt, read_receipt, receipt_name
from schemas.settings import Section, load_settings
from schemas.storage import TEMPORARY_SUFFIX, Root

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


def verify(root: Root, limits: CatalogSettings | None = None, *, quick: bool = False, alone: bool = False) -> Findings:
    """Check a whole root, one part in memory at a time; `alone` says that the caller holds every lease."""
    findings = Findings()
    named: set[str] = set()
    rules = stage_rules(root)
    names = [(stage, name) for stage in rules for name in root.list(f"receipts/{stage}", suffix=".json")]
    for stage, name in tqdm(names, desc="parts", unit="part", disable=None, file=sys.stderr):
        part = PurePosixPath(name).name.removesuffix(".json")
        named.update(_verify_part(root, findings, stage, part, rules[stage], quick=quick))
    _find_orphans(root, findings, rules, named, alone=alone)
    check_whole(root, findings, limits)
    log.info("event=verified root=%s parts=%d problems=%d", root.text, findings.parts, findings.num_problems)
    return findings


def _verify_part(root: Root, findings: Findings, stage: str, part: str, rule: StageRule, *, quick: bool) -> list[str]:
    """Check a part, again where a running crawl has just replaced it; return the files it names."""
    while True:
        try:
            receipt = read_receipt(root, stage, part)
        except IntegrityError as error:
            findings.add(Problem("receipt_unreadable", receipt_name(stage, part), str(error), rule.redo), (stage, part))
            findings.unreadable.add((stage, part))
            return []
        if receipt is None:
            return []
        problems = list(check_part(root, receipt, rule, quick=quick))
        if not problems or not _was_replaced(root, receipt):
            break
    findings.parts += 1
    findings.seen.add((stage, part))
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


def _find_orphans(
    root: Root, findings: Findings, rules: Mapping[str, StageRule], named: set[str], *, alone: bool
) -> None:
    """Find files that no receipt names; those of a part whose receipt cannot be read belong to it."""
    in_flight = 0
    for name in root.list_folders(DATASETS):
        place, version = f"{name}/{LATEST}", latest_version(root, PurePosixPath(name).name)
        if version is not None and (PUBLISH_STAGE, f"{PurePosixPath(name).name}@{version}") not in findings.seen:
            findings.orphans.append(place)
            why = f"it names version {version}, which is not there or damaged"
            findings.add(
                Problem("latest_missing", place, why, "verify.py --repair removes it; pipeline/publish.py writes it")
            )
    for folder, stages in _stages_by_folder(rules).items():
        suffix = TEMPORARY_SUFFIX if folder.startswith("receipts/") else ""
        found = [name for name in root.list(folder, suffix=suffix) if name not in named]
        found = [name for name in found if not any((stage, part_of(name)) in findings.unreadable for stage in stages)]
        found = [name for name in found if is_owned(name) or (PUBLISH_STAGE, part_of(name)) not in findings.seen]
        if found and not alone and any(is_held(root, stage) for stage in stages):
            in_flight += len(found)
            continue
        for name in found:
            findings.orphans.append(name)
            why = "no receipt names it: a killed run left it"
            findings.add(Problem("orphan", name, why, "verify.py --repair removes it, a rerun may too"))
    if in_flight:
        findings.notes.append(f"{in_flight:,} files of a run that is alive have no receipt yet")


def _stages_by_folder(rules: Mapping[str, StageRule]) -> dict[str, list[str]]:
    stages: dict[str, list[str]] = {}
    for stage, rule in rules.items():
        for folder in (*rule.all_folders, f"receipts/{stage}"):
            stages.setdefault(folder, []).append(stage)
    return stages


def repair(root: Root, limits: CatalogSettings | None = None, *, quick: bool = False) -> list[str]:
    """Remove leftovers and put damaged parts aside, holding every stage's lease; return what was done.

    Raises:
        LeaseError: a run is alive on this root; nothing was touched.
    """
    done: list[str] = []
    rules = stage_rules(root)
    with ExitStack() as leases:
        for stage in rules:
            leases.enter_context(hold_lease(root, stage))
        findings = verify(root, limits, quick=quick, alone=True)
        for name in findings.orphans:
            root.remove(name)
            done.append(f"removed {name}")
        stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
        for stage, part in sorted(findings.damaged):
            done += _quarantine(root, stage, part, rules[stage], f"quarantine/{stamp}")
    for line in done:
        log.info("event=repaired did=%r", line)
    return done


def _quarantine(root: Root, stage: str, part: str, rule: StageRule, target: str) -> list[str]:
    """Move a part out of the tables, its receipt first, so that it is never half there; nothing is deleted."""
    try:
        receipt = read_receipt(root, stage, part)
        files = list(receipt.files) if receipt is not None else []
    except IntegrityError:
        files = [name for folder in rule.all_folders for name in root.list(folder) if part_of(name) == part]
    if stage == LABEL_STAGE:
        log.error("event=labels_put_aside part=%s place=%s fix=%r", part, root.path(target), rule.redo)
    filesystem, _ = root.dataset_source()
    done = []
    for name in [receipt_name(stage, part), *files, *_names_of_latest(root, stage, part)]:
        if root.exists(name):
            moved = f"{target}/{name}"
            filesystem.create_dir(str(PurePosixPath(root.path(moved)).parent))
            filesystem.move(root.path(name), root.path(moved))
            done.append(f"moved {name} to {moved}")
    return done


def _names_of_latest(root: Root, stage: str, part: str) -> list[str]:
    """Name the file that says which version is the latest, where it says this one."""
    name, _, version = part.partition("@")
    is_latest = stage == PUBLISH_STAGE and latest_version(root, name) == version
    return [f"{DATASETS}/{name}/{LATEST}"] if is_latest else []


if __name__ == "__main__":
    raise SystemExit(main())
