import json
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.pages.extract import Extraction, ExtractSettings, extract_listing
from pipeline.pages.page import Page

URL = "https://cars.example.com/listing/7"
CAR: dict[str, Any] = {
    "@context": "https://schema.org",
    "@type": "Car",
    "name": "2019 Acura MDX Base",
    "brand": {"@type": "Brand", "name": "Acura"},
    "model": "Acura MDX",
    "vehicleModelDate": "2019",
    "vehicleIdentificationNumber": "5J8YD3H35KL010338",
    "mileageFromOdometer": {"@type": "QuantitativeValue", "value": "12,345", "unitCode": "SMI"},
    "color": "White",
    "vehicleInteriorColor": "Ebony",
    "vehicleTransmission": "AUTOMATIC",
    "driveWheelConfiguration": "https://schema.org/AllWheelDriveConfiguration",
    "bodyType": "SUV",
    "vehicleEngine": {"@type": "EngineSpecification", "name": "3.5L V6", "fuelType": "Gasoline"},
    "fuelEfficiency": "22 city / 30 highway mpg",
    "sku": "A1234",
    "image": ["/1-600x400.jpg", "/2-600x400.jpg", "/1-1200x800.jpg"],
    "offers": {"@type": "Offer", "price": "45,295", "priceCurrency": "USD"},
}


def script(data: Any) -> str:
    text = data if isinstance(data, str) else json.dumps(data)
    return f'<script type="application/ld+json">{text}</script>'


def read(html: str, *, url: str = URL, **settings: Any) -> Extraction:
    return extract_listing(Page(html.encode(), url=url), ExtractSettings(**({"kind": "json_ld"} | settings)))


def page(*scripts: Any) -> str:
    return f"<html><head>{''.join(map(script, scripts))}</head><body><h1>Car</h1></body></html>"


def car(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (CAR | changes).items() if value is not None}


def test_markup_of_a_car_is_read_whole() -> None:
    read_car = read(page(CAR))
    assert read_car.is_listing
    assert read_car.listing == {
        "title": "2019 Acura MDX Base", "make": "Acura", "model": "MDX", "year": 2019, "body_style": "SUV",
        "price": Decimal("45295.00"), "currency": "USD", "odometer": 12345.0, "odometer_unit": "mi",
        "odometer_mi": 12345.0, "exterior_color": "White", "interior_color": "Ebony", "engine": "3.5L V6",
        "transmission": "AUTOMATIC", "drive_type": "AWD", "fuel_type": "Gasoline", "city_mpg": 22.0,
        "highway_mpg": 30.0, "vin": "5J8YD3H35KL010338", "stock_number": "A1234",
    }  # fmt: skip
    assert read_car.photo_urls == ("https://cars.example.com/1-1200x800.jpg", "https://cars.example.com/2-600x400.jpg")


