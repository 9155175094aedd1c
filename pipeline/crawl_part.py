"""Crawl one part: its listing pages and their photos become four files and a receipt.

Reads: the part's committed generation, if any. Writes: attempts, listings, photos and a shard, through PartWriter.
Each id gives one attempts row; each photo of a found listing one photos row; each stored photo one shard value.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, TypeVar, TypeVarTuple

import uvloop

from pipeline.crawl_rows import ListingRows, evidence_text, failure_columns, write_tables
from pipeline.crawl_settings import CrawlRun, pinned_settings
from pipeline.fetch import Answer, Fetcher
from pipeline.parts import Block, Interval, count, merge
from pipeline.previous import PreviousPart
from pipeline.runner import PartContext
from pipeline.sites import PageReading, SiteFile, read_page, user_agent
from pipeline.web.pace import HostLimits, PaceClient
from schemas.errors import FetchError, ImageError, PartError, PolicyError, is_transient
from schemas.image import store
from schemas.receipts import PartWriter
from schemas.shards import ShardWriter
from schemas.storage import Root
from schemas.tables import photo_key

Arguments = TypeVarTuple("Arguments")
Returned = TypeVar("Returned")
Refresh = Literal["missing", "transient", "recrawl", "overwrite"]
STAGE = "crawl"
_REPORT_EVERY_S = 1.0
_CENT = Decimal("0.01")

log = logging.getLogger("forecourt.crawl")


@dataclass(frozen=True, slots=True)
class CrawlSpec:
    """What a worker is told about its part."""

    site: SiteFile
    settings: CrawlRun
    wanted: Block
    refresh: Refresh


@dataclass(frozen=True, slots=True)
class _Photo:
    """What one photo URL became; its bytes lie in the shard under `key`."""

    key: str
    columns: dict[str, Any]


def crawl_part(context: PartContext, spec: CrawlSpec) -> dict[str, int]:
    """Crawl the ids of one part and commit it.

    Raises:
        PartError: no progress, or over the part's deadline.
        CircuitOpenError: the site fails so often that the run must stop.
    """
    root = Root(context.ticket.root)
    writer = PartWriter(root, STAGE, context.part, token=context.ticket.token, fence=context.check)
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
            scope=_scope(spec, writer),
        )
    except BaseException:
        writer.abandon()
        raise
    return receipt.counts


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
        self._shard, self._threads = shard, threads
        self._site, self._settings = spec.site, spec.settings
        self._by_url: dict[str, asyncio.Task[_Photo]] = {}
        self._room = asyncio.Semaphore(spec.settings.crawl.photos_in_flight)
        self._rows: list[ListingRows] = []
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
        )
        deadline_s = self._settings.crawl.part_deadline_s
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
        """Give the part's ids, those of the previous generation that this run did not ask for included."""
        asked = dict.fromkeys(self._spec.wanted.ids(self._settings.crawl.seed))
        yield from (listing_id for listing_id in self._previous.attempts if listing_id not in asked)
        yield from asked

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
        if self._spec.refresh == "recrawl":
            return await self._ask(listing_id, old)
        if self._spec.refresh == "transient" and is_transient(old["error"]):
            return await self._ask(listing_id, None)
        return await self._keep(listing_id, old)

    async def _keep(self, listing_id: str, attempt: dict[str, Any]) -> ListingRows:
        """Carry an id's rows over; with `transient`, ask for its photos that failed for passing reasons."""
        photos = self._previous.photos.get(listing_id, [])
        again = self._spec.refresh == "transient"
        kept = await asyncio.gather(
            *(
                self._photo(listing_id, row["photo_index"], row["url"], None)
                if again and is_transient(row["error"])
                else self._carry(row)
                for row in photos
            )
        )
        return ListingRows(attempt, self._previous.listings.get(listing_id), list(kept))

    async def _carry(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["outcome"] == "stored":
            await self._in_thread(self._shard.put, row["key"], self._previous.jpeg(row["key"]))
        return {**row, "part": self._context.part}

    async def _ask(self, listing_id: str, old: dict[str, Any] | None) -> ListingRows:
        """Ask for a listing's page; a listing once found stays, should the page be gone or fail at a later crawl."""
        url = self._site.url_of(listing_id)
        conditions = {name: old[name] for name in ("etag", "last_modified")} if old else {}
        with self._context.watchdog.doing(f"page {url}"):
            attempt, reading = await self._read_until_settled(listing_id, url, conditions)
        was_found = old is not None and old["outcome"] == "found"
        if was_found and (reading is None or reading.outcome != "found"):
            photos = await self._photos(listing_id, [row["url"] for row in self._previous.photos.get(listing_id, [])])
            kept_attempt = {**attempt, "outcome": "found", "error": None}
            return ListingRows(kept_attempt, self._previous.listings.get(listing_id), photos)
        if reading is None or reading.listing is None:
            return ListingRows(attempt, None, [])
        urls = list(reading.photo_urls[: self._settings.crawl.max_photos])
        listing = {
            **reading.listing,
            "site": self._site.name,
            "listing_id": listing_id,
            "url": url,
            "num_photos": len(urls),
            "price_usd": self._price_usd(reading.listing),
            "fetched_at": attempt["fetched_at"],
        }
        return ListingRows(attempt, listing, await self._photos(listing_id, urls))

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
        row |= {
            "status": answer.status,
            "num_tries": answer.num_tries,
            "latency_s": answer.latency_s,
            "policy": evidence_text(answer.policy),
            "etag": answer.headers.get("etag", conditions.get("etag")),
            "last_modified": answer.headers.get("last-modified", conditions.get("last_modified")),
            "fetched_at": datetime.now(UTC),
        }
        if answer.not_modified:
            return {**row, "outcome": "found"}, None
        reading = await self._in_thread(self._read_page, answer)
        return {**row, "outcome": reading.outcome, "error": reading.error}, reading

    def _read_page(self, answer: Answer) -> PageReading:
        return read_page(
            answer.body,
            url=answer.url,
            site=self._site,
            status=answer.status,
            content_type=answer.headers.get("content-type"),
        )

    async def _photos(self, listing_id: str, urls: list[str]) -> list[dict[str, Any]]:
        old = {row["url"]: row for row in self._previous.photos.get(listing_id, [])}
        return list(
            await asyncio.gather(*(self._photo(listing_id, index, url, old.get(url)) for index, url in enumerate(urls)))
        )

    async def _photo(self, listing_id: str, index: int, url: str, old: dict[str, Any] | None) -> dict[str, Any]:
        """Give the row of one photo; a URL that the part has asked for is not asked again."""
        key = photo_key(self._site.name, listing_id, index)
        task = self._by_url.get(url)
        if task is None:
            task = self._by_url[url] = asyncio.create_task(self._fetch_photo(key, url, old))
        photo = await task
        if photo.columns["outcome"] == "stored" and photo.key != key:
            await self._in_thread(lambda: self._shard.put(key, self._shard.get(photo.key)))
        row = {"key": key, "site": self._site.name, "listing_id": listing_id, "photo_index": index, "url": url}
        return {**row, "part": self._context.part, **photo.columns}

    async def _fetch_photo(self, key: str, url: str, old: dict[str, Any] | None) -> _Photo:
        was_stored = old is not None and old["outcome"] == "stored"
        async with self._room:
            with self._context.watchdog.doing(f"photo {url}"):
                try:
                    etag = old["etag"] if old is not None and was_stored else None
                    answer = await self._fetcher.get(url, kind="photo", etag=etag)
                except (FetchError, PolicyError) as error:
                    if old is not None and was_stored:
                        return await self._in_thread(self._carry_photo, key, old)
                    failure = failure_columns(error)
                    outcome = "disallowed" if isinstance(error, PolicyError) else "failed"
                    kept = {name: failure[name] for name in ("error", "policy", "fetched_at")}
                    return _Photo(key, {"outcome": outcome, **kept})
                if answer.not_modified and old is not None:
                    return await self._in_thread(self._carry_photo, key, old)
                return await self._in_thread(self._store, key, answer)

    def _carry_photo(self, key: str, old: dict[str, Any]) -> _Photo:
        self._shard.put(key, self._previous.jpeg(old["key"]))
        identity = {"key", "site", "listing_id", "photo_index", "url", "part"}
        return _Photo(key, {name: value for name, value in old.items() if name not in identity})

    def _store(self, key: str, answer: Answer) -> _Photo:
        """Decode, hash, encode and write one photo, in a decode thread."""
        columns: dict[str, Any] = {
            "policy": evidence_text(answer.policy),
            "etag": answer.headers.get("etag"),
            "fetched_at": datetime.now(UTC),
        }
        try:
            stored = store(answer.body, self._settings.image)
        except ImageError as error:
            rejected = {"outcome": "rejected", "error": error.reason, "source_bytes": len(answer.body)}
            return _Photo(key, {**columns, **rejected})
        self._shard.put(key, stored.jpeg)
        return _Photo(key, {**columns, "outcome": "stored", "error": None, **stored.columns()})

    def _price_usd(self, listing: Mapping[str, Any]) -> Decimal | None:
        price, currency = listing.get("price"), listing.get("currency")
        if price is None or currency is None:
            return None
        rate = Decimal(1) if currency == "USD" else self._settings.rates.get(currency)
        return None if rate is None else (price * rate).quantize(_CENT)

    async def _in_thread(self, function: Callable[[*Arguments], Returned], *arguments: *Arguments) -> Returned:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what began a group of errors, out of however many groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _scope(spec: CrawlSpec, writer: PartWriter) -> dict[str, Any]:
    """Say which ids the part now covers."""
    scope = {"site": spec.site.name}
    if spec.wanted.names:
        return {**scope, "names": list(spec.wanted.names)}
    before: list[Interval] = [(a, b) for a, b in writer.previous.scope["ids"]] if writer.previous else []
    covered = merge([*before, *spec.wanted.intervals])
    return {**scope, "ids": [list(interval) for interval in covered], "num_ids": count(covered)}
