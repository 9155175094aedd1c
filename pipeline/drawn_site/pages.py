"""The demo site's pages in three shapes (JSON-LD, state script, HTML classes), and how a site file reads each."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pipeline.drawn_site.dice import Dice
from pipeline.drawn_site.stock import Listing

SHAPES = ("json_ld", "state", "css")
STATE_START = "window.__STATE__="
GONE_STATUS = (404, 410)
GONE_CSS = "h1.unavailable"

# Column -> class of the element that shows it in the css shape.
CSS_CLASSES = {
    "make": "make",
    "model": "model",
    "trim": "trim",
    "year": "year",
    "body_style": "body-style",
    "price": "price",
    "odometer": "odometer",
    "exterior_color": "exterior-color",
    "interior_color": "interior-color",
    "engine": "engine",
    "transmission": "transmission",
    "drive_type": "drive-type",
    "fuel_type": "fuel-type",
    "city_mpg": "city-mpg",
    "highway_mpg": "highway-mpg",
    "vin": "vin",
    "stock_number": "stock-number",
    "description": "description",
}
STATE_COLUMNS = (*CSS_CLASSES, "currency", "odometer_unit")


def gone_page() -> bytes:
    """Return the page that says a listing is no longer there."""
    return _document("Gone", '<h1 class="unavailable">This vehicle is no longer available</h1>').encode()


def block_page() -> bytes:
    """Return a page that asks for a captcha instead of showing anything."""
    body = (
        "<h1>Please verify you are a human</h1><p>Access to this page has been denied because we believe you are using"
        ' automation tools to browse the website.</p><div id="px-captcha" class="g-recaptcha"></div>'
    )
    return _document("Access denied", body).encode()


def listing_page(listing: Listing, *, shape: str, photo_urls: Sequence[str], url: str, meta: str = "") -> bytes:
    """Return a listing's page; `meta` goes into its head."""
    fields = dict(listing.fields)
    fields.setdefault("description", describe(listing))
    title = str(fields.get("title") or f"Vehicle {listing.listing_id}")
    if shape == "json_ld":
        script = json.dumps(_json_ld(listing.listing_id, fields, photo_urls, url))
        head = f'<script type="application/ld+json">{_for_script(script)}</script>'
        body = f"<h1>{escape(title)}</h1>"
    elif shape == "state":
        script = _for_script(json.dumps(_state(listing, fields, photo_urls)))
        head, body = "", f"<div id=app></div><script>{STATE_START}{script};</script>"
    else:
        head, body = "", _css_body(title, fields, photo_urls)
    return _document(title, body, head=meta + head).encode()


def describe(listing: Listing) -> str:
    """Write the dealer's text; every third leaves a phone number and an e-mail address in it."""
    dice = Dice("description", listing.listing_id)
    text = dice.pick(
        ("One owner.", "Well kept, full service history.", "Runs and drives great.", "New tires, clean inside.")
    )
    if dice.chance(0.33):
        phone, desk = f"(555) {dice.whole(200, 999)}-{dice.whole(1000, 9999)}", dice.whole(1, 40)
        text += f" Call {phone} or write to sales{desk}@dealer.example today."
    return text


def site_extract(shape: str) -> dict[str, Any]:
    """Return the `extract` section of the site file for a shape."""
    if shape == "json_ld":
        return {"kind": "json_ld", "currency": "USD"}
    if shape == "state":
        fields = {name: f"page.vehicle.{name}" for name in STATE_COLUMNS}
        fields |= {"title": "page.heading", "photos": "inventory.*.images[*].url"}
        return {"kind": "state", "script": STATE_START, "fields": fields, "currency": "USD"}
    fields = {name: f".{css}" for name, css in CSS_CLASSES.items()}
    fields |= {"title": "h1", "photos": "img.gallery@src"}
    return {"kind": "css", "fields": fields, "currency": "USD"}


def _document(title: str, body: str, head: str = "") -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>{head}</head>'
        f'<body><header><a href="/">Demo Motors</a></header><main>{body}</main></body></html>'
    )


def _for_script(text: str) -> str:
    # A "</script>" inside a string would end the element.
    return text.replace("</", "<\\/")


