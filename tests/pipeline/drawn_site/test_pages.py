from decimal import Decimal
from pathlib import Path

import pytest

from pipeline.demo_site import site_file
from pipeline.drawn_site.pages import SHAPES, block_page, gone_page, listing_page
from pipeline.drawn_site.stock import DrawnStock, Listing
from pipeline.sites import PageReading, SiteFile, load_site, read_page

FIRST = 660_000_000
ADDRESS = "http://127.0.0.1:8099"


def read_site(folder: Path, shape: str) -> SiteFile:
    path = folder / "site.yaml"
    path.write_text(site_file(ADDRESS, first=FIRST, last=FIRST + 9, shape=shape))
    return load_site(path)


def read(listing: Listing, shape: str, site: SiteFile) -> PageReading:
    urls = [ADDRESS + photo.path for photo in listing.photos]
    url = f"{ADDRESS}/listing/{listing.listing_id}"
    repeated = urls + urls[:1] * listing.repeats_first_url
    page = listing_page(listing, shape=shape, photo_urls=repeated, url=url)
    return read_page(page, url=url, site=site)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_site_file_reads_every_value_of_every_page(shape: str, tmp_path: Path) -> None:
    site, stock = read_site(tmp_path, shape), DrawnStock(seed=0, first=FIRST, last=FIRST + 199)
    live = [stock.listing(number) for number in range(FIRST, FIRST + 200) if stock.state(number) == "live"]
    for listing in live:
        reading = read(listing, shape, site)
        assert reading.outcome == "found"
        assert reading.listing is not None
        names = set(reading.listing) - {"url", "description", "odometer_mi"}
        read_values = {name: reading.listing[name] for name in names if reading.listing[name] is not None}
        assert read_values == listing.fields
        assert reading.photo_urls == tuple(ADDRESS + photo.path for photo in listing.photos)


@pytest.mark.parametrize("shape", SHAPES)
def test_text_that_would_end_its_element_is_read_back(shape: str, tmp_path: Path) -> None:
    fields = {
        "title": "A <b>&amp;</b> B",
        "make": "Ford",
        "model": "</script> Ka",
        "year": 2010,
        "price": Decimal(4000),
    }
    listing = Listing(FIRST, fields | {"currency": "EUR", "vin": "1M8GDM9AXKP042788"}, ())
    reading = read(listing, shape, read_site(tmp_path, shape))
    assert reading.listing is not None
    assert reading.listing["currency"] == "EUR"
    assert "Ka" in reading.listing["model"]


@pytest.mark.parametrize("shape", SHAPES)
def test_gone_and_block_pages_are_told(shape: str, tmp_path: Path) -> None:
    site = read_site(tmp_path, shape)
    assert read_page(gone_page(), url=ADDRESS, site=site).outcome == "gone"
    blocked = read_page(block_page(), url=ADDRESS, site=site)
    assert (blocked.outcome, blocked.error) == ("failed", "block_page")
