"""Crawl a site's listing ids into attempts, listings, photos and shards.

Run it again after any interruption: it does only what is missing. The last line of stdout is one JSON object with the
totals of this site in the root.

Examples:
    python pipeline/crawl.py --root data --site site.yaml
    python pipeline/crawl.py --root data --site site.yaml --ids 660000000:660000999
    python pipeline/crawl.py --root data --site site.yaml --retry transient
    python pipeline/crawl.py --root data --site site.yaml --recrawl --set ray.num_workers=8
    ray job submit --working-dir . -- python pipeline/crawl.py --root s3://bucket/data --site site.yaml
"""

import argparse
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.crawl_part import STAGE, crawl_part
from pipeline.crawl_settings import CrawlRun, CrawlSpec, Refresh, parts_in_flight, pinned_settings
from pipeline.lease import Lease, hold_lease
from pipeline.leftovers import remove_leftovers
from pipeline.parts import Block, Interval, count, listed_blocks, merge, parse_range, range_blocks, read_ids, subtract
from pipeline.runner import PartTask, RunResult, connected, run_parts
from pipeline.sites import SiteFile, load_site
from schemas.command import EXIT_DONE, EXIT_FAILED, Progress, run_script, script_parser
from schemas.errors import CircuitOpenError, ReconcileError, SettingsError
from schemas.receipts import Receipt, read_receipt, read_receipts
from schemas.settings import differing_settings, load_settings
from schemas.storage import Root

TOTALS = ("ids", "found", "gone", "failed", "disallowed")
PHOTO_TOTALS = ("photos", "stored", "photos_failed", "rejected", "photos_disallowed")

log = logging.getLogger("forecourt.crawl")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = script_parser(__doc__)
    parser.add_argument("--site", required=True, metavar="SITE.yaml", help="what to crawl; see README, Site files")
    parser.add_argument("--ids", metavar="A:B", help="ids to crawl, both included; default: those of the site file")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--retry", choices=["transient"], help="also ask again what failed for passing reasons")
    again.add_argument("--recrawl", action="store_true", help="also ask again what is there, by ETag and date")
    again.add_argument("--overwrite", action="store_true", help="redo parts that were made with other settings")
    return run_script(parser, crawl, argv=argv)


