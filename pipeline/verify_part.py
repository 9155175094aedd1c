"""Check one committed part: its files against its receipt, its rows against each other, its photos against its rows."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.verify_stages import Found, StageRule, counted_rows, folder_faults, local_file, schema_faults, some
from schemas.errors import ImageError, IntegrityError
from schemas.image import decode_stored
from schemas.receipts import INGEST_STAGES, Receipt, file_sha256, receipt_name
from schemas.shards import Shard
from schemas.storage import Root
from schemas.tables import FORMAT_VERSION, INDEX_DIGITS

_ROW_COLUMNS = ("key", "site", "listing_id", "photo_index", "outcome", "error", "part")
_PHOTOS_AT_ONCE = 512
# The last line stays readable however broken a root is; `num_problems` counts them all.
MAX_LISTED = 100
# With `quick`, the photos whose stored hash begins with one of these bytes are decoded: about one in a hundred.
_QUICK_FIRST_BYTES = frozenset({0, 85, 170})

log = logging.getLogger("forecourt.verify")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, in which file or row, how it shows, and what to do."""

    what: str
    where: str
    why: str
    fix: str

    def as_dict(self) -> dict[str, str]:
        """Return it as the last line has it."""
        return asdict(self)


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
    seen: set[tuple[str, str]] = field(default_factory=set)  # whose receipt was read
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


def check_part(root: Root, receipt: Receipt, rule: StageRule, *, quick: bool = False) -> Iterator[Problem]:
    """Yield what is wrong with a part; with `quick`, one photo in a hundred is decoded, all else is checked whole.

    A file that is not what its receipt says is not opened: a damaged shard could end the process.
    """
    where = receipt_name(receipt.stage, receipt.part)
    if receipt.format_version != FORMAT_VERSION:
        why = f"format {receipt.format_version}, expected {FORMAT_VERSION}"
        yield Problem("receipt_version", where, why, rule.redo)
        return
    if (why_not := folder_faults(rule, receipt)) is not None:
        yield Problem("receipt_incomplete", where, why_not, rule.redo)
        return
    damaged = [problem for name in receipt.files for problem in _check_file(root, receipt, name, rule.redo)]
    yield from damaged
    if damaged:
        return
    for what, place, why in _check_rows(root, receipt, quick=quick):
        yield Problem(what, place, why, rule.redo)


def _check_file(root: Root, receipt: Receipt, name: str, fix: str) -> Iterator[Problem]:
    entry = receipt.files[name]
    try:
        size = root.size_bytes(name)
        if size != entry.bytes:
            yield Problem("file_size", name, f"{size:,} bytes, its receipt says {entry.bytes:,}", fix)
            return
        with local_file(root, name) as path:
            if (sha256 := file_sha256(path)) != entry.sha256:
                yield Problem("file_checksum", name, f"SHA-256 {sha256}, its receipt says {entry.sha256}", fix)
            elif name.endswith(".parquet"):
                yield from _check_schema(path, name, fix)
    except FileNotFoundError:
        yield Problem("file_missing", name, "its receipt names it and it is not there", fix)


def _check_schema(path: Path, name: str, fix: str) -> Iterator[Problem]:
    try:
        why = schema_faults(path, name)
    except (pa.ArrowException, OSError) as error:
        yield Problem("file_unreadable", name, f"no Parquet file: {error}", fix)
        return
    if why is not None:
        yield Problem("schema", name, why, fix)


def _check_rows(root: Root, receipt: Receipt, *, quick: bool) -> Iterator[Found]:
    if receipt.stage in INGEST_STAGES:
        yield from _check_tables(root, receipt)
        yield from _check_photos(root, receipt, quick=quick)
    else:
        counts, found = counted_rows(root, receipt)
        yield from _check_counts(receipt, counts)
        yield from found


def _check_tables(root: Root, receipt: Receipt) -> Iterator[Found]:
    """Compare the part's three tables with the receipt's counts and with each other."""
    attempts = root.read_table(receipt.file("attempts"), ["listing_id", "outcome", "site"])
    listings = root.read_table(receipt.file("listings"), ["listing_id", "num_photos", "site"])
    photos = root.read_table(receipt.file("photos"), list(_ROW_COLUMNS))
    yield from _check_counts(receipt, _ingest_counts(attempts, photos))
    found = attempts.filter(pc.equal(attempts["outcome"], "found"))
    if differing := _difference(_ids(found), _ids(listings)):
        yield "rows", receipt.file("listings"), f"listings are not the ids found: {differing}"
    shown = {
        name: count for name, count in zip(_ids(listings), listings["num_photos"].to_pylist(), strict=True) if count
    }
    counted = {
        entry["values"]: entry["counts"] for entry in pc.value_counts(pa.array(_ids(photos), pa.string())).to_pylist()
    }
    if shown != counted:
        differing = _difference(shown.items(), counted.items())
        yield "rows", receipt.file("photos"), f"photos of a listing are not its num_photos: {differing}"
    padded = pc.utf8_lpad(photos["photo_index"].cast(pa.string()), INDEX_DIGITS, "0")
    expected = pc.binary_join_element_wise(photos["site"], photos["listing_id"], padded, "/")
    if wrong := photos.filter(pc.not_equal(photos["key"], expected))["key"].to_pylist():
        yield "rows", receipt.file("photos"), f"keys are not SITE/LISTING_ID/INDEX: {some(wrong)}"
    if wrong := photos.filter(pc.not_equal(photos["part"], receipt.part))["key"].to_pylist():
        yield "rows", receipt.file("photos"), f"rows name another part than {receipt.part}: {some(wrong)}"
    unexplained = pc.and_(pc.not_equal(photos["outcome"], "stored"), pc.is_null(photos["error"]))
    if wrong := photos.filter(unexplained)["key"].to_pylist():
        yield "rows", receipt.file("photos"), f"photos not stored give no error: {some(wrong)}"


