"""The report on the way in: the funnel, the politeness record, time and bytes by stage."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pipeline.funnel import funnel
from pipeline.report_blocks import (
    Block,
    Chart,
    DataTable,
    Fact,
    Facts,
    ReportSection,
    Words,
    headings,
    percent,
    seconds,
    share,
    size,
)
from pipeline.report_charts import rank_chart
from pipeline.report_source import ReportSource
from schemas.receipts import read_receipts
from schemas.storage import Root

MAX_REASONS = 16
_WORDS = {"found": "listing found", "gone": "no listing there", "stored": "stored", "kept": "kept"}
_ASKED = """
SELECT site, count(*) AS ids, sum(num_tries)::BIGINT AS tries, count(*) FILTER (num_tries > 1) AS again,
       count(*) FILTER (status = 429 OR error = 'http_429') AS refused,
       median(latency_s) AS median_s, quantile_cont(latency_s, 0.95) AS p95_s, max(latency_s) AS max_s
FROM attempts GROUP BY site ORDER BY site
"""
_SAID = """
SELECT 'page' AS what, error AS reason, count(*) AS n FROM attempts WHERE outcome = 'disallowed' GROUP BY ALL
UNION ALL
SELECT 'photo', error, count(*) FROM photos WHERE outcome = 'disallowed' GROUP BY ALL ORDER BY what, n DESC, reason
"""
# The evidence for a decision names the robots.txt that was read, with the status of its answer.
_ROBOTS = """
SELECT url, status, sum(page)::BIGINT AS pages, sum(photo)::BIGINT AS photos, sum(refused)::BIGINT AS disallowed
FROM (
    SELECT json_extract_string(policy, '$.robots.url') AS url, json_extract_string(policy, '$.robots.status') AS status,
           1 AS page, 0 AS photo, (outcome = 'disallowed' AND error = 'robots')::BIGINT AS refused
    FROM attempts WHERE policy IS NOT NULL
    UNION ALL
    SELECT json_extract_string(policy, '$.robots.url'), json_extract_string(policy, '$.robots.status'),
           0, 1, (outcome = 'disallowed' AND error = 'robots')::BIGINT
    FROM photos WHERE policy IS NOT NULL)
WHERE url IS NOT NULL GROUP BY ALL ORDER BY pages + photos DESC, url LIMIT 20
"""
_EVIDENCE = """
SELECT (SELECT count(*) FROM attempts) + (SELECT count(*) FROM photos) AS asked,
       (SELECT count(policy) FROM attempts) + (SELECT count(policy) FROM photos) AS with_evidence,
       (SELECT count(*) FROM attempts WHERE outcome = 'disallowed' AND policy IS NULL)
       + (SELECT count(*) FROM photos WHERE outcome = 'disallowed' AND policy IS NULL) AS unexplained,
       (SELECT count(*) FROM photos WHERE error = 'http_429') AS photos_refused
