import asyncio
import gzip
import socket
import struct
import zlib
from collections.abc import AsyncIterator

import pytest

from pipeline.fetch import FetchFailed
from pipeline.web.addresses import AddressBook
from pipeline.web.pace import HostLimits
from schemas.errors import CircuitOpenError
from tests.pipeline.web_servers import (
    QUICK,
    SETTINGS,
    Site,
    fails,
    fetcher,
    gets,
    raw_server,
    serve,
    with_robots,
)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serve(Site()) as served:
        yield served


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "169.254.169.254"]
)
async def test_private_addresses_are_refused_in_any_form(site: Site, host: str) -> None:
    port = site.address.rsplit(":", 1)[1]
    assert (await fails(f"http://{host}:{port}/car", allow_private=False)).reason == "private_address"
    assert site.asked == []


async def test_a_redirect_to_a_private_address_is_refused(site: Site) -> None:
    async def lookup(hostname: str, _port: int) -> list[str]:
        # The first name is let through as a public host would be.
        return ["127.0.0.1"] if hostname == "cars.example" else ["10.0.0.8"]

    class FirstIsPublic(AddressBook):
        async def addresses(self, hostname: str, port: int) -> tuple[str, ...]:
            if hostname == "cars.example":
                return ("127.0.0.1",)
            return await super().addresses(hostname, port)

    port = site.address.rsplit(":", 1)[1]
    site.says("/car", status=302, Location="http://inside.example/admin")
    book = FirstIsPublic(allow_private=False, lookup=lookup)
    error = await fails(f"http://cars.example:{port}/car", allow_private=False, addresses=book)
    assert error.reason == "private_address"
    assert "/car" in site.asked


async def test_the_connection_goes_to_the_checked_address_whatever_the_name_says_later(site: Site) -> None:
    answers = iter([["127.0.0.1"], ["127.0.0.99"]])

    async def lookup(_hostname: str, _port: int) -> list[str]:
        return next(answers)

    port = site.address.rsplit(":", 1)[1]
    site.says("/car", "here")
    async with fetcher(addresses=AddressBook(allow_private=True, lookup=lookup)) as opened:
        for _ in range(3):
            assert (await opened.get(f"http://cars.example:{port}/car", kind="page")).body == b"here"