def crawl(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Crawl what the arguments ask for and return the last line."""
    started_s = time.monotonic()
    settings = load_settings(CrawlRun, config=arguments.config, sets=arguments.sets)
    site = load_site(Path(arguments.site))
    plan = _Plan(site, settings, arguments)
    root = Root.open(arguments.root, create=True)
    root.require_free_bytes(settings.crawl.min_free_bytes)
    plan.check_settings(root)
    with hold_lease(root, STAGE) as lease:
        remove_leftovers(root, STAGE, site.name)
        run = _run(plan, root, lease, settings)
    answer = {**site_totals(root, site.name), "done_now": run.done, "seconds": round(time.monotonic() - started_s, 2)}
    if run.failed:
        shown = "; ".join(f"{part}: {why}" for part, why in sorted(run.failed.items())[:3])
        error = f"{len(run.failed)} parts failed, run again to try them again; {shown}"
        return {**answer, "error": error, "parts_failed": len(run.failed), "exit_code": EXIT_FAILED}
    return {**answer, "exit_code": EXIT_DONE}


def _run(plan: "_Plan", root: Root, lease: Lease, settings: CrawlRun) -> RunResult:
    tasks = plan.tasks(root)
    first = next(tasks, None)
    if first is None:
        return RunResult()  # nothing to do: no Ray is started for it
    watch = _Watch(plan, settings)
    with connected(settings.ray) as num_workers:
        run = run_parts(
            chain([first], tasks),
            crawl_part,
            ticket=lease.ticket,
            num_in_flight=min(num_workers, plan.parts_in_flight),
            settings=settings.ray,
            pace=settings.pace,
            on_done=watch.part_done,
            on_tick=watch.tick,
            check=lease.check,
        )
    watch.close()
    return run


def site_totals(root: Root, site: str) -> dict[str, int]:
    """Add up the receipts of a site.

    Raises:
        ReconcileError: ids or photos are not the sum of their outcomes.
    """
    totals: Counter[str] = Counter(dict.fromkeys((*TOTALS, *PHOTO_TOTALS, "bytes", "parts"), 0))
    for receipt in _site_receipts(root, site):
        totals.update(receipt.counts)
        totals["parts"] += 1
    for whole, *pieces in (TOTALS, PHOTO_TOTALS):
        if totals[whole] != sum(totals[piece] for piece in pieces):
            raise ReconcileError(f"{whole} is {totals[whole]}, its outcomes are {[(p, totals[p]) for p in pieces]}")
    del totals["transient"]
    return dict(totals)


class _Plan:
    """Which parts a run has to do."""

    def __init__(self, site: SiteFile, settings: CrawlRun, arguments: argparse.Namespace) -> None:
        self._site, self._settings = site, settings
        self._pinned = pinned_settings(site, settings)
        self._range = parse_range(arguments.ids) if arguments.ids else _site_range(site)
        self._listed = None if site.ids.file is None or self._range is not None else read_ids(Path(site.ids.file))
        self.parts_in_flight = parts_in_flight(site, settings)
        self._overwrite: bool = arguments.overwrite
        self._refresh: Refresh = "recrawl" if arguments.recrawl else "transient" if arguments.retry else "missing"
        self.num_ids = count([self._range]) if self._range is not None else len(set(self._listed or ()))

    def check_settings(self, root: Root) -> None:
        """Stop where a committed part was made with other settings.

        Raises:
            SettingsError: naming each such setting.
        """
        for receipt in _site_receipts(root, self._site.name):
            size = receipt.settings["crawl"]["ids_per_part"]
            if size != self._settings.crawl.ids_per_part:
                raise SettingsError(
                    f"crawl.ids_per_part: {root.text} holds parts of {size} ids of {self._site.name} and "
                    f"{self._settings.crawl.ids_per_part} is asked for; parts may not overlap: use {size}, "
                    "or another --root"
                )
            differences = differing_settings(self._pinned, receipt.settings)
            if differences and not self._overwrite:
                raise SettingsError(
                    f"part {receipt.part} in {root.text} was made with other settings: {'; '.join(differences)}; "
                    "use the same, another --root, or --overwrite to redo such parts"
                )

    def tasks(self, root: Root) -> Iterator[PartTask]:
        """Give the parts that need work, in a keyed order."""
        for block in self._blocks(root):
            receipt = read_receipt(root, STAGE, block.part)
            if (spec := self._spec(block, receipt)) is not None:
                yield PartTask(block.part, spec)

    def _spec(self, block: Block, receipt: Receipt | None) -> CrawlSpec | None:
        none = Block(block.part)
        if receipt is None:
            return CrawlSpec(self._site, self._settings, block, none, "missing")
        covered = [(first, last) for first, last in receipt.scope.get("ids", ())]
        if self._overwrite and differing_settings(self._pinned, receipt.settings):
            whole = Block(block.part, merge([*covered, *block.intervals]), block.names)
            return CrawlSpec(self._site, self._settings, whole, none, "overwrite")
        missing = Block(block.part, subtract(block.intervals, covered))
        wants_again = self._refresh == "recrawl" or (self._refresh == "transient" and receipt.counts["transient"] > 0)
        if not missing.intervals and not wants_again:
            return None
        return CrawlSpec(self._site, self._settings, missing, block if wants_again else none, self._refresh)

    def _blocks(self, root: Root) -> Iterator[Block]:
        key, size = self._settings.crawl.seed, self._settings.crawl.ids_per_part
        if self._range is not None:
            return range_blocks(self._site.name, *self._range, ids_per_part=size, key=key)
        named = [r for r in _site_receipts(root, self._site.name) if "names" in r.scope]
        committed = {name for receipt in named for name in receipt.scope["names"]}
        fresh = listed_blocks(self._site.name, self._listed or (), committed=committed, ids_per_part=size, key=key)
        sealed = (Block(receipt.part, names=tuple(receipt.scope["names"])) for receipt in named)
        return (block for blocks in (fresh, sealed) for block in blocks)


class _Watch:
    """Show progress, and stop a run in which too much fails."""

    def __init__(self, plan: _Plan, settings: CrawlRun) -> None:
        self._settings = settings.crawl
        self._progress = Progress(plan.num_ids, "ids")
        self._ids = self._asked = self._failing = self._photos = 0

    def part_done(self, part: str, counts: Mapping[str, int]) -> None:
        """Count a committed part.

        Raises:
            CircuitOpenError: over `crawl.alarm_share` of the ids failed.
        """
        self._ids += counts["ids"]
        self._asked += counts["asked"]
        self._failing += counts["asked_failing"]
        self._photos += counts["stored"]
        log.debug("event=part_done part=%s ids=%d stored=%d", part, counts["ids"], counts["stored"])
        if self._asked >= self._settings.alarm_after and self._failing > self._settings.alarm_share * self._asked:
            raise CircuitOpenError(
                f"{self._failing} of {self._asked} ids failed, over crawl.alarm_share={self._settings.alarm_share:g}: "
                "the site blocks us or is down; look at attempts.error, then run again later with --retry transient"
            )

    def tick(self, in_flight: Mapping[str, Mapping[str, int]]) -> None:
        """Show where the run is."""
        ids = self._ids + sum(counts["ids"] for counts in in_flight.values())
        photos = self._photos + sum(counts["photos"] for counts in in_flight.values())
        self._progress.show(ids, photos=photos, failing=self._failing, parts_in_flight=len(in_flight))

    def close(self) -> None:
        """End the bar."""
        self._progress.close()


def _site_range(site: SiteFile) -> Interval | None:
    return None if site.ids.first is None or site.ids.last is None else (site.ids.first, site.ids.last)


def _site_receipts(root: Root, site: str) -> Iterator[Receipt]:
    return (r for r in read_receipts(root, STAGE, prefix=f"{site}-") if r.scope.get("site") == site)


if __name__ == "__main__":
    raise SystemExit(main())
