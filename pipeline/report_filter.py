"""The report on the junk filter: threshold, bound, curve, what goes, where labels disagree."""

from collections.abc import Mapping
from typing import Any

from pipeline.filter_record import filter_report, labelled_photos
from pipeline.report_blocks import (
    Block,
    Chart,
    DataTable,
    Fact,
    Facts,
    Gallery,
    Photo,
    ReportSection,
    Row,
    Words,
    headings,
    percent,
    share,
)
from pipeline.report_charts import BLUE, GREY, RED, Pen, columns, draw_chart, legend_above
from pipeline.report_duplicates import car_words
from pipeline.report_source import ReportSource

NUM_AROUND, NUM_DISAGREEING, NUM_BINS = 18, 18, 40

_AROUND = f"""
SELECT s.key, s.score, s.drop_reason, p.part, l.title, l.price_usd
FROM scores s JOIN photos p USING (key) JOIN listings l USING (site, listing_id) LEFT JOIN duplicates d USING (key)
WHERE coalesce(d.kept, true) AND s.score IS NOT NULL AND (s.drop_reason IS NOT NULL) = $removed
ORDER BY abs(s.score - $threshold), md5(s.key), s.key LIMIT {NUM_AROUND}
"""
_BY_KEY = """
SELECT p.key, p.part, l.title, l.price_usd FROM photos p JOIN listings l USING (site, listing_id)
WHERE list_contains($keys, p.key)
"""
_HISTOGRAM = """
SELECT least(floor((score - $low) / $step)::BIGINT, $last) AS bin, count(*) AS n
FROM scores WHERE score IS NOT NULL GROUP BY ALL
"""


def filter_section(source: ReportSource) -> ReportSection:
    """Report the junk filter."""
    anchor, title = "junk-filter", "Junk filter"
    record = filter_report(source.root)
    if record is None:
        blocks: list[Block] = [source.absent("scores", "The junk filter has not run yet.")]
        if not source.number("SELECT count(*) FROM labels"):
            blocks.append(source.absent("labels", "It needs labels, and there are none yet."))
        return ReportSection(anchor, title, blocks)
    if not record["has_filter"]:
        return ReportSection(anchor, title, [source.absent("labels", str(record["message"]))])
    threshold = float(record["threshold"])
    blocks = [_facts(source, record), _bound_words(record)]
    blocks += [chart for chart in (_curve(record), _scores(source, threshold)) if chart is not None]
    blocks += [_confusion(record), *_junk_types(record)]
    blocks += [*_around(source, threshold), *_disagreeing(source)]
    return ReportSection(anchor, title, blocks)


def _facts(source: ReportSource, record: Mapping[str, Any]) -> Facts:
    scored = source.number("SELECT count(*) FROM scores WHERE score IS NOT NULL")
    removed = source.number("SELECT count(*) FROM scores WHERE drop_reason IS NOT NULL")
    upper = record["fnr_upper95"]
    return Facts(
        [
            Fact("marked as junk", percent(share(removed, scored) or 0), f"{removed:,} of {scored:,} photos"),
            Fact("keepers lost", percent(100 * record["fnr"]), "of labelled ones, out of fold"),
            Fact("at most", "unknown" if upper is None else percent(100 * upper), "with 95 % confidence"),
            Fact("junk removed", percent(100 * record["junk_removed"]), "of labelled junk, out of fold"),
            Fact("labels", f"{record['labels']:,}", f"{record['keepers']:,} keep, {record['junk']:,} junk"),
        ]
    )


def _bound_words(record: Mapping[str, Any]) -> Words:
    wanted, upper = percent(100 * record["max_fnr"]), record["fnr_upper95"]
    proved = upper is not None and upper <= record["max_fnr"]
    said = f"The filter ({record['kernel']} SVM on {record['encoder']}) may lose {wanted} of the keepers"
    if proved:
        return Words(f"{said}, and the labels prove that it does not lose more.")
    needed = f"{record['labels_needed']:,} keepers labelled in a random draw would"
    return Words(f"{said}. The labels do not prove that yet: {needed}, if none of them is lost.")


