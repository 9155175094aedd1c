"""What the last run of score.py says of its filter, for those who show it: report, labelling page.

Reads: `filters/` as committed with the scores: `all.json` (figures, curve, junk types), `all.csv` (the labels with
their out-of-fold scores; what disagrees stands first), `all.curve.png`, `all.confusion.png`, and `all.npz`, the filter
itself. With no filter, for want of labels, there is the JSON alone, which says so.
"""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline.global_stage import WHOLE
from schemas.errors import IntegrityError
from schemas.receipts import Receipt, read_receipt
from schemas.storage import Root

STAGE = "score"
FOLDER = "filters"
RECORD, LABELLED, ARRAYS = ".json", ".csv", ".npz"
CURVE_PLOT, CONFUSION_PLOT = ".curve.png", ".confusion.png"
LABELLED_COLUMNS = ("key", "label", "junk_type", "sampled_by", "out_of_fold_score", "dropped", "disagrees")


@dataclass(frozen=True)
class LabelledPhoto:
    """A labelled photo and the score of a filter that had not seen its listing."""

    key: str
    label: str
    junk_type: str | None
    sampled_by: str
    out_of_fold_score: float
    dropped: bool
    disagrees: bool


def filter_report(root: Root) -> dict[str, Any] | None:
    """Return the record of the last run, None where score.py has not run.

    `has_filter`, `message`, `encoder`, `max_fnr`, `labels`, `keepers`, `junk`; with a filter also `threshold`, `fnr`,
    `fnr_upper95` (null without random labels), `labels_needed`, `junk_removed`, `kernel`, `chosen`, `auc` (a candidate
    each), `curve` (`threshold, fnr, junk_removed`), `confusion`, `junk_types` (`junk_type, labels, removed`),
    `disagreements`.
    """
    receipt = read_receipt(root, STAGE, WHOLE)
    if receipt is None:
        return None
    data: dict[str, Any] = json.loads(root.read_bytes(_required(receipt, RECORD)))
    return data


def labelled_photos(root: Root) -> list[LabelledPhoto]:
    """Return the labels of the last run with their out-of-fold scores, disagreements first; none without a filter."""
    receipt = read_receipt(root, STAGE, WHOLE)
    if receipt is None or (name := committed_name(receipt, LABELLED)) is None:
        return []
    rows = csv.DictReader(io.StringIO(root.read_bytes(name).decode()))
    return [_labelled(row) for row in rows]


def filter_plots(root: Root) -> dict[str, bytes]:
    """Return the last run's plots as PNG: `curve` and `confusion`, or none where there is no filter."""
    receipt = read_receipt(root, STAGE, WHOLE)
    named = {} if receipt is None else {s: committed_name(receipt, s) for s in (CURVE_PLOT, CONFUSION_PLOT)}
    return {suffix.split(".")[1]: root.read_bytes(name) for suffix, name in named.items() if name is not None}


def committed_name(receipt: Receipt, suffix: str) -> str | None:
    """Name the committed file of `filters/` that ends so; None where there is none."""
    for name in receipt.files:
        path = PurePosixPath(name)
        if str(path.parent) == FOLDER and name.endswith(suffix):
            return name
    return None


def _required(receipt: Receipt, suffix: str) -> str:
    if (name := committed_name(receipt, suffix)) is None:
        raise IntegrityError(f"the receipt of {STAGE} names no {FOLDER}/{WHOLE}{suffix}; run pipeline/score.py again")
    return name


def _labelled(row: dict[str, str]) -> LabelledPhoto:
    return LabelledPhoto(
        key=row["key"],
        label=row["label"],
        junk_type=row["junk_type"] or None,
        sampled_by=row["sampled_by"],
        out_of_fold_score=float(row["out_of_fold_score"]),
        dropped=row["dropped"] == "true",
        disagrees=row["disagrees"] == "true",
    )