"""
_STATUSES = (
    "SELECT status, outcome, error, count(*) AS n FROM attempts GROUP BY ALL ORDER BY n DESC, status, outcome LIMIT 20"
)


def funnel_section(source: ReportSource) -> ReportSection:
    """Report where each id and photo went; it reconciles or the report fails."""
    rows = funnel(source.catalog.query).to_pylist()
    totals = {row["step"]: row["count"] for row in rows if row["outcome"] == "all"}
    blocks: list[Block] = []
    if totals.get("ids", 0) == 0:
        blocks.append(source.absent("attempts", "Nothing was crawled or imported yet."))
        return ReportSection("funnel", "Funnel", blocks)
    if not source.number("SELECT count(*) FROM duplicates"):
        blocks.append(source.absent("duplicates", "Duplicates were not looked for yet."))
    blocks.append(_funnel_chart(rows, totals["photos"]))
    table = DataTable(
        "Where each id and photo went; each step is the sum of its rows",
        headings("step", "outcome", "reason", "count|count", "of the step|percent"),
        [[row["step"], row["outcome"], row["reason"], row["count"], row["percent"]] for row in rows],
    )
    return ReportSection("funnel", "Funnel", [*blocks, table])


def _funnel_chart(rows: Sequence[dict[str, Any]], photos: int) -> Chart:
    """Show where the photos of all listings ended: those not stored, and what became of those that are."""
    ends = [row for row in rows if row["outcome"] != "all" and row["step"] != "ids"]
    ends = [row for row in ends if not (row["step"] == "photos" and row["outcome"] == "stored")]
    kept = [row for row in ends if row["outcome"] == "kept"]
    lost = sorted((row for row in ends if row["outcome"] != "kept"), key=lambda row: -row["count"])
    shown, rest = kept + lost[:MAX_REASONS], lost[MAX_REASONS:]
    ended = [(_end(row), row["count"]) for row in shown]
    if rest:
        ended.append((f"{len(rest)} more reasons", sum(row["count"] for row in rest)))
    ranked = [(label, count, f"{count:,} ({percent(100 * count / photos)})") for label, count in ended]
    title = f"Of {photos:,} photos that listings name, {sum(row['count'] for row in kept):,} are kept"
    return rank_chart("funnel", title, ranked, unit="photos", alt=f"Bars of what became of the photos: {title}")


def _end(row: dict[str, Any]) -> str:
    outcome, reason = row["outcome"], row["reason"]
    return _WORDS.get(outcome, outcome) if not reason else f"{outcome}: {reason}"


def politeness(source: ReportSource) -> ReportSection:
    """Report what owners said, whether it was heard, and how gently they were asked."""
    asked = source.rows(_ASKED)
    if not asked:
        text = "Nothing was asked of any site yet."
        return ReportSection("politeness", "Politeness record", [source.absent("attempts", text)])
    evidence, said = source.rows(_EVIDENCE)[0], source.rows(_SAID)
    refused = sum(row["refused"] for row in asked) + evidence["photos_refused"]
    ids, tries = sum(row["ids"] for row in asked), sum(row["tries"] or 0 for row in asked)
    facts = Facts(
        [
            Fact("decisions with evidence", _of(evidence["with_evidence"], evidence["asked"]), "pages and photos"),
            Fact("disallowed, left alone", f"{sum(row['n'] for row in said):,}", "pages and photos"),
            Fact("of these unexplained", f"{evidence['unexplained']:,}", "must be 0"),
            Fact("ended in 429", f"{refused:,}", "too many requests"),
            Fact("tries a page", f"{tries / ids:.3f}", "1 is none asked twice"),
        ]
    )
    robots = DataTable(
        "robots.txt as it was read, and what was decided by it",
        headings("robots.txt", "status", "pages|count", "photos|count", "disallowed by it|count"),
        [
            [row["url"], row["status"] or "no answer", row["pages"], row["photos"], row["disallowed"]]
            for row in source.rows(_ROBOTS)
        ],
    )
    owners = DataTable(
        "What owners kept from us, by reason",
        headings("what", "reason", "count|count"),
        [[row["what"], row["reason"], row["n"]] for row in said],
    )
    blocks: list[Block] = [facts, _sites(asked), robots]
    blocks.append(owners if said else Words("No owner kept a page or photo from us."))
    return ReportSection("politeness", "Politeness record", [*blocks, _statuses(source)])


def _sites(asked: Sequence[dict[str, Any]]) -> DataTable:
    return DataTable(
        "How each site was asked for its pages",
        headings(
            "site",
            "ids|count",
            "requests|count",
            "asked again|count",
            "ended in 429|count",
            "median answer|seconds",
            "95 % within|seconds",
            "slowest|seconds",
        ),
        [
            [
                row["site"],
                row["ids"],
                row["tries"],
                row["again"],
                row["refused"],
                row["median_s"],
                row["p95_s"],
                row["max_s"],
            ]
            for row in asked
        ],
    )


def _statuses(source: ReportSource) -> DataTable:
    rows = source.rows(_STATUSES)
    total = source.number("SELECT count(*) FROM attempts")
    return DataTable(
        "How pages answered",
        headings("status", "outcome", "error", "ids|count", "of all|percent"),
        [[row["status"], row["outcome"], row["error"], row["n"], share(row["n"], total)] for row in rows],
    )


@dataclass(slots=True)
class _Cost:
    """What a stage has cost, over its committed parts."""

    parts: int = 0
    seconds: float = 0.0
    files: int = 0
    num_bytes: int = 0
    by_folder: Counter[str] = field(default_factory=Counter)


def costs(source: ReportSource) -> ReportSection:
    """Report time and bytes by stage, from the receipts."""
    stages = {stage: _cost(source.root, stage) for stage in _stages(source.root)}
    if not stages:
        text = "No stage has committed anything yet."
        return ReportSection("costs", "Time and bytes", [source.absent("attempts", text)])
    total_s, total = sum(cost.seconds for cost in stages.values()), sum(cost.num_bytes for cost in stages.values())
    table = DataTable(
        "Committed parts of each stage: seconds of work, added up over workers, and what lies on disk",
        headings("stage", "parts|count", "work|seconds", "files|count", "bytes|bytes", "mostly"),
        [[name, cost.parts, cost.seconds, cost.files, cost.num_bytes, _largest(cost)] for name, cost in stages.items()]
        + [["all", sum(c.parts for c in stages.values()), total_s, sum(c.files for c in stages.values()), total, None]],
    )
    stored = source.number("SELECT count(*) FROM photos WHERE outcome = 'stored'")
    each = size(source.number(_STORED_BYTES) / max(stored, 1))
    text = f"{stored:,} photos are stored, of {each} on average."
    return ReportSection("costs", "Time and bytes", [Words(text), _cost_chart(stages), table])


_STORED_BYTES = "SELECT sum(size_bytes)::BIGINT FROM photos WHERE outcome = 'stored'"


def _cost_chart(stages: Mapping[str, _Cost]) -> Chart:
    spent_s = {name: cost.seconds for name, cost in stages.items()}
    longest = max(spent_s, key=lambda name: spent_s[name])
    ranked = [(name, spent, seconds(spent)) for name, spent in spent_s.items()]
    title = f"Most of the work is {longest}: {seconds(spent_s[longest])} of {seconds(sum(spent_s.values()))}"
    return rank_chart("costs", title, ranked, unit="seconds of work", alt=f"Bars of the work by stage: {title}")


def _largest(cost: _Cost) -> str | None:
    if not cost.by_folder:
        return None
    folder, num_bytes = cost.by_folder.most_common(1)[0]
    return f"{folder}, {round(100 * num_bytes / max(cost.num_bytes, 1))} %"


def _cost(root: Root, stage: str) -> _Cost:
    cost = _Cost()
    for receipt in read_receipts(root, stage):
        cost.parts += 1
        cost.seconds += receipt.seconds
        cost.files += len(receipt.files)
        for name, entry in receipt.files.items():
            cost.num_bytes += entry.bytes
            cost.by_folder[str(PurePosixPath(name).parent)] += entry.bytes
    return cost


def _stages(root: Root) -> list[str]:
    """Name the stages that have receipts, also those with a slash in their name, in order of their last receipt."""
    last = {name: max(one.created_at for one in read_receipts(root, name)) for name in _receipt_folders(root)}
    return sorted(last, key=lambda stage: (last[stage], stage))


def _receipt_folders(root: Root) -> Iterator[str]:
    """Name the stages that have a folder of receipts; embed has one an encoder."""
    for folder in root.list_folders("receipts"):
        for name in (folder, *root.list_folders(folder)):
            if root.list(name, suffix=".json"):
                yield name.removeprefix("receipts/")


def _of(part: int, whole: int) -> str:
    return f"{share(part, whole) or 0:.1f} %"
