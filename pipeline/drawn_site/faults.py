"""What goes wrong on the demo site with --faults: a pure function of the URL's path and of how often it was asked.

Passing faults spoil at most the first three tries of a URL and then never again, so that a crawler with four tries sees
the same outcome whoever asked before. Lasting faults never clear, so that the outcome is a function of the URL alone.
"""

import asyncio
import gzip
import socket
import struct
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache

from aiohttp import web

from pipeline.drawn_site.dice import unit
from pipeline.drawn_site.pages import block_page

MAX_SPOILED_TRIES = 3
SLOW_PAUSE_S = 0.4
BOMB_MEBIBYTES = 256
ENDLESS_LIMIT_BYTES = 1 << 30
_CHUNK = b"\0" * 65536

# Share of URLs with each passing fault. Those that slow a polite crawler for all URLs (429, 503) are the rarest.
PASSING = {
    "slow": 0.02,
    "reset_before": 0.015,
    "reset_mid": 0.015,
    "busy_seconds": 0.003,
    "busy_date": 0.002,
    "unavailable": 0.006,
    "block_503": 0.003,
    # Pages only.
    "passing_block_403": 0.005,
    "passing_block_200": 0.005,
}

# Lasting faults of any page and of any photo: share, outcome, error. No outcome: the URL still ends well.
LASTING: dict[str, tuple[float, str | None, str | None]] = {
    "redirect": (0.03, None, None),
    "redirect_loop": (0.007, "failed", "too_many_redirects"),
    "redirect_members": (0.007, "disallowed", "robots"),
    "gzip_bomb": (0.006, "failed", "too_large"),
    "endless": (0.006, "failed", "too_large"),
    "down": (0.002, "failed", "http_503"),
}
# Of live pages only: what a page says about its use, and pages that are no listing.
LASTING_PAGES: dict[str, tuple[float, str | None, str | None]] = {
    "noai_header": (0.01, "disallowed", "noai"),
    "noai_meta": (0.01, "disallowed", "noai"),
    "tdm_header": (0.01, "disallowed", "tdm"),
    "usage_header": (0.007, "disallowed", "content_usage"),
    "block_403": (0.008, "failed", "block_page"),
    "block_200": (0.008, "failed", "block_page"),
    "image_page": (0.006, "failed", "no_listing"),
}
LASTING_PHOTOS: dict[str, tuple[float, str | None, str | None]] = {
    "wrong_type": (0.02, None, None),
    "noimageai_header": (0.01, "disallowed", "noai"),
    "tdm_header": (0.007, "disallowed", "tdm"),
    "usage_header": (0.007, "disallowed", "content_usage"),
    "forbidden": (0.006, "failed", "http_403"),
}
POLICY_HEADERS: Mapping[str, Mapping[str, str]] = {
    "noai_header": {"X-Robots-Tag": "noai, noimageai"},
    "noimageai_header": {"X-Robots-Tag": "noimageai"},
    "tdm_header": {"tdm-reservation": "1"},
    "usage_header": {"Content-Usage": "train-ai=n"},
}
NOAI_META = '<meta name="robots" content="noai, noimageai">'

