"""The funnel: how many ids and photos came in, and where each one went. It reconciles, or it is an error."""

from collections.abc import Callable

import pyarrow as pa

from schemas.errors import ReconcileError

FUNNEL = pa.schema(
    [
        pa.field("step", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("count", pa.int64(), nullable=False),
        pa.field("percent", pa.float64()),
    ]
)

_OUTCOMES = {
    "ids": ("found", "gone", "failed", "disallowed"),
    "photos": ("stored", "failed", "rejected", "disallowed"),
    "stored": ("kept", "dropped", "unreadable", "undecided"),
}
# One row per step, outcome and reason. A stored photo that dedup has not seen, or not yet, is undecided.
_COUNTS = """
SELECT 'ids' AS step, outcome, error AS reason, count(*) AS n FROM attempts GROUP BY ALL
UNION ALL
SELECT 'photos', outcome, error, count(*) FROM photos GROUP BY ALL
UNION ALL
SELECT 'stored',
       CASE WHEN duplicates.key IS NULL THEN 'undecided' ELSE outcome END,
       CASE WHEN duplicates.key IS NULL THEN 'not_deduplicated' WHEN outcome = 'dropped' THEN reason END,
       count(*)
FROM outcomes LEFT JOIN duplicates USING (key) WHERE outcome IN ('kept', 'dropped', 'unreadable') GROUP BY ALL
"""
_TOTALS = """
SELECT (SELECT count(*) FROM attempts) AS ids,
       (SELECT count(*) FROM attempts WHERE outcome = 'found') AS found,
       (SELECT count(*) FROM listings) AS listings,
       (SELECT coalesce(sum(num_photos), 0)::BIGINT FROM listings) AS num_photos,
       (SELECT count(*) FROM photos) AS photos,
       (SELECT count(*) FROM photos WHERE outcome = 'stored') AS stored
"""


def funnel(query: Callable[[str], pa.Table]) -> pa.Table:
    """Count every id and photo by where it went; columns `step, outcome, reason, count, percent` (of the step).

    `query` is the catalog's. A step's row with outcome `all` is the sum of its other rows. What a stage not yet run
    would drop is kept so far; a photo without any target is out, as `publish.require` has it by default.

    Raises:
        ReconcileError: a step's rows do not add up to what came in.
    """
    totals = {name: int(value) for name, value in query(_TOTALS).to_pylist()[0].items()}
    counted = query(_COUNTS).to_pylist()
    _require_equal("ids found", totals["found"], "listings", totals["listings"])
    _require_equal("photos named by listings", totals["num_photos"], "rows in photos", totals["photos"])
    rows = []
    for step, outcomes in _OUTCOMES.items():
        total = totals[step]
        mine = [row for row in counted if row["step"] == step and row["outcome"] in outcomes]
        _require_equal(step, total, " + ".join(outcomes), sum(row["n"] for row in mine))
        mine.sort(key=lambda row: (outcomes.index(row["outcome"]), -row["n"], row["reason"] or ""))
        rows.append(_row(step, "all", None, total, total))
        rows += [_row(step, row["outcome"], row["reason"], row["n"], total) for row in mine]
    return pa.Table.from_pylist(rows, schema=FUNNEL)


def _row(step: str, outcome: str, reason: str | None, count: int, total: int) -> dict[str, object]:
    percent = round(100 * count / total, 2) if total else None
    return {"step": step, "outcome": outcome, "reason": reason, "count": count, "percent": percent}


def _require_equal(what: str, expected: int, other: str, found: int) -> None:
    if expected != found:
        raise ReconcileError(
            f"{expected:,} {what}, but {found:,} {other}; see pipeline/verify.py for which part is wrong"
        )
