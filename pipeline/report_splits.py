"""The report on splits: whether they are alike, and what a split by photo would leak."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.embeddings import DEFAULT_ENCODER, embedded_slugs, encoder_slug, read_embeddings
from pipeline.leak_audit import FOLDS, Crossing, Probe, crossing_groups, probe
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
    share,
)
from pipeline.report_charts import Pen, draw_chart, groups, label_bars
from pipeline.report_source import ReportSource
from schemas.manifest import SPLITS, UNKNOWN, Manifest

NUM_MAKES, NUM_CLASSES, MIN_GROUPS = 8, 20, 3

_SPLITS = """
SELECT split, count(*) AS photos, count(DISTINCT group_id) AS groups, count(DISTINCT (site, listing_id)) AS listings,
       median(price_usd) AS median_usd, median(year)::BIGINT AS median_year,
       count(price_usd) AS with_price, count(make_model) AS with_model, count(year) AS with_year
FROM shown GROUP BY split
"""
_MAKES = f"""
SELECT make, split, count(*) AS n FROM shown
WHERE make IN (
    SELECT make FROM shown WHERE make IS NOT NULL GROUP BY make ORDER BY count(*) DESC, make LIMIT {NUM_MAKES})
GROUP BY ALL
"""
_PRICES = "SELECT price_bin, split, count(*) AS n FROM shown WHERE price_bin IS NOT NULL GROUP BY ALL"
_YEARS = """
SELECT split, quantile_disc(year, 0.1) AS low, quantile_disc(year, 0.5) AS middle, quantile_disc(year, 0.9) AS high
FROM shown WHERE year IS NOT NULL GROUP BY split
"""
_SIZES = "SELECT n, count(*) AS groups FROM (SELECT count(*) AS n FROM shown GROUP BY group_id) GROUP BY n ORDER BY n"
_BOTH_SIDES = "SELECT count(*) FROM (SELECT group_id FROM shown GROUP BY group_id HAVING count(DISTINCT split) > 1)"
# Whole groups in an order that depends on their name alone; make and model only of the most frequent.
_AUDITED = f"""
CREATE OR REPLACE TEMP TABLE audited AS
WITH common AS (
    SELECT make_model FROM shown WHERE make_model IS NOT NULL AND make_model <> '{UNKNOWN}'
    GROUP BY make_model ORDER BY count(DISTINCT group_id) DESC, make_model LIMIT {NUM_CLASSES}),
sized AS (SELECT group_id, count(*) AS n FROM shown WHERE make_model IN (FROM common) GROUP BY group_id),
taken AS (
    SELECT group_id FROM sized
    QUALIFY sum(n) OVER (ORDER BY md5(group_id), group_id ROWS UNBOUNDED PRECEDING) <= $most)
