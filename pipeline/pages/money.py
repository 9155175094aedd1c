"""Numbers, prices and currencies as pages of any country write them."""

import base64
import binascii
import math
import re
import unicodedata
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any
from urllib.parse import urlsplit

MAX_PRICE = Decimal("9999999999.99")
MAX_TEXT_CHARS = 500

# Where a listing's country shows in its host name: the currency, the unit of odometers, the regions of phone numbers.
_COUNTRIES: dict[str, tuple[str, str]] = {
    "ae": ("AED", "km"), "ar": ("ARS", "km"), "at": ("EUR", "km"), "au": ("AUD", "km"), "be": ("EUR", "km"),
    "bg": ("BGN", "km"), "br": ("BRL", "km"), "ca": ("CAD", "km"), "ch": ("CHF", "km"), "cl": ("CLP", "km"),
    "cn": ("CNY", "km"), "co": ("COP", "km"), "cy": ("EUR", "km"), "cz": ("CZK", "km"), "de": ("EUR", "km"),
    "dk": ("DKK", "km"), "ee": ("EUR", "km"), "es": ("EUR", "km"), "fi": ("EUR", "km"), "fr": ("EUR", "km"),
    "gr": ("EUR", "km"), "hk": ("HKD", "km"), "hr": ("EUR", "km"), "hu": ("HUF", "km"), "id": ("IDR", "km"),
    "ie": ("EUR", "km"), "il": ("ILS", "km"), "in": ("INR", "km"), "it": ("EUR", "km"), "jp": ("JPY", "km"),
    "ke": ("KES", "km"), "kr": ("KRW", "km"), "lt": ("EUR", "km"), "lu": ("EUR", "km"), "lv": ("EUR", "km"),
    "mx": ("MXN", "km"), "my": ("MYR", "km"), "ng": ("NGN", "km"), "nl": ("EUR", "km"), "no": ("NOK", "km"),
    "nz": ("NZD", "km"), "ph": ("PHP", "km"), "pl": ("PLN", "km"), "pt": ("EUR", "km"), "ro": ("RON", "km"),
    "rs": ("EUR", "km"), "ru": ("RUB", "km"), "se": ("SEK", "km"), "sg": ("SGD", "km"), "si": ("EUR", "km"),
    "sk": ("EUR", "km"), "th": ("THB", "km"), "tr": ("TRY", "km"), "tw": ("TWD", "km"), "ua": ("UAH", "km"),
    "uk": ("GBP", "mi"), "us": ("USD", "mi"), "uy": ("UYU", "km"), "vn": ("VND", "km"), "za": ("ZAR", "km"),
}  # fmt: skip
_MILE_CURRENCIES = frozenset({"USD", "GBP"})

_CODES = frozenset(
    "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF "
    "CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG "
    "HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA "
    "MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD "
    "RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX "
    "USD UYU UZS VES VND VUV WST XAF XCD XOF XPF YER ZAR ZMW ZWL".split()
)
_DOLLARS = ("USD", "CAD", "AUD", "NZD", "SGD", "HKD", "TWD", "MXN", "ARS", "CLP", "COP", "UYU")
# A sign -> what it may mean, the usual meaning first. Longer signs are tried before shorter ones.
_SIGNS: dict[str, tuple[str, ...]] = {
    "us$": ("USD",), "u$s": ("USD",), "a$": ("AUD",), "au$": ("AUD",), "c$": ("CAD",), "ca$": ("CAD",),
    "cdn$": ("CAD",), "nz$": ("NZD",), "hk$": ("HKD",), "s$": ("SGD",), "sg$": ("SGD",), "nt$": ("TWD",),
    "mx$": ("MXN",), "r$": ("BRL",), "$": _DOLLARS, "\u20ac": ("EUR",), "euro": ("EUR",), "euros": ("EUR",),
    "\u00a3": ("GBP",), "cn\u00a5": ("CNY",), "\u00a5": ("JPY", "CNY"), "\uffe5": ("JPY", "CNY"),
    "\u5143": ("CNY", "TWD"), "\u5186": ("JPY",), "rmb": ("CNY",), "\u20b9": ("INR",), "rs.": ("INR", "PKR", "LKR"),
    "rs": ("INR", "PKR", "LKR"), "\u20bd": ("RUB",), "\u0440\u0443\u0431": ("RUB",), "\u20b4": ("UAH",),
    "\u0433\u0440\u043d": ("UAH",), "\u20b8": ("KZT",), "z\u0142": ("PLN",), "zl": ("PLN",), "k\u010d": ("CZK",),
    "kc": ("CZK",), "kr": ("SEK", "NOK", "DKK", "ISK"), "kr.": ("DKK", "SEK", "NOK", "ISK"), "sek": ("SEK",),
    "ft": ("HUF",), "lei": ("RON",), "\u043b\u0432": ("BGN",), "\u20ba": ("TRY",), "tl": ("TRY",), "\u20a9": ("KRW",),
    "\u20aa": ("ILS",), "\u0e3f": ("THB",), "\u20ab": ("VND",), "sfr": ("CHF",), "sfr.": ("CHF",), "fr.": ("CHF",),
    "dhs": ("AED", "MAD"), "dh": ("AED", "MAD"), "\u062f.\u0625": ("AED",), "rm": ("MYR",), "rp": ("IDR",),
    "\u20b1": ("PHP",), "\u20a6": ("NGN",), "ksh": ("KES",), "r": ("ZAR",), "s/": ("PEN",), "usd$": ("USD",),
    "dollar": _DOLLARS, "dollars": _DOLLARS, "pounds": ("GBP",),
}  # fmt: skip

