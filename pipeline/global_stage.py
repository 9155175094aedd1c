"""A stage over a whole root: one part, written again when what it reads or its settings have changed."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pipeline.lease import hold_lease
from pipeline.leftovers import remove_half_written
from schemas.receipts import PartWriter, Receipt, read_receipt
from schemas.storage import Root

# The one part that a global stage commits, over all sites and sets.
WHOLE = "all"
_FILE = re.compile(rf"{WHOLE}(\.g\d+)?(\.[a-z]+)+")

log = logging.getLogger("forecourt.global_stage")


def run_global_stage(
    root: Root,
    stage: str,
    folders: Sequence[str],
    *,
    inputs: Callable[[], Mapping[str, str]],
    settings: Mapping[str, Any],
    write: Callable[[PartWriter], Mapping[str, int]],
) -> tuple[Receipt, bool]:
    """Bring a global stage up to date; return its receipt, and whether nothing had to be done.

    `inputs` names what is read with its fingerprint, and is asked before anything is read: should an input be committed
    in between, the next run finds it changed. `write` stages the files in `folders` and returns the receipt's counts.

    Raises:
        LeaseError: another run of this stage is alive on this root.
    """
    with hold_lease(root, stage) as lease:
        _remove_leftovers(root, stage, folders)
        found = dict(inputs())
        receipt = read_receipt(root, stage, WHOLE)
        if receipt is not None and is_current(root, receipt, found, settings):
            log.info("event=up_to_date stage=%s root=%s", stage, root.text)
            return receipt, True
        writer = PartWriter(root, stage, WHOLE, token=lease.token, fence=lease.check)
        try:
            receipt = writer.commit(counts=write(writer), settings=settings, inputs=found)
        except BaseException:
            writer.abandon()
            raise
    log.info("event=done stage=%s root=%s seconds=%s", stage, root.text, receipt.seconds)
    return receipt, False


def is_current(root: Root, receipt: Receipt, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> bool:
    """Tell whether a committed part is what these inputs and settings would make, with its files in place."""
    same = receipt.inputs == inputs and receipt.settings == settings
    return same and all(root.exists(name) and root.size_bytes(name) == e.bytes for name, e in receipt.files.items())


def _remove_leftovers(root: Root, stage: str, folders: Sequence[str]) -> None:
    """Remove what killed runs left: half-written files, and whole ones that the receipt does not name."""
    remove_half_written(root, (*folders, f"receipts/{stage}"))
    receipt = read_receipt(root, stage, WHOLE)
    for name in (name for folder in folders for name in root.list(folder)):
        if _FILE.fullmatch(PurePosixPath(name).name) and (receipt is None or name not in receipt.files):
            log.info("event=leftover_removed file=%s", name)
            root.remove(name)
