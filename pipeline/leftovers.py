"""Remove what killed runs left, so that a plain glob over a table's folder sees each row once.

Only the owner of a stage's lease may call this: then no other run of the stage is alive.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from pipeline.lease import living_tokens
from schemas.receipts import COMMIT_ORDER, INGEST_STAGES, read_receipts
from schemas.storage import TEMPORARY_SUFFIX, Root

log = logging.getLogger("forecourt.leftovers")


def remove_leftovers(root: Root, stage: str, site: str) -> None:
    """Remove half-written files of dead runs, and this site's whole files that no receipt names.

    A run killed between its renames and its receipt leaves the latter, or after the receipt those of the generation
    before.
    """
    remove_half_written(root, (*COMMIT_ORDER, f"receipts/{stage}"))
    committed = {
        name
        for ingest in INGEST_STAGES
        for receipt in read_receipts(root, ingest, prefix=f"{site}-")
        for name in map(PurePosixPath, receipt.files)
    }
    ours = re.compile(rf"{re.escape(site)}-(\d+|list-[A-Za-z0-9_-]+)(\.g\d+)?\.(parquet|lmdb)")
    for folder in COMMIT_ORDER:
        for name in root.list(folder):
            if ours.fullmatch(PurePosixPath(name).name) and PurePosixPath(name) not in committed:
                _remove(root, name)


def remove_half_written(root: Root, folders: Sequence[str]) -> None:
    """Remove what dead runs were writing in `folders`; what a run that may be alive is writing stays."""
    alive = living_tokens(root)
    for folder in folders:
        for name in root.list(folder):
            if name.endswith(TEMPORARY_SUFFIX) and not any(token in name for token in alive):
                _remove(root, name)


def _remove(root: Root, name: str) -> None:
    log.info("event=leftover_removed file=%s", name)
    root.remove(name)