_GAP = " \u00a0\u2007\u2009\u202f'\u2019\u066c"
_NUMBER = re.compile(rf"(?<![\w.,])[-+\u2212]?\d(?:[\d.,{_GAP}]{{0,30}}\d)?")
_GROUPED = re.compile(rf"\d{{1,3}}(?:[{_GAP}]\d{{3}})+(?!\d)|\d{{1,2}}(?:[{_GAP}]\d{{2}})*[{_GAP}]\d{{3}}(?!\d)")
_TIMES = re.compile(
    r"\s?(?:(?P<thousand>k|tsd\.?|tys\.?|thousand)|(?P<lakh>lakhs?|lacs?)|(?P<million>m|mn|mio\.?|mln\.?|millions?)"
    r"|(?P<crore>crores?|cr))(?![^\W\d_])",
    re.IGNORECASE,
)
_FACTORS = {"thousand": 1_000, "lakh": 100_000, "million": 1_000_000, "crore": 10_000_000}
_BY_THE_MONTH = re.compile(
    r"[\s.,\-\u2013*\u20ac$a-z]{0,8}(?:/\s?|per\s|p\.\s?|pro\s|im\s|a\s|par\s|al\s|each\s)?\s?"
    r"(?:mo|mos|month|monthly|pm|pcm|mtl|monat|monatlich|mois|mes|mese|wk|week|weekly)\b",
    re.IGNORECASE,
)
_PERCENT = re.compile(r"\s?%")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{4,40}={0,2}")
_PLAIN_NUMBER = re.compile(r"\d{1,12}(?:\.\d{1,4})?")


@dataclass(frozen=True, slots=True)
class Place:
    """What a site tells about the meaning of a bare `$`, `kr` or `70000`."""

    currency: str | None = None
    odometer_unit: str | None = None
    country: str | None = None

    @classmethod
    def of(cls, url: str, *, currency: str | None, odometer_unit: str | None = None) -> "Place":
        """Read the country from the end of the host name; what the site file says comes before it."""
        try:
            ending = (urlsplit(url).hostname or "").rpartition(".")[2]
        except ValueError:
            ending = ""
        return cls(currency, odometer_unit, ending if ending in _COUNTRIES else None)

    def likely_currency(self) -> str | None:
        """Return the currency that an ambiguous sign most likely means here."""
        return self.currency or (_COUNTRIES[self.country][0] if self.country else None)

    def unit_for(self, currency: str | None) -> str | None:
        """Return the unit of an odometer that names none; None where nothing tells."""
        if self.odometer_unit:
            return self.odometer_unit
        if self.country:
            return _COUNTRIES[self.country][1]
        known = currency or self.currency
        return None if known is None else "mi" if known in _MILE_CURRENCIES else "km"


def read_price(value: Any, place: Place) -> tuple[Decimal | None, str | None]:
    """Read an amount and the currency named beside it; a price of zero or by the month is none."""
    if isinstance(value, str):
        text = plain_digits(value)[:MAX_TEXT_CHARS]
        if (decoded := _from_base64(text)) is not None:
            return _amount(decoded), None
        return _priced(text, place)
    number = to_decimal(value)
    return (_amount(number), None) if number is not None else (None, None)


def read_currency(value: Any, place: Place) -> str | None:
    """Read an ISO 4217 code from a code, a sign or a name."""
    if not isinstance(value, str):
        return None
    text = value.strip()[:40]
    tail = re.split(r"[/#]", text)[-1].upper()
    if tail in _CODES:
        return tail
    found = _CURRENCY.search(text.lower())
    return _meaning(found.group(), place) if found else None


def read_number(text: str) -> Decimal | None:
    """Read the first number of a text, whatever separates its thousands and decimals."""
    found = first_number(plain_digits(text)[:MAX_TEXT_CHARS])
    return found[0] if found else None


