"""Cut what identifies a person from free text: e-mail addresses and phone numbers.

Prices, distances, years, VINs and stock numbers look like phone numbers to a naive reader; they stay.
"""

import re
from collections.abc import Iterator

import phonenumbers
from phonenumbers import Leniency, PhoneNumberMatcher

MAX_CHARS = 20_000
MIN_PHONE_DIGITS = 7

_MAIL = re.compile(r"(?:mailto:)?[\w.%+'-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}")
_HIDDEN_MAIL = re.compile(
    r"[\w.%+-]{1,64}\s?[\[({]\s?(?:at|@)\s?[\])}]\s?[\w-]{1,63}(?:\s?[\[({]\s?(?:dot|punkt|\.)\s?[\])}]\s?|\.)[\w.-]{2,63}"
    r"|[\w.%+-]{1,64}\s+at\s+[\w-]{1,63}\s+dot\s+[a-z]{2,10}\b",
    re.IGNORECASE,
)
_CHAT_LINK = re.compile(r"(?:https?://)?(?:wa\.me|api\.whatsapp\.com/send|t\.me)/\S{1,200}", re.IGNORECASE)
_CALL_WORD = (
    r"(?:tel|telef\w*|t\u00e9l\w*|phone|ph|call|text|sms|mobile?|mob|handy|cell|fax|whats\s?app|viber|contact|kontakt|ring|"
    r"rufen?|anruf\w*|llam\w*|appel\w*|chiama\w*|\u0442\u0435\u043b\w*)"
)
_AFTER_CALL_WORD = re.compile(
    rf"\b{_CALL_WORD}\b\W{{0,4}}(?:(?:me|us|nr|no|number|num|at|on|unter|now|or|and|al|au|is)\b\W{{0,3}}){{0,3}}"
    r"([+(]?\d(?:[\s\u00a0\u202f().\-/]{0,3}\d){5,17})",
    re.IGNORECASE,
)
_AMERICAN = re.compile(r"(?<![\w.,$#-])(?:\+?1[\s.-]?)?(?:\(\d{3}\)\s?|\d{3}[\s.-])\d{3}[\s.-]\d{4}(?![\w-])")
_WITH_PREFIX = re.compile(r"(?<![\w+])(?:\+|00)[1-9]\d{0,2}(?:[\s\u00a0\u202f().\-/]{0,3}\d){6,14}(?!\d)")
_DIGIT_RUN = re.compile(r"\d(?:[\s\u00a0\u2000-\u200a\u202f().\-/]{0,3}\d){6}")

_MONEY = r"(?:[$\u20ac\u00a3\u00a5\u20b9\u20bd]|\b(?:USD|EUR|GBP|CHF|CAD|AUD|PLN|CZK|SEK|NOK|DKK|kr)\b)"
_FIGURE = r"(?:\d{1,3}(?:[.,'\s\u00a0\u202f]\d{3})+|\d{1,12})(?:[.,]\d{1,2})?(?!\d)"
_KEPT = re.compile(
    rf"{_MONEY}\s?{_FIGURE}"
    rf"|(?<![\d.,]){_FIGURE}(?:,-)?\s?(?:{_MONEY}|\b(?:km|kms|mi|miles?|ccm|cc|kg|lbs?|kW|hp|PS|bhp|rpm|kWh|mm|cm)\b)"
    r"|\b[A-HJ-NPR-Z0-9]{17}\b"
    r"|\b\d{1,2}[./-]\d{1,2}[./-](?:19|20)\d\d\b|\b(?:19|20)\d\d[./-]\d{1,2}[./-]\d{1,2}\b"
    r"|\b(?:19|20)\d\d\s?[-/\u2013]\s?(?:19|20)\d\d\b"
    r"|\b(?:stock|stk|vin|fin|ref|reference|id|part|article|artikel|hsn|tsn|lot|angebots?nummer|inserat\w*|serial)\b"
    r"[\s.:#-]{0,4}(?:(?:no|nr|number|num)\b[\s.:#-]{0,4})?[\w-]{4,30}",
    re.IGNORECASE,
)
_GROUPED = re.compile(r"\d{1,3}(?:[.,'\s\u00a0\u202f]\d{3})+")

# Regions whose numbers a text may hold, by the country in the site's host name, else by its currency.
_BY_CURRENCY = {
    "USD": ("US",), "CAD": ("CA",), "GBP": ("GB",), "AUD": ("AU",), "NZD": ("NZ",), "CHF": ("CH",), "PLN": ("PL",),
    "CZK": ("CZ",), "SEK": ("SE",), "NOK": ("NO",), "DKK": ("DK",), "INR": ("IN",), "JPY": ("JP",), "BRL": ("BR",),
    "EUR": ("DE", "FR", "IT", "ES", "NL", "BE", "AT"), "ZAR": ("ZA",), "AED": ("AE",), "RUB": ("RU",), "TRY": ("TR",),
    "MXN": ("MX",), "HUF": ("HU",), "RON": ("RO",), "UAH": ("UA",), "SGD": ("SG",), "MYR": ("MY",), "IDR": ("ID",),
}  # fmt: skip


def cut_personal(text: str, *, country: str | None, currency: str | None) -> str:
    """Cut e-mail addresses and phone numbers; `country` is the ending of the site's host name."""
    text = cut_mails(text[:MAX_CHARS])
    if _CHAT_LINK.search(text):
        text = _CHAT_LINK.sub("", text)
    if not _DIGIT_RUN.search(text) and not _AFTER_CALL_WORD.search(text):
        return text
    return _without(text, list(_phones(text, _regions(country, currency))))


def cut_mails(text: str) -> str:
    """Cut e-mail addresses, also those written with (at) and (dot)."""
    if "@" in text:
        text = _MAIL.sub("", text)
    if " at " in text.lower() or re.search(r"[\[({]\s?(?:at|@)\s?[\])}]", text, re.IGNORECASE):
        text = _HIDDEN_MAIL.sub("", text)
    return text


def _phones(text: str, regions: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    kept = [found.span() for found in _KEPT.finditer(text)]
    for found in _AFTER_CALL_WORD.finditer(text):
        if not _is_kept(found.span(1), [k for k in kept if k[0] <= found.start(1)], text):
            yield found.span(1)
    for pattern in (_AMERICAN, _WITH_PREFIX):
        for found in pattern.finditer(text):
            if not _is_kept(found.span(), kept, text):
                yield found.span()
    for region in regions:
        for match in PhoneNumberMatcher(text, region, leniency=Leniency.VALID):
            digits = sum(c.isdigit() for c in match.raw_string)
            grouped = _GROUPED.fullmatch(match.raw_string)
            if digits >= MIN_PHONE_DIGITS and not grouped and not _is_kept((match.start, match.end), kept, text):
                yield match.start, match.end


def _is_kept(span: tuple[int, int], kept: list[tuple[int, int]], text: str) -> bool:
    if any(span[0] < end and start < span[1] for start, end in kept):
        return True
    return bool(_GROUPED.fullmatch(text[span[0] : span[1]]))


def _regions(country: str | None, currency: str | None) -> tuple[str, ...]:
    regions = (("GB" if country == "uk" else country.upper(),) if country else ()) + _BY_CURRENCY.get(
        currency or "", ()
    )
    known = phonenumbers.SUPPORTED_REGIONS
    return tuple(dict.fromkeys(region for region in (*regions, "US") if region in known))


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    parts: list[str] = []
    position = 0
    for start, end in sorted(spans):
        if start >= position:
            parts.append(text[position:start].removesuffix("tel:"))
        position = max(position, end)
    parts.append(text[position:])
    return "".join(parts)
