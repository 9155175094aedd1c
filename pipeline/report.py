"""Write one self-contained HTML page about a root or a published data set, with its charts as PNG beside it.

It works at each stage: after a crawl alone it shows the funnel, prices, makes and the politeness record; sections
whose tables are not there yet say what to run. With a data set the page lies in its folder, else under ROOT/reports/.

    python pipeline/report.py --root data
    python pipeline/report.py --root data --dataset cars
    python pipeline/report.py --root data --dataset cars@VERSION --out cars.html --set report.audit_photos=2000
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.catalog import Catalog, CatalogSettings
from pipeline.report_blocks import Chart, Fact, Facts, ReportSection, charts_of, page, percent, photos_of, share
from pipeline.report_cars import cars, models, prices
from pipeline.report_conflicts import conflicts_section
from pipeline.report_crawl import costs, funnel_section, politeness
from pipeline.report_duplicates import duplicates_section
from pipeline.report_filter import filter_section
from pipeline.report_photos import thumbnails
from pipeline.report_source import ReportSource, find_dataset
from pipeline.report_splits import leak_section, splits_section
from schemas.command import run_script, script_parser
from schemas.manifest import Manifest
from schemas.settings import Section, load_settings, operational
from schemas.storage import Root, reported

_FOLDER = "reports"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = script_parser(__doc__ or "")
    parser.add_argument("--dataset", metavar="NAME[@VERSION]", help="a published data set (the only one there is)")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="the page (in the data set's folder)")
    return run_script(parser, _run, argv=argv)


class ReportSettings(Section):
    """What the page shows; nothing else depends on it."""

    audit_photos: int = operational(1200, "photos the leak audit takes at most, in whole groups", ge=1)


class _Settings(Section):
    """The sections this script reads."""

    report: ReportSettings = ReportSettings()
    catalog: CatalogSettings = CatalogSettings()


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    settings = load_settings(_Settings, config=arguments.config, sets=arguments.sets)
    root = Root.open(arguments.root)
    dataset = find_dataset(root, arguments.dataset)
    with Catalog(root, settings.catalog) as catalog:
        source = ReportSource(root, catalog, dataset)
        sections = report_sections(source, settings.report)
        html = render(source, sections)
    charts = charts_of(sections)
    if arguments.out is not None:
        return _written_beside(arguments.out, html, charts)
    return _written_under(root, dataset, html, charts)


def report_sections(source: ReportSource, settings: ReportSettings) -> list[ReportSection]:
    """Make the sections in order."""
    return [
        funnel_section(source),
        prices(source),
        models(source),
        cars(source),
        duplicates_section(source),
        conflicts_section(source),
        filter_section(source),
        splits_section(source),
        leak_section(source, most_photos=settings.audit_photos),
        politeness(source),
        costs(source),
    ]


def render(source: ReportSource, sections: Sequence[ReportSection]) -> str:
    """Render the page with its photos."""
    dataset = source.dataset
    title = "Report" if dataset is None else f"Data set {dataset.name}"
    told = [f"root {source.root}"] if dataset is None else [f"version {dataset.version}", f"root {source.root}"]
    latest = source.rows("SELECT max(fetched_at) AS at FROM attempts")[0]["at"]
    if latest is not None:
        told.append(f"last fetched {latest:%Y-%m-%d}")
    pictures = thumbnails(source.root, photos_of(sections))
    return page(title=title, subtitle=", ".join(told), facts=_facts(source), sections=sections, thumbnails=pictures)


def _facts(source: ReportSource) -> Facts:
    ids = source.number("SELECT count(*) FROM attempts")
    found = source.number("SELECT count(*) FROM attempts WHERE outcome = 'found'")
    stored = source.number("SELECT count(*) FROM photos WHERE outcome = 'stored'")
    facts = [
        Fact("ids tried", f"{ids:,}"),
        Fact("listings found", f"{found:,}", _of(found, ids)),
        Fact("photos stored", f"{stored:,}"),
        Fact("photos kept", f"{source.num_shown:,}", _of(source.num_shown, stored)),
        Fact("listings of these", f"{source.num_listings:,}"),
    ]
    for row in source.rows(
        "SELECT split, count(*) AS n FROM shown WHERE split IS NOT NULL GROUP BY split ORDER BY n DESC"
    ):
        facts.append(Fact(f"in {row['split']}", f"{row['n']:,}", _of(row["n"], source.num_shown)))
    return Facts(facts)


def _of(part: int, whole: int) -> str:
    found = share(part, whole)
    return "" if found is None else percent(found)


def _written_beside(out: Path, html: str, charts: Sequence[Chart]) -> Mapping[str, Any]:
    folder = out.parent / out.stem
    with reported(str(out), writing=True):
        folder.mkdir(parents=True, exist_ok=True)
        for chart in charts:
            (folder / f"{chart.name}.png").write_bytes(chart.png)
        out.write_text(html, encoding="utf-8")
    return {"report": str(out), "plots": [str(folder / f"{chart.name}.png") for chart in charts]}


def _written_under(root: Root, dataset: Manifest | None, html: str, charts: Sequence[Chart]) -> Mapping[str, Any]:
    folder = _FOLDER if dataset is None else dataset.folder
    names = [f"{folder}/report/{chart.name}.png" for chart in charts]
    for name, chart in zip(names, charts, strict=True):
        root.write_bytes(name, chart.png)
    root.write_bytes(f"{folder}/report.html", html.encode())
    return {"report": root.path(f"{folder}/report.html"), "plots": [root.path(name) for name in names]}


if __name__ == "__main__":
    raise SystemExit(main())