async def test_a_name_without_address_is_named(site: Site) -> None:
    async def lookup(_hostname: str, _port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    error = await fails("http://cars.example/car", addresses=AddressBook(allow_private=True, lookup=lookup))
    assert error.reason == "dns"


async def test_a_refused_connection_is_named(site: Site) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = await fails(f"http://127.0.0.1:{taken.getsockname()[1]}/car", kind="photo")
    assert error.reason == "connect"


async def test_a_server_that_speaks_no_tls_is_named(site: Site) -> None:
    assert (await fails(site.address.replace("http:", "https:") + "/car")).reason == "tls"


async def test_resets_are_tried_again_each_try_being_one_request() -> None:
    num_requests = 0

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_requests
        num_requests += 1
        if num_requests > 3:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
            return
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with raw_server(with_robots(reset)) as host:
        answer = await gets(f"http://{host}/car")
    assert (answer.body, answer.num_tries, num_requests) == (b"ok", 4, 4)


async def test_a_body_cut_short_is_a_broken_connection() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
        await writer.drain()

    async with raw_server(with_robots(cut)) as host:
        error = await fails(f"http://{host}/car")
    assert (error.reason, error.status, error.num_tries) == ("connect", 200, 4)


@pytest.mark.parametrize(
    "answer", [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"\0" * 4000, b""]
)
async def test_what_is_no_http_is_a_broken_connection(answer: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    async with raw_server(with_robots(speak)) as host:
        assert (await fails(f"http://{host}/car")).reason == "connect"


async def test_headers_that_are_no_text_are_read_as_text_and_odd_validators_left_out() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        odd = b'ETag: "\xff"\r\nContent-Type: text/\xfe\r\nLast-Modified: ' + b"x" * 1025
        writer.write(b"HTTP/1.1 200 OK\r\n" + odd + b"\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with raw_server(with_robots(speak)) as host:
        headers = (await gets(f"http://{host}/car")).headers
    assert headers == {"etag": '"\ufffd"', "content-type": "text/\ufffd", "content-length": "0"}


@pytest.mark.parametrize("header", [b"X-Long: " + b"x" * 70_000, b"\r\n".join(b"X-%d: y" % i for i in range(1000))])
async def test_headers_are_bounded(header: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + header + b"\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with raw_server(with_robots(speak)) as host:
        assert (await fails(f"http://{host}/car")).reason == "too_large"


async def test_silence_is_a_timeout_and_a_drip_meets_the_deadline() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    settings = SETTINGS.model_copy(update={"read_s": 0.2, "deadline_s": 0.5, "max_tries": 2})
    async with raw_server(with_robots(silent)) as host:
        error = await fails(f"http://{host}/car", settings=settings)
        assert (error.reason, error.num_tries, error.status) == ("timeout", 2, None)
    async with raw_server(with_robots(drip)) as host:
        error = await fails(f"http://{host}/car", settings=settings)
        assert (error.reason, error.num_tries, error.status) == ("deadline", 2, 200)


async def test_waiting_for_the_pace_is_no_part_of_the_deadline(site: Site) -> None:
    site.says("/car", "here")
    settings = SETTINGS.model_copy(update={"deadline_s": 0.3, "max_tries": 1})
    async with fetcher(settings, limits=HostLimits(1.0)) as opened:
        assert (await opened.get(f"{site.address}/car", kind="page")).body == b"here"


async def test_endless_bodies_and_announced_giants_are_cut_off() -> None:
    sent_bytes = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent_bytes
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            sent_bytes += 65536
            await writer.drain()

    async def giant(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(1)

    settings = SETTINGS.model_copy(update={"page_bytes": 100_000, "photo_bytes": 200_000})
    for kind in ("page", "photo"):
        async with raw_server(with_robots(endless)) as host:
            error = await fails(f"http://{host}/car", kind=kind, settings=settings)
            assert (error.reason, error.num_tries) == ("too_large", 1)
        async with raw_server(with_robots(giant)) as host:
            assert (await fails(f"http://{host}/car", kind=kind, settings=settings)).reason == "too_large"
    assert sent_bytes < 20_000_000


async def test_compressed_bodies_are_decoded_within_the_cap(site: Site) -> None:
    page = b"<h1>A car</h1>" * 100
    site.says("/gzip", gzip.compress(page), Content_Encoding="gzip")
    site.says("/deflate", zlib.compress(page), Content_Encoding="deflate")
    site.says("/bomb", gzip.compress(b"\0" * 50_000_000), Content_Encoding="gzip")
    site.says("/cut", gzip.compress(page)[:-20], Content_Encoding="gzip")
    site.says("/strange", page, Content_Encoding="lzma")
    assert (await gets(f"{site.address}/gzip")).body == page
    assert (await gets(f"{site.address}/deflate")).body == page
    assert (await fails(f"{site.address}/bomb", kind="photo")).reason == "too_large"
    assert (await fails(f"{site.address}/cut")).reason == "corrupt"
    assert (await fails(f"{site.address}/strange")).reason == "unsupported"


async def test_a_photos_error_body_is_not_read() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 Not Found\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with raw_server(with_robots(endless)) as host:
        assert (await fails(f"http://{host}/car.jpg", kind="photo")).reason == "http_404"
        assert (await fails(f"http://{host}/car", kind="page")).reason == "too_large"


async def test_an_open_circuit_stops_the_run_for_an_essential_host_and_is_a_row_for_others() -> None:
    async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    pace = QUICK.model_copy(update={"breaker_failures": 5, "breaker_s": 0.0})
    essential = HostLimits(1000.0, essential=True)
    async with raw_server(with_robots(fail)) as host, fetcher(pace=pace, limits=essential) as opened:
        with pytest.raises(FetchFailed, match="http_500"):
            await opened.get(f"http://{host}/1.jpg", kind="photo")
        with pytest.raises(FetchFailed, match="circuit_open"):
            await opened.get(f"http://{host}/2.jpg", kind="photo")
        with pytest.raises(CircuitOpenError, match="requests in a row failed"):
            await opened.get(f"http://{host}/listing", kind="page")


async def test_a_dead_essential_host_stops_the_run_in_the_end() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/car"
        pace = QUICK.model_copy(update={"breaker_failures": 5, "breaker_s": 0.0})
        async with fetcher(pace=pace, limits=HostLimits(1000.0, essential=True)) as opened:
            with pytest.raises(FetchFailed, match="connect"):
                await opened.get(url, kind="page")
            await asyncio.sleep(1.1)
            with pytest.raises(CircuitOpenError):
                await opened.get(url, kind="page")
