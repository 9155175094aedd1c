"""What a later crawl of one part makes of a changed site: opt-outs are kept, finds are not lost, odd pages are rows.

The site is a small server of this module, whose answers a test sets; the part is crawled in this process, without Ray.
"""

import asyncio
import io
import json
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

from benchmarks import lab
from pipeline.crawl_part import crawl_part
from pipeline.crawl_settings import CrawlRun, CrawlSpec, Refresh
from pipeline.lease import hold_lease
from pipeline.parts import Block
from pipeline.runner import PartContext
from pipeline.sites import SiteFile
from pipeline.watchdog import Watchdog
from pipeline.web.pace import PaceBook, PaceReply, PaceRequest
from schemas.settings import load_settings
from schemas.storage import Root

ETAG = {"ETag": '"1"'}


def page(photos: list[str], **vehicle: Any) -> str:
    offer = {"@type": "Offer", "price": vehicle.pop("price", 9000), "priceCurrency": vehicle.pop("currency", "USD")}
    car = {
        "@type": "Car",
        "name": "A car",
        "brand": "Avalor",
        "model": "Cinder",
        "image": photos,
        "offers": offer,
        **vehicle,
    }
    return f'<html><script type="application/ld+json">{json.dumps(car)}</script></html>'


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").point(lambda level: (level + shade) % 256).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


