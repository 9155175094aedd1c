"""A published data set as its readers see it: `datasets/NAME/VERSION/manifest.json`, its files and its vocabularies.

`datasets/NAME/LATEST` names the version meant where only NAME is given. A version is there when its receipt is; what a
killed run left under `datasets/` is none.
"""

import hashlib
import re
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
from pydantic import Field, ValidationError

from schemas.errors import IntegrityError, UsageError
from schemas.receipts import FileEntry, read_receipt
from schemas.settings import Section
from schemas.storage import Root
from schemas.tables import DATASET_SCHEMAS

STAGE = "publish"
DATASETS = "datasets"
LATEST = "LATEST"
SPLITS = ("train", "val", "test")
# The class of what is known and outside the vocabulary. A target that is not known is null, never this.
UNKNOWN = "Unknown"
UNKNOWN_ID = 0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ROWS_PER_BATCH = 65_536


class Vocabulary(Section):
    """The classes of each head; an id is the position in the list of classes."""

    price_cuts_usd: list[float]  # bin 0 is below the first, bin i from cut i-1 up to below cut i
    make_models: list[str]  # by falling frequency in the training split
    years: list[int]  # that the training split has, rising

    @property
    def price_classes(self) -> list[str]:
        """Name the bins of `price_bin`."""
        if not self.price_cuts_usd:
            return ["any price"]
        shown = [f"${cut:,.0f}" for cut in self.price_cuts_usd]
        between = [f"{low} to {high}" for low, high in pairwise(shown)]
        return [f"below {shown[0]}", *between, f"{shown[-1]} and more"]

    @property
    def make_model_classes(self) -> list[str]:
        """Name the classes of `make_model_id`."""
        return [UNKNOWN, *self.make_models]

    @property
    def year_classes(self) -> list[str]:
        """Name the classes of `year_id`."""
        return [UNKNOWN, *map(str, self.years)]


class SplitCounts(Section):
    """What one split holds, and how much of what is known its vocabulary covers (null where nothing is known)."""

    photos: int
    groups: int
    listings: int
    with_price: int
    with_make_model: int
    with_year: int
    make_model_coverage: float | None
    year_coverage: float | None


class Inheritance(Section):
    """How the splits of a version come from its parent's."""

    groups: int  # of this version that take their split from the parent
    merged: int  # of those, groups that were two or more in the parent
    moved: int  # groups of the parent that are in another split now, since they merged
    withdrawn: int  # photos the parent kept that are stored no more


class Manifest(Section):
    """What a version of a data set is."""

    format_version: int
    name: str
    version: str
    parent: str | None  # NAME@VERSION
    code_version: str
    created_at: datetime
    settings: dict[str, Any]
    inputs: dict[str, str]
    counts: dict[str, int]
    splits: dict[str, SplitCounts]
    inheritance: Inheritance
    vocabulary: Vocabulary
    sites: dict[str, int]  # kept photos of each site or imported set
    parts: dict[str, int]  # kept photos of each part, whose shards hold their bytes
    files: dict[str, FileEntry]  # under the root: photos/ and outcomes/ of this version
    notes: list[str] = Field(default_factory=list)

    @property
    def reference(self) -> str:
        """Name this version as `--dataset` takes it."""
        return f"{self.name}@{self.version}"

    @property
    def folder(self) -> str:
        """Return the folder of this version under the root."""
        return version_folder(self.name, self.version)

    def files_of(self, table: str) -> list[str]:
        """Name the files of `photos` or `outcomes`, in order of key."""
        return sorted(name for name in self.files if name.startswith(f"{self.folder}/{table}/"))


def version_folder(name: str, version: str) -> str:
    """Return the folder of a version under the root."""
    return f"{DATASETS}/{name}/{version}"


def split_reference(reference: str) -> tuple[str, str | None]:
    """Take `NAME[@VERSION]` apart.

    Raises:
        UsageError: a part of it cannot name a folder.
    """
    name, at, version = reference.partition("@")
    if not _NAME.fullmatch(name) or (at and not _NAME.fullmatch(version)):
        raise UsageError(
            f"a data set is NAME or NAME@VERSION in letters, digits, '.', '_' and '-'; found {reference!r}"
        )
    return name, version or None


def latest_version(root: Root, name: str) -> str | None:
    """Return the version that `datasets/NAME/LATEST` names; None where nothing of that name is published."""
    try:
        return root.read_bytes(f"{DATASETS}/{name}/{LATEST}").decode("ascii").strip()
    except FileNotFoundError:
        return None


def read_manifest(root: Root, reference: str) -> Manifest:
    """Read the manifest of `NAME@VERSION`, or of the latest version of `NAME`.

    Raises:
        UsageError: there is no such data set or version.
        IntegrityError: its manifest is not the one its receipt names.
    """
    name, version = split_reference(reference)
    version = version or latest_version(root, name)
    if version is None:
        raise UsageError(f"no data set {name!r} at {root}: there is no {DATASETS}/{name}/{LATEST}; see publish.py")
    receipt = read_receipt(root, STAGE, f"{name}@{version}")
    if receipt is None:
        raise UsageError(f"no version {version!r} of data set {name!r} at {root}; {DATASETS}/{name}/ has the others")
    place = f"{version_folder(name, version)}/manifest.json"
    try:
        data = root.read_bytes(place)
    except FileNotFoundError:
        raise IntegrityError(f"{root.path(place)} is not there, its receipt names it; run publish.py again") from None
    if place not in receipt.files or hashlib.sha256(data).hexdigest() != receipt.files[place].sha256:
        raise IntegrityError(f"{root.path(place)} is not what its receipt says; run publish.py again")
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(f"{root.path(place)} is no manifest of this version: {error.errors()[0]}") from error


def read_rows(root: Root, manifest: Manifest, table: str = "photos") -> Iterator[pa.RecordBatch]:
    """Yield the rows of `photos` or `outcomes` in order of key, memory flat.

    Raises:
        IntegrityError: a file is not there, or has another schema.
    """
    filesystem, _ = root.dataset_source()
    for name in manifest.files_of(table):
        try:
            file = pads.dataset(root.path(name), schema=DATASET_SCHEMAS[table], format="parquet", filesystem=filesystem)
            yield from file.to_batches(batch_size=_ROWS_PER_BATCH, batch_readahead=1, fragment_readahead=1)
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise IntegrityError(f"{root.path(name)} cannot be read: {error}; see pipeline/verify.py") from error


def rows_reader(root: Root, manifest: Manifest, table: str = "photos") -> pa.RecordBatchReader:
    """Return the rows of `photos` or `outcomes` as one reader, for what takes Arrow."""
    return pa.RecordBatchReader.from_batches(DATASET_SCHEMAS[table], read_rows(root, manifest, table))


def is_dataset_name(name: str) -> bool:
    """Tell whether a text can name a data set."""
    return _NAME.fullmatch(name) is not None