def _curve(record: Mapping[str, Any]) -> Chart | None:
    points = record["curve"]
    if not points:
        return None
    lost = [100 * point["fnr"] for point in points]
    removed = [100 * point["junk_removed"] for point in points]
    chosen = (100 * record["fnr"], 100 * record["junk_removed"])

    def draw(pen: Pen) -> None:
        pen.axes.plot(lost, removed, color=BLUE, drawstyle="steps-post", label="other thresholds")
        pen.axes.plot(*chosen, "o", color=RED, markersize=8, label="the threshold chosen")
        pen.axes.axvline(100 * record["max_fnr"], color=GREY, linestyle="--", label="keepers it may lose")
        pen.axes.set_xlim(-0.2, max(5.0, 2.5 * chosen[0]))
        pen.axes.set_ylim(0, 103)
        pen.axes.set_xlabel("keepers lost, %")
        pen.axes.set_ylabel("junk removed, %")
        legend_above(pen, 3)

    title = f"{percent(chosen[1])} of the junk goes, with {percent(chosen[0])} of the keepers"
    alt = f"Curve of junk removed against keepers lost: {title}"
    return draw_chart("filter_curve", title, draw, alt=alt, height_px=340)


def _scores(source: ReportSource, threshold: float) -> Chart | None:
    ends = source.rows("SELECT min(score) AS low, max(score) AS high FROM scores")[0]
    if ends["low"] is None or ends["low"] == ends["high"]:
        return None
    low, step = ends["low"], (ends["high"] - ends["low"]) / NUM_BINS
    rows = source.rows(_HISTOGRAM, {"low": low, "step": step, "last": NUM_BINS - 1})
    counts = {row["bin"]: row["n"] for row in rows}
    edges = [low + index * step for index in range(NUM_BINS)]
    colours = [RED if edge >= threshold else BLUE for edge in edges]

    def draw(pen: Pen) -> None:
        columns(pen, [f"{edge:.1f}" for edge in edges], [counts.get(i, 0) for i in range(NUM_BINS)], colours=colours)
        pen.axes.axvline((threshold - low) / step - 0.5, color=GREY, linestyle="--", label="threshold")
        for name, colour in (("kept", BLUE), ("marked as junk", RED)):
            pen.axes.bar(0, 0, color=colour, label=name)
        pen.axes.set_xlabel("score, more is more like junk")
        pen.axes.set_ylabel("photos")
        legend_above(pen, 3)

    title = f"Scores of the stored photos, and the threshold at {threshold:.2f}"
    return draw_chart("filter_scores", title, draw, alt=f"Histogram: {title}")


def _confusion(record: Mapping[str, Any]) -> DataTable:
    found = record["confusion"]
    return DataTable(
        "Labels against the filter, out of fold",
        headings("labelled", "kept by the filter|count", "removed|count", "share removed|percent"),
        [
            [label, found[f"{label}_kept"], found[f"{label}_dropped"], _of_both(found, label)]
            for label in ("keep", "junk")
        ],
    )


def _of_both(found: Mapping[str, int], label: str) -> float | None:
    return share(found[f"{label}_dropped"], found[f"{label}_kept"] + found[f"{label}_dropped"])


def _junk_types(record: Mapping[str, Any]) -> list[Block]:
    if not record["junk_types"]:
        return []
    rows = [[row["junk_type"] or "not told", row["labels"], row["removed"]] for row in record["junk_types"]]
    table = DataTable(
        "Junk removed, by what it shows",
        headings("shows", "labels|count", "removed|count", "share removed|percent"),
        [[*row, share(row[2], row[1])] for row in rows],
    )
    return [table]


def _around(source: ReportSource, threshold: float) -> list[Block]:
    blocks: list[Block] = []
    for removed, caption in ((True, "Removed, just above the threshold"), (False, "Kept, just below the threshold")):
        rows = source.rows(_AROUND, {"removed": removed, "threshold": threshold})
        mark = "junk" if removed else "kept"
        photos = [_photo(row, f"{mark}, score {row['score']:.2f}", dropped=removed) for row in rows]
        if photos:
            blocks.append(Gallery(caption, [Row("", photos)]))
    return blocks


def _disagreeing(source: ReportSource) -> list[Block]:
    found = [one for one in labelled_photos(source.root) if one.disagrees]
    if not found:
        return [Words("No label contradicts the filter.")]
    shown = {one.key: one for one in found[:NUM_DISAGREEING]}
    rows = {row["key"]: row for row in source.rows(_BY_KEY, {"keys": list(shown)})}
    photos = [
        _photo(rows[key], f"labelled {one.label}, score {one.out_of_fold_score:.2f}", dropped=one.dropped)
        for key, one in shown.items()
        if key in rows
    ]
    caption = f"Labels that contradict the filter: look again ({len(photos)} of {len(found):,})"
    return [Gallery(caption, [Row("", photos)])]


def _photo(row: Mapping[str, Any], mark: str, *, dropped: bool) -> Photo:
    return Photo(row["key"], row["part"], car_words(row), mark, dropped=dropped)
