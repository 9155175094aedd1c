import csv
import random
import time
from pathlib import Path

import pytest
from cssselect import HTMLTranslator
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from pipeline.pages.page import Page, select
from pipeline.sites import PageReading, SiteFile, load_site, read_page
from tests.pipeline.site_reading import CAR_PAGE, GOOD, URL, read

LD_JSON = b'<script type="application/ld+json">'
HOSTILE = {
    "deep html": b"<div>" * 200_000 + CAR_PAGE,
    "deep microdata": b'<div itemscope itemtype="https://schema.org/Car" itemprop="isRelatedTo">' * 5_000,
    "wide microdata": b'<div itemscope itemtype="https://schema.org/Car">' + b'<i itemprop="image">x</i>' * 50_000,
    "many items": b'<div itemscope itemtype="https://schema.org/Car"><i itemprop="name">x</i></div>' * 5_000,
    "itemref loop": b'<div itemscope itemtype="https://schema.org/Car" id="a" itemref="a b">'
    b'<p id="b" itemprop="x" itemscope itemref="a">',
    "deep json": b'<script type="application/ld+json">' + b'{"@type":"Car","offers":' * 20_000 + b"</script>",
    "deep valid json": b'<script type="application/ld+json">' + b'{"offers":' * 900 + b"1" + b"}" * 900 + b"</script>",
    "wide json": b'<script type="application/ld+json">[' + b'{"@type":"Car","name":"x"},' * 60_000 + b"{}]</script>",
    "reference loop": b'<script type="application/ld+json">'
    b'{"@type":"Car","@id":"a","offers":{"@id":"a"},"brand":{"@id":"a"}}</script>',
    "entities": b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;"><!ENTITY c SYSTEM "file:///etc/passwd">]><p>&b;&c;</p>',
    "huge": b"<p>x</p>" * 2_000_000,
    "quotes": b'<script type="application/ld+json">{"a":' + b'"' * 300_000 + b"</script>",
    "attributes": b"<p " + b"a=1 " * 200_000 + b">",
    "password": b"<input " * 100_000,
    "iframe": b"<iframe " * 100_000,
    "nothing closed": b"<script>" + b"<form" * 200_000,
    "distinct attributes": b"<p " + b" ".join(b"a%d=1" % i for i in range(200_000)) + b">",
    "elements in elements": b"<div>" * 230 + b"<i> </i>" * 300_000,
    "long srcsets": b"".join(
        b'<img srcset="%s">' % b",".join(b"/%d/%d.jpg %dw" % (i, j, j + 1) for j in range(2000)) for i in range(100)
    ),
    "sources": b"<picture>" + b"<img src=/1.jpg>" * 1000 + b'<source srcset="/a.jpg 1w">' * 100_000,
    "many broken scripts": (LD_JSON + b'{"@type":"Car","name":"x"</script>') * 50_000,
    "long broken scripts": (LD_JSON + b"[" + b"1," * 490_000 + b"</script>") * 5,
    "sellers": LD_JSON + b'{"@type":"Car","price":1,"description":"%s","seller":[%s]}</script>'
    % (b"s" * 10_000, b",".join(b'{"name":"ssss%d"}' % i for i in range(50_000))),
    "one gallery of many cars": LD_JSON + b'[{"@id":"#g","@list":[' + b'"/1.jpg",' * 200_000 + b"1]},"
    + b'{"@type":"Car","vin":"1","model":"x","name":"x","image":{"@id":"#g"}},' * 200 + b"{}]</script>",
    "one photo of many names": LD_JSON + b'[{"@id":"#a","url":"https://a.de/%s"},' % (b"a/" * 900)
    + b'{"@type":"Car","price":1,"image":[' + b'{"@id":"#a"},' * 300_000 + b"1]}]</script>",
    "references": (b'<div itemscope itemtype="https://schema.org/Car" itemref="%s">x</div>' % (b"b " * 1000)) * 30
    + b"<p id=b>" + b"<i itemprop=a>x</i>" * 900,
    "property in property": b'<div itemscope itemtype="https://schema.org/Car">' + b'<div itemprop="name">' * 200
    + b"<b>x</b>" * 200_000,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["json_ld", "css"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_page_costs_bounded_time_and_is_an_outcome(name: str, kind: str) -> None:
    fields = {"title": "h1", "price": ".p", "photos": "img", "make": "div i", "model": "div"}
    extract = {"kind": kind} | ({"fields": fields} if kind == "css" else {})
    start = time.monotonic()
    reading = read(HOSTILE[name], extract=extract)
    assert reading.outcome in ("found", "failed")
    assert b"root:" not in repr(reading).encode()
    assert time.monotonic() - start < 10


@given(st.binary(max_size=400) | st.text(max_size=400).map(str.encode), st.sampled_from([200, 403, 404]))
def test_any_bytes_have_an_outcome(html: bytes, status: int) -> None:
    assert read(html, status=status).outcome in ("found", "gone", "failed")


SELECTORS = (
    "div p", "div > p", "p + i", "p ~ i", "div p + i > b", ".x .y", "div .x > .y ~ *", "div *", "*", "p, div > i",
    "i:not(.x)", "div:has(> p b)", "p:first-child b", "div > p:nth-of-type(2)", "#a p", "[title] > .x", "div div div",
)  # fmt: skip


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_selector_finds_what_cssselect_finds(selector: str) -> None:
    dice = random.Random(3)
    for _ in range(30):
        tags = [f"<{name} class={mark}>" for name in ("div", "p", "i", "b") for mark in "xyz"]
        tags += ["<p id=a>", "<i title=t>", "</div>", "</p>", "</i>", "</b>", "</div>", "</i>"]
        tree = Page("".join(dice.choices(tags, k=60)).encode(), url=URL).tree
        expected = etree.XPath(HTMLTranslator().css_to_xpath(selector))(tree)
        assert select(tree, selector) == expected


STATES = {
    "quotes in quotes": ("window.x=[1,'" + "window.x=[1,\"',") * 10 + "1," * 450_000,
    "loose quotes": 'window.x=["a"b,' * 20 + '"a' * 450_000,
    "many scripts": "window.x=[1,1</script><script>" * 30_000,
}


@pytest.mark.parametrize("name", STATES)
def test_a_hostile_state_costs_bounded_time(name: str) -> None:
    start = time.monotonic()
    page = f"<script>{STATES[name]}</script>"
    reading = read(page, extract={"kind": "state", "script": "window.x=", "fields": {"price": "a"}})
    assert reading.error == "no_listing"
    assert time.monotonic() - start < 10


def test_a_state_behind_false_starts_is_read() -> None:
    page = "<script>window.x=window.x||{};window.x=[;window.x={price: 5, vin: 'WAUZZZ8K9BA123456'}</script>"
    extract = {"kind": "state", "script": "window.x=", "fields": {"price": "price", "vin": "vin"}}
    listing = read(page, extract=extract).listing
    assert listing is not None
    assert listing["price"] == 5


NO_TEXT = ("hex", "base64", "rot13", "zlib", "quopri", "uu", "bz2", "undefined", "idna", "punycode", "no-such")


@pytest.mark.parametrize("charset", NO_TEXT)
def test_a_charset_that_is_no_encoding_of_text_is_passed_over(charset: str) -> None:
    page = CAR_PAGE.replace(b"MDX", b"MDX\xe9")
    named = page.replace(b"<head>", f'<head><meta charset="{charset}">'.encode())
    site = SiteFile.model_validate(GOOD)
    for reading in (
        read(named),
        read_page(page, url=URL, site=site, content_type=f"text/html; charset={charset}"),
    ):
        assert reading.listing is not None
        assert reading.listing["model"] == "MDX\u00e9"


def mutated(page: bytes, dice: random.Random) -> bytes:
    damaged = bytearray(page)
    for _ in range(dice.randint(1, 12)):
        if not damaged:
            break
        at = dice.randrange(len(damaged))
        end = min(len(damaged), at + dice.choice([1, 1, 8, 200, 5000]))
        kind = dice.randrange(4)
        if kind == 0:
            del damaged[at:end]
        elif kind == 1:
            damaged[at] = dice.randrange(256)
        elif kind == 2:
            damaged[at:at] = damaged[dice.randrange(len(damaged)) :][: end - at]
        else:
            del damaged[dice.randrange(len(damaged)) :]
    return bytes(damaged)


def test_a_damaged_page_of_ours_has_an_outcome() -> None:
    dice = random.Random(8)
    outcomes = {read(mutated(CAR_PAGE, dice)).outcome for _ in range(500)}
    assert outcomes == {"found", "failed"}


SITE_FILES = Path(__file__).parent / "site_files"
READ_WITH = [
    ("01_autoscout24_de_vdp.html", "generic"), ("01_autoscout24_de_vdp.html", "autoscout24"),
    ("02_edmunds_vdp_new_car.html", "generic"), ("03_dealercom_search_one_hit.html", "dealercom"),
    ("04_carscom_search_results.html", "carscom"), ("05_bazaraki_vdp_trimmed.html", "bazaraki"),
    ("07_mobile_de_vdp.html", "generic"), ("07_mobile_de_vdp.html", "mobile_de"),
]  # fmt: skip
# What the markup of a page does not say: the first registration stands only in the page's table.
NOT_IN_MARKUP = {("07_mobile_de_vdp.html", "generic"): {"year"}}
COLUMN_OF = {"mileage": "odometer", "mileage_unit": "odometer_unit"}
INDEX_COLUMNS = ("title", "price", "currency", "make", "model", "year", "mileage", "mileage_unit")


def index_row(shared_data: Path, file: str) -> dict[str, str]:
    with (shared_data / "listing_pages" / "index.csv").open(encoding="utf-8") as lines:
        return next(row for row in csv.DictReader(lines) if row["file"] == file)


def read_shared(shared_data: Path, file: str, site_file: str) -> PageReading:
    html = (shared_data / "listing_pages" / file).read_bytes()
    site = load_site(SITE_FILES / f"{site_file}.yaml")
    return read_page(html, url=site.url_of(1), site=site)


@pytest.mark.parametrize(("file", "site_file"), READ_WITH)
def test_every_value_a_real_page_carries_is_read(shared_data: Path, file: str, site_file: str) -> None:
    expected = index_row(shared_data, file)
    reading = read_shared(shared_data, file, site_file)
    assert reading.outcome == "found"
    assert reading.listing is not None
    for name in INDEX_COLUMNS:
        value = reading.listing[COLUMN_OF.get(name, name)]
        if name in NOT_IN_MARKUP.get((file, site_file), ()):
            continue
        if name in ("price", "year", "mileage"):
            assert (None if value is None else float(value)) == (float(expected[name]) if expected[name] else None), (
                name
            )
        else:
            assert value == (expected[name] or None), name


def test_a_real_block_page_is_named(shared_data: Path) -> None:
    reading = read_shared(shared_data, "06_cargurus_bot_block.html", "generic")
    assert (reading.outcome, reading.error) == ("failed", "block_page")


@pytest.mark.parametrize("file", ["03_dealercom_search_one_hit.html", "04_carscom_search_results.html"])
def test_a_page_without_markup_is_no_listing_to_the_generic_file(shared_data: Path, file: str) -> None:
    assert read_shared(shared_data, file, "generic").error == "no_listing"


def test_the_gallery_of_a_real_page_is_read_whole(shared_data: Path) -> None:
    reading = read_shared(shared_data, "01_autoscout24_de_vdp.html", "autoscout24")
    assert len(reading.photo_urls) == 22
    assert all(url.endswith("/1280x960.webp") for url in reading.photo_urls)
    zoomed = read_shared(shared_data, "07_mobile_de_vdp.html", "mobile_de").photo_urls
    assert all(url.endswith("/$_57.jpg") for url in zoomed)


@pytest.mark.parametrize(("file", "site_file"), [READ_WITH[2], READ_WITH[3], READ_WITH[5], READ_WITH[7]])
def test_a_damaged_real_page_has_an_outcome(shared_data: Path, file: str, site_file: str) -> None:
    html = (shared_data / "listing_pages" / file).read_bytes()
    site = load_site(SITE_FILES / f"{site_file}.yaml")
    dice = random.Random(7)
    outcomes = {read_page(mutated(html, dice), url=URL, site=site).outcome for _ in range(40)}
    assert outcomes <= {"found", "failed", "gone"}