SELECT key, group_id, CASE WHEN make_model IN (FROM common) THEN make_model END AS make_model, price_bin
FROM shown WHERE group_id IN (FROM taken)
"""


def splits_section(source: ReportSource) -> ReportSection:
    """Report how photos, groups, prices, years and makes fall on the splits."""
    anchor, title = "splits", "Split balance"
    if (dataset := source.dataset) is None:
        return ReportSection(anchor, title, [source.absent("dataset", "No data set is published yet.")])
    by_split = {row["split"]: row for row in source.rows(_SPLITS)}
    splits = [name for name in SPLITS if name in by_split]
    table = DataTable(
        "What each split holds",
        headings("split", "photos|count", "share|percent", "groups|count", "listings|count", "with price|percent")
        + headings("with make and model|percent", "with year|percent", "median price|usd", "median year"),
        [_split_row(name, by_split[name], source.num_shown) for name in splits],
    )
    blocks: list[Block] = [table]
    if (chart := _price_chart(source, dataset, splits)) is not None:
        blocks.append(chart)
    return ReportSection(anchor, title, [*blocks, _years(source, splits), _makes(source, by_split, splits)])


def _split_row(name: str, row: Mapping[str, Any], total: int) -> list[Any]:
    known = [share(row[column], row["photos"]) for column in ("with_price", "with_model", "with_year")]
    held = [name, row["photos"], share(row["photos"], total), row["groups"], row["listings"]]
    return [*held, *known, row["median_usd"], row["median_year"]]


def _price_chart(source: ReportSource, dataset: Manifest, splits: Sequence[str]) -> Chart | None:
    rows = source.rows(_PRICES)
    if not rows:
        return None
    names = dataset.vocabulary.price_classes
    counts = {split: np.zeros(len(names)) for split in splits}
    for row in rows:
        counts[row["split"]][row["price_bin"]] = row["n"]
    series = {split: 100 * found / found.sum() if found.any() else found for split, found in counts.items()}
    shares = np.stack(list(series.values()))
    widest = int((shares.max(axis=0) - shares.min(axis=0)).argmax())
    apart = float(shares[:, widest].max() - shares[:, widest].min())
    cuts = [f"${cut / 1000:g}k" for cut in dataset.vocabulary.price_cuts_usd]
    labels = [f"< {cuts[0]}", *cuts] if cuts else names

    def draw(pen: Pen) -> None:
        groups(pen, labels, {name: values.tolist() for name, values in series.items()})
        pen.axes.set_xlabel("price bin, US dollars, from")
        pen.axes.set_ylabel("% of the split's photos")

    title = f"Splits differ by at most {apart:.1f} points in a price bin ({names[widest]})"
    return draw_chart("split_prices", title, draw, alt=f"Bars of price bins by split: {title}", height_px=320)


def _years(source: ReportSource, splits: Sequence[str]) -> Block:
    rows = {row["split"]: row for row in source.rows(_YEARS)}
    if not rows:
        return Words("No photo has a year.")
    return DataTable(
        "Model years by split",
        headings("split", "10 % are of or before", "half", "10 % are of or after"),
        [[split, rows[split]["low"], rows[split]["middle"], rows[split]["high"]] for split in splits if split in rows],
    )


def _makes(source: ReportSource, by_split: Mapping[str, Mapping[str, Any]], splits: Sequence[str]) -> Block:
    counts: dict[str, dict[str, int]] = {}
    for row in source.rows(_MAKES):
        counts.setdefault(row["make"], {})[row["split"]] = row["n"]
    if not counts:
        return Words("No photo has a make.")
    ranked = sorted(counts, key=lambda make: (-sum(counts[make].values()), make))
    return DataTable(
        "The most frequent makes, in % of each split's photos",
        headings("make", *(f"{split}|percent" for split in splits)),
        [
            [make, *(share(counts[make].get(split, 0), by_split[split]["photos"]) for split in splits)]
            for make in ranked
        ],
    )


def leak_section(source: ReportSource, *, most_photos: int) -> ReportSection:
    """Report the leak audit: what a split by photo would do to groups and to a linear probe's accuracy."""
    anchor, title = "leak-audit", "Leak audit"
    if source.dataset is None:
        return ReportSection(anchor, title, [source.absent("dataset", "No data set is published yet.")])
    sizes = {row["n"]: row["groups"] for row in source.rows(_SIZES)}
    fractions = [source.number("SELECT count(*) FROM shown WHERE split = ?", [name]) for name in SPLITS]
    crossing = crossing_groups(sizes, fractions)
    blocks: list[Block] = [
        Words(
            "A group is the photos of one car: of a listing, and of listings tied by a VIN or by copies. Here each "
            "group is on one side. Were photos split one by one, most groups would be on two, and a model would be "
            "asked about cars it has seen."
        ),
        _crossing_facts(crossing, source.number(_BOTH_SIDES)),
    ]
    return ReportSection(anchor, title, [*blocks, *_probes(source, most_photos)])


