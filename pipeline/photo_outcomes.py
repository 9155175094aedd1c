"""Why each photo is in, or out: the one order in which the decisions of the stages count.

The order is: not stored (its own reason), unreadable, what `duplicates` says, junk, no target. The catalog's view
`outcomes`, the funnel and publish all read it here.
"""

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import ReconcileError
from schemas.receipts import INGEST_STAGES, read_receipt, read_receipts
from schemas.storage import Root

Target = Literal["price", "make_model", "year"]
TARGETS: tuple[Target, ...] = ("price", "make_model", "year")

# What can become of a stored photo; the counts of publish and curate, in the order in which the decisions count.
COUNT_OF_REASON = {
    "unreadable": "unreadable",
    "exact_duplicate": "exact_dropped",
    "near_duplicate": "near_dropped",
    "copy": "copy_dropped",
    "stock_photo": "stock_dropped",
    "junk": "junk_dropped",
    "no_target": "no_target_dropped",
}
EMBED_STAGES = "embed"

# A name as it is compared and, but for letter case, shown: composed characters, single blanks.
_CLEAN = r"nullif(trim(regexp_replace(nfc_normalize({}), '[\s\p{{Z}}]+', ' ', 'g')), '')"
MAKE_MODEL = f"{_CLEAN.format('listings.make')} || ' ' || {_CLEAN.format('listings.model')}"
_KNOWN: dict[str, str] = {
    "price": "coalesce(listings.price_usd > 0, false)",  # nobody sells a car for nothing: no price was meant
    "make_model": f"({MAKE_MODEL}) IS NOT NULL",
    "year": "listings.year IS NOT NULL",
}


def has_targets_sql(require: Literal["any"] | Sequence[Target] = "any") -> str:
    """Say in SQL over `listings` whether a photo has the targets it must have; of an empty list none."""
    if require == "any":
        return "(" + " OR ".join(_KNOWN.values()) + ")"
    return "(" + " AND ".join(_KNOWN[target] for target in require) + ")" if require else "true"


def outcomes_sql(require: Literal["any"] | Sequence[Target] = "any") -> str:
    """Select every photo that was tried, with what became of it: `key, site, listing_id, part, outcome, reason`.

    outcome: failed, rejected, disallowed (reason: the photo's error); unreadable; dropped (reason: drop_reason); kept.
    Reads the views photos, listings, duplicates and scores, and `unreadable` (key).
    """
    return f"""
SELECT key, site, listing_id, part, reason,
       CASE WHEN fetched <> 'stored' THEN fetched WHEN reason IS NULL THEN 'kept'
            WHEN reason = 'unreadable' THEN 'unreadable' ELSE 'dropped' END AS outcome
FROM (SELECT photos.key, photos.site, photos.listing_id, photos.part, photos.outcome AS fetched,
             CASE WHEN photos.outcome <> 'stored' THEN photos.error
                  WHEN unreadable.key IS NOT NULL THEN 'unreadable'
                  WHEN duplicates.drop_reason IS NOT NULL THEN duplicates.drop_reason
                  WHEN scores.drop_reason IS NOT NULL THEN scores.drop_reason
                  WHEN NOT {has_targets_sql(require)} THEN 'no_target' END AS reason
      FROM photos
           LEFT JOIN unreadable ON unreadable.key = photos.key
           LEFT JOIN duplicates ON duplicates.key = photos.key
           LEFT JOIN scores ON scores.key = photos.key
           LEFT JOIN listings ON listings.site = photos.site AND listings.listing_id = photos.listing_id)
"""


def unreadable_photos(root: Root) -> pa.Table:
    """Return the `key` of each stored photo that an encoder counted as unreadable and so left out.

    Only parts that say they have some are looked into. What was embedded before its part changed counts no more.

    Raises:
        ReconcileError: an embedded part lacks other than as many photos as it counted.
    """
    found: set[str] = set()
    for folder in root.list_folders(f"receipts/{EMBED_STAGES}"):
        stage = folder.removeprefix("receipts/")
        for receipt in read_receipts(root, stage):
            if not receipt.counts.get("unreadable"):
                continue
            stored = _stored_keys(root, receipt.part)
            (name,) = receipt.files
            missing = stored - set(root.read_table(name, ["key"])["key"].to_pylist())
            if len(missing) != receipt.counts["unreadable"]:
                raise ReconcileError(
                    f"{name} lacks {len(missing):,} photos that {receipt.part} stored, its receipt counts "
                    f"{receipt.counts['unreadable']:,} as unreadable; run pipeline/embed.py again"
                )
            found |= missing
    return pa.table({"key": pa.array(sorted(found), pa.string())})


def _stored_keys(root: Root, part: str) -> set[str]:
    for stage in INGEST_STAGES:
        if (receipt := read_receipt(root, stage, part)) is not None:
            photos = root.read_table(receipt.file("photos"), ["key", "outcome"])
            return set(photos.filter(pc.equal(photos["outcome"], "stored"))["key"].to_pylist())
    return set()
