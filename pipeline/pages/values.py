"""From a raw value of a page, of any shape, to the value a column holds; None where it cannot be read.

Raw values are text, numbers, lists, or objects as schema.org and page states have them.
"""

import html
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from pipeline.pages.money import (
    MAX_TEXT_CHARS,
    Place,
    first_number,
    plain_digits,
    read_currency,
    read_price,
    to_decimal,
)
from pipeline.pages.page import squeeze
from pipeline.pages.personal import cut_mails, cut_personal

MAX_SHORT_CHARS = 200
MAX_TITLE_CHARS = 500
MAX_DESCRIPTION_CHARS = 10_000
MAX_ODOMETER_KM = 5_000_000
# The first car was built in 1885. A clock would make the result depend on the time of the crawl, so the end is fixed.
FIRST_YEAR, LAST_YEAR = 1885, 2050
KM_PER_MI = 1.609344
MAX_MPG = 400.0

TEXT_FIELDS = (
    "title make model trim body_style exterior_color interior_color engine transmission drive_type fuel_type "
    "stock_number description".split()
)
FREE_TEXT = frozenset({"title", "trim", "description"})

_TAG = re.compile(r"<(script|style)\b[^<>]*>|<[a-zA-Z/!][^<>]*>", re.IGNORECASE)
_CLOSING = {name: re.compile(rf"</{name}\s*>", re.IGNORECASE) for name in ("script", "style")}
_LABEL = re.compile(r"^[^\W\d][^:<>]{0,40}:\s+(?=\S)")
_YEAR = re.compile(r"(?<!\d)(1[89]\d\d|20\d\d)(?![\d]|[.,]\d{3})")
_DATE_WITH_SHORT_YEAR = re.compile(r"^(?:\d{1,2}[./])?(?:0?[1-9]|1[0-2])[./](\d\d)$")
_KM = re.compile(r"(?:(t)\s?)?(?:\bkms?\b|\bkmt\b|(?<=\d)\s?t?kms?\b|kilomet|\u043a\u043c)", re.IGNORECASE)
_MI = re.compile(r"(?:\bmi\b|\bmiles?\b|\bsmi\b|\bmls\b|(?<=\d)\s?mi(?:les?)?\b|(?<=k)\s?mi(?:les?)?\b)", re.IGNORECASE)
_THOUSAND_KM = re.compile(r"\s?t(?:sd\.?\s?)?\s?km\b", re.IGNORECASE)
_VIN = re.compile(r"(?<![A-Z0-9])[A-HJ-NPR-Z0-9]{17}(?![A-Z0-9])")
_CITY = (
    re.compile(r"(\d{1,3})\s*(?:mpg)?\s*\(?(?:city|cty)", re.I),
    re.compile(r"(?:city|cty)\D{0,12}(\d{1,3})", re.I),
)
_HIGHWAY = (
    re.compile(r"(\d{1,3})\s*(?:mpg)?\s*\(?(?:highway|hwy)", re.I),
    re.compile(r"(?:highway|hwy)\D{0,12}(\d{1,3})", re.I),
)
_MPG_PAIR = re.compile(r"(?<!\d)(\d{1,3})\s*/\s*(\d{1,3})(?!\d)")
_EMPTY = frozenset({"", "-", "--", "n/a", "na", "none", "null", "undefined", "unknown", "k.a.", "not specified", "tbd"})
_SCHEMA_TAIL = re.compile(r"^(?:https?://(?:www\.)?schema\.org/|schema:)(\w+)$")
_DRIVE = {
    "allwheeldriveconfiguration": "AWD", "fourwheeldriveconfiguration": "4WD",
    "frontwheeldriveconfiguration": "FWD", "rearwheeldriveconfiguration": "RWD",
}  # fmt: skip


