"""Receipts and the commit of a part: the receipt, written last, alone makes the part real.

A part's files are written beside under a name with the run's token and the attempt, synced, and renamed in the order
shards, photos, listings, attempts; then `receipts/STAGE/PART.json` is replaced. Generation 1 is `PART.parquet`; a later
generation g is `PART.gG.parquet`, so that what is sealed stays whole until the receipt names the new files; then the
old ones go.
"""

import glob
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from schemas.errors import IntegrityError
from schemas.settings import Section
from schemas.storage import TEMPORARY_SUFFIX, Root, reported, sync_file
from schemas.tables import FORMAT_VERSION, fits_folder

# Readers that glob a folder must never find a photo whose bytes are not there yet.
COMMIT_ORDER = ("shards", "photos", "listings", "attempts")
# The stages that write attempts, listings, photos and shards.
INGEST_STAGES = ("crawl", "importers")
_HASH_BLOCK_BYTES = 1 << 20

log = logging.getLogger("forecourt.receipts")


class FileEntry(Section):
    """One committed file: its size and checksum."""

    bytes: int
    sha256: str


class Receipt(Section):
    """The commit mark of a part."""

    format_version: int = FORMAT_VERSION
    stage: str
    part: str
    generation: int
    run: str
    files: dict[str, FileEntry]
    counts: dict[str, int]
    settings: dict[str, Any]
    inputs: dict[str, str] = Field(default_factory=dict)
    scope: dict[str, Any] = Field(default_factory=dict)
    code_version: str
    seconds: float
    created_at: datetime

    def file(self, folder: str) -> str:
        """Return the name of this part's file in `folder`.

        Raises:
            IntegrityError: the receipt names none.
        """
        for name in self.files:
            if str(PurePosixPath(name).parent) == folder:
                return name
        raise IntegrityError(f"receipt {receipt_name(self.stage, self.part)} names no file in {folder}/")


def receipt_name(stage: str, part: str) -> str:
    """Return the name of a part's receipt under the root."""
    return f"receipts/{stage}/{part}.json"


def part_file(folder: str, part: str, generation: int, suffix: str) -> str:
    """Return the name of a part's file: `photos/demo-1.parquet`, from generation 2 on `photos/demo-1.g2.parquet`."""
    return f"{folder}/{part}{suffix}" if generation == 1 else f"{folder}/{part}.g{generation}{suffix}"


def read_receipt(root: Root, stage: str, part: str) -> Receipt | None:
    """Read a part's receipt; None where the part is not committed.

    Raises:
        IntegrityError: there is one and it cannot be read.
    """
    name = receipt_name(stage, part)
    try:
        data = root.read_bytes(name)
    except FileNotFoundError:
        return None
    try:
        return Receipt.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        found = " ".join([".".join(map(str, first["loc"])), first["msg"]]).strip()
        raise IntegrityError(f"{root.path(name)} is no receipt: {found}; see pipeline/verify.py --repair") from error


def read_receipts(root: Root, stage: str, *, prefix: str = "") -> Iterator[Receipt]:
    """Read the receipts of a stage in order of part, one at a time; `prefix` is what the part's name starts with."""
    folder = f"receipts/{stage}"
    for name in root.list(folder, suffix=".json"):
        part = PurePosixPath(name).stem
        if part.startswith(prefix) and (receipt := read_receipt(root, stage, part)) is not None:
            yield receipt


def committed_files(root: Root, folder: str, *, stages: tuple[str, ...] = INGEST_STAGES) -> list[str]:
    """Name the committed files of one table folder, over the given stages, in order of part."""
    names: list[str] = []
    for stage in stages:
        for receipt in read_receipts(root, stage):
            names += [name for name in receipt.files if str(PurePosixPath(name).parent) == folder]
    return names


@dataclass(frozen=True, slots=True)
class Inputs:
    """What some stages had committed at one look: the names of its files by folder, and a fingerprint of them all."""

    files: dict[str, list[str]]
    fingerprint: str


def committed_inputs(root: Root, stages: tuple[str, ...] = INGEST_STAGES) -> Inputs:
    """Look once at all that the given stages committed, so that files and fingerprint are of the same moment."""
    return inputs_of(receipt for stage in stages for receipt in read_receipts(root, stage))


def inputs_of(receipts: Iterable[Receipt]) -> Inputs:
    """Return the files that these receipts name, and a fingerprint of them all."""
    files: dict[str, list[str]] = {}
    digest = hashlib.sha256()
    for receipt in receipts:
        for name, entry in sorted(receipt.files.items()):
            files.setdefault(str(PurePosixPath(name).parent), []).append(name)
            digest.update(f"{receipt.stage} {receipt.part} {name} {entry.sha256}\n".encode())
    return Inputs(files, digest.hexdigest())


def inputs_fingerprint(root: Root, stages: tuple[str, ...] = INGEST_STAGES) -> str:
    """Fingerprint all that the given stages committed: changes when a file does, not when a receipt is rewritten."""
    return committed_inputs(root, stages).fingerprint


