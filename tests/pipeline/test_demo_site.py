import asyncio
import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp.test_utils import TestClient, TestServer

from pipeline import demo_site
from pipeline.drawn_site.faults import PASSING
from pipeline.drawn_site.server import SITE_KEY, DemoConfig, DemoSite, build_app
from pipeline.drawn_site.truth import expected_counts
from pipeline.sites import load_site

FIRST = 660_000_000
Client = TestClient[Any, Any]


@asynccontextmanager
async def running(**config: Any) -> AsyncIterator[tuple[Client, DemoSite]]:
    app = build_app(DemoConfig(**{"listings": 60} | config))
    async with TestClient(TestServer(app)) as client:
        yield client, app[SITE_KEY]


async def truth_of(client: Client, **query: int) -> Any:
    async with client.get("/truth.json", params=query) as answer:
        assert answer.status == 200
        return await answer.json()


async def get(client: Client, path: str, **headers: str) -> tuple[int, bytes, Any]:
    async with client.get(path, headers=headers, allow_redirects=False) as answer:
        return answer.status, await answer.read(), answer.headers


async def test_every_id_answers_as_the_truth_says() -> None:
    async with running() as (client, _):
        truth = await truth_of(client)
        for number, entry in truth["ids"].items():
            status, body, _ = await get(client, f"/listing/{number}")
            assert status == {"gone_404": 404, "gone_410": 410}.get(entry["state"], 200)
            assert (b'class="unavailable"' in body) == (entry["state"] != "live")
        assert {entry["outcome"] for entry in truth["ids"].values()} == {"found", "gone"}


async def test_photos_are_served_under_their_urls_alone_and_equal_contents_are_equal_bytes() -> None:
    async with running() as (client, _):
        truth = await truth_of(client)
        seen: dict[str, set[str]] = {}
        for photo in truth["photos"].values():
            if photo["error"] == "too_large":
                continue
            status, body, headers = await get(client, photo["url"])
            assert status == (404 if photo["error"] == "http_404" else 200)
            assert status == 404 or headers["Content-Type"].startswith("image/")
            if photo["broken"] is None:
                seen.setdefault(photo["content"], set()).add(hashlib.sha256(body).hexdigest())
        assert all(len(digests) == 1 for digests in seen.values())
        assert len(set.union(*seen.values())) == len(seen)
        url = next(iter(truth["photos"].values()))["url"]
        assert (await get(client, url.replace(".", "x.")))[0] == 404


async def test_an_oversized_photo_says_so_and_survives_a_reader_that_hangs_up() -> None:
    async with running(listings=1200) as (client, _):
        photos = (await truth_of(client))["photos"].values()
        url = next(photo["url"] for photo in photos if photo["broken"] == "oversized")
        async with client.get(url) as answer:
            assert answer.content_length is not None
            assert answer.content_length > 200 << 20
            await answer.content.readexactly(1 << 20)
        assert (await get(client, "/robots.txt"))[0] == 200


async def test_a_site_without_listings_says_gone_to_any_id() -> None:
    async with running(listings=0) as (client, _):
        assert [(await get(client, f"/listing/{number}"))[0] for number in (1, FIRST, FIRST + 10**6)] == [404, 404, 404]
        assert (await truth_of(client))["ids"] == {}


async def test_an_etag_saves_the_body_until_an_edition_changes_the_page() -> None:
    async with running(listings=400) as (client, site), running(listings=400, edition=1) as (later, changed):
        kept = sold = cheaper = 0
        for number in range(FIRST, FIRST + 400):
            if site.stock.state(number) != "live":
                continue
            _, _, headers = await get(client, f"/listing/{number}", Host="demo.example")
            tag = {"If-None-Match": headers["ETag"], "Host": "demo.example"}
            assert (await get(client, f"/listing/{number}", **tag))[0] == 304
            status, _, _ = await get(later, f"/listing/{number}", **tag)
            kept, sold, cheaper = kept + (status == 304), sold + (status == 410), cheaper + (status == 200)
        assert kept > sold + cheaper
        assert sold > 3
        assert cheaper > 10
        photo = next(
            changed.stock.listing(n).photos[0] for n in range(FIRST, FIRST + 400) if changed.stock.state(n) == "live"
        )
        _, _, headers = await get(later, photo.path)
        assert (await get(later, photo.path, **{"If-None-Match": headers["ETag"]}))[0] == 304


async def test_photo_bytes_are_kept_up_to_a_bound() -> None:
    async with running(cache_bytes=200_000) as (client, site):
        for photo in (await truth_of(client))["photos"].values():
            if photo["error"] != "too_large":
                await get(client, photo["url"])
            assert site._kept_bytes == sum(map(len, site._kept.values()))
            assert site._kept_bytes <= 200_000


async def test_requests_are_recorded_with_time_path_and_port() -> None:
    async with running() as (client, _):
        await get(client, "/listing/1")
        between_s = time.monotonic()
        await get(client, "/listing/2")
        async with client.get("/requests.json") as answer:
            said = await answer.json()
        assert [row[said["columns"].index("path")] for row in said["rows"]] == ["/listing/1", "/listing/2"]
        async with client.get("/requests.json", params={"since": str(between_s)}) as answer:
            (row,) = (await answer.json())["rows"]
        assert row[1] == "/listing/2"
        assert between_s <= row[0] <= time.monotonic()
        assert row[2] > 0


async def test_the_truth_is_given_by_range_and_refuses_a_giant_one() -> None:
    async with running(listings=10**6) as (client, _):
        truth = await truth_of(client, first=FIRST + 10, last=FIRST + 19)
        assert list(truth["ids"]) == [str(FIRST + number) for number in range(10, 20)]
        assert (await get(client, "/truth.json"))[0] == 400


