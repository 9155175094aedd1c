"""The door to the web: fetch a page or a photo as a guest would, or say by a short name why not.

Every request, those after redirects and for robots.txt among them, goes to a checked address, is allowed by its site,
keeps its host's pace, and is bounded in time and bytes. No cookies are kept and no proxy is used.

What becomes of a URL depends on what the servers do, not on who asks or when: each try is one request, and nothing is
asked again behind the caller's back.
"""

import asyncio
import logging
import random
import socket
import ssl
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from pipeline.web.addresses import AddressBook, Target, check_url, read_url
from pipeline.web.answers import (
    Answer,
    FetchFailed,
    FetchRefused,
    Kind,
    Trip,
    read_headers,
    redirect_of,
    retry_after_s,
)
from pipeline.web.bodies import ACCEPT_ENCODING, Body
from pipeline.web.departure import Departure
from pipeline.web.pace import HostLimits, HostOutcome, PaceClient, local_pace
from pipeline.web.policy import ROBOTS_PATH, Decision, PolicySettings, SiteText, judge_headers, judge_page
from pipeline.web.robots import MAX_ROBOTS_BYTES, agent_token, cut_robots
from pipeline.web.site_rules import SiteRules
from schemas.errors import CircuitOpenError, FetchError, PolicyError, RowError, RunError, http_reason, is_transient
from schemas.settings import Section, operational, result

__all__ = ["Answer", "FetchFailed", "FetchRefused", "FetchSettings", "Fetcher", "HostLimits", "check_url", "local_pace"]

_ACCEPT: Mapping[Kind, str] = {
    "page": "text/html, application/xhtml+xml;q=0.9, */*;q=0.1",
    # Asked for as it is: what a server would make of it for us is a copy of less worth.
    "photo": "image/jpeg, image/png;q=0.9, image/webp;q=0.8, image/*;q=0.7, */*;q=0.1",
    "site": "*/*",
}
_SITE_FILE_REDIRECTS = 5
# Servers close idle connections after 5 s and more; one closed under a request costs that request a try.
_KEEP_ALIVE_S = 3.0
_MAX_HEADER_BYTES = 16_384

log = logging.getLogger("forecourt.fetch")


class FetchSettings(Section):
    """How URLs are fetched."""

    page_bytes: int = result(5 << 20, "bytes of a page at most, as received and decoded", ge=1)
    photo_bytes: int = result(32 << 20, "bytes of a photo at most, as received and decoded", ge=1)
    max_redirects: int = result(5, "redirects followed for one URL", ge=0, le=20)
    policy: PolicySettings = PolicySettings()
    max_tries: int = operational(4, "tries of one URL, where it fails for a passing reason", ge=1)
    backoff_s: float = operational(0.5, "s before the second try; doubles with each, less a random part", ge=0)
    max_backoff_s: float = operational(30.0, "s between two tries at most", ge=0)
    max_retry_after_s: float = operational(60.0, "s; a URL whose answer asks for a longer wait is given up", ge=0)
    connect_s: float = operational(10.0, "s for a name, and for a connection with its TLS", gt=0)
    read_s: float = operational(20.0, "s without a byte that end a request", gt=0)
    deadline_s: float = operational(60.0, "s for one request from connecting to its last byte", gt=0)
    dns_ttl_s: float = operational(300.0, "s for which an address is remembered", ge=0)
    dns_names: int = operational(1000, "names remembered", ge=1)