class Pages:
    """A site whose answer to a path is (status, headers, body); 304 where the asker has the ETag."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes | str]] = {}
        self.asked: list[str] = []
        self.address = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        status, headers, body = self.answers.get(request.path, (404, {}, ""))
        if "ETag" in headers and request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        data = body.replace("SITE", self.address).encode() if isinstance(body, str) else body
        kind = "text/html" if isinstance(body, str) else "image/jpeg"
        return web.Response(status=status, headers={"Content-Type": kind, **headers}, body=data)


@pytest.fixture
def pages() -> Iterator[Pages]:
    """Serve from a thread with a loop of its own, since the part runs a loop too."""
    site, loop = Pages(), asyncio.new_event_loop()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", site.handle)
    runner = web.AppRunner(app)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()

    loop.run_until_complete(start())
    site.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield site
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


Crawl = Callable[..., dict[str, int]]


@pytest.fixture
def crawl(pages: Pages, tmp_path: Path) -> Crawl:
    """Crawl one part of the site in this process; the ids are intervals or names."""
    root = Root.open(str(tmp_path / "data"), create=True)
    book = PaceBook()

    async def exchange(request: PaceRequest) -> PaceReply:
        return book.exchange(request)

    def run(missing: Block, again: Block | None = None, refresh: Refresh = "missing", *sets: str) -> dict[str, int]:
        site = SiteFile.model_validate(
            {
                "name": "s",
                "base_url": pages.address,
                "listing_url": "/listing/{id}",
                "ids": {"first": 1, "last": 9},
                "gone": {"css": "h1.unavailable"},
                "extract": {"kind": "json_ld"},
                "politeness": {"requests_per_second": 500, "contact": "mailto:a@example.org"},
                "allow_private_addresses": True,
            }
        )
        settings = load_settings(CrawlRun, sets=["fetch.max_tries=1", *sets])
        with hold_lease(root, "crawl") as lease, Watchdog(missing.part, stall_s=60, last_words=print) as watchdog:
            context = PartContext(lease.ticket, missing.part, 1, lease.check, watchdog, exchange, lambda counts: None)
            return crawl_part(context, CrawlSpec(site, settings, missing, again or Block(missing.part), refresh))

    return run


def numbers(*ids: int) -> Block:
    return Block("s-0", tuple((i, i) for i in ids))


NONE = Block("s-0")


@pytest.fixture
def attempts(tmp_path: Path) -> Callable[[], dict[str, tuple[str, str | None]]]:
    def read() -> dict[str, tuple[str, str | None]]:
        rows = lab.rows(tmp_path / "data", "FROM attempts")
        return {row["listing_id"]: (row["outcome"], row["error"]) for row in rows}

    return read


@pytest.fixture
def photos(tmp_path: Path) -> Callable[[], dict[str, tuple[str, str | None]]]:
    def read() -> dict[str, tuple[str, str | None]]:
        rows = lab.rows(tmp_path / "data", "FROM photos")
        return {row["key"]: (row["outcome"], row["error"]) for row in rows}

    return read


def test_a_gone_page_with_an_etag_stays_gone(pages: Pages, crawl: Crawl, attempts: Any) -> None:
    pages.answers["/listing/1"] = (200, ETAG, "<h1 class=unavailable>sold</h1>")
    crawl(numbers(1))
    counts = crawl(NONE, numbers(1), "recrawl")
    assert attempts() == {"1": ("gone", None)}
    assert (counts["gone"], counts["found"]) == (1, 0)


def test_an_owner_who_now_says_no_is_heard(pages: Pages, crawl: Crawl, attempts: Any, photos: Any) -> None:
    for number in (1, 2):
        pages.answers[f"/listing/{number}"] = (200, ETAG, page([f"SITE/p/{number}.jpg"]))
        pages.answers[f"/p/{number}.jpg"] = (200, {"ETag": f'"p{number}"'}, jpeg(number))
    assert crawl(numbers(1, 2))["stored"] == 2
    pages.answers["/listing/1"] = (200, {"X-Robots-Tag": "noai"}, page(["SITE/p/1.jpg"]))
    pages.answers["/p/2.jpg"] = (200, {"X-Robots-Tag": "noimageai"}, jpeg(2))
    pages.asked.clear()
    counts = crawl(NONE, numbers(1, 2), "recrawl")
    assert attempts() == {"1": ("disallowed", "noai"), "2": ("found", None)}
    assert photos() == {"s/2/000": ("disallowed", "noai")}
    assert "/p/1.jpg" not in pages.asked
    assert counts["stored"] == 0


def test_what_was_found_stays_when_the_page_is_gone_or_fails_and_a_failure_can_be_retried(
    pages: Pages, crawl: Crawl, attempts: Any, photos: Any
) -> None:
    for number in (1, 2):
        pages.answers[f"/listing/{number}"] = (200, {}, page([f"SITE/p/{number}.jpg"]))
        pages.answers[f"/p/{number}.jpg"] = (200, {}, jpeg(number))
    crawl(numbers(1, 2))
    pages.answers["/listing/1"] = (404, {}, "")
    pages.answers["/listing/2"] = (503, {}, "")
    counts = crawl(NONE, numbers(1, 2), "recrawl")
    assert attempts() == {"1": ("found", None), "2": ("found", "http_503")}
    assert counts["transient"] == 1
    pages.answers["/listing/2"] = (200, {}, page(["SITE/p/2.jpg"], price=8000))
    counts = crawl(NONE, numbers(1, 2), "transient")
    assert attempts()["2"] == ("found", None)
    assert counts["asked"] == 1
    assert set(photos().values()) == {("stored", None)}


def test_a_part_of_names_can_be_refreshed(pages: Pages, crawl: Crawl, attempts: Any, tmp_path: Path) -> None:
    pages.answers["/listing/ab"] = (503, {}, "")
    names = Block("s-list-ab", names=("ab", "cd"))
    crawl(names)
    pages.answers["/listing/ab"] = (200, {}, page([]))
    crawl(Block("s-list-ab"), names, "transient")
    assert attempts() == {"ab": ("found", None), "cd": ("gone", None)}
    receipt = json.loads((tmp_path / "data/receipts/crawl/s-list-ab.json").read_text())
    assert receipt["scope"] == {"site": "s", "names": ["ab", "cd"]}


def test_a_url_that_the_part_has_is_not_asked_again_when_it_widens(pages: Pages, crawl: Crawl, photos: Any) -> None:
    for number in (1, 2):
        pages.answers[f"/listing/{number}"] = (200, {}, page(["SITE/p/same.jpg", f"SITE/p/{number}.jpg"]))
        pages.answers[f"/p/{number}.jpg"] = (200, {}, jpeg(number))
    pages.answers["/p/same.jpg"] = (200, {}, jpeg(0))
    crawl(numbers(1))
    crawl(numbers(2))
    assert pages.asked.count("/p/same.jpg") == 1
    assert set(photos()) == {"s/1/000", "s/1/001", "s/2/000", "s/2/001"}
    assert set(photos().values()) == {("stored", None)}


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_shared_photo_that_fails_at_a_recrawl_stays_for_all_who_show_it(
    order: tuple[int, int], pages: Pages, crawl: Crawl, photos: Any
) -> None:
    pages.answers["/listing/1"] = (200, {}, page(["SITE/p/same.jpg"]))
    pages.answers["/listing/2"] = (200, {}, page([]))
    pages.answers["/p/same.jpg"] = (200, {}, jpeg(0))
    crawl(numbers(1, 2))
    pages.answers["/listing/2"] = (200, {}, page(["SITE/p/same.jpg"]))
    pages.answers["/p/same.jpg"] = (500, {}, b"")
    crawl(NONE, Block("s-0", tuple((i, i) for i in order)), "recrawl")
    assert photos() == {"s/1/000": ("stored", None), "s/2/000": ("stored", None)}


def test_a_price_that_leaves_its_column_in_dollars_is_null_there(pages: Pages, crawl: Crawl, tmp_path: Path) -> None:
    pages.answers["/listing/1"] = (200, {}, page([], price=9_999_999_999.99, currency="EUR"))
    crawl(numbers(1), None, "missing", "rates={EUR: 1.16}")
    (row,) = lab.rows(tmp_path / "data", "FROM listings")
    assert (row["price"], row["price_usd"]) == (Decimal("9999999999.99"), None)


def test_a_page_that_a_parser_chokes_on_is_a_row(
    pages: Pages, crawl: Crawl, attempts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choke(*_: Any, **__: Any) -> None:
        raise ValueError("a bug in a parser")

    monkeypatch.setattr("pipeline.crawl_part.read_page", choke)
    pages.answers["/listing/1"] = (200, {}, page([]))
    crawl(numbers(1))
    assert attempts() == {"1": ("failed", "no_listing")}
