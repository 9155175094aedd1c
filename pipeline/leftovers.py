"""Remove what killed runs left, so that a plain glob over a table's folder sees each row once.

Only the owner of the crawl's lease may call this: then no other crawl is alive, and importers' files are not touched.
"""

import logging
import re
from pathlib import PurePosixPath

from pipeline.lease import living_tokens
from schemas.receipts import COMMIT_ORDER, read_receipts
from schemas.storage import TEMPORARY_SUFFIX, Root

log = logging.getLogger("forecourt.leftovers")


def remove_leftovers(root: Root, stage: str, site: str) -> None:
    """Remove half-written files of dead runs, and this site's whole files that no receipt names.

    A run killed between its renames and its receipt leaves the latter, or after the receipt those of the generation
    before.
    """
    alive = living_tokens(root)
    committed = {
        name for receipt in read_receipts(root, stage, prefix=f"{site}-") for name in map(PurePosixPath, receipt.files)
    }
    ours = re.compile(rf"{re.escape(site)}-(\d+|list-[A-Za-z0-9_-]+)(\.g\d+)?\.(parquet|lmdb)")
    for folder in COMMIT_ORDER:
        for name in root.list(folder):
            half_written = name.endswith(TEMPORARY_SUFFIX) and not any(token in name for token in alive)
            whole = ours.fullmatch(PurePosixPath(name).name) is not None and PurePosixPath(name) not in committed
            if half_written or whole:
                log.info("event=leftover_removed file=%s", name)
                root.remove(name)