def installed_version() -> str:
    """Return the version of the installed distribution, or say that it runs from its sources."""
    try:
        return version("forecourt")
    except PackageNotFoundError:
        return "sources"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


class PartWriter:
    """Write the files of one part beside, then commit them all or none.

    `token` is the run's; `fence` raises LeaseError where the run has lost the root, and is asked before every rename.
    An `attempt` takes away what those before it in the run have staged. Should one of them live on unseen, it finds
    nothing to rename, the receipt last, which is why that is staged before the first rename.
    """

    def __init__(
        self, root: Root, stage: str, part: str, *, token: str, fence: Callable[[], None], attempt: int = 1
    ) -> None:
        self.root, self.stage, self.part, self.token, self.attempt = root, stage, part, token, attempt
        self._fence = fence
        self._started_s = time.monotonic()
        self.previous = read_receipt(root, stage, part)
        self.generation = 1 if self.previous is None else self.previous.generation + 1
        self._receipt = receipt_name(stage, part)
        self._staged: dict[str, Path] = {}
        self._staged_mark: Path | None = None

    def stage_path(self, folder: str, suffix: str = ".parquet") -> Path:
        """Return where to write this part's file of `folder` before the commit."""
        return self.stage_file(part_file(folder, self.part, self.generation, suffix))

    def stage_file(self, name: str) -> Path:
        """Return where to write the file that the commit makes `name`, a name no generation has twice."""
        for attempt in range(1, self.attempt):
            for taken in (name, self._receipt):
                self._take_away(self._staged_by(attempt, taken))
        self._staged[name] = self._staged_by(self.attempt, name)
        return self._staged[name]

    def _staged_by(self, attempt: int, name: str) -> Path:
        return self.root.staged(name, f"{self.token}-{attempt}")

    def _take_away(self, staged: Path) -> None:
        with reported(str(staged)):
            # A shard that was being sealed has its smaller copy beside it.
            for beside in staged.parent.glob(f"{glob.escape(staged.stem)}.*{TEMPORARY_SUFFIX}"):
                beside.unlink(missing_ok=True)
        self.root.discard(staged)

    def write_table(self, folder: str, table: pa.Table) -> None:
        """Write this part's rows of the table in `folder`.

        Raises:
            IntegrityError: the table does not have the folder's schema.
        """
        if not fits_folder(table.schema, folder):
            raise IntegrityError(f"{folder}: the table's schema is {table.schema}, which is not the contract's")
        path = self.stage_path(folder)
        with reported(str(path), writing=True):
            pq.write_table(table, path, compression="zstd")

    def commit(
        self,
        *,
        counts: Mapping[str, int],
        settings: Mapping[str, Any],
        code_version: str | None = None,
        inputs: Mapping[str, str] | None = None,
        scope: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Rename the staged files, write the receipt, and remove the generation before.

        Raises:
            LeaseError: the run has lost the root; nothing becomes real.
            RootError: a later attempt has begun, which took the staged files away.
        """
        mark = self._staged_by(self.attempt, self._receipt)
        self._staged_mark = mark
        with reported(str(mark), writing=True):
            mark.write_bytes(b"")
        files = {}
        for name, path in self._staged.items():
            with reported(str(path), writing=True):
                sync_file(path)
                files[name] = FileEntry(bytes=path.stat().st_size, sha256=file_sha256(path))
        for name in sorted(self._staged, key=_commit_rank):
            self._fence()
            self.root.publish(self._staged[name], name)
        receipt = Receipt(
            stage=self.stage,
            part=self.part,
            generation=self.generation,
            run=self.token,
            files=files,
            counts=dict(counts),
            settings=dict(settings),
            inputs=dict(inputs or {}),
            scope=dict(scope or {}),
            code_version=code_version or installed_version(),
            seconds=round(time.monotonic() - self._started_s, 3),
            created_at=datetime.now(UTC),
        )
        self._fence()
        with reported(str(mark), writing=True):
            with mark.open("r+", encoding="utf-8") as file:
                file.write(receipt.model_dump_json(indent=1))
            sync_file(mark)
        self.root.publish(mark, self._receipt)
        for name in self._superseded(files):
            self.root.remove(name)
        self._forget_staged()
        return receipt

    def _superseded(self, files: Mapping[str, FileEntry]) -> set[str]:
        """Name what the new generation replaces, with what a run that was killed right here did not get to remove."""
        names = set(self.previous.files) if self.previous else set()
        for name in map(PurePosixPath, files):
            older = range(1, self.generation)
            names |= {part_file(str(name.parent), self.part, generation, name.suffix) for generation in older}
        return names - files.keys()

    def abandon(self) -> None:
        """Remove what was staged; what is committed stays."""
        for path in (*self._staged.values(), self._staged_mark):
            if path is not None:
                self.root.discard(path)
        self._forget_staged()

    def _forget_staged(self) -> None:
        self._staged.clear()
        self._staged_mark = None


def _commit_rank(name: str) -> tuple[int, str]:
    folder = str(PurePosixPath(name).parent)
    return (COMMIT_ORDER.index(folder) if folder in COMMIT_ORDER else len(COMMIT_ORDER), name)
