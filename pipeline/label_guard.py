"""What keeps other sites away from a page of this machine: who may ask for it, and what it may load."""

import base64
import hashlib
import ipaddress
import re

from yarl import URL

_SCHEME = re.compile(r"^https?://")


def is_own_request(host_header: str, origin: str | None, *, host: str) -> bool:
    """Tell whether a request means this page, which listens on `host`, and comes from it.

    A page of another site could reach it by a name of its own that leads to this machine (DNS rebinding), or post to it
    unseen (CSRF).
    """
    named = _is_named_rightly(_host_of(f"http://{host_header}"), host)
    return named and (origin is None or _SCHEME.sub("", origin) == host_header)


def _host_of(url: str) -> str | None:
    try:
        return URL(url).host
    except ValueError:
        return None


def _is_named_rightly(name: str | None, host: str) -> bool:
    """Tell whether a request may call this page `name`: an address needs no DNS, so that nobody can rebind it."""
    if name is None:
        return False
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in ("localhost", host)
    return address.is_loopback or not _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def content_policy(html: str) -> str:
    """Allow the page's own script and style by their hashes, its photos, its answers, and nothing else."""

    def allowed(tag: str) -> str:
        contents = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