class Fetcher:
    """Fetches URLs for one crawl, on one event loop; use as an async context manager.

    Pages of `essential` limits name the hosts whose open circuit stops the run. Closes the pace client on exit.
    """

    def __init__(
        self,
        settings: FetchSettings,
        *,
        user_agent: str,
        allow_private: bool,
        pace: PaceClient,
        limits: HostLimits,
        addresses: AddressBook | None = None,
    ) -> None:
        self._agent = agent_token(user_agent)
        if not self._agent or not user_agent.isprintable():
            raise ValueError(f"a User-Agent with a name is compulsory, found {user_agent!r}")
        self._settings = settings
        self._user_agent = user_agent
        self._pace = pace
        self._limits = limits
        self._essential: set[str] = set()
        self._addresses = addresses or AddressBook(
            allow_private=allow_private,
            ttl_s=settings.dns_ttl_s,
            max_names=settings.dns_names,
            timeout_s=settings.connect_s,
        )
        self._rules = SiteRules(settings.policy, agent=self._agent, pace=pace, fetch=self._site_file)
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            resolver=_CheckedResolver(self._addresses), use_dns_cache=False, limit=0, keepalive_timeout=_KEEP_ALIVE_S
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            headers={"User-Agent": self._user_agent, "Accept-Encoding": ACCEPT_ENCODING},
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self._settings.connect_s, sock_read=self._settings.read_s
            ),
            trace_configs=[_departures()],
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._pace.aclose()

    async def get(
        self, url: str, *, kind: Literal["page", "photo"], etag: str | None = None, last_modified: str | None = None
    ) -> Answer:
        """Fetch a URL: redirects followed, passing failures tried again, the owner's word obeyed.

        A page's answer may have a lasting 4xx status, since its text may say more than the status; a photo's may not.

        Raises:
            FetchFailed: no usable answer.
            FetchRefused: the owner does not want it used.
            CircuitOpenError: an essential host fails too often.
        """
        conditions = {"If-None-Match": etag, "If-Modified-Since": last_modified}
        trip = Trip(kind, {name: value for name, value in conditions.items() if value})
        try:
            target = read_url(url)
            if kind == "page" and self._limits.essential:
                self._essential.add(target.host)
            return await self._follow(target, trip, self._settings.max_redirects)
        except (FetchError, PolicyError) as error:
            raise trip.told(error) from error

    async def _follow(self, target: Target, trip: Trip, max_redirects: int) -> Answer:
        seen = set()
        for _ in range(max_redirects + 1):
            seen.add(target.url)
            if not trip.is_robots:
                await self._obey(target, trip)
            answer = await self._try_until_settled(target, trip)
            location = redirect_of(answer)
            if location is None:
                return answer
            target = target.join(location)
            if target.url in seen:
                break
        raise FetchError("too_many_redirects", f"{max_redirects} followed, the next leads to {target.url}")

    async def _obey(self, target: Target, trip: Trip) -> None:
        """Ask the site's rules about a URL before the URL is asked for."""
        if trip.kind == "site":
            robots = await self._rules.robots(target.origin)
            decision = Decision() if robots is None else robots.judge(target.path)
        else:
            decision = await self._rules.judge(target)
        trip.policy |= decision.evidence
        if decision.unreachable is not None:
            raise FetchError(decision.unreachable, f"{target.url}: its site cannot be reached")
        if decision.reason is not None:
            raise PolicyError(decision.reason, f"{target.url}: {decision.evidence}")

    async def _try_until_settled(self, target: Target, trip: Trip) -> Answer:
        while True:
            wait_s = 0.0
            try:
                answer = await self._try(target, trip)
                if trip.settles(answer):
                    return answer
                error = FetchError(http_reason(answer.status), str(target.url))
                wait_s = retry_after_s(answer.headers) or 0.0
            except FetchError as failure:
                error = failure
            lasting = not is_transient(error.reason) or error.reason == "circuit_open"
            if lasting or trip.num_retries + 1 >= self._settings.max_tries or wait_s > self._settings.max_retry_after_s:
                raise error
            backoff_s = min(self._settings.max_backoff_s, self._settings.backoff_s * 2**trip.num_retries)
            trip.num_retries += 1
            await asyncio.sleep(max(wait_s, backoff_s * random.uniform(0.5, 1.0)))

    async def _try(self, target: Target, trip: Trip) -> Answer:
        """Make one request at the host's pace, and tell the pace how it went."""
        trip.begin_try()
        await self._addresses.addresses(target.hostname, target.port)
        departure = Departure(self._pace, target.host, self._limits_of(target))
        try:
            await departure.wait()
            return await self._request(target, trip, departure)
        except CircuitOpenError as error:
            if target.host in self._essential:
                raise
            raise FetchError("circuit_open", str(error)) from error
        except FetchError as error:
            departure.outcome = replace(departure.outcome or HostOutcome(), error=error.reason)
            raise
        finally:
            trip.reached |= departure.connected
            departure.end()

    async def _request(self, target: Target, trip: Trip, departure: Departure) -> Answer:
        headers = {"Accept": _ACCEPT[trip.kind], **trip.conditions}
        try:
            async with asyncio.timeout(self._settings.deadline_s) as departure.deadline:
                try:
                    async with self._session.get(
                        target.url, headers=headers, allow_redirects=False, trace_request_ctx=departure
                    ) as response:
                        return await self._read(target, trip, response, departure)
                finally:
                    trip.latency_s = departure.elapsed_s()
        except (RowError, RunError):
            raise
        except Exception as error:
            # The row boundary: whatever a strange server makes the client raise is this URL's failure.
            raise _failure(error, departure.deadline) from error

    async def _read(self, target: Target, trip: Trip, response: aiohttp.ClientResponse, departure: Departure) -> Answer:
        """Read what is wanted of an answer; the rest is left, and its connection closed."""
        pairs = read_headers(response.headers.items())
        headers = dict(pairs)
        trip.status = response.status
        departure.outcome = HostOutcome(
            status=response.status, latency_s=departure.elapsed_s(), retry_after_s=retry_after_s(headers)
        )
        answer = Answer(
            str(target.url),
            response.status,
            headers,
            num_tries=trip.num_tries,
            policy=trip.policy,
            not_modified=response.status == 304 and bool(trip.conditions),
        )
        found = 200 <= response.status < 300
        if trip.kind != "site" and (found or answer.not_modified):
            headers_said = judge_headers(pairs, agent=self._agent, settings=self._settings.policy)
            self._judge(headers_said, trip)
        if trip.wants_body(answer):
            answer = replace(answer, body=await self._body(response, trip))
        if trip.kind == "page" and found:
            self._judge(judge_page(answer.body, agent=self._agent, settings=self._settings.policy), trip)
        return replace(answer, latency_s=departure.elapsed_s())

    async def _body(self, response: aiohttp.ClientResponse, trip: Trip) -> bytes:
        caps = {"page": self._settings.page_bytes, "photo": self._settings.photo_bytes, "site": MAX_ROBOTS_BYTES + 1}
        body = Body(response.headers.get("Content-Encoding", ""), caps[trip.kind], cut=trip.kind == "site")
        body.expect(response.content_length)
        async for chunk in response.content.iter_any():
            if not body.add(chunk):
                break
        return body.finish()

    def _judge(self, decision: Decision, trip: Trip) -> None:
        trip.policy |= decision.evidence
        if decision.reason is not None:
            raise PolicyError(decision.reason, str(decision.evidence))

    async def _site_file(self, url: str) -> SiteText:
        """Fetch robots.txt or tdmrep.json; all that can go wrong is part of the result."""
        trip = Trip("site", {}, is_robots=url.endswith(ROBOTS_PATH))
        try:
            answer = await self._follow(read_url(url), trip, _SITE_FILE_REDIRECTS)
        except (FetchError, PolicyError) as error:
            # Too many redirects count as a missing file; so does a redirect to where we may not ask.
            if error.reason == "too_many_redirects" or isinstance(error, PolicyError):
                return SiteText(url, 404, error=error.reason)
            status = trip.status if error.reason.startswith("http_") else None
            return SiteText(url, status, error=error.reason, reached=trip.reached)
        return SiteText(answer.url, answer.status, cut_robots(answer.body) if answer.status < 300 else "")

    def _limits_of(self, target: Target) -> HostLimits:
        return HostLimits(
            self._limits.requests_per_second,
            self._limits.concurrency,
            crawl_delay_s=self._rules.crawl_delay_s(target.origin),
            essential=target.host in self._essential,
        )


