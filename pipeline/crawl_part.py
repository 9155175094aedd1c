"""Crawl one part: its listing pages and their photos become four files and a receipt.

Reads: the part's committed generation, if any. Writes: attempts, listings, photos and a shard, through PartWriter.
Each id gives one attempts row; each photo of a found listing one photos row; each stored photo one shard value.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import uvloop

from pipeline.crawl_photos import PartPhotos
from pipeline.crawl_rows import ListingRows, evidence_text, failure_columns, may_pass, write_tables
from pipeline.crawl_settings import CrawlSpec, part_deadline_s, pinned_settings
from pipeline.fetch import Answer, Fetcher
from pipeline.pages.money import MAX_PRICE
from pipeline.parts import count, merge
from pipeline.previous import PreviousPart
from pipeline.runner import PartContext
from pipeline.sites import PageReading, read_page, user_agent
from pipeline.web.pace import HostLimits, PaceClient
from schemas.errors import FetchError, PartError, PolicyError, is_transient
from schemas.receipts import PartWriter, Receipt
from schemas.shards import ShardWriter
from schemas.storage import Root

STAGE = "crawl"
_REPORT_EVERY_S = 1.0
_CENT = Decimal("0.01")

log = logging.getLogger("forecourt.crawl")


def crawl_part(context: PartContext, spec: CrawlSpec) -> dict[str, int]:
    """Crawl the ids of one part and commit it.

    Raises:
        PartError: no progress, or over the part's deadline.
        CircuitOpenError: the site fails so often that the run must stop.
    """
    root = Root(context.ticket.root)
    writer = PartWriter(
        root, STAGE, context.part, token=context.ticket.token, fence=context.check, attempt=context.attempt
    )
    try:
        with (
            PreviousPart(root, None if spec.refresh == "overwrite" else writer.previous) as previous,
            ShardWriter(writer.stage_path("shards", ".lmdb"), spec.settings.shards) as shard,
            ThreadPoolExecutor(spec.settings.crawl.decode_threads, thread_name_prefix="decode") as threads,
        ):
            job = _PartJob(context, spec, previous, shard, threads)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
                rows = loop.run(job.run())
            counts = write_tables(writer, rows, context.part)
            shard.seal()
        receipt = writer.commit(
            counts=counts,
            settings=pinned_settings(spec.site, spec.settings),
            scope=_scope(spec, writer.previous),
        )
    except BaseException:
        writer.abandon()
        raise
    return {**receipt.counts, **job.asked()}


class _PartJob:
    """The work on one part: which ids to ask, and what each becomes."""

    def __init__(
        self,
        context: PartContext,
        spec: CrawlSpec,
        previous: PreviousPart,
        shard: ShardWriter,
        threads: ThreadPoolExecutor,
    ) -> None:
        self._context, self._spec, self._previous = context, spec, previous
        self._site, self._settings = spec.site, spec.settings
        self._photos = PartPhotos(spec, context.part, previous, shard, threads, context.watchdog)
        self._rows: list[ListingRows] = []
        self._num_asked = self._num_failing = 0
        self._fetcher: Fetcher

    async def run(self) -> list[ListingRows]:
        """Ask every id that is to be asked, keep the others, and return all rows in order of id."""
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        if task is not None:
            self._context.watchdog.on_stall = lambda text: loop.call_soon_threadsafe(task.cancel)
        limits = HostLimits(
            requests_per_second=self._site.politeness.requests_per_second,
            concurrency=self._site.politeness.concurrency,
            essential=True,
        )
        pace = PaceClient(
            self._context.exchange,
            worker_id=f"{self._context.ticket.token}/{self._context.part}",
            settings=self._settings.pace,
            on_answer=self._context.watchdog.progress,
        )
        deadline_s = part_deadline_s(self._site, self._settings)
        async with Fetcher(
            self._settings.fetch,
            user_agent=user_agent(self._site),
            allow_private=self._site.allow_private_addresses,
            pace=pace,
            limits=limits,
        ) as self._fetcher:
            try:
                async with asyncio.timeout(deadline_s):
                    await self._ask_all()
            except TimeoutError as error:
                raise PartError(f"part {self._context.part} took over its deadline of {deadline_s:g} s") from error
            except BaseExceptionGroup as group:
                raise _first_error(group) from None
        return sorted(self._rows, key=lambda rows: str(rows.attempt["listing_id"]))

    def asked(self) -> dict[str, int]:
        """Count the ids that this run asked for, and those of them that failed for passing reasons."""
        return {"asked": self._num_asked, "asked_failing": self._num_failing}

    async def _ask_all(self) -> None:
        ids = self._ids()
        reporter = asyncio.create_task(self._report())
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(self._settings.crawl.listings_in_flight):
                    workers.create_task(self._work(ids))
        finally:
            reporter.cancel()

    def _ids(self) -> Iterator[str]:
        """Give the part's ids: those of the previous generation, then those it lacks."""
        yield from self._previous.attempts
        yield from self._spec.missing.ids(self._settings.crawl.seed)

    async def _work(self, ids: Iterator[str]) -> None:
        for listing_id in ids:
            self._rows.append(await self._listing(listing_id))
            self._context.watchdog.progress()

    async def _report(self) -> None:
        while True:
            photos = sum(len(rows.photos) for rows in self._rows)
            self._context.advance({"ids": len(self._rows), "photos": photos})
            await asyncio.sleep(_REPORT_EVERY_S)

    async def _listing(self, listing_id: str) -> ListingRows:
        old = self._previous.attempts.get(listing_id)
        if old is None:
            return await self._ask(listing_id, None)
        again = self._spec.again.holds(listing_id)
        if again and (self._spec.refresh == "recrawl" or may_pass(old)):
            return await self._ask(listing_id, old)
        listing = self._previous.listings.get(listing_id)
        if again and self._spec.refresh == "transient":
            return ListingRows(old, listing, await self._old_photos(listing_id))
        return ListingRows(old, listing, await self._photos.carried(listing_id))

    async def _ask(self, listing_id: str, old: dict[str, Any] | None) -> ListingRows:
        """Ask for a listing's page.

        A listing once found stays when a later crawl finds it gone or failing (`status` tells); when its owner now says
        no, it goes.
        """
        url = self._site.url_of(listing_id)
        found = old if old is not None and old["outcome"] == "found" else None
        conditions = {name: found[name] for name in ("etag", "last_modified")} if found else {}
        with self._context.watchdog.doing(f"page {url}"):
            attempt, reading = await self._read_until_settled(listing_id, url, conditions)
        self._num_asked += 1
        self._num_failing += attempt["outcome"] == "failed" and is_transient(attempt["error"])
        if reading is not None and reading.listing is not None:
            return await self._found(listing_id, url, attempt, reading)
        if found is None or (attempt["outcome"] == "disallowed" and not may_pass(attempt)):
            return ListingRows(attempt, None, [])
        listing = self._previous.listings.get(listing_id)
        if attempt["outcome"] == "found":  # not modified since
            return ListingRows(attempt, listing, await self._old_photos(listing_id))
        kept = {**attempt, "outcome": "found", "error": attempt["error"] if may_pass(attempt) else None}
        return ListingRows(kept, listing, await self._photos.carried(listing_id))

    async def _old_photos(self, listing_id: str) -> list[dict[str, Any]]:
        urls = [row["url"] for row in self._previous.photos.get(listing_id, [])]
        return await self._photos.rows(self._fetcher, listing_id, urls)

    async def _found(self, listing_id: str, url: str, attempt: dict[str, Any], reading: PageReading) -> ListingRows:
        urls = list(reading.photo_urls[: self._settings.crawl.max_photos])
        listing = {
            **(reading.listing or {}),
            "site": self._site.name,
            "listing_id": listing_id,
            "url": url,
            "num_photos": len(urls),
            "price_usd": self._price_usd(reading.listing or {}),
            "fetched_at": attempt["fetched_at"],
        }
        return ListingRows(attempt, listing, await self._photos.rows(self._fetcher, listing_id, urls))

    async def _read_until_settled(
        self, listing_id: str, url: str, conditions: Mapping[str, str | None]
    ) -> tuple[dict[str, Any], PageReading | None]:
        """Ask again for a page that came with a good status and a wall in front, as often as for a failed request."""
        settings = self._settings.fetch
        num_tries = 0
        while True:
            attempt, reading = await self._read(listing_id, url, conditions)
            num_tries += attempt["num_tries"]
            if reading is None or not is_transient(reading.error) or num_tries >= settings.max_tries:
                return {**attempt, "num_tries": num_tries}, reading
            await asyncio.sleep(min(settings.max_backoff_s, settings.backoff_s * 2**num_tries))

    async def _read(
        self, listing_id: str, url: str, conditions: Mapping[str, str | None]
    ) -> tuple[dict[str, Any], PageReading | None]:
        """Fetch and read a page: its attempts row, and what it says where it says anything."""
        row: dict[str, Any] = {"site": self._site.name, "listing_id": listing_id, "error": None}
        try:
            answer = await self._fetcher.get(url, kind="page", **conditions)
        except (FetchError, PolicyError) as error:
            row["outcome"] = "disallowed" if isinstance(error, PolicyError) else "failed"
            return {**row, **failure_columns(error)}, None
        kept = conditions if answer.not_modified else {}
        row |= {
            "status": answer.status,
            "num_tries": answer.num_tries,
            "latency_s": answer.latency_s,
            "policy": evidence_text(answer.policy),
            "etag": answer.headers.get("etag", kept.get("etag")),
            "last_modified": answer.headers.get("last-modified", kept.get("last_modified")),
            "fetched_at": datetime.now(UTC),
        }
        if answer.not_modified:
            return {**row, "outcome": "found"}, None
        reading = await self._photos.in_thread(self._read_page, answer)
        return {**row, "outcome": reading.outcome, "error": reading.error}, reading

    def _read_page(self, answer: Answer) -> PageReading:
        try:
            return read_page(
                answer.body,
                url=answer.url,
                site=self._site,
                status=answer.status,
                content_type=answer.headers.get("content-type"),
            )
        except Exception:
            # The row boundary: a page that a parser chokes on is one row without a listing, not a part that never ends.
            log.exception("event=page_unreadable url=%s", answer.url)
            return PageReading("failed", "no_listing", None, ())

    def _price_usd(self, listing: Mapping[str, Any]) -> Decimal | None:
        price, currency = listing.get("price"), listing.get("currency")
        if price is None or currency is None:
            return None
        rate = Decimal(1) if currency == "USD" else self._settings.rates.get(currency)
        in_usd = None if rate is None else price * rate
        return None if in_usd is None or in_usd > MAX_PRICE else in_usd.quantize(_CENT)


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what began a group of errors, out of however many groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _scope(spec: CrawlSpec, previous: Receipt | None) -> dict[str, Any]:
    """Say which ids the part now covers."""
    before = previous.scope if previous is not None and spec.refresh != "overwrite" else {}
    scope: dict[str, Any] = {"site": spec.site.name}
    if spec.missing.names or "names" in before:
        return {**scope, "names": [*before.get("names", ()), *spec.missing.names]}
    covered = merge([*((first, last) for first, last in before.get("ids", ())), *spec.missing.intervals])
    return {**scope, "ids": [list(interval) for interval in covered], "num_ids": count(covered)}
