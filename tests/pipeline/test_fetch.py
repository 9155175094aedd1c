import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import uvloop
from aiohttp import web

from pipeline.fetch import Fetcher, FetchFailed, FetchRefused, local_pace
from pipeline.web.pace import HostLimits
from schemas.errors import FetchError, PolicyError
from tests.pipeline.web_servers import (
    AGENT,
    QUICK,
    SETTINGS,
    Site,
    fails,
    fetcher,
    gets,
    serve,
)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serve(Site()) as served:
        yield served


async def test_a_page_comes_with_its_headers_and_tries(site: Site) -> None:
    site.says("/car", "<h1>A car</h1>", X_Thing="yes")
    answer = await gets(f"{site.address}/car")
    assert (answer.url, answer.status, answer.body) == (f"{site.address}/car", 200, b"<h1>A car</h1>")
    assert answer.headers["x-thing"] == "yes"
    assert answer.num_tries == 1
    assert answer.latency_s > 0
    assert not answer.not_modified
    assert site.asked == ["/robots.txt", "/.well-known/tdmrep.json", "/car"]


async def test_requests_say_who_asks_and_for_what_and_keep_no_cookies(site: Site) -> None:
    site.says("/car", Set_Cookie="a=b")
    async with fetcher() as opened:
        await opened.get(f"{site.address}/car", kind="page")
        await opened.get(f"{site.address}/car", kind="photo")
    page, photo = site.requests[-2:]
    assert {request.headers["User-Agent"] for request in site.requests} == {AGENT}
    assert page.headers["Accept"].startswith("text/html")
    assert photo.headers["Accept"].startswith("image/jpeg")
    assert "Cookie" not in photo.headers


@pytest.mark.parametrize("agent", ["", " ", "(none)", "Forecourt\r\nX: y"])
async def test_a_user_agent_is_compulsory(agent: str) -> None:
    with pytest.raises(ValueError, match="compulsory"):
        Fetcher(SETTINGS, user_agent=agent, allow_private=True, pace=local_pace(), limits=HostLimits(1.0))


async def test_an_unchanged_page_is_not_sent_again(site: Site) -> None:
    async def conditional(request: web.Request) -> web.StreamResponse:
        same = request.headers.get("If-None-Match") == '"1"' and request.headers.get("If-Modified-Since") == "then"
        return web.Response(status=304 if same else 200, text=None if same else "new")

    site.pages["/car"] = conditional
    answer = await gets(f"{site.address}/car", etag='"1"', last_modified="then")
    assert (answer.not_modified, answer.status, answer.body) == (True, 304, b"")
    assert (await gets(f"{site.address}/car", etag='"2"')).body == b"new"


async def test_a_304_that_was_not_asked_for_is_no_answer(site: Site) -> None:
    site.says("/car", status=304)
    assert (await fails(f"{site.address}/car")).reason == "http_304"


@pytest.mark.parametrize("status", [404, 410, 403, 451])
async def test_a_lasting_4xx_is_an_answer_for_a_page_and_an_error_for_a_photo(site: Site, status: int) -> None:
    site.says("/car", "why", status=status)
    answer = await gets(f"{site.address}/car")
    assert (answer.status, answer.body) == (status, b"why")
    error = await fails(f"{site.address}/car", kind="photo")
    assert (error.reason, error.status, error.num_tries) == (f"http_{status}", status, 1)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_a_passing_status_is_tried_again_a_bounded_number_of_times(site: Site, status: int) -> None:
    site.says_in_turn("/well", status, status, status, 200)
    site.says("/never", status=status)
    assert (await gets(f"{site.address}/well")).num_tries == 4
    error = await fails(f"{site.address}/never")
    assert (error.reason, error.num_tries) == (f"http_{status}", 4)
    assert site.num_asked("/never") == 4


async def test_a_lasting_5xx_is_not_tried_again(site: Site) -> None:
    site.says("/car", status=501)
    assert (await fails(f"{site.address}/car")).reason == "http_501"
    assert site.num_asked("/car") == 1


async def test_retry_after_is_waited_for(site: Site) -> None:
    site.says_in_turn("/car", 429, 200, Retry_After="1")
    began = asyncio.get_running_loop().time()
    assert (await gets(f"{site.address}/car")).num_tries == 2
    assert asyncio.get_running_loop().time() - began >= 1.0


async def test_a_url_that_asks_for_too_long_a_wait_is_given_up(site: Site) -> None:
    site.says("/car", status=503, Retry_After="3600")
    error = await fails(f"{site.address}/car", pace=QUICK.model_copy(update={"max_pause_s": 0.1}))
    assert (error.reason, error.num_tries) == ("http_503", 1)


async def test_loops_and_long_chains_of_redirects_end(site: Site) -> None:
    site.says("/loop", status=302, Location="/loop")
    for step in range(8):
        site.says(f"/{step}", status=302, Location=f"/{step + 1}")
    site.says("/8", "end")
    assert (await fails(f"{site.address}/loop")).reason == "too_many_redirects"
    assert site.num_asked("/loop") == 1
    assert (await fails(f"{site.address}/0")).reason == "too_many_redirects"
    assert site.num_asked("/5") == 1
    assert site.num_asked("/6") == 0
    assert (await gets(f"{site.address}/3")).body == b"end"