def _ingest_counts(attempts: pa.Table, photos: pa.Table) -> dict[str, int]:
    def of(table: pa.Table, outcome: str) -> int:
        return int(pc.sum(pc.equal(table["outcome"], outcome)).as_py() or 0)

    return {
        "ids": attempts.num_rows,
        **{outcome: of(attempts, outcome) for outcome in ("found", "gone", "failed", "disallowed")},
        "photos": photos.num_rows,
        "stored": of(photos, "stored"),
        "photos_failed": of(photos, "failed"),
        "rejected": of(photos, "rejected"),
        "photos_disallowed": of(photos, "disallowed"),
    }


def _check_counts(receipt: Receipt, counted: Mapping[str, int]) -> Iterator[Found]:
    wrong = [
        f"{name}: {receipt.counts.get(name)} in the receipt, {count} rows"
        for name, count in counted.items()
        if receipt.counts.get(name) != count
    ]
    if wrong:
        yield "counts", receipt_name(receipt.stage, receipt.part), "; ".join(wrong)
    if "ids" in counted:
        for total, kinds in (
            ("ids", ("found", "gone", "failed", "disallowed")),
            ("photos", ("stored", "photos_failed", "rejected", "photos_disallowed")),
        ):
            if counted[total] != (parts := sum(counted[kind] for kind in kinds)):
                why = f"{counted[total]} {total} are not {' + '.join(kinds)} ({parts})"
                yield "counts", receipt_name(receipt.stage, receipt.part), why


def _check_photos(root: Root, receipt: Receipt, *, quick: bool) -> Iterator[Found]:
    """Compare the shard with the rows both ways, each value with its row's hash, and open the photos."""
    name = receipt.file("shards")
    rows = root.read_table(receipt.file("photos"), ["key", "outcome", "sha256", "width_px", "height_px", "size_bytes"])
    stored = rows.filter(pc.equal(rows["outcome"], "stored")).to_pylist()
    expected: dict[str, dict[str, Any]] = {row["key"]: row for row in stored}
    wrong: dict[str, list[str]] = {}

    def check(item: tuple[str, bytes]) -> tuple[str, str | None]:
        return item[0], _photo_fault(item[1], expected.get(item[0]), quick=quick)

    try:
        with Shard.open(root, name) as shard, ThreadPoolExecutor(os.cpu_count()) as threads:
            items = shard.items()
            while chunk := list(islice(items, _PHOTOS_AT_ONCE)):
                for key, fault in threads.map(check, chunk):
                    expected.pop(key, None)
                    if fault is not None:
                        wrong.setdefault(fault, []).append(key)
    except IntegrityError as error:
        yield "file_unreadable", name, str(error)
        return
    if expected:
        wrong["photo_missing"] = list(expected)
    for fault, keys in wrong.items():
        yield fault, name, f"{_FAULTS[fault]}: {some(keys)}"


_FAULTS = {
    "photo_extra": "values without a stored photo's row",
    "photo_missing": "stored photos without a value",
    "photo_checksum": "values whose SHA-256 or size is not their row's",
    "photo_unreadable": "values that do not open as JPEG",
    "photo_size": "photos whose width and height are not their row's",
}


def _photo_fault(jpeg: bytes, row: Mapping[str, Any] | None, *, quick: bool) -> str | None:
    if row is None:
        return "photo_extra"
    sha256 = hashlib.sha256(jpeg)
    if sha256.hexdigest() != row["sha256"] or len(jpeg) != row["size_bytes"]:
        return "photo_checksum"
    if quick and sha256.digest()[0] not in _QUICK_FIRST_BYTES:
        return None
    try:
        height_px, width_px, _ = decode_stored(jpeg).shape
    except (ImageError, ValueError):
        return "photo_unreadable"
    return None if (width_px, height_px) == (row["width_px"], row["height_px"]) else "photo_size"


def _ids(table: pa.Table) -> list[str]:
    ids: list[str] = pc.binary_join_element_wise(table["site"], table["listing_id"], "/").to_pylist()
    return ids


def _difference(first: Any, second: Any) -> str:
    """Name a few of what only one of two collections has."""
    return some([str(item) for item in sorted(set(first) ^ set(second))])
