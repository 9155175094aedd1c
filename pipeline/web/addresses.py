"""Which hosts may be connected to: URLs and addresses checked before and after DNS.

Without `allow_private` every address that is not plainly public is refused, in whatever form it is written and however
it is wrapped (IPv4 in IPv6, NAT64, 6to4, Teredo), and so is a name with any such address among its own. Who connects
must use the addresses returned here, so that a name cannot change its address between check and connection.
"""

import asyncio
import ipaddress
import re
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from yarl import URL

from schemas.errors import FetchError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Lookup = Callable[[str, int], Awaitable[list[str]]]

_MAX_URL = 8192
_HOST = re.compile(r"[A-Za-z0-9._:-]+(%[A-Za-z0-9]+)?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_V4_COMPATIBLE = ipaddress.IPv6Network("::/96")
# Public by their numbers, but answered within a cloud by its own services.
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16"), ipaddress.ip_address("192.0.0.192")})


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that may be asked for as far as its text tells."""

    url: URL

    @property
    def hostname(self) -> str:
        """The host's name in ASCII, without a last dot."""
        return (self.url.raw_host or "").rstrip(".")

    @property
    def port(self) -> int:
        """The port, given or implied."""
        return self.url.port or _DEFAULT_PORTS[self.url.scheme]

    @property
    def host(self) -> str:
        """What a pace is kept for: the name, and the port unless it is the usual one."""
        name = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return name if self.port in _DEFAULT_PORTS.values() else f"{name}:{self.port}"

    @property
    def origin(self) -> str:
        """What a robots.txt speaks for: scheme, host and port."""
        return str(self.url.origin())

    @property
    def path(self) -> str:
        """Path and query as they are sent."""
        return self.url.raw_path_qs

    def join(self, location: str) -> "Target":
        """Resolve a redirect.

        Raises:
            FetchError: it leads to no URL of ours.
        """
        try:
            joined = self.url.join(URL(location))
        except ValueError as error:
            raise FetchError("unsupported", f"redirect to {location[:200]!r}: {error}") from error
        return read_url(str(joined))


def read_url(text: str) -> Target:
    """Parse a URL to fetch: http or https, a host, no user name.

    Raises:
        FetchError: `unsupported`, with what is wrong.
    """
    shown = text[:200]
    try:
        url = URL(text.strip()).with_fragment(None)
    except ValueError as error:
        raise FetchError("unsupported", f"no URL: {shown!r}: {error}") from error
    if len(text) > _MAX_URL:
        raise FetchError("unsupported", f"URL of {len(text)} characters: {shown!r}")
    if url.scheme not in _DEFAULT_PORTS:
        raise FetchError("unsupported", f"only http and https URLs are fetched: {shown!r}")
    if url.user is not None or url.password is not None:
        raise FetchError("unsupported", f"a URL with a user name in it is not fetched: {url.raw_host}")
    if not url.raw_host or not _HOST.fullmatch(url.raw_host) or url.port == 0:
        raise FetchError("unsupported", f"no host in {shown!r}")
    return Target(url)


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the open internet, and so is any that it wraps."""
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = _wrapped(address)
        if wrapped:
            return all(is_public(inner) for inner in wrapped)
        if address.is_site_local:
            return False
    forbidden = address.is_multicast or address.is_reserved or address.is_unspecified or address in _METADATA
    return address.is_global and not forbidden


def _wrapped(address: ipaddress.IPv6Address) -> list[Address]:
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        return [address.sixtofour]
    if address.teredo is not None:
        return list(address.teredo)
    if address in _NAT64 or address in _V4_COMPATIBLE:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    return []


class AddressBook:
    """Looks names up, remembers the answers for a while, and refuses what is not public."""

    def __init__(
        self,
        *,
        allow_private: bool,
        ttl_s: float = 300.0,
        max_names: int = 1000,
        timeout_s: float = 10.0,
        lookup: Lookup | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allow_private = allow_private
        self._ttl_s = ttl_s
        self._max_names = max_names
        self._timeout_s = timeout_s
        self._lookup = lookup or look_up
        self._clock = clock
        self._known: OrderedDict[tuple[str, int], tuple[tuple[str, ...], float]] = OrderedDict()
        self._pending: dict[tuple[str, int], asyncio.Task[tuple[str, ...]]] = {}

    async def addresses(self, hostname: str, port: int) -> tuple[str, ...]:
        """Return the addresses that may be connected to.

        Raises:
            FetchError: `dns` where the name has none, `private_address` where it has one that is refused.
        """
        key = (hostname, port)
        known, expires = self._known.get(key, ((), 0.0))
        if known and self._clock() < expires:
            return known
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = asyncio.create_task(self._ask(key))
            pending.add_done_callback(lambda task: self._finish(key, task))
        # Others may wait for the same answer: one of them giving up must not end it.
        return await asyncio.shield(pending)

    def _finish(self, key: tuple[str, int], task: "asyncio.Task[tuple[str, ...]]") -> None:
        del self._pending[key]
        if task.cancelled() or task.exception() is not None:
            return
        self._known[key] = (task.result(), self._clock() + self._ttl_s)
        self._known.move_to_end(key)
        while len(self._known) > self._max_names:
            self._known.popitem(last=False)

    async def _ask(self, key: tuple[str, int]) -> tuple[str, ...]:
        hostname, port = key
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await self._lookup(hostname, port)
        except TimeoutError as error:
            raise FetchError("dns", f"{hostname}: no answer within {self._timeout_s:g} s") from error
        except (OSError, UnicodeError) as error:
            raise FetchError("dns", f"{hostname}: {error}") from error
        if not found:
            raise FetchError("dns", f"{hostname} has no address")
        if not self._allow_private:
            for text in found:
                if not is_public(ipaddress.ip_address(text.partition("%")[0])):
                    raise FetchError("private_address", f"{hostname} is {text}, which is not public")
        return tuple(dict.fromkeys(found))


async def look_up(hostname: str, port: int) -> list[str]:
    """Ask the system for a host's addresses; numbers in any form the system knows count as hosts."""
    infos = await asyncio.get_running_loop().getaddrinfo(hostname, port, type=socket.SOCK_STREAM)
    families = (socket.AF_INET, socket.AF_INET6)
    return [str(address[0]) for family, _, _, _, address in infos if family in families]


async def check_url(url: str, *, allow_private: bool) -> Target:
    """Check that a URL may be fetched by its text and by the addresses its host has now.

    Who fetches must still connect to the checked addresses, as a Fetcher does.

    Raises:
        FetchError: `unsupported`, `dns` or `private_address`.
    """
    target = read_url(url)
    await AddressBook(allow_private=allow_private).addresses(target.hostname, target.port)
    return target