class _CheckedResolver(AbstractResolver):
    """Gives the connector checked addresses and no others."""

    def __init__(self, addresses: AddressBook) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a host in the connector's form."""
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in await self._addresses.addresses(host.rstrip("."), port)
        ]

    async def close(self) -> None:
        """Keep nothing open."""


def _departures() -> aiohttp.TraceConfig:
    """Hold each request at the point where its connection stands and nothing has been sent."""

    async def begin(_: object, context: Any, __: object) -> None:
        context.trace_request_ctx.begin()

    async def leave(_: object, context: Any, __: object) -> None:
        await context.trace_request_ctx.leave()

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_start.append(begin)
    trace.on_connection_create_end.append(leave)
    trace.on_connection_reuseconn.append(leave)
    return trace


def _failure(error: Exception, deadline: asyncio.Timeout) -> FetchError:
    """Name what went wrong with a request."""
    detail = f"{type(error).__name__}: {error}"
    match error:
        case TimeoutError() if deadline.expired():
            return FetchError("deadline", detail)
        case TimeoutError():
            return FetchError("timeout", detail)
        case aiohttp.ClientConnectorDNSError():
            return FetchError("dns", detail)
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return FetchError("tls", detail)
        case aiohttp.ClientResponseError() if "Got more than" in error.message or "Too many" in error.message:
            return FetchError("too_large", f"headers: {error.message}")
        case aiohttp.ClientError() | OSError():
            return FetchError("connect", detail)
    log.warning("fetch_surprise error=%r", error)
    return FetchError("connect", detail)
