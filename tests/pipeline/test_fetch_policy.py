import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.pipeline.web_servers import (
    SETTINGS,
    Site,
    fetcher,
    gets,
    raw_server,
    refused,
    serve,
)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serve(Site()) as served:
        yield served


async def test_redirects_are_followed_and_judged_one_by_one(site: Site) -> None:
    site.says("/robots.txt", "User-agent: *\nDisallow: /members")
    site.says("/a", status=301, Location="/b?x=1")
    site.says("/b", status=302, Location=f"{site.address}/c")
    site.says("/c", "here")
    site.says("/d", status=307, Location="/members/1")
    site.says("/members/1", "secret")
    answer = await gets(f"{site.address}/a")
    assert (answer.url, answer.body, answer.num_tries) == (f"{site.address}/c", b"here", 1)
    error = await refused(f"{site.address}/d")
    assert (error.reason, error.num_tries) == ("robots", 1)
    assert error.policy["robots"]["rule"] == "Disallow: /members"
    assert site.num_asked("/members/1") == 0


async def test_a_redirect_to_another_site_is_judged_by_that_site(site: Site) -> None:
    async with serve(Site()) as other:
        other.says("/robots.txt", "User-agent: forecourt\nDisallow: /")
        site.says("/a", status=302, Location=f"{other.address}/photo")
        assert (await refused(f"{site.address}/a", kind="photo")).reason == "robots"
        assert other.asked == ["/robots.txt"]


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"X_Robots_Tag": "noai"}, "noai"),
        ({"X_Robots_Tag": "forecourt: noimageai"}, "noai"),
        ({"tdm_reservation": "1"}, "tdm"),
        ({"Content_Usage": "train-ai=n"}, "content_usage"),
        ({"Content_Signal": "search=yes, ai-train=no"}, "content_usage"),
    ],
)
@pytest.mark.parametrize("kind", ["page", "photo"])
async def test_what_headers_forbid_is_not_used(site: Site, headers: dict[str, str], reason: str, kind: str) -> None:
    site.says("/car", "text", 200, **headers)
    error = await refused(f"{site.address}/car", kind=kind)
    assert (error.reason, error.status) == (reason, 200)
    assert next(iter(headers)).lower().replace("_", "-") in error.policy


async def test_what_a_page_forbids_is_not_used(site: Site) -> None:
    site.says("/noai", '<meta name="robots" content="noai">')
    site.says("/tdm", '<meta name="tdm-reservation" content="1">')
    assert (await refused(f"{site.address}/noai")).reason == "noai"
    assert (await refused(f"{site.address}/tdm")).reason == "tdm"
    policy = SETTINGS.policy.model_copy(update={"noai": False, "tdm": False})
    settings = SETTINGS.model_copy(update={"policy": policy})
    assert (await gets(f"{site.address}/noai", settings=settings)).status == 200
    assert (await gets(f"{site.address}/tdm", settings=settings)).status == 200


async def test_a_tdm_file_reserves_what_it_names(site: Site) -> None:
    site.says("/.well-known/tdmrep.json", json.dumps([{"location": "/photos/*", "tdm-reservation": 1}]))
    site.says("/photos/1", "x")
    site.says("/car", "x")
    error = await refused(f"{site.address}/photos/1", kind="photo")
    assert (error.reason, error.policy["tdm"]["location"]) == ("tdm", "/photos/*")
    assert site.num_asked("/photos/1") == 0
    assert (await gets(f"{site.address}/car")).status == 200


async def test_a_tdm_file_that_robots_forbids_is_not_asked_for(site: Site) -> None:
    site.says("/robots.txt", "User-agent: *\nDisallow: /.well-known/")
    site.says("/car", "x")
    assert (await gets(f"{site.address}/car")).status == 200
    assert site.asked == ["/robots.txt", "/car"]


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_a_broken_robots_file_disallows_all(site: Site, status: int) -> None:
    site.says("/robots.txt", "Allow: /", status=status)
    error = await refused(f"{site.address}/car")
    assert error.reason == "robots"
    assert error.policy["robots"]["status"] == status
    assert set(site.asked) == {"/robots.txt"}
    assert error.passing


async def test_an_owner_who_refuses_is_told_from_one_who_could_not_be_heard(site: Site) -> None:
    site.says("/robots.txt", "User-agent: *\nDisallow: /car")
    assert not (await refused(f"{site.address}/car")).passing
    site.says("/.well-known/tdmrep.json", status=502)
    error = await refused(f"{site.address}/other")
    assert (error.reason, error.passing, error.policy["passing"]) == ("tdm", True, True)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_a_missing_robots_file_allows_all(site: Site, status: int) -> None:
    site.says("/robots.txt", "User-agent: *\nDisallow: /", status=status)
    site.says("/car", "x")
    assert (await gets(f"{site.address}/car")).policy["robots"]["status"] == status


async def test_a_robots_file_that_breaks_off_disallows_all() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with raw_server(hang_up) as host:
        error = await refused(f"http://{host}/car")
    assert (error.reason, error.policy["robots"]["error"]) == ("robots", "connect")


async def test_robots_redirects_are_followed_five_times_also_to_other_hosts(site: Site) -> None:
    async with serve(Site()) as other:
        other.says("/rules", "User-agent: *\nDisallow: /car")
        for step in range(1, 5):
            site.says(f"/r{step}", status=301, Location=f"/r{step + 1}")
        site.says("/robots.txt", status=301, Location="/r1")
        site.says("/r4", status=301, Location=f"{other.address}/rules")
        error = await refused(f"{site.address}/car")
        assert error.policy["robots"]["url"] == f"{other.address}/rules"
        site.says("/r4", status=301, Location="/r5")
        site.says("/r5", status=301, Location=f"{other.address}/rules")
        site.says("/car", "x")
        assert (await gets(f"{site.address}/car")).policy["robots"]["error"] == "too_many_redirects"


async def test_only_the_first_500_kib_of_a_robots_file_count(site: Site) -> None:
    filler = "#" + "x" * 1022 + "\n"
    site.says("/robots.txt", "User-agent: *\nDisallow: /early\n" + filler * 501 + "Disallow: /late\n")
    site.says("/late", "x")
    assert (await gets(f"{site.address}/late")).status == 200
    assert (await refused(f"{site.address}/early")).reason == "robots"


async def test_robots_is_asked_for_once_for_many_urls_at_once(site: Site) -> None:
    for number in range(30):
        site.says(f"/{number}", "x")
    async with fetcher() as opened:
        await asyncio.gather(*(opened.get(f"{site.address}/{number}", kind="page") for number in range(30)))
    assert site.num_asked("/robots.txt") == 1
    assert site.num_asked("/.well-known/tdmrep.json") == 1


async def test_robots_can_be_left_aside_by_a_setting(site: Site) -> None:
    site.says("/robots.txt", "User-agent: *\nDisallow: /")
    site.says("/car", "x")
    policy = SETTINGS.policy.model_copy(update={"robots": False, "content_usage": False, "tdm": False})
    assert (await gets(f"{site.address}/car", settings=SETTINGS.model_copy(update={"policy": policy}))).status == 200
    assert site.asked == ["/car"]


async def test_crawl_delay_slows_the_host_down(site: Site) -> None:
    site.says("/robots.txt", "User-agent: *\nCrawl-delay: 0.5")
    site.says("/car", "x")
    async with fetcher() as opened:
        await opened.get(f"{site.address}/car", kind="page")
        began = asyncio.get_running_loop().time()
        for _ in range(3):
            await opened.get(f"{site.address}/car", kind="page")
        assert asyncio.get_running_loop().time() - began >= 1.4
