"""The report on what the photos show: prices, makes and models, years, odometers, colours."""

from collections.abc import Sequence
from typing import Any

from pipeline.report_blocks import Block, Chart, DataTable, Fact, Facts, ReportSection, Words, headings, percent, share
from pipeline.report_charts import BLUE, GREY, ORANGE, RED, Pen, columns, draw_chart, legend_above, rank_chart
from pipeline.report_source import ReportSource

HIGH_PRICES_USD = (50_000, 70_000)
PRICE_STEP_USD, PRICE_CAP_USD = 5_000, 120_000
ODOMETER_STEP_MI, ODOMETER_CAP_MI = 10_000, 200_000
NUM_MODELS, NUM_COLOURS, NUM_YEARS = 20, 12, 40

_PRICES = f"""
SELECT least(floor(price_usd / {PRICE_STEP_USD})::BIGINT, {PRICE_CAP_USD // PRICE_STEP_USD}) AS bin, count(*) AS n
FROM shown WHERE price_usd >= 0 GROUP BY ALL ORDER BY bin
"""
_HIGH = """
SELECT count(price_usd) AS priced, count(*) FILTER (price_usd > $low) AS over_low,
       count(*) FILTER (price_usd > $high) AS over_high,
       median(price_usd) AS median_usd FROM {table}
"""
_MODELS = f"""
SELECT make, model, count(*) AS photos, count(DISTINCT (site, listing_id)) AS listings, median(price_usd) AS median_usd,
       min(year) AS first_year, max(year) AS last_year
FROM shown WHERE make IS NOT NULL AND model IS NOT NULL
GROUP BY make, model ORDER BY photos DESC, make, model LIMIT {NUM_MODELS}
"""
_YEARS = f"""
SELECT greatest(year, (SELECT max(year) FROM shown) - {NUM_YEARS})::BIGINT AS year, count(*) AS n
FROM shown WHERE year IS NOT NULL GROUP BY ALL ORDER BY year
"""
_ODOMETERS = f"""
SELECT least(floor(odometer_mi / {ODOMETER_STEP_MI})::BIGINT, {ODOMETER_CAP_MI // ODOMETER_STEP_MI}) AS bin,
       count(*) AS n
FROM shown WHERE odometer_mi >= 0 GROUP BY ALL ORDER BY bin
"""
_COLOURS = "SELECT colour, count(*) AS n FROM shown WHERE colour <> '' GROUP BY ALL ORDER BY n DESC, colour"


def prices(source: ReportSource) -> ReportSection:
    """Report the prices, with the shares over $50k and $70k."""
    low, high = HIGH_PRICES_USD
    limits = {"low": low, "high": high}
    photos = source.rows(_HIGH.format(table="shown"), limits)[0]
    listings = source.rows(
        _HIGH.format(table="(SELECT any_value(price_usd) AS price_usd FROM shown GROUP BY site, listing_id)"), limits
    )[0]
    if not photos["priced"]:
        text = "No photo has a price in US dollars. One in another currency needs a rate: --set 'rates={EUR: 1.16}'."
        return ReportSection("prices", "Prices", [Words(text)])
    over_low, over_high = (share(photos[name], photos["priced"]) or 0.0 for name in ("over_low", "over_high"))
    facts = [
        Fact("over $50,000", percent(over_low), f"{photos['over_low']:,} photos"),
        Fact("over $70,000", percent(over_high), f"{photos['over_high']:,} photos"),
        Fact("median price", f"${float(photos['median_usd']):,.0f}", f"of {photos['priced']:,} photos with a price"),
    ]
    table = DataTable(
        "Shares of what has a price",
        headings("of", "with a price|count", "over $50,000|percent", "over $70,000|percent", "median|usd"),
        [
            [
                what,
                of["priced"],
                *(share(of[over], of["priced"]) for over in ("over_low", "over_high")),
                of["median_usd"],
            ]
            for what, of in (("photos", photos), ("listings", listings))
        ],
    )
    return ReportSection("prices", "Prices", [Facts(facts), _price_chart(source, over_low, over_high), table])