@pytest.mark.parametrize(
    "data",
    [
        [{"@type": "WebSite", "name": "Cars"}, CAR],
        {"@context": "https://schema.org", "@graph": [{"@type": "Organization", "name": "Dealer"}, CAR]},
        {"@type": "WebPage", "mainEntity": CAR},
        {"@type": "ItemPage", "mainEntity": {"@type": "Offer", "itemOffered": CAR}},
        {
            "@type": "Product",
            "name": "x",
            "offers": {"@type": "Offer", "price": 45295, "itemOffered": car(offers=None)},
        },
        {"@type": "Offer", "price": "45295", "itemOffered": car(offers=None)},
        car(**{"@type": "https://schema.org/Car"}),
        car(**{"@type": ["Product", "Car"]}),
        car(**{"@type": "Vehicle"}),
        car(**{"@type": "IndividualProduct"}),
        car(**{"@type": "schema:Motorcycle"}),
        car(model={"@type": "ProductModel", "name": "MDX", "brand": {"name": "Acura"}}, brand=None),
        car(brand=None, manufacturer={"@type": "Organization", "name": "Acura"}),
        car(vehicleModelDate=None, productionDate="2019-05-01"),
        car(offers={"@type": "AggregateOffer", "lowPrice": 45295, "highPrice": 50000, "priceCurrency": "USD"}),
        car(offers={"@type": "Offer", "priceSpecification": {"price": 45295.0, "priceCurrency": "USD"}}),
        car(offers=[{"@type": "Offer", "price": 0}, {"@type": "Offer", "price": "$45,295"}]),
        car(offers=[{"priceSpecification": {"price": 450, "billingDuration": "P1M"}}, {"price": "USD 45295"}]),
        car(
            offers=[
                {
                    "priceSpecification": [
                        {"priceType": "https://schema.org/ListPrice", "price": 50000},
                        {"price": 45295},
                    ]
                }
            ]
        ),
        {"@graph": [car(offers={"@id": "#offer"}), {"@type": "Offer", "@id": "#offer", "price": 45295}]},
        [car(offers=None), {"@type": "Product", "name": "2019 Acura MDX Base", "offers": {"price": "45295"}}],
        [car(offers=None), {"@type": "Offer", "price": 45295, "priceCurrency": "USD"}],
        {"https://schema.org/brand": "Acura", **car(brand=None)},
        car(offers={"price": {"@value": "45295"}, "priceCurrency": {"@value": "USD"}}),
        [car(), {"@type": "Car", "name": "Similar", "brand": "Kia", "offers": {"price": 1}}],
        car(isSimilarTo=[{"@type": "Car", "name": "Other", "brand": "Kia", "model": "Rio", "offers": {"price": 1}}]),
    ],
)
def test_a_car_is_found_wherever_it_stands_in_the_markup(data: Any) -> None:
    listing = read(page(data), currency="USD").listing
    found = {name: listing.get(name) for name in ("make", "model", "year", "price", "currency", "vin", "odometer")}
    assert found == {
        "make": "Acura", "model": "MDX", "year": 2019, "price": Decimal("45295.00"), "currency": "USD",
        "vin": "5J8YD3H35KL010338", "odometer": 12345.0,
    }  # fmt: skip


BROKEN = [
    json.dumps(CAR)[:-1] + ",}",
    "// a comment\n" + json.dumps(CAR),
    "/* a comment */ " + json.dumps(CAR),
    "<!-- " + json.dumps(CAR) + " -->",
    "//<![CDATA[\n" + json.dumps(CAR) + "\n//]]>",
    json.dumps(CAR) + ";",
    json.dumps(CAR).replace('"', "&quot;"),
    json.dumps(CAR).replace("White", "Wh\n\tite\x01").replace("Wh\n\tite\x01", "White"),
    json.dumps(CAR).replace('"color"', '"trim": "17" alloy", "color"'),
    json.dumps(CAR).replace('"color": "White"', "color: 'White', dealer: undefined"),
    json.dumps({"@type": "WebSite"}) + "\n" + json.dumps(CAR),
    json.dumps(CAR).replace("White", "White\x0b\x1f"),
    "\ufeff" + json.dumps(CAR),
]


@pytest.mark.parametrize("text", BROKEN)
def test_broken_markup_is_mended(text: str) -> None:
    listing = read(page(text)).listing
    assert (listing["make"], listing["exterior_color"], listing["price"]) == ("Acura", "White", Decimal("45295.00"))


def test_one_unreadable_script_does_not_lose_the_others() -> None:
    deep = '{"@type":"Car","a":' * 3000
    assert read(page("{oops", deep, "", "[[[", CAR, '{"@type": "Car", "name')).listing["make"] == "Acura"


@pytest.mark.parametrize("kind", ["application/ld+json; charset=utf-8", "APPLICATION/LD+JSON"])
def test_the_type_of_the_script_may_be_written_otherwise(kind: str) -> None:
    assert read(f'<script type="{kind}">{json.dumps(CAR)}</script>').listing["make"] == "Acura"