def clean_listing(raw: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Read every raw value that is there; the keys are columns of listings, never with a value of None."""
    clean: dict[str, Any] = {}
    for name in TEXT_FIELDS:
        clean[name] = read_text(name, raw.get(name), place, names=raw.get("_names") or ())
    clean["price"], currency = read_price(_amount_of(raw.get("price")), place)
    if clean["price"] is not None:
        named = read_currency(plain_text(raw.get("currency")), place) or _currency_of(raw.get("price"), place)
        clean["currency"] = named or currency
    clean["year"] = read_year(raw.get("year"))
    clean["vin"] = read_vin(raw.get("vin"))
    clean["odometer"], clean["odometer_unit"] = read_odometer(raw.get("odometer"), raw.get("odometer_unit"))
    clean["city_mpg"] = read_mpg(raw.get("city_mpg"), _CITY, pair=1)
    clean["highway_mpg"] = read_mpg(raw.get("highway_mpg"), _HIGHWAY, pair=2)
    return {name: value for name, value in clean.items() if value is not None}


def complete_listing(listing: dict[str, Any], place: Place) -> None:
    """Fill in what the site tells where the page was silent: currency, unit, the odometer in miles; tidy the model."""
    if listing.get("model"):
        listing["model"] = without_make(listing["model"], listing.get("make"))
    if listing.get("price") is None:
        listing["currency"] = None
    elif listing.get("currency") is None:
        listing["currency"] = place.likely_currency()
    if listing.get("odometer") is None:
        listing["odometer_unit"] = listing["odometer_mi"] = None
        return
    unit = listing.get("odometer_unit") or place.unit_for(listing.get("currency"))
    listing["odometer_unit"] = unit
    factor = {"mi": 1.0, "km": KM_PER_MI}.get(unit or "")
    listing["odometer_mi"] = round(listing["odometer"] / factor, 3) if factor else None


def read_text(name: str, value: Any, place: Place, *, names: Iterable[str] = ()) -> str | None:
    """Read a text column; personal data is cut, `names` of sellers too where the text is free."""
    bound = {"title": MAX_TITLE_CHARS, "description": MAX_DESCRIPTION_CHARS}.get(name, MAX_SHORT_CHARS)
    text = plain_text(value, max_chars=bound + 2_000)
    if text is None:
        return None
    if name not in FREE_TEXT:
        text = _LABEL.sub("", text)
    if tail := _SCHEMA_TAIL.match(text):
        text = _DRIVE.get(tail.group(1).lower(), tail.group(1))
    if name == "description":
        for seller in names:
            text = re.sub(rf"(?<!\w){re.escape(seller)}(?!\w)", "", text, flags=re.IGNORECASE)
    text = cut_personal(text, country=place.country, currency=place.currency) if name in FREE_TEXT else cut_mails(text)
    text = squeeze(text).rstrip(",;") if name not in FREE_TEXT else squeeze(text)
    text = text[:bound].strip()
    return None if text.lower() in _EMPTY else text


def plain_text(value: Any, *, max_chars: int = MAX_SHORT_CHARS) -> str | None:
    """Return the text of a value: of an object its name or value, of a list its first; no tags, no entities."""
    for _ in range(5):
        if isinstance(value, list | tuple):
            value = next((item for item in value if item not in (None, "", [], {})), None)
        elif isinstance(value, Mapping):
            value = next((value[k] for k in _NAMING if value.get(k) not in (None, "", [], {})), None)
        else:
            break
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float):
        value = f"{value:g}" if abs(value) < 1e15 else str(value)
    text = str(value)[: 8 * max_chars]
    for _ in range(2):
        if "<" in text:
            text = _without_tags(text)
        if "&" in text:
            text = html.unescape(text)
    if "<" in text:
        text = _without_tags(text)
    text = squeeze(text.encode("utf-8", "replace").decode("utf-8").replace("\0", ""))[:max_chars]
    return text or None


def _without_tags(text: str) -> str:
    """Cut tags, scripts and styles with what they hold; linear, which one pattern for all of it is not."""
    parts: list[str] = []
    position = 0
    unclosed: set[str] = set()
    while found := _TAG.search(text, position):
        parts.append(text[position : found.start()])
        position = found.end()
        name = (found.group(1) or "").lower()
        if name and name not in unclosed:
            if closing := _CLOSING[name].search(text, position):
                position = closing.end()
            else:
                unclosed.add(name)
    return " ".join([*parts, text[position:]])


_NAMING = ("name", "@value", "value", "text", "label", "formatted", "title", "displayName", "engineType", "description")


def read_year(value: Any) -> int | None:
    """Read a model year from a number, a date or a text that holds one."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, bool):
            continue
        if isinstance(item, int | float) and not isinstance(item, bool):
            number = to_decimal(item)
            text = str(int(number)) if number is not None and number == int(number) else ""
        else:
            text = plain_digits(plain_text(item) or "")
        if found := _YEAR.search(text):
            year = int(found.group(1))
            if FIRST_YEAR <= year <= LAST_YEAR:
                return year
        elif short := _DATE_WITH_SHORT_YEAR.match(text):
            return (2000 if int(short.group(1)) <= LAST_YEAR - 2000 else 1900) + int(short.group(1))
    return None


def read_vin(value: Any) -> str | None:
    """Read a vehicle identification number: 17 characters without I, O and Q, letters and digits both."""
    text = unquote(plain_text(value, max_chars=MAX_TEXT_CHARS) or "").upper()
    for found in _VIN.finditer(text if len(text) != 17 + text.count("-") + text.count(" ") else _solid(text)):
        vin = found.group()
        if any(c.isdigit() for c in vin) and any(c.isalpha() for c in vin) and len(set(vin)) > 3:
            return vin
    return None


def read_odometer(value: Any, unit: Any = None) -> tuple[float | None, str | None]:
    """Read a distance and its unit, `mi` or `km`; the unit is None where none is named."""
    if isinstance(value, list):
        value = next((item for item in value if item), None)
    named = _unit_of(unit) if isinstance(unit, str) else None
    if isinstance(value, Mapping):
        codes = [value.get(key) for key in ("unitCode", "unitText", "unit", "units", "unitOfMeasure")]
        named = named or next((u for code in codes if isinstance(code, str) and (u := _unit_of(code))), None)
        value = next((value[k] for k in ("value", "minValue", "amount", "@value") if value.get(k) is not None), None)
    number = to_decimal(value)
    if number is None:
        text = plain_digits(plain_text(value, max_chars=MAX_TEXT_CHARS) or "")
        number, found = _distance(text)
        named = found or named
    if number is None or not 0 <= number <= MAX_ODOMETER_KM:
        return None, None
    return float(number), named


def read_mpg(value: Any, patterns: tuple[re.Pattern[str], ...], *, pair: int) -> float | None:
    """Read miles per gallon from a number, from `22 city / 30 highway`, or from the pair `22/30`."""
    if isinstance(value, Mapping):
        value = value.get("value")
    number = to_decimal(value)
    if number is None and isinstance(text := plain_text(value), str):
        found = next((m for pattern in patterns if (m := pattern.search(text))), None)
        both = _MPG_PAIR.search(text)
        if found or both:
            number = Decimal(found.group(1) if found else both.group(pair) if both else "0")
        elif "km" not in text and (first := first_number(text)):
            number = first[0]
    return float(number) if number is not None and 0 < number <= MAX_MPG else None


def without_make(model: str, make: str | None) -> str | None:
    """Cut a year and the make from the front of a model (`2022 BMW i4` -> `i4`); None where nothing is left."""
    text = re.sub(r"^(?:19|20)\d\d\s+(?=\S)", "", model)
    if make and text.casefold().startswith(make.casefold()):
        rest = text[len(make) :]
        if not rest.strip(" -"):
            return None
        if rest[0] in " -":
            text = rest.strip(" -")
    return text


_AMOUNT_KEYS = ("price", "amount", "value", "@value", "lowPrice", "minPrice", "raw", "formatted", "display", "text")


def _amount_of(value: Any) -> Any:
    """Return the amount of a price object, a bare price as it is."""
    if isinstance(value, list):
        value = next((item for item in value if item), None)
    if isinstance(value, Mapping):
        for key in _AMOUNT_KEYS:
            if value.get(key) not in (None, "", 0):
                return value[key]
        return None
    return plain_text(value, max_chars=MAX_TEXT_CHARS) if isinstance(value, str) else value


def _currency_of(value: Any, place: Place) -> str | None:
    if not isinstance(value, Mapping):
        return None
    codes = (value.get(key) for key in ("priceCurrency", "currency", "currencyCode", "currencyIso"))
    return next((code for raw in codes if (code := read_currency(raw, place))), None)


def _unit_of(text: str) -> str | None:
    if _KM.search(text):
        return "km"
    return "mi" if _MI.search(text) else None


def _distance(text: str) -> tuple[Decimal | None, str | None]:
    """Prefer the first number with a unit behind it, else the first number with whatever unit the text names."""
    bare: Decimal | None = None
    position = 0
    while found := first_number(text, position):
        number, _start, position = found
        rest = text[position : position + 12]
        if _THOUSAND_KM.match(rest):
            return number * 1000, "km"
        if re.match(r"\s?\.?-?\s?(?:kms?\b|kilomet|\u043a\u043c)", rest, re.IGNORECASE):
            return number, "km"
        if re.match(r"\s?\.?-?\s?(?:mi\b|miles?\b|mls\b)", rest, re.IGNORECASE):
            return number, "mi"
        bare = number if bare is None else bare
    return bare, _unit_of(text) if bare is not None else None


def _solid(text: str) -> str:
    return text.replace("-", "").replace(" ", "")