def _json_ld(listing_id: int, fields: Mapping[str, Any], photo_urls: Sequence[str], url: str) -> Any:
    dice = Dice("json_ld", listing_id)
    car: dict[str, Any] = {"@type": dice.weighted(("Car", "Vehicle", "Product"), (6, 3, 1)), "url": url}
    plain = {
        "name": "title",
        "vehicleConfiguration": "trim",
        "bodyType": "body_style",
        "color": "exterior_color",
        "vehicleInteriorColor": "interior_color",
        "vehicleTransmission": "transmission",
        "driveWheelConfiguration": "drive_type",
        "fuelType": "fuel_type",
        "vehicleIdentificationNumber": "vin",
        "sku": "stock_number",
        "description": "description",
    }
    car |= {name: fields[column] for name, column in plain.items() if fields.get(column) is not None}
    if "make" in fields:
        car["brand"] = {"@type": "Brand", "name": fields["make"]} if dice.chance(0.7) else fields["make"]
    if "model" in fields:
        car["model"] = fields["model"] if dice.chance(0.7) else {"@type": "ProductModel", "name": fields["model"]}
    if "year" in fields:
        car["vehicleModelDate"] = str(fields["year"]) if dice.chance(0.8) else f"{fields['year']}-01-01"
    if "engine" in fields:
        car["vehicleEngine"] = {"@type": "EngineSpecification", "name": fields["engine"]}
    if "odometer" in fields:
        unit_code = {"mi": "SMI", "km": "KMT"}[fields["odometer_unit"]]
        car["mileageFromOdometer"] = {"@type": "QuantitativeValue", "value": fields["odometer"], "unitCode": unit_code}
    car["additionalProperty"] = [
        {"@type": "PropertyValue", "name": name, "value": fields[column]}
        for name, column in (("City MPG", "city_mpg"), ("Highway MPG", "highway_mpg"))
        if column in fields
    ]
    if "price" in fields:
        price: Any = float(fields["price"]) if dice.chance(0.6) else f"{fields['price']:.2f}"
        car["offers"] = {"@type": "Offer", "price": price, "priceCurrency": fields["currency"]}
    car["image"] = list(photo_urls)
    return _nested(car, dice)


def _nested(car: dict[str, Any], dice: Dice) -> Any:
    context = "https://schema.org"
    match dice.weighted(("plain", "graph", "array", "main"), (6, 2, 1, 1)):
        case "graph":
            return {"@context": context, "@graph": [{"@type": "Organization", "name": "Demo Motors"}, car]}
        case "array":
            return [
                {"@context": context, "@type": "BreadcrumbList", "itemListElement": []},
                {"@context": context} | car,
            ]
        case "main":
            return {"@context": context, "@type": "WebPage", "name": "Vehicle details", "mainEntity": car}
        case _:
            return {"@context": context} | car


def _state(listing: Listing, fields: Mapping[str, Any], photo_urls: Sequence[str]) -> dict[str, Any]:
    vehicle = {name: fields[name] for name in STATE_COLUMNS if name in fields}
    if "price" in vehicle:
        vehicle["price"] = float(vehicle["price"])
    images = [{"url": url, "alt": f"Photo {place}"} for place, url in enumerate(photo_urls, 1)]
    return {
        "page": {"heading": fields.get("title"), "vehicle": vehicle},
        "inventory": {str(listing.listing_id): {"images": images}},
        "site": {"name": "Demo Motors", "locale": "en-US"},
    }


def _css_body(title: str, fields: Mapping[str, Any], photo_urls: Sequence[str]) -> str:
    shown = {name: fields[name] for name in CSS_CLASSES if name in fields}
    if "price" in shown:
        shown["price"] = f"{fields['currency']} {fields['price']:,.0f}"
    if "odometer" in shown:
        shown["odometer"] = f"{fields['odometer']:,} {fields['odometer_unit']}"
    rows = "".join(f'<dd class="{CSS_CLASSES[name]}">{escape(str(value))}</dd>' for name, value in shown.items())
    photos = "".join(f'<img class="gallery" src="{escape(url)}" alt="photo">' for url in photo_urls)
    return f"<h1>{escape(title)}</h1><dl>{rows}</dl><section>{photos}</section>"