def test_the_page_s_own_car_comes_before_similar_ones() -> None:
    others = [
        car(name=f"Other {i}", brand="Kia", vehicleIdentificationNumber=None, url=f"/listing/{i}") for i in range(3)
    ]
    own = car(url=URL)
    assert read(page(*others, own)).listing["make"] == "Acura"
    listed = {"@type": "ItemList", "itemListElement": [{"@type": "ListItem", "item": other} for other in others]}
    assert read(page(listed, CAR)).listing["make"] == "Acura"


def test_of_a_list_of_cars_the_first_is_read() -> None:
    cars = [car(name="First", brand="Kia", model="Rio"), car(name="Second")]
    listed = {"@type": "ItemList", "itemListElement": [{"@type": "ListItem", "item": one} for one in cars]}
    assert read(page(listed)).listing["make"] == "Kia"


def test_a_model_is_taken_from_the_breadcrumb_where_the_title_confirms_it() -> None:
    crumbs = {"@type": "BreadcrumbList", "itemListElement": [{"name": n} for n in ("Home", "Acura", "MDX", "2019")]}
    assert read(page(crumbs, car(model=None))).listing["model"] == "MDX"
    assert not read(page(crumbs, car(model=None, name="Acura of Plano"))).listing.get("model")


def test_what_is_named_as_additional_property_is_read() -> None:
    extra = [
        {"@type": "PropertyValue", "name": "Mileage", "value": "70.000 km"},
        {"name": "VIN", "value": CAR["sku"] * 9},
    ]
    listing = read(page(car(mileageFromOdometer=None, additionalProperty=extra))).listing
    assert (listing["odometer"], listing["odometer_unit"]) == (70000.0, "km")


def test_sellers_are_never_read() -> None:
    seller = {"@type": "AutoDealer", "name": "Jane's Cars", "telephone": "703-596-3818", "image": "/logo.jpg"}
    data = car(
        offers={"price": 5, "seller": seller}, description="Jane's Cars sells it. Call 703-596-3818 or a@b.example"
    )
    found = read(page(data))
    assert found.listing["description"] == "sells it. Call or"
    assert "Jane" not in json.dumps(found.listing, default=str)
    assert not any("logo" in url for url in found.photo_urls)


def test_the_page_s_title_is_the_title() -> None:
    html = f"<html><head><title>\n2019 Acura  MDX | Cars </title>{script(CAR)}</head><body><svg><title>x</title></svg>"
    assert read(html).listing["title"] == "2019 Acura MDX | Cars"


MICRODATA = """<div itemscope itemtype="http://schema.org/Car"><h1 itemprop="name">Golf GTI</h1>
<span itemprop="brand" itemscope itemtype="http://schema.org/Brand"><b itemprop="name">Volkswagen</b></span>
<meta itemprop="model" content="Golf"><time itemprop="productionDate" datetime="2012-10-01">10/2012</time>
<div itemprop="mileageFromOdometer" itemscope itemtype="http://schema.org/QuantitativeValue">
<span itemprop="value">70.000</span><meta itemprop="unitCode" content="KMT"></div>
<img itemprop="image" src="/1.jpg"><img itemprop="image" src="/2.jpg">
<div itemprop="offers" itemscope itemtype="http://schema.org/Offer"><span itemprop="price" content="17600">17.600</span>
<meta itemprop="priceCurrency" content="EUR"></div></div>"""


def test_microdata_is_read_as_json_ld_is() -> None:
    found = read(f"<html><body>{MICRODATA}</body></html>")
    listing = found.listing
    assert (listing["make"], listing["model"], listing["year"]) == ("Volkswagen", "Golf", 2012)
    assert (listing["price"], listing["currency"]) == (Decimal("17600.00"), "EUR")
    assert (listing["odometer"], listing["odometer_unit"]) == (70000.0, "km")
    assert found.photo_urls == ("https://cars.example.com/1.jpg", "https://cars.example.com/2.jpg")


