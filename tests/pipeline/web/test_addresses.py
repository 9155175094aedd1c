import asyncio
import ipaddress
import socket

import pytest

from pipeline.web.addresses import AddressBook, Lookup, check_url, is_public, read_url
from schemas.errors import FetchError


def names(**known: str) -> Lookup:
    async def lookup(hostname: str, _port: int) -> list[str]:
        if hostname.replace(".", "_") not in known:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return known[hostname.replace(".", "_")].split()

    return lookup


@pytest.mark.parametrize(
    "address",
    "0.0.0.0 10.1.2.3 100.64.0.1 100.100.100.200 127.0.0.1 127.9.9.9 168.63.129.16 169.254.169.254"
    " 172.16.0.1 192.0.0.192 192.0.2.1 192.168.0.1 198.18.0.1 224.0.0.1 240.0.0.1 255.255.255.255 ::"
    " ::1 ::127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b:1::1 2001:db8::1"
    " 2002:7f00:1:: 2001:0:7f00:1::1 fc00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1".split(),
)
def test_addresses_that_are_not_of_the_open_internet(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", "1.1.1.1 8.8.8.8 93.184.216.34 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808".split()
)
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f000001", "017700000001", "127.1", "0"])
async def test_numbers_in_any_form_are_hosts(host: str) -> None:
    with pytest.raises(FetchError, match="private_address"):
        await check_url(f"http://{host}/", allow_private=False)
    assert (await check_url(f"http://{host}/", allow_private=True)).path == "/"


async def test_one_private_address_spoils_a_name() -> None:
    book = AddressBook(
        allow_private=False, lookup=names(mixed_example="93.184.216.34 10.0.0.1", good_example="1.1.1.1")
    )
    with pytest.raises(FetchError, match=r"private_address: mixed.example is 10\.0\.0\.1"):
        await book.addresses("mixed.example", 80)
    assert await book.addresses("good.example", 80) == ("1.1.1.1",)
    with pytest.raises(FetchError, match="dns"):
        await book.addresses("none.example", 80)


async def test_answers_are_remembered_for_a_while_and_shared() -> None:
    now, num_asked = 0.0, 0

    async def lookup(_hostname: str, _port: int) -> list[str]:
        nonlocal num_asked
        num_asked += 1
        await asyncio.sleep(0.01)
        return ["1.1.1.1", "1.1.1.1"]

    book = AddressBook(allow_private=False, ttl_s=60.0, max_names=2, lookup=lookup, clock=lambda: now)
    waiting = [asyncio.create_task(book.addresses("a.example", 80)) for _ in range(10)]
    await asyncio.sleep(0.001)
    waiting[0].cancel()
    assert [await one for one in waiting[1:]] == [("1.1.1.1",)] * 9
    assert num_asked == 1
    now = 61.0
    await book.addresses("a.example", 80)
    assert num_asked == 2
    for name in ("b.example", "c.example", "a.example"):
        await book.addresses(name, 80)
    assert num_asked == 5, "only two names are remembered"


async def test_a_name_that_takes_too_long_is_given_up() -> None:
    async def lookup(_hostname: str, _port: int) -> list[str]:
        await asyncio.sleep(10)
        return []

    with pytest.raises(FetchError, match=r"dns: slow\.example: no answer"):
        await AddressBook(allow_private=False, timeout_s=0.01, lookup=lookup).addresses("slow.example", 80)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "car",
        "//a.example/x",
        "ftp://a.example/",
        "file:///etc/passwd",
        "javascript:1",
        "http://",
        "http:///x",
        "http://user@a.example/",
        "http://user:pw@a.example/",
        "http://:pw@a.example/",
        "http://a.example:99999/",
        "http://a.example:0/",
        "http://a b/",
        "http://[::1/",
        "http://a.example/" + "x" * 9000,
    ],
)
def test_what_is_no_url_to_fetch(url: str) -> None:
    with pytest.raises(FetchError, match="unsupported"):
        read_url(url)


@pytest.mark.parametrize(
    ("url", "host", "origin", "path"),
    [
        ("http://Cars.Example/a?b=c#d", "cars.example", "http://cars.example", "/a?b=c"),
        ("https://cars.example:443/", "cars.example", "https://cars.example", "/"),
        ("https://cars.example:8443", "cars.example:8443", "https://cars.example:8443", "/"),
        ("http://cars.example./a/../b", "cars.example", "http://cars.example.", "/b"),
        ("http://[::1]:8080/", "[::1]:8080", "http://[::1]:8080", "/"),
        ("  http://\u00fcber.example/\u00fc ", "xn--ber-goa.example", "http://xn--ber-goa.example", "/%C3%BC"),
    ],
)
def test_a_url_is_read(url: str, host: str, origin: str, path: str) -> None:
    target = read_url(url)
    assert (target.host, target.origin, target.path) == (host, origin, path)


def test_redirects_are_resolved() -> None:
    target = read_url("http://a.example/x/y")
    assert target.join("z").path == "/x/z"
    assert target.join("//b.example/").host == "b.example"
    with pytest.raises(FetchError, match="unsupported"):
        target.join("gopher://b.example/")
    with pytest.raises(FetchError, match="unsupported: redirect to"):
        target.join("http://[x/")