async def ends_well(client: Client, path: str) -> bool:
    try:
        status, _, _ = await get(client, path)
    except (aiohttp.ClientError, TimeoutError):
        return False
    return status < 400


async def test_each_passing_fault_spoils_its_tries_and_then_never_again() -> None:
    async with running(listings=3000, faults=True) as (client, site):
        assert site.plan is not None
        met = {}
        for number in range(FIRST, FIRST + 3000):
            path = f"/listing/{number}"
            fault = site.plan.of(path, "page") if site.stock.state(number) == "live" else None
            if fault is not None and fault.num_tries is not None and fault.kind not in met:
                met[fault.kind] = (path, fault.num_tries)
        assert set(met) == set(PASSING)
        for kind, (path, num_tries) in met.items():
            if kind == "slow":
                continue
            tries = [await get_quietly(client, path) for _ in range(num_tries + 2)]
            usual = [b"Demo Motors" in body and b"captcha" not in body for body in tries]
            assert usual == [False] * num_tries + [True, True], kind
        path, _ = met["unavailable"]
        assert await ends_well(client, path)
        await get(client, "/reset-tries")
        assert not await ends_well(client, path)


async def get_quietly(client: Client, path: str) -> bytes:
    try:
        status, body, _ = await get(client, path)
    except (aiohttp.ClientError, TimeoutError):
        return b""
    return body if status == 200 else b""


async def test_a_busy_site_says_when_to_come_again_in_seconds_or_as_a_date() -> None:
    async with running(listings=3000, faults=True, fault_scale=3) as (client, site):
        said = {}
        for number in range(FIRST, FIRST + 3000):
            fault = (
                site.plan.of(f"/listing/{number}", "gone") if site.plan and site.stock.state(number) != "live" else None
            )
            if fault is not None and fault.kind.startswith("busy") and fault.kind not in said:
                status, _, headers = await get(client, f"/listing/{number}")
                assert status == 429
                said[fault.kind] = headers["Retry-After"]
        assert said["busy_seconds"] == "1"
        assert said["busy_date"].endswith("GMT")


async def test_lasting_faults_answer_as_their_names_say() -> None:
    async with running(listings=3000, faults=True, fault_scale=2) as (client, site):
        assert site.plan is not None
        paths: dict[str, str] = {}
        for number in range(FIRST, FIRST + 3000):
            if site.stock.state(number) == "live" and (fault := site.plan.of(f"/listing/{number}", "page")):
                paths.setdefault(fault.kind, f"/listing/{number}")
        for _ in range(2):
            assert (await get(client, paths["noai_header"]))[2]["X-Robots-Tag"] == "noai, noimageai"
            assert b'<meta name="robots" content="noai' in (await get(client, paths["noai_meta"]))[1]
            assert (await get(client, paths["tdm_header"]))[2]["tdm-reservation"] == "1"
            assert (await get(client, paths["usage_header"]))[2]["Content-Usage"] == "train-ai=n"
            assert (await get(client, paths["down"]))[0] == 503
            assert b"captcha" in (await get(client, paths["block_200"]))[1]
            assert (await get(client, paths["block_403"]))[0] == 403
            assert (await get(client, paths["image_page"]))[2]["Content-Type"] == "image/jpeg"
            assert (await get(client, paths["redirect_members"]))[2]["Location"].startswith("/members/")
        async with client.get(paths["redirect"]) as answer:
            assert (answer.status, answer.url.path) == (200, f"/moved{paths['redirect']}")
        with pytest.raises(aiohttp.TooManyRedirects):
            await client.get(paths["redirect_loop"])
        async with client.get(paths["endless"]) as answer:
            await answer.content.readexactly(8 << 20)


async def test_the_truth_without_faults_has_no_failures_and_with_them_has_each() -> None:
    async with running(listings=2000) as (client, _), running(listings=2000, faults=True) as (faulty, _):
        plain, hard = expected_counts(await truth_of(client)), expected_counts(await truth_of(faulty))
        assert plain["failed"] == plain["disallowed"] == plain["photos_disallowed"] == 0
        assert (
            plain["found"] + plain["gone"] == hard["found"] + hard["gone"] + hard["failed"] + hard["disallowed"] == 2000
        )
        assert hard["failed"] > 20
        assert hard["disallowed"] > 20
        assert hard["photos_disallowed"] > 50


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, demo_site.__file__, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_script_prints_its_address_writes_the_site_file_and_ends_well(
    tmp_path: Path, ending: signal.Signals
) -> None:
    file = tmp_path / "site.yaml"
    process = start("--listings", "50", "--port", "0", "--shape", "state", "--rate", "33", "--write-site", str(file))
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    process.send_signal(ending)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    site = load_site(file)
    assert address.startswith("http://127.0.0.1:")
    assert site.base_url == address
    assert (site.ids.first, site.ids.last) == (FIRST, FIRST + 49)
    assert (site.politeness.requests_per_second, site.politeness.concurrency) == (33, 64)
    assert yaml.safe_load(file.read_text())["extract"]["script"] == "window.__STATE__="


async def test_a_taken_port_and_bad_arguments_are_refused_with_words(tmp_path: Path) -> None:
    async with running() as (client, _):
        process = await asyncio.to_thread(start, "--port", str(client.port))
        _, errors = await asyncio.to_thread(process.communicate, timeout=30)
        assert process.returncode == 1
        assert "choose another --port" in errors
    process = start("--listings", "-1", "--port", "0")
    assert "--listings and --first must not be negative" in process.communicate(timeout=30)[1]
    assert process.returncode == 2
