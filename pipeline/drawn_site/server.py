"""The demo site's answers: listing pages, photos, robots.txt, and what tests ask it about itself."""

import asyncio
import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from pipeline.drawn_site.faults import (
    NOAI_META,
    POLICY_HEADERS,
    ROBOTS_FAULTY,
    ROBOTS_PLAIN,
    TDMREP,
    Fault,
    FaultPlan,
    pour,
    spoiled,
)
from pipeline.drawn_site.pages import gone_page, listing_page
from pipeline.drawn_site.photos import OVERSIZED_BYTES, photo_bytes
from pipeline.drawn_site.real import RealStock
from pipeline.drawn_site.stock import DrawnStock, Listing, Photo, Stock
from pipeline.drawn_site.truth import Truth
from schemas.errors import UsageError

FIRST_ID = 660_000_000
KEPT_REQUESTS = 400_000
MAX_TRUTH_IDS = 50_000
_LAST_MODIFIED = "Mon, 05 Oct 2026 08:00:00 GMT"


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """What the demo site serves; equal configs serve equal bytes."""

    seed: int = 0
    first: int = FIRST_ID
    listings: int = 1000
    photos: Path | None = None
    shape: str = "json_ld"
    faults: bool = False
    fault_scale: float = 1.0
    edition: int = 0
    photo_host: str = ""
    robots_status: int = 200
    cache_bytes: int = 64 << 20
    draw_threads: int = 2


class DemoSite:
    """One running site; its only state is what was asked of it and a bounded cache of photo bytes."""

    def __init__(self, config: DemoConfig) -> None:
        self.config = config
        self.stock = _stock(config)
        self.first = self.stock.first
        self.last = self.stock.last
        self.plan = FaultPlan(seed=config.seed, scale=config.fault_scale) if config.faults else None
        # A stock of its own: /truth.json is made in a thread.
        self._truth_of = Truth(_stock(config), self.plan)
        self.requests: deque[tuple[float, str, int, str]] = deque(maxlen=KEPT_REQUESTS)
        self.num_requests = 0
        self.tries: dict[str, int] = {}
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._threads = ThreadPoolExecutor(config.draw_threads, thread_name_prefix="draw")
        self._gone_body = gone_page()
        self._folders: dict[str, Callable[[web.Request, str], Awaitable[web.StreamResponse]]] = {
            "listing": self._listing,
            "photos": self._photo,
            "media": self._photo,
            "moved": self._moved,
            "loop": self._loop,
            "robots.txt": self._robots,
            ".well-known": self._well_known,
            "truth.json": self._truth,
            "requests.json": self._requests,
            "reset-tries": self._reset_tries,
            "": self._front,
        }

    async def close(self, _app: web.Application) -> None:
        """Stop the drawing threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request."""
        path = request.path
        folder = path[1:].partition("/")[0]
        if folder not in ("truth.json", "requests.json", "reset-tries"):
            peer = request.transport.get_extra_info("peername") if request.transport is not None else None
            self.num_requests += 1
            self.requests.append((time.monotonic(), path, peer[1] if peer else 0, request.headers.get("Host", "")))
        answer = self._folders.get(folder)
        return _not_found() if answer is None else await answer(request, path)

    async def _listing(self, request: web.Request, path: str, *, faults: bool = True) -> web.StreamResponse:
        listing_id = _number(path.rpartition("/")[2])
        if listing_id is None:
            return _not_found()
        state = self.stock.state(listing_id)
        live = state == "live"
        fault = self._fault(f"/listing/{listing_id}", "page" if live else "gone", spoil=faults)
        usual = self._page(request, self.stock.listing(listing_id), fault) if live else self._gone(state)
        if fault is not None and faults:
            if fault.kind == "image_page" and live:
                return await self._picture_instead(listing_id)
            answer = await spoiled(request, fault, usual)
            if answer is not None:
                return answer
        return _unless_known(request, usual) if live else usual

    def _gone(self, state: str) -> web.Response:
        status = {"gone_404": 404, "gone_410": 410}.get(state, 200)
        return web.Response(status=status, body=self._gone_body, content_type="text/html", charset="utf-8")

    def _page(self, request: web.Request, listing: Listing, fault: Fault | None) -> web.Response:
        origin = f"{request.scheme}://{request.host}"
        photo_origin = self.config.photo_host or origin
        urls = [photo_origin + photo.path for photo in listing.photos]
        if listing.repeats_first_url:
            urls.append(urls[0])
        kind = fault.kind if fault is not None else ""
        meta = NOAI_META if kind == "noai_meta" else ""
        url = f"{origin}/listing/{listing.listing_id}"
        body = listing_page(listing, shape=self.config.shape, photo_urls=urls, url=url, meta=meta)
        headers = {"ETag": f'"{hashlib.blake2b(body, digest_size=8).hexdigest()}"', "Last-Modified": _LAST_MODIFIED}
        headers |= POLICY_HEADERS.get(kind, {})
        return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)

    async def _picture_instead(self, listing_id: int) -> web.Response:
        photos = [photo for photo in self.stock.listing(listing_id).photos if photo.broken is None]
        body = await self._bytes(photos[0]) if photos else b"\xff\xd8\xff"
        return web.Response(body=body, content_type="image/jpeg")

    async def _photo(self, request: web.Request, path: str, *, faults: bool = True) -> web.StreamResponse:
        photo = self._find_photo(path)
        if photo is None or photo.broken == "missing":
            return _not_found()
        fault = self._fault(path, "photo", spoil=faults)
        kind = fault.kind if fault is not None else ""
        content_type = "text/html" if kind == "wrong_type" else photo.content_type
        headers = {"Content-Type": content_type, "ETag": f'"{_tag(photo)}"', "Last-Modified": _LAST_MODIFIED}
        headers |= POLICY_HEADERS.get(kind, {})
        if photo.broken == "oversized" and not (faults and kind.startswith("redirect")):
            return await _oversized(request, headers)
        if request.headers.get("If-None-Match") == headers["ETag"] and (fault is None or fault.outcome is None):
            return web.Response(status=304, headers={"ETag": headers["ETag"]})
        usual = web.Response(body=await self._bytes(photo), headers=headers)
        if fault is not None and faults:
            answer = await spoiled(request, fault, usual)
            if answer is not None:
                return answer
        return usual

    def _find_photo(self, path: str) -> Photo | None:
        steps = path.split("/")
        listing_id = _number(steps[-2]) if len(steps) > 3 else None
        index = _number(steps[-1].partition("-")[0])
        if listing_id is None or index is None or self.stock.state(listing_id) != "live":
            return None
        photos = self.stock.listing(listing_id).photos
        return photos[index] if index < len(photos) and photos[index].path == path else None

    async def _bytes(self, photo: Photo) -> bytes:
        kept = self._kept.get(photo.content)
        if kept is not None:
            self._kept.move_to_end(photo.content)
            return kept
        if isinstance(self.stock, RealStock):
            body = self.stock.photo_bytes(photo)
        else:
            loop = asyncio.get_running_loop()
            body = await loop.run_in_executor(self._threads, photo_bytes, self.config.seed, photo)
        if photo.content not in self._kept:
            self._kept[photo.content] = body
            self._kept_bytes += len(body)
            while self._kept_bytes > self.config.cache_bytes and self._kept:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])
        return body

    def _fault(self, path: str, kind: str, *, spoil: bool) -> Fault | None:
        """Return the fault this try meets, and count the try."""
        if self.plan is None:
            return None
        fault = self.plan.of(path, kind)
        if fault is None or fault.num_tries is None or not spoil:
            return fault
        before = self.tries.get(path, 0)
        self.tries[path] = before + 1
        return fault if fault.spoils(before) else None

    async def _moved(self, request: web.Request, path: str) -> web.StreamResponse:
        inner = path.removeprefix("/moved")
        if inner.startswith("/listing/"):
            return await self._listing(request, inner, faults=False)
        return await self._photo(request, inner, faults=False)

    async def _loop(self, _request: web.Request, path: str) -> web.StreamResponse:
        _, _, step, rest = path.split("/", 3)
        raise web.HTTPFound(f"/loop/{(_number(step) or 0) % 3 + 1}/{rest}")

    async def _robots(self, _request: web.Request, _path: str) -> web.StreamResponse:
        return web.Response(
            status=self.config.robots_status, text=ROBOTS_FAULTY if self.plan is not None else ROBOTS_PLAIN
        )

    async def _well_known(self, _request: web.Request, path: str) -> web.StreamResponse:
        if path == "/.well-known/tdmrep.json" and self.plan is not None:
            return web.json_response(TDMREP)
        return _not_found()

    async def _front(self, _request: web.Request, _path: str) -> web.StreamResponse:
        return web.Response(text="Demo Motors: listings at /listing/ID\n")

    async def _truth(self, request: web.Request, _path: str) -> web.StreamResponse:
        first = int(request.query.get("first", self.first))
        last = int(request.query.get("last", self.last))
        if last - first >= MAX_TRUTH_IDS:
            return web.Response(status=400, text=f"at most {MAX_TRUTH_IDS} ids at once: ?first=ID&last=ID\n")
        truth = await asyncio.to_thread(self._truth_of.of, range(first, last + 1))
        return web.json_response(truth | {"first": self.first, "last": self.last})

    async def _requests(self, request: web.Request, _path: str) -> web.StreamResponse:
        since = float(request.query.get("since", 0))
        rows = [row for row in self.requests if row[0] > since]
        columns = ["at", "path", "port", "host"]
        return web.json_response(
            {"now": time.monotonic(), "total": self.num_requests, "columns": columns, "rows": rows}
        )

    async def _reset_tries(self, _request: web.Request, _path: str) -> web.StreamResponse:
        self.tries.clear()
        return web.Response(text="ok\n")


