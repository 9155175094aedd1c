"""The labels of a root as others read them: one settled label a photo, however many people looked at it.

Reads: `labels/` of committed parts, also while the labelling page is writing. Of each labeller the latest label of a
photo counts; where labels that count differ, of two labellers or of one at one moment, the photo is unsure.

`sampled_by` says how a photo came to be looked at. It is random where any of its labels was given in a random draw: the
draw makes the sample, and a second look at the same photo, chosen because the filter doubts it, changes what the label
says but not how the photo was drawn. Leaving such photos out would leave out the filter's likely mistakes.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa

from schemas.errors import IntegrityError
from schemas.receipts import read_receipt, read_receipts
from schemas.storage import Root
from schemas.tables import LABELS

STAGE = "label"
FOLDER = "labels"
KEEP, JUNK, UNSURE = "keep", "junk", "unsure"
LABEL_VALUES = (KEEP, JUNK, UNSURE)
RANDOM, IMPORT = "random", "import"
# How a photo is chosen for the page; what came in from a file and does not say is `import`.
SAMPLINGS = (RANDOM, "uncertain", "likely_junk", "likely_keep", "prompt")
_READ_TRIES = 20

SETTLED = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),  # keep, junk, unsure
        pa.field("junk_type", pa.string()),  # null where it is no junk, unknown, or labellers differ
        pa.field("sampled_by", pa.string(), nullable=False),
        pa.field("num_labellers", pa.int32(), nullable=False),
    ]
)


class LabelRow(NamedTuple):
    """One label that one person gave one photo; a row of `labels/`."""

    key: str
    label: str
    junk_type: str | None
    sampled_by: str
    labeller: str
    labelled_at: datetime


class Settled(NamedTuple):
    """What all labels of one photo come to."""

    label: str
    junk_type: str | None
    sampled_by: str
    num_labellers: int


def read_labels(root: Root) -> pa.Table:
    """Read all rows of `labels/`, of every labeller and time, those superseded too.

    Raises:
        IntegrityError: a receipt or a file cannot be read.
    """
    tables = [_read_part(root, receipt.part) for receipt in read_receipts(root, STAGE)]
    return pa.concat_tables(tables) if tables else LABELS.empty_table()


def settled_labels(root: Root) -> pa.Table:
    """Return one row a labelled photo, in order of key: `key, label, junk_type, sampled_by, num_labellers`.

    Raises:
        IntegrityError: a receipt or a file cannot be read.
    """
    rows_of: dict[str, list[LabelRow]] = {}
    for row in label_rows(read_labels(root)):
        rows_of.setdefault(row.key, []).append(row)
    settled = [{"key": key, **settle(rows_of[key])._asdict()} for key in sorted(rows_of)]
    return pa.Table.from_pylist(settled, schema=SETTLED)


def settle(rows: Sequence[LabelRow]) -> Settled:
    """Return what the labels of one photo come to; at least one row, in any order."""
    latest_at: dict[str, datetime] = {}
    for row in rows:
        latest_at[row.labeller] = max(row.labelled_at, latest_at.get(row.labeller, row.labelled_at))
    counting = [row for row in rows if row.labelled_at == latest_at[row.labeller]]
    labels = {row.label for row in counting}
    label = labels.pop() if len(labels) == 1 else UNSURE
    junk_types = {row.junk_type for row in counting if row.junk_type is not None}
    samplings = {row.sampled_by for row in rows}
    return Settled(
        label=label,
        junk_type=junk_types.pop() if label == JUNK and len(junk_types) == 1 else None,
        sampled_by=RANDOM if RANDOM in samplings else min(samplings),
        num_labellers=len(latest_at),
    )


def label_rows(table: pa.Table) -> Iterable[LabelRow]:
    """Yield the rows of a table in the schema of `labels/`."""
    columns: Mapping[str, list[Any]] = table.to_pydict()
    return map(LabelRow._make, zip(*(columns[name] for name in LabelRow._fields), strict=True))


def _read_part(root: Root, part: str) -> pa.Table:
    """Read a part's rows; the page replaces its part at each click, so a file just read of may be gone."""
    name = ""
    for _ in range(_READ_TRIES):
        receipt = read_receipt(root, STAGE, part)
        if receipt is None:
            return LABELS.empty_table()
        name = receipt.file(FOLDER)
        try:
            return root.read_table(name)
        except FileNotFoundError:
            continue
    raise IntegrityError(f"{root.path(name)} is not there, though its receipt names it; see pipeline/verify.py")
