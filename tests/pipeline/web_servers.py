"""Real local servers for the fetcher to meet, and short ways to fetch from them."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from pipeline.fetch import Answer, Fetcher, FetchFailed, FetchRefused, FetchSettings, local_pace
from pipeline.web.addresses import AddressBook
from pipeline.web.pace import HostLimits, PaceSettings

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RawHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

AGENT = "Forecourt/0.1 (+mailto:data@example.org)"
QUICK = PaceSettings(relearn_s=0.0, horizon_s=0.05)
SETTINGS = FetchSettings(backoff_s=0.01, read_s=0.5, deadline_s=2.0, connect_s=1.0)


class Site:
    """A real server that remembers what it was asked."""

    def __init__(self) -> None:
        self.pages: dict[str, Handler] = {}
        self.asked: list[str] = []
        self.requests: list[web.Request] = []
        self.address = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.raw_path)
        self.requests.append(request)
        handler = self.pages.get(request.path)
        return web.Response(status=404, text="no such page") if handler is None else await handler(request)

    def says(self, path: str, body: str | bytes = "", status: int = 200, **headers: str) -> None:
        data = body.encode() if isinstance(body, str) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        async def answer(_request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, body=data, headers=named)

        self.pages[path] = answer

    def says_in_turn(self, path: str, *statuses: int, **headers: str) -> None:
        left = list(statuses)
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        async def answer(_request: web.Request) -> web.StreamResponse:
            status = left.pop(0) if len(left) > 1 else left[0]
            return web.Response(status=status, text="text", headers=named if status >= 400 else {})

        self.pages[path] = answer

    def num_asked(self, path: str) -> int:
        return self.asked.count(path)


@asynccontextmanager
async def serve(site: Site) -> AsyncIterator[Site]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", site.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    server = web.TCPSite(runner, "127.0.0.1", 0)
    await server.start()
    host, port = runner.addresses[0][:2]
    site.address = f"http://{host}:{port}"
    try:
        yield site
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_server(handler: RawHandler, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def with_robots(handler: RawHandler) -> RawHandler:
    """Answer what a site is asked first, and hand the rest to `handler`."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if b"/robots.txt" not in head and b"tdmrep.json" not in head:
                await handler(reader, writer)
                return
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    return handle


@asynccontextmanager
async def fetcher(
    settings: FetchSettings = SETTINGS,
    *,
    pace: PaceSettings = QUICK,
    limits: HostLimits | None = None,
    allow_private: bool = True,
    addresses: AddressBook | None = None,
) -> AsyncIterator[Fetcher]:
    async with Fetcher(
        settings,
        user_agent=AGENT,
        allow_private=allow_private,
        pace=local_pace(pace),
        limits=limits or HostLimits(10_000.0, concurrency=100),
        addresses=addresses,
    ) as opened:
        yield opened


async def fails(url: str, *, kind: Any = "page", settings: FetchSettings = SETTINGS, **more: Any) -> FetchFailed:
    async with fetcher(settings, **more) as opened:
        with pytest.raises(FetchFailed) as caught:
            await opened.get(url, kind=kind)
    return caught.value


async def refused(url: str, *, kind: Any = "page", settings: FetchSettings = SETTINGS) -> FetchRefused:
    async with fetcher(settings) as opened:
        with pytest.raises(FetchRefused) as caught:
            await opened.get(url, kind=kind)
    return caught.value


async def gets(url: str, *, kind: Any = "page", settings: FetchSettings = SETTINGS, **more: Any) -> Answer:
    async with fetcher(settings) as opened:
        return await opened.get(url, kind=kind, **more)