STATE = {"page": {"heading": "2012 FIAT 500", "vehicle": {"price": "$4,300", "make": "FIAT", "odo": 101000}},
         "inventory": {"a": {"images": [{"url": "/1.jpg"}, {"url": "/2.jpg"}]}}}  # fmt: skip
FIELDS = {
    "title": "page.heading", "price": "page.vehicle.price", "make": "page.vehicle.make", "mileage": "page.vehicle.odo",
    "year": "page.heading", "photos": "inventory.*.images[*].url",
}  # fmt: skip
PREFIX = "window.__STATE__="
JSON = json.dumps(STATE)
QUOTED = json.dumps(JSON)


@pytest.mark.parametrize(
    ("where", "html"),
    [
        (PREFIX, f"<script>window.__STATE__ = {JSON};</script>"),
        (PREFIX, f"<script>window.__STATE__={JSON};(function(){{var a=1;}}());</script>"),
        (PREFIX, f"<script>var x = window.__STATE__; </script><script>\n window.__STATE__ = {JSON}\n</script>"),
        (PREFIX, f"<script>window.__STATE__ = JSON.parse({QUOTED});</script>"),
        (PREFIX, f"<script>window.__STATE__ = {QUOTED};</script>"),
        (PREFIX, f"<script>window.__STATE__ = JSON.parse('{JSON}')</script>"),
        (
            PREFIX,
            f"<script>var o = {{}}; window.__STATE__ = {JSON[:-1]}, a: undefined, b: [1,2,], 'c': !0}};</script>",
        ),
        (
            PREFIX,
            "<script>window.__STATE__ = "
            + JSON.replace('"page"', "page").replace('"make"', "make /* m */")
            + "</script>",
        ),
        ("window.__STATE__", f"<script>window.__STATE__ = {JSON};</script>"),
        ("__STATE__ =", f"<script>self.__STATE__={JSON};</script>"),
        ("hydrate(", f"<script>hydrate({JSON}, 'x')</script>"),
        ("script#state", f'<script id="state" type="application/json">{JSON}</script>'),
        ("script#state", f'<script id="state" type="application/json"><!--{JSON}--></script>'),
        ("script#state", f'<script id="state">window.x = {JSON};</script>'),
        ("#app@data-page", f"<div id=app data-page='{JSON}'></div>"),
        ("script[type='application/json']", f'<script type="application/json">{JSON}</script>'),
    ],
)
def test_state_is_found_however_the_script_holds_it(where: str, html: str) -> None:
    found = read(f"<html><body>{html}</body></html>", kind="state", script=where, fields=FIELDS, currency="USD")
    listing = found.listing
    assert (listing["title"], listing["make"], listing["year"]) == ("2012 FIAT 500", "FIAT", 2012)
    assert (listing["price"], listing["currency"]) == (Decimal("4300.00"), "USD")
    assert (listing["odometer"], listing["odometer_unit"]) == (101000.0, "mi")
    assert found.photo_urls == ("https://cars.example.com/1.jpg", "https://cars.example.com/2.jpg")


@pytest.mark.parametrize(
    "html", ["", "<script>window.__STATE__ = getState();</script>", "<script>window.__STATE__ =</script>"]
)
def test_a_page_without_the_state_is_no_listing(html: str) -> None:
    assert not read(f"<html>{html}</html>", kind="state", script=PREFIX, fields=FIELDS).is_listing