ROBOTS_PLAIN = "User-agent: *\nDisallow: /members/\n"
# The longer pattern wins: of the listings whose id ends in 13 only those that end in 513 may be read.
ROBOTS_FAULTY = """User-agent: BadBot
Disallow: /

User-agent: *
Disallow: /members/
Disallow: /photos/private/
Disallow: /listing/*13$
Allow: /listing/*513$
"""
TDMREP = [{"location": "/photos/reserved/*", "tdm-reservation": 1}]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of a URL; it spoils the first `num_tries` tries, or all of them where that is None."""

    kind: str
    num_tries: int | None
    outcome: str | None = None
    error: str | None = None

    def spoils(self, tries_before: int) -> bool:
        """Tell whether the next try meets the fault."""
        return self.num_tries is None or tries_before < self.num_tries


class FaultPlan:
    """Which URL has which fault; `scale` multiplies every share."""

    def __init__(self, *, seed: int, scale: float = 1.0) -> None:
        self._seed = seed
        self._passing = {kind: share * scale for kind, share in PASSING.items()}
        self._lasting = {"gone": LASTING, "page": LASTING | LASTING_PAGES, "photo": LASTING | LASTING_PHOTOS}
        self._scale = scale

    def of(self, path: str, kind: str) -> Fault | None:
        """Return the fault of a path; `kind` is page, photo, or gone for the page of a listing that is gone."""
        draw = unit(self._seed, "fault", path)
        for name, share in self._passing.items():
            draw -= share
            if draw < 0:
                if kind == "photo" and name.startswith("passing_block"):
                    return None
                return Fault(name, 1 + int(unit(self._seed, "tries", path) * MAX_SPOILED_TRIES))
        for name, (share, outcome, error) in self._lasting[kind].items():
            draw -= share * self._scale
            if draw < 0:
                return Fault(name, None, outcome, error)
        return None


def robots_forbids(path: str) -> bool:
    """Tell whether ROBOTS_FAULTY forbids a path of this site."""
    if path.startswith("/listing/"):
        return path.endswith("13") and not path.endswith("513")
    return path.startswith(("/members/", "/photos/private/"))


async def spoiled(request: web.Request, fault: Fault, usual: web.Response) -> web.StreamResponse | None:
    """Answer a request the way its fault wants; None where only headers or text of the usual answer change."""
    match fault.kind:
        case "slow":
            return await _in_halves(request, usual, abort=False)
        case "reset_mid":
            return await _in_halves(request, usual, abort=True)
        case "reset_before":
            _reset(request)
            return usual
        case "redirect":
            raise web.HTTPFound(f"/moved{request.path}")
        case "redirect_loop":
            raise web.HTTPFound(f"/loop/1{request.path}")
        case "redirect_members":
            raise web.HTTPFound(f"/members{request.path}")
        case "gzip_bomb":
            return _bomb(usual.content_type)
        case "endless":
            return await _endless(request, usual)
        case kind:
            return _refusal(kind)


def _refusal(kind: str) -> web.Response | None:
    match kind:
        case "busy_seconds":
            return web.Response(status=429, headers={"Retry-After": "1"}, text="slow down")
        case "busy_date":
            # Rounded up to the second, so at most two seconds ahead.
            return web.Response(status=429, headers={"Retry-After": formatdate(int(time.time()) + 2, usegmt=True)})
        case "unavailable" | "down":
            return web.Response(status=503, text="try later")
        case "block_503":
            return web.Response(status=503, body=block_page(), content_type="text/html")
        case "passing_block_403" | "block_403":
            return web.Response(status=403, body=block_page(), content_type="text/html")
        case "passing_block_200" | "block_200":
            return web.Response(body=block_page(), content_type="text/html")
        case "forbidden":
            return web.Response(status=403, text="forbidden")
        case _:
            return None


def _reset(request: web.Request) -> None:
    """Close the connection with a RST, as a crashed server's kernel does."""
    transport = request.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _in_halves(request: web.Request, usual: web.Response, *, abort: bool) -> web.StreamResponse:
    body = usual.body if isinstance(usual.body, bytes) else b""
    answer = web.StreamResponse(status=usual.status, headers={"Content-Type": usual.headers["Content-Type"]})
    answer.content_length = len(body)
    await answer.prepare(request)
    half = len(body) // 2
    await answer.write(body[:half])
    if abort:
        # Long enough for the half body to leave before the reset.
        await asyncio.sleep(0.02)
        _reset(request)
        return answer
    await asyncio.sleep(SLOW_PAUSE_S)
    await answer.write(body[half:])
    await answer.write_eof()
    return answer


async def _endless(request: web.Request, usual: web.Response) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Type": usual.headers["Content-Type"]})
    await answer.prepare(request)
    await pour(answer, ENDLESS_LIMIT_BYTES)
    return answer


async def pour(answer: web.StreamResponse, num_bytes: int) -> None:
    """Send zeros until the reader has had enough and hangs up."""
    with suppress(ConnectionError):
        for start in range(0, num_bytes, len(_CHUNK)):
            await answer.write(_CHUNK[: num_bytes - start])
            await asyncio.sleep(0)


def _bomb(content_type: str) -> web.Response:
    headers = {"Content-Encoding": "gzip", "Content-Type": content_type}
    return web.Response(body=gzip_bomb(), headers=headers)


@lru_cache(maxsize=1)
def gzip_bomb() -> bytes:
    """Return a right gzip file of some 270 KB that holds BOMB_MEBIBYTES of spaces."""
    block = b" " * (1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(BOMB_MEBIBYTES):
        checksum = zlib.crc32(block, checksum)
    head = gzip.compress(b"")[:10]
    return head + packed * BOMB_MEBIBYTES + packer.flush() + struct.pack("<II", checksum, BOMB_MEBIBYTES << 20)