def _crossing_facts(crossing: Crossing, both_sides: int) -> Facts:
    of_groups = share(crossing.crossing, crossing.groups)
    return Facts(
        [
            Fact("groups on two sides here", f"{both_sides:,}", f"of {crossing.groups:,}; must be 0"),
            Fact("by photo it would be", f"{crossing.crossing:,.0f}", f"{percent(of_groups or 0)} of the groups"),
            Fact("held-out photos with a sibling in train", percent(100 * crossing.seen_share), "in a split by photo"),
        ]
    )


def _probes(source: ReportSource, most_photos: int) -> list[Block]:
    encoder = _encoder(source)
    if encoder is None:
        return [source.absent("embeddings", "The linear probe needs embeddings.")]
    source.catalog.execute(_AUDITED, {"most": most_photos})
    rows = source.rows("SELECT * FROM audited ORDER BY key")
    keys, features = _features(source, encoder, [row["key"] for row in rows])
    found = {row["key"]: row for row in rows}
    members = [found[key]["group_id"] for key in keys]
    probes = [
        probe("make and model", features, [found[key]["make_model"] for key in keys], members, min_groups=MIN_GROUPS),
        probe("price bin", features, [found[key]["price_bin"] for key in keys], members),
    ]
    table = DataTable(
        f"A linear probe on {encoder} embeddings, right in % over {FOLDS} folds",
        headings("target", "photos|count", "groups|count", "classes|count", "folds by photo|percent")
        + headings("folds by group|percent", "inflated by, points|points", "most frequent class|percent"),
        [_probe_row(one) for one in probes],
    )
    taken = (
        f"Taken: {len(keys):,} of {source.num_shown:,} photos, in whole groups of the {NUM_CLASSES} makes and models "
        f"that most groups have, at most {most_photos:,}; of makes and models those that at least {MIN_GROUPS} groups "
        "have."
    )
    failed = [Words(f"No probe for {one.target}: {one.why_not}.") for one in probes if one.why_not is not None]
    worked = [one for one in probes if one.why_not is None]
    charts: list[Block] = [_probe_chart(worked), table] if worked else []
    return [*charts, *failed, Words(taken)]


def _probe_row(one: Probe) -> list[Any]:
    shares = [
        None if value is None else 100 * value for value in (one.by_photo, one.by_group, one.inflation, one.majority)
    ]
    return [one.target, one.num_photos, one.num_groups, one.num_classes, *shares]


def _probe_chart(probes: Sequence[Probe]) -> Chart:
    series = {
        "folds by photo": [100 * (one.by_photo or 0) for one in probes],
        "folds by group": [100 * (one.by_group or 0) for one in probes],
        "most frequent class": [100 * (one.majority or 0) for one in probes],
    }

    def draw(pen: Pen) -> None:
        groups(pen, [one.target for one in probes], series)
        label_bars(pen, series)
        pen.axes.set_ylim(0, 109)
        pen.axes.set_ylabel("% right")

    first = probes[0]
    low, high = (f"{100 * (value or 0):.0f} %" for value in (first.by_group, first.by_photo))
    title = f"A split by photo lifts {first.target} from {low} to {high}"
    return draw_chart("leak_audit", title, draw, alt=f"Bars of a linear probe's accuracy: {title}", height_px=320)


def _encoder(source: ReportSource) -> str | None:
    """Choose the embeddings to probe: the default encoder's where they are there, else the first by name."""
    there = embedded_slugs(source.root)
    if encoder_slug(DEFAULT_ENCODER) in there:
        return DEFAULT_ENCODER
    return there[0] if there else None


def _features(source: ReportSource, encoder: str, wanted: Sequence[str]) -> tuple[list[str], NDArray[np.float32]]:
    """Return the embeddings of the wanted photos that have one, part by part."""
    keys: list[str] = []
    vectors: list[NDArray[np.float16]] = []
    asked = set(wanted)
    for found, embedded in read_embeddings(source.root, encoder):
        rows = [index for index, key in enumerate(found) if key in asked]
        keys += [found[index] for index in rows]
        vectors.append(embedded[rows])
    return keys, np.concatenate(vectors).astype(np.float32)