SITE_KEY = web.AppKey("site", DemoSite)


def build_app(config: DemoConfig) -> web.Application:
    """Build the site as an aiohttp app; `app[SITE_KEY]` is its DemoSite."""
    site = DemoSite(config)
    app = web.Application()
    app[SITE_KEY] = site
    app.router.add_route("*", "/{path:.*}", site.handle)
    app.on_cleanup.append(site.close)
    return app


def _stock(config: DemoConfig) -> Stock:
    if config.photos is not None:
        return RealStock(config.photos, first=config.first)
    if config.listings < 0 or config.first < 0:
        raise UsageError(f"--listings and --first must not be negative, found {config.listings} and {config.first}")
    last = config.first + config.listings - 1
    return DrawnStock(seed=config.seed, first=config.first, last=last, edition=config.edition)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _tag(photo: Photo) -> str:
    return hashlib.blake2b(photo.content.encode(), digest_size=8).hexdigest()


def _not_found() -> web.Response:
    return web.Response(status=404, text="not found")


def _unless_known(request: web.Request, usual: web.Response) -> web.Response:
    tag = usual.headers.get("ETag", "")
    if tag and request.headers.get("If-None-Match") == tag:
        return web.Response(status=304, headers={"ETag": tag})
    return usual


async def _oversized(request: web.Request, headers: dict[str, str]) -> web.StreamResponse:
    answer = web.StreamResponse(headers=headers)
    answer.content_length = OVERSIZED_BYTES
    await answer.prepare(request)
    head = b"\xff\xd8\xff\xe0\0\x10JFIF\0"
    await answer.write(head)
    await pour(answer, OVERSIZED_BYTES - len(head))
    return answer