def first_number(text: str, start: int = 0) -> tuple[Decimal, int, int] | None:
    """Return the first number from `start`, a factor such as k or Mio applied, and where it begins and ends."""
    for found in _NUMBER.finditer(text, start):
        token, end = found.group(), found.end()
        if grouped := _GROUPED.match(token.lstrip("+-\u2212")):
            # `12 500 2019`: what follows a complete group is another number.
            sign = len(token) - len(token.lstrip("+-\u2212"))
            rest = token[sign + grouped.end() :]
            if rest[:1] not in (".", ","):
                token = token[: sign + grouped.end()]
                end = found.start() + len(token)
        elif any(gap in token for gap in _GAP):
            token = re.split(f"[{_GAP}]", token, maxsplit=1)[0].rstrip(".,")
            end = found.start() + len(token)
        number = _separated(token)
        if number is None:
            continue
        if times := _TIMES.match(text, end):
            number, end = number * _FACTORS[str(times.lastgroup)], times.end()
        return number, found.start(), end
    return None


def to_decimal(value: Any) -> Decimal | None:
    """Return a finite number as a Decimal; None for anything else, booleans too."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and abs(value) > 10**18:
        return None
    return Decimal(str(value))


def plain_digits(text: str) -> str:
    """Write digits of every script as 0 to 9."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() and not c.isascii() else c for c in text)


def _priced(text: str, place: Place) -> tuple[Decimal | None, str | None]:
    """Prefer the first number with a currency at its side, else the first number."""
    bare: Decimal | None = None
    position = 0
    while found := first_number(text, position):
        number, start, position = found
        if _BY_THE_MONTH.match(text, position) or _PERCENT.match(text, position):
            continue
        if sign := _beside(text, start, position):
            amount = _amount(number)
            return amount, _meaning(sign, place) if amount is not None else None
        bare = number if bare is None else bare
    amount = _amount(bare)
    return amount, read_currency(text, place) if amount is not None else None


def _beside(text: str, start: int, end: int) -> str | None:
    after = _CURRENCY.match(text[end : end + 12].lower().lstrip(" \u00a0\u2009\u202f,.-\u2013"))
    before = _CURRENCY_BEFORE.search(text[max(0, start - 12) : start].lower())
    sign = before.group(1) if before else after.group() if after else None
    return sign


def _amount(number: Decimal | None) -> Decimal | None:
    if number is None or not 0 < number <= MAX_PRICE:
        return None
    rounded = number.quantize(Decimal("0.01"), ROUND_HALF_UP)
    return rounded if 0 < rounded <= MAX_PRICE else None


def _meaning(sign: str, place: Place) -> str | None:
    if sign.upper() in _CODES:
        return sign.upper()
    meanings = _SIGNS.get(sign.strip())
    if meanings is None:
        return None
    likely = place.likely_currency()
    return likely if likely in meanings else meanings[0]


def _separated(token: str) -> Decimal | None:
    negative = token[:1] in "-\u2212"
    digits = re.sub(f"[{_GAP}+\\-\u2212]", "", token)
    last = max(digits.rfind("."), digits.rfind(","))
    if last >= 0:
        whole, fraction, mark = digits[:last], digits[last + 1 :], digits[last]
        other = "," if mark == "." else "."
        grouping = mark in whole or (len(fraction) == 3 and other not in whole and whole.lstrip("0") == whole != "")
        if grouping and mark not in whole and len(whole) > 3:
            grouping = False
        digits = whole.replace(".", "").replace(",", "") + ("" if grouping else ".") + fraction
    try:
        return Decimal(f"-{digits}" if negative else digits)
    except InvalidOperation:
        return None


def _from_base64(text: str) -> Decimal | None:
    """Read a number that a page hides as base64 (`MzQyOTYuMA==`)."""
    if text.isdigit() or len(text) % 4 or not _BASE64.fullmatch(text):
        return None
    try:
        decoded = base64.b64decode(text, validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return Decimal(decoded) if _PLAIN_NUMBER.fullmatch(decoded) else None


def _currency_pattern() -> str:
    words = sorted(set(_SIGNS) | {code.lower() for code in _CODES}, key=len, reverse=True)
    return "|".join(
        (r"(?<![^\W\d_])" if word[0].isalpha() else "")
        + re.escape(word)
        + (r"(?![^\W\d_])" if word[-1].isalpha() else "")
        for word in words
    )


_CURRENCY = re.compile(_currency_pattern())
_CURRENCY_BEFORE = re.compile(rf"({_currency_pattern()})[\s\u00a0\u2009\u202f:]*[-+]?$")