CARDS = """<html><head><title>Search</title></head><body>
<div class="card"><h2>2012 FIAT 500</h2><b class="price">$4,300</b><i data-mileage="101000"></i><a href="/full/1.jpg">
<img class="g" src="data:image/gif;base64,R0" data-src="/thumb/1.jpg"></a>
<img class="g" src="/2.jpg?w=99" srcset="/2.jpg?w=400 400w, /2.jpg?w=900 900w"></div>
<div class="card"><h2>2007 Scion tC</h2><b class="price">$4,350</b><b class="vin">5J8YD3H35KL010338</b>
<img class="g" src="/3.jpg"></div></body></html>"""
CSS = {
    "title": "h2",
    "year": "h2",
    "price": ".price",
    "odometer": "[data-mileage]@data-mileage",
    "vin": ".vin",
    "photos": "img.g@src",
}


def test_of_a_page_of_cards_the_first_is_read_alone() -> None:
    found = read(CARDS, kind="css", within=".card", fields=CSS, currency="USD")
    assert (found.listing["title"], found.listing["year"]) == ("2012 FIAT 500", 2012)
    assert (found.listing["price"], found.listing["odometer_mi"]) == (Decimal("4300.00"), 101000.0)
    assert "vin" not in found.listing
    assert found.photo_urls == ("https://cars.example.com/full/1.jpg", "https://cars.example.com/2.jpg?w=900")
    whole = read(CARDS, kind="css", within=".card", fields=CSS | {"title": "head title"})
    assert whole.listing["title"] == "Search"


def test_the_first_kind_that_has_a_field_answers_it() -> None:
    html = (
        page(car(model=None, image=None, offers=None))
        + f"<script>window.__STATE__={JSON}</script><p class=m>Model X</p>"
    )
    found = read(
        html,
        kind=["json_ld", "state", "css"],
        state={"script": PREFIX, "fields": FIELDS},
        css={"fields": {"model": ".m", "make": ".m"}},
    )
    assert (found.listing["make"], found.listing["model"]) == ("Acura", "Model X")
    assert found.listing["price"] == Decimal("4300.00")
    assert len(found.photo_urls) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "xpath"}, "kind"),
        ({"kind": "state", "fields": {"price": "a"}}, "script"),
        ({"kind": "state"}, "needs `script` and `fields`"),
        ({"kind": "css"}, "needs `fields`"),
        ({"kind": "css", "fields": {"prize": "a"}}, "unknown field prize"),
        ({"kind": "css", "fields": {"price": "a >>"}}, "no CSS selector"),
        ({"kind": "state", "script": "x=", "fields": {"price": "a..b"}}, "no JMESPath"),
        ({"kind": "state", "script": "", "fields": {"price": "a"}}, "script is empty"),
        ({"kind": ["state", "css"], "fields": {"price": "a"}}, "must stand under `state:` and `css:`"),
        ({"kind": "json_ld", "fields": {"price": "a"}}, "must stand under"),
        ({"kind": "json_ld", "css": {"fields": {"price": "a"}}}, "does not name css"),
        ({"kind": ["json_ld", "json_ld"]}, "twice"),
        ({"kind": "json_ld", "currency": "euro"}, "currency"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        ExtractSettings(**settings)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (CARDS.replace("FIAT", "Citro\u00ebn").encode("utf-8"), "text/html; charset=iso-8859-1"),
        (CARDS.replace("FIAT", "Citro\u00ebn").encode("latin-1"), "text/html; charset=iso-8859-1"),
        (CARDS.replace("FIAT", "Citro\u00ebn").encode("cp1252"), None),
        (CARDS.replace("FIAT", "Citro\u00ebn").encode("utf-16"), None),
        (
            CARDS.replace("FIAT", "Citro\u00ebn").replace("<head>", '<head><meta charset="latin1">').encode("latin-1"),
            None,
        ),
        (b"\xef\xbb\xbf" + CARDS.replace("FIAT", "Citro\u00ebn").encode(), None),
    ],
)
def test_the_encoding_is_what_the_bytes_show(body: bytes, content_type: str | None) -> None:
    settings = ExtractSettings.model_validate({"kind": "css", "fields": CSS})
    found = extract_listing(Page(body, url=URL, content_type=content_type), settings)
    assert found.listing["title"] == "2012 Citro\u00ebn 500"