def _price_chart(source: ReportSource, over_low: float, over_high: float) -> Chart:
    low, high = HIGH_PRICES_USD
    counts = _filled(source.rows(_PRICES), PRICE_CAP_USD // PRICE_STEP_USD)
    floors = [index * PRICE_STEP_USD for index in range(len(counts))]
    colours = [RED if floor >= high else ORANGE if floor >= low else BLUE for floor in floors]
    labels = [f"${floor // 1000}k{'+' if floor >= PRICE_CAP_USD else ''}" for floor in floors]

    def draw(pen: Pen) -> None:
        columns(pen, labels, counts, colours=colours)
        for name, colour in (("up to $50k", BLUE), (f"over $50k: {percent(over_low)}", ORANGE)):
            pen.axes.bar(0, 0, color=colour, label=name)
        pen.axes.bar(0, 0, color=RED, label=f"of these over $70k: {percent(over_high)}")
        legend_above(pen, 3)
        pen.axes.set_xlabel("price, US dollars, from")
        pen.axes.set_ylabel("photos")

    return draw_chart(
        "prices",
        f"{percent(over_low)} of the photos with a price are over $50,000, {percent(over_high)} over $70,000",
        draw,
        alt=f"Histogram of prices by $5,000: {percent(over_low)} over $50,000, {percent(over_high)} over $70,000",
        height_px=340,
    )


def models(source: ReportSource) -> ReportSection:
    """Report the most frequent makes and models, with their share of the data set."""
    rows = source.rows(_MODELS)
    if not rows:
        return ReportSection("models", "Makes and models", [Words("No photo's listing names its make and model.")])
    named = source.number("SELECT count(*) FROM shown WHERE make IS NOT NULL AND model IS NOT NULL")
    kinds = source.number(
        "SELECT count(*) FROM (SELECT DISTINCT make, model FROM shown WHERE make IS NOT NULL AND model IS NOT NULL)"
    )
    total = source.num_shown
    shown = [
        [
            *(row["make"], row["model"], row["photos"], share(row["photos"], total)),
            *(row["listings"], row["median_usd"], _span(row["first_year"], row["last_year"])),
        ]
        for row in rows
    ]
    rest = named - sum(row["photos"] for row in rows)
    if kinds > len(rows):
        shown.append([f"{kinds - len(rows):,} others", None, rest, share(rest, total), None, None, None])
    if named < total:
        shown.append(["not known", None, total - named, share(total - named, total), None, None, None])
    table = DataTable(
        f"The most frequent of {kinds:,} makes and models, and their share of {source.population}",
        headings(
            "make", "model", "photos|count", "of the data set|percent", "listings|count", "median price|usd", "years"
        ),
        shown,
    )
    return ReportSection("models", "Makes and models", [_model_chart(rows[:12], total), table])


def _model_chart(rows: Sequence[dict[str, Any]], total: int) -> Chart:
    shares = [percent(100 * row["photos"] / total) for row in rows]
    ranked = [(f"{row['make']} {row['model']}", row["photos"], shown) for row, shown in zip(rows, shares, strict=True)]
    first = f"{ranked[0][0]} leads with {shares[0]} of the photos"
    alt = f"Bars of the most frequent makes and models: {first}"
    return rank_chart("make_models", first, ranked, unit="photos", alt=alt)


def cars(source: ReportSource) -> ReportSection:
    """Report years, odometers and colours."""
    blocks: list[Block] = [
        chart for chart in (_years(source), _odometers(source), _colours(source)) if chart is not None
    ]
    blocks = blocks or [Words("No photo's listing says its year, odometer or colour.")]
    return ReportSection("cars", "Years, odometers, colours", blocks)


def _years(source: ReportSource) -> Chart | None:
    found = {row["year"]: row["n"] for row in source.rows(_YEARS)}
    if not found:
        return None
    years = list(range(min(found), max(found) + 1))
    older = source.number("SELECT count(*) FROM shown WHERE year < ?", [years[0]])
    labels = [f"{'to ' if older and year == years[0] else ''}{year}" for year in years]
    half = source.number("SELECT median(year) FROM shown")

    def draw(pen: Pen) -> None:
        columns(pen, labels, [found.get(year, 0) for year in years])
        pen.axes.set_xlabel("model year")
        pen.axes.set_ylabel("photos")

    title = f"Half of the photos show a car of {half} or later"
    return draw_chart("years", title, draw, alt=f"Histogram of model years: {title.lower()}", small=True)


def _odometers(source: ReportSource) -> Chart | None:
    rows = source.rows(_ODOMETERS)
    if not rows:
        return None
    counts = _filled(rows, max(row["bin"] for row in rows))
    cap = ODOMETER_CAP_MI // ODOMETER_STEP_MI
    labels = [f"{index * ODOMETER_STEP_MI // 1000}k{'+' if index == cap else ''}" for index in range(len(counts))]
    half = source.number("SELECT median(odometer_mi)::BIGINT FROM shown WHERE odometer_mi >= 0")

    def draw(pen: Pen) -> None:
        columns(pen, labels, counts)
        pen.axes.set_xlabel("odometer, miles, from")
        pen.axes.set_ylabel("photos")

    title = f"Half show a car of at most {half:,} miles"
    return draw_chart("odometer", title, draw, alt=f"Histogram of odometer readings: {title.lower()}", small=True)


def _colours(source: ReportSource) -> Chart | None:
    rows = source.rows(_COLOURS)
    if not rows:
        return None
    named = sum(row["n"] for row in rows)
    shown = [(row["colour"], row["n"]) for row in rows[:NUM_COLOURS]]
    if len(rows) > NUM_COLOURS:
        shown.append((f"{len(rows) - NUM_COLOURS:,} others", named - sum(count for _, count in shown)))
    title = f"{rows[0]['colour'].capitalize()} is the most frequent colour"
    ranked = [(name, count, percent(100 * count / named)) for name, count in shown]
    last = GREY if len(rows) > NUM_COLOURS else BLUE
    alt = f"Bars of exterior colours: {title.lower()}"
    return rank_chart("colours", title, ranked, unit="photos", alt=alt, small=True, last_colour=last)


def _filled(rows: Sequence[dict[str, Any]], last: int) -> list[int]:
    """Return the counts of bins 0 to `last`, 0 where no row has one."""
    found = {row["bin"]: row["n"] for row in rows}
    return [found.get(index, 0) for index in range(last + 1)]


def _span(first: int | None, last: int | None) -> str | None:
    if first is None or last is None:
        return None
    return str(first) if first == last else f"{first} to {last}"
