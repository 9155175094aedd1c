"""A site file that works and a page with a car, for the tests of sites and of pages."""

from typing import Any

from pipeline.sites import PageReading, SiteFile, read_page

URL = "https://cars.example.org/listing/7"
GOOD: dict[str, Any] = {
    "name": "demo",
    "base_url": "http://127.0.0.1:8099",
    "listing_url": "/listing/{id}",
    "ids": {"first": 1, "last": 9},
    "gone": {"status": [404, 410], "css": "h1.unavailable"},
    "extract": {"kind": "json_ld", "currency": "USD"},
    "politeness": {"requests_per_second": 1.0, "concurrency": 8, "contact": "mailto:data@example.org"},
    "allow_private_addresses": True,
}
CAR_PAGE = b"""<html><head><title>2019 Acura MDX</title>
<script type="application/ld+json">{"@type": "Car", "brand": "Acura", "model": "MDX", "offers": {"price": "45,295"},
"image": "/1.jpg"}</script></head><body><p>A fine car.</p></body></html>"""


def read(html: bytes | str, *, status: int = 200, url: str = URL, **changes: Any) -> PageReading:
    site = SiteFile.model_validate(GOOD | changes)
    return read_page(html if isinstance(html, bytes) else html.encode(), url=url, site=site, status=status)