async def test_a_redirect_out_of_the_web_is_not_followed(site: Site) -> None:
    site.says("/file", status=302, Location="file:///etc/passwd")
    site.says("/bad", status=302, Location="http://[bad/")
    site.says("/user", status=302, Location="http://root:pass@127.0.0.1/")
    site.says("/nowhere", status=302)
    for path in ("/file", "/bad", "/user"):
        assert (await fails(f"{site.address}{path}")).reason == "unsupported"
    assert (await fails(f"{site.address}/nowhere")).reason == "http_302"


@pytest.mark.parametrize("url", ["ftp://a.example/x", "http://", "http://u@a.example/", "not a url", "http://a:0/"])
async def test_only_plain_web_urls_are_fetched(url: str) -> None:
    error = await fails(url)
    assert (error.reason, error.num_tries, error.latency_s) == ("unsupported", 0, None)


async def test_requests_keep_the_pace_also_over_redirects_and_tries(site: Site) -> None:
    times = []

    async def stamp(request: web.Request) -> web.StreamResponse:
        times.append(asyncio.get_running_loop().time())
        if request.path == "/moved":
            return web.Response(status=302, headers={"Location": "/target"})
        return web.Response(status=503 if len(times) % 3 == 0 else 200)

    for path in ("/robots.txt", "/.well-known/tdmrep.json", "/moved", "/target"):
        site.pages[path] = stamp
    pace = QUICK.model_copy(update={"decrease": 0.99})
    async with fetcher(pace=pace, limits=HostLimits(20.0, concurrency=50)) as opened:
        await asyncio.gather(*(opened.get(f"{site.address}/moved", kind="page") for _ in range(20)))
    assert len(times) > 40
    assert all(sum(start <= moment < start + 1.0 for moment in times) <= 22 for start in times)


async def test_a_cancelled_fetch_gives_its_place_back(site: Site) -> None:
    async def slow(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(10)
        return web.Response()

    site.pages["/slow"] = slow
    site.says("/car", "x")
    async with fetcher(limits=HostLimits(1000.0, concurrency=1)) as opened:
        for delay_s in (0.0, 0.05, 0.2, 0.3):
            slow_get = asyncio.create_task(opened.get(f"{site.address}/slow", kind="page"))
            await asyncio.sleep(delay_s)
            slow_get.cancel()
            await asyncio.wait([slow_get])
        answer = await asyncio.wait_for(opened.get(f"{site.address}/car", kind="page"), 3.0)
    assert answer.body == b"x"


def test_errors_can_be_told_as_rows_and_travel(site: Site) -> None:
    failed = FetchFailed("http_404", "x", num_tries=2, status=404, latency_s=0.1, policy={"a": 1})
    refused_error = FetchRefused("robots")
    assert isinstance(failed, FetchError)
    assert isinstance(refused_error, PolicyError)
    assert failed.__reduce__() == (FetchFailed, ("http_404", "x"))


def test_the_fetcher_runs_on_uvloop() -> None:
    async def main() -> None:
        async with serve(Site()) as served:
            served.says("/car", "here")
            assert (await gets(f"{served.address}/car")).body == b"here"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.slow
async def test_20_000_fetches_leave_no_descriptors_and_no_memory_behind(site: Site) -> None:
    site.says("/photo", b"x" * 20_000)
    site.says("/moved", status=302, Location="/photo")
    site.says("/noai", b"x" * 20_000, X_Robots_Tag="noai")
    site.says("/large", b"x" * 200_000)
    paths = ("/photo", "/photo", "/photo", "/moved", "/noai", "/large", "/gone")
    settings = SETTINGS.model_copy(update={"photo_bytes": 100_000, "read_s": 20.0, "deadline_s": 60.0})
    process = psutil.Process()
    seen: list[tuple[int, int]] = []
    numbers = iter(range(20_000))

    async def work(opened: Fetcher) -> None:
        for number in numbers:
            with contextlib.suppress(FetchFailed, FetchRefused):
                await opened.get(f"{site.address}{paths[number % len(paths)]}?{number}", kind="photo")
            if number % 2000 == 1999:
                seen.append((process.num_fds(), process.memory_info().rss))

    site.requests = _Nothing()
    site.asked = _Nothing()
    async with fetcher(settings, limits=HostLimits(100_000.0, concurrency=16)) as opened:
        await asyncio.gather(*(work(opened) for _ in range(16)))
    (first_fds, first_bytes), rest = seen[0], seen[1:]
    assert max(fds for fds, _ in rest) <= first_fds + 5
    assert max(rss for _, rss in rest) <= first_bytes + 50_000_000


class _Nothing(list[Any]):
    """Remembers nothing, so that only the fetcher's own memory is seen."""

    def append(self, _item: Any) -> None:
        pass
