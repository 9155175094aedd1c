"""The rows of a crawled part: what one id became, how a failure is told, and the counts that must reconcile."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from schemas.errors import PolicyError, ReconcileError, RowError, is_transient
from schemas.receipts import PartWriter
from schemas.tables import ATTEMPTS, LISTINGS, PHOTOS, table_of

# How the evidence marks a refusal because a site's rules could not be read just now.
_PASSING = '"passing": true'


@dataclass(slots=True)
class ListingRows:
    """What one id became."""

    attempt: dict[str, Any]
    listing: dict[str, Any] | None
    photos: list[dict[str, Any]]


def may_pass(row: Mapping[str, Any]) -> bool:
    """Tell whether a row's failure or refusal can be another when asked later."""
    return is_transient(row["error"]) or _PASSING in (row["policy"] or "")


def owner_says_no(error: RowError) -> bool:
    """Tell a refusal that stands from a failure, and from rules that could not be read just now."""
    return isinstance(error, PolicyError) and not getattr(error, "passing", False)


def failure_columns(error: RowError) -> dict[str, Any]:
    """Return the columns of an attempt that gave no answer."""
    return {
        "error": error.reason,
        "status": getattr(error, "status", None),
        "num_tries": getattr(error, "num_tries", 0),
        "latency_s": getattr(error, "latency_s", None),
        "policy": evidence_text(getattr(error, "policy", None)),
        "fetched_at": datetime.now(UTC),
    }


def evidence_text(evidence: Mapping[str, Any] | None) -> str | None:
    """Return policy evidence as the column stores it; null where there is none."""
    return json.dumps(evidence, sort_keys=True) if evidence else None


def write_tables(writer: PartWriter, listings: list[ListingRows], part: str) -> dict[str, int]:
    """Stage a part's three tables and return its counts.

    Raises:
        ReconcileError: ids are not the sum of their outcomes.
    """
    attempts = [rows.attempt for rows in listings]
    photos = [photo for rows in listings for photo in rows.photos]
    counts = _counts(attempts, photos)
    if counts["ids"] != sum(counts[name] for name in ("found", "gone", "failed", "disallowed")):
        raise ReconcileError(f"part {part}: ids are not found + gone + failed + disallowed: {counts}")
    writer.write_table("photos", table_of(photos, PHOTOS))
    writer.write_table("listings", table_of([r.listing for r in listings if r.listing is not None], LISTINGS))
    writer.write_table("attempts", table_of(attempts, ATTEMPTS))
    return counts


def _counts(attempts: list[dict[str, Any]], photos: list[dict[str, Any]]) -> dict[str, int]:
    def of(rows: list[dict[str, Any]], outcome: str) -> int:
        return sum(row["outcome"] == outcome for row in rows)

    return {
        "ids": len(attempts),
        **{outcome: of(attempts, outcome) for outcome in ("found", "gone", "failed", "disallowed")},
        "photos": len(photos),
        "stored": of(photos, "stored"),
        "photos_failed": of(photos, "failed"),
        "rejected": of(photos, "rejected"),
        "photos_disallowed": of(photos, "disallowed"),
        "bytes": sum(row.get("size_bytes") or 0 for row in photos),
        "transient": sum(may_pass(row) for row in (*attempts, *photos)),
    }
