"""The photos of one part: each URL asked once, its bytes in the shard under every key that shows it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar, TypeVarTuple

from pipeline.crawl_rows import evidence_text, failure_columns, may_pass, owner_says_no
from pipeline.crawl_settings import CrawlSpec
from pipeline.fetch import Answer, Fetcher
from pipeline.previous import PreviousPart
from pipeline.watchdog import Watchdog
from schemas.errors import FetchError, ImageError, PolicyError
from schemas.image import store
from schemas.shards import ShardWriter
from schemas.tables import photo_key

Arguments = TypeVarTuple("Arguments")
Returned = TypeVar("Returned")
Row = dict[str, Any]
# What tells one photo from another; all other columns belong to its URL.
_IDENTITY = frozenset({"key", "site", "listing_id", "photo_index", "url", "part"})


@dataclass(frozen=True, slots=True)
class _Photo:
    """What one photo URL became; its bytes, if stored, lie in the shard under `key`."""

    key: str
    columns: Row


class PartPhotos:
    """Fetch, decode and store photos; what the previous generation has is asked again only where the run says so."""

    def __init__(
        self,
        spec: CrawlSpec,
        part: str,
        previous: PreviousPart,
        shard: ShardWriter,
        threads: ThreadPoolExecutor,
        watchdog: Watchdog,
    ) -> None:
        self._spec, self._part, self._previous = spec, part, previous
        self._shard, self._threads, self._watchdog = shard, threads, watchdog
        self._by_url: dict[str, asyncio.Task[_Photo]] = {}
        self._room = asyncio.Semaphore(spec.settings.crawl.photos_in_flight)

    async def rows(self, fetcher: Fetcher, listing_id: str, urls: list[str]) -> list[Row]:
        """Give the rows of a listing's photos, in order."""
        return list(await asyncio.gather(*(self._row(fetcher, listing_id, i, url) for i, url in enumerate(urls))))

    async def carried(self, listing_id: str) -> list[Row]:
        """Give the rows of a listing's photos as the previous generation has them, without a request."""
        return list(await asyncio.gather(*(self._carry(row) for row in self._previous.photos.get(listing_id, []))))

    async def _carry(self, row: Row) -> Row:
        if row["outcome"] == "stored":
            await self.in_thread(self._copy, row["key"], row["key"])
        return {**row, "part": self._part}

    async def _row(self, fetcher: Fetcher, listing_id: str, index: int, url: str) -> Row:
        key = photo_key(self._spec.site.name, listing_id, index)
        task = self._by_url.get(url)
        if task is None:
            task = self._by_url[url] = asyncio.create_task(self._photo(fetcher, key, url))
        photo = await task
        if photo.columns["outcome"] == "stored" and photo.key != key:
            await self.in_thread(lambda: self._shard.put(key, self._shard.get(photo.key)))
        identity = {
            "key": key,
            "site": self._spec.site.name,
            "listing_id": listing_id,
            "photo_index": index,
            "url": url,
        }
        return {**identity, "part": self._part, **photo.columns}

    async def _photo(self, fetcher: Fetcher, key: str, url: str) -> _Photo:
        old = self._previous.by_url.get(url)
        if old is not None and self._spec.refresh != "recrawl" and not may_pass(old):
            return await self.in_thread(self._carry_photo, key, old)
        async with self._room:
            with self._watchdog.doing(f"photo {url}"):
                return await self._ask(fetcher, key, url, old if old and old["outcome"] == "stored" else None)

    async def _ask(self, fetcher: Fetcher, key: str, url: str, stored: Row | None) -> _Photo:
        """Fetch and store; a photo once stored stays, unless its owner now says no."""
        try:
            answer = await fetcher.get(url, kind="photo", etag=stored["etag"] if stored else None)
        except (FetchError, PolicyError) as error:
            if stored is not None and not owner_says_no(error):
                return await self.in_thread(self._carry_photo, key, stored)
            failure = failure_columns(error)
            outcome = "disallowed" if isinstance(error, PolicyError) else "failed"
            return _Photo(key, {"outcome": outcome, **{n: failure[n] for n in ("error", "policy", "fetched_at")}})
        if stored is not None and answer.not_modified:
            return await self.in_thread(self._carry_photo, key, stored)
        photo = await self.in_thread(self._store, key, answer)
        if stored is not None and photo.columns["outcome"] != "stored":
            return await self.in_thread(self._carry_photo, key, stored)
        return photo

    def _carry_photo(self, key: str, old: Row) -> _Photo:
        if old["outcome"] == "stored":
            self._copy(key, old["key"])
        return _Photo(key, {name: value for name, value in old.items() if name not in _IDENTITY})

    def _copy(self, key: str, old_key: str) -> None:
        self._shard.put(key, self._previous.jpeg(old_key))

    def _store(self, key: str, answer: Answer) -> _Photo:
        """Decode, hash, encode and write one photo, in a decode thread."""
        columns: Row = {
            "policy": evidence_text(answer.policy),
            "etag": answer.headers.get("etag"),
            "fetched_at": datetime.now(UTC),
        }
        try:
            stored = store(answer.body, self._spec.settings.image)
        except ImageError as error:
            rejected = {"outcome": "rejected", "error": error.reason, "source_bytes": len(answer.body)}
            return _Photo(key, {**columns, **rejected})
        self._shard.put(key, stored.jpeg)
        return _Photo(key, {**columns, "outcome": "stored", "error": None, **stored.columns()})

    async def in_thread(self, function: Callable[[*Arguments], Returned], *arguments: *Arguments) -> Returned:
        """Run CPU work in a decode thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
