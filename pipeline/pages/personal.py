"""Cut what identifies a person from free text: e-mail addresses and phone numbers.

Prices, distances, years, VINs and stock numbers look like phone numbers to a naive reader; they stay.
"""

import re
from collections.abc import Iterator
from itertools import islice

import phonenumbers

MAX_CHARS = 20_000
MIN_PHONE_DIGITS = 7
MAX_CANDIDATES = 100
MAX_ENDINGS = 6

_MAIL = re.compile(r"(?:mailto:)?[\w.%+'-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}")
_HIDDEN_MAIL = re.compile(
    r"[\w.%+-]{1,64}\s?[\[({]\s?(?:at|@)\s?[\])}]\s?[\w-]{1,63}(?:\s?[\[({]\s?(?:dot|punkt|\.)\s?[\])}]\s?|\.)[\w.-]{2,63}"
    r"|[\w.%+-]{1,64}\s+at\s+[\w-]{1,63}\s+dot\s+[a-z]{2,10}\b",
    re.IGNORECASE,
)
_CHAT_LINK = re.compile(r"(?:https?://)?(?:wa\.me|api\.whatsapp\.com/send|t\.me)/\S{1,200}", re.IGNORECASE)
# What may stand between two digits of a number; a full stop before a space ends it.
_BETWEEN = r"(?:(?!\.\s)[\s\u00a0\u202f().\-/]){0,3}"
_CALL_WORD = (
    r"(?:tel|telef\w*|t\u00e9l\w*|phone|ph|call|text|sms|mobile?|mob|handy|cell|fax|whats\s?app|viber|contact|kontakt|ring|"
    r"rufen?|anruf\w*|llam\w*|appel\w*|chiama\w*|\u0442\u0435\u043b\w*)"
)
_AFTER_CALL_WORD = re.compile(
    rf"\b{_CALL_WORD}\b\W{{0,4}}(?:(?:me|us|nr|no|number|num|at|on|unter|now|or|and|al|au|is)\b\W{{0,3}}){{0,3}}"
    rf"([+(]?\d(?:{_BETWEEN}\d){{5,17}})",
    re.IGNORECASE,
)
_AMERICAN = re.compile(r"(?<![\w.,$#-])(?:\+?1[\s.-]?)?(?:\(\d{3}\)\s?|\d{3}[\s.-])\d{3}[\s.-]\d{4}(?![\w-])")
_WITH_PREFIX = re.compile(rf"(?<![\w+])(?:\+|00)[1-9]\d{{0,2}}(?:{_BETWEEN}\d){{6,14}}(?!\d)")
_CANDIDATE = re.compile(rf"(?<![\w.,])[+(]?\d(?:{_BETWEEN}\d){{6,16}}(?![\w])")

_MONEY = r"(?:[$\u20ac\u00a3\u00a5\u20b9\u20bd]|\b(?:USD|EUR|GBP|CHF|CAD|AUD|PLN|CZK|SEK|NOK|DKK|kr)\b)"
_FIGURE = r"(?:\d{1,3}(?:[.,'\s\u00a0\u202f]\d{3})+|\d{1,12})(?:[.,]\d{1,2})?(?!\d)"
_KEPT = re.compile(
    rf"{_MONEY}\s?{_FIGURE}"
    rf"|(?<![\d.,]){_FIGURE}(?:,-)?\s?(?:{_MONEY}|\b(?:km|kms|mi|miles?|ccm|cc|kg|lbs?|kW|hp|PS|bhp|rpm|kWh|mm|cm)\b)"
    r"|\b[A-HJ-NPR-Z0-9]{17}\b"
    r"|\b\d{1,2}[./-]\d{1,2}[./-](?:19|20)\d\d\b|\b(?:19|20)\d\d[./-]\d{1,2}[./-]\d{1,2}\b"
    r"|\b(?:19|20)\d\d(?:\s?[-/\u2013\s]\s?(?:19|20)\d\d\b){1,5}"
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
    if not _CANDIDATE.search(text) and not _AFTER_CALL_WORD.search(text):
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
        if span := _beside_kept(found.span(1), kept, text):
            yield span
    for pattern in (_AMERICAN, _WITH_PREFIX):
        for found in pattern.finditer(text):
            if span := _beside_kept(found.span(), kept, text):
                yield span
    for found in islice(_CANDIDATE.finditer(text), MAX_CANDIDATES):
        if not _is_kept(found.span(), kept, text) and (end := _valid_end(found, regions)):
            yield found.start(), end


def _valid_end(candidate: re.Match[str], regions: tuple[str, ...]) -> int | None:
    """Return where the longest valid number of a run of digits ends; more may follow it, a price or a second number."""
    run = candidate.group()
    ends = [len(run)] + [at for at in range(len(run) - 1, 0, -1) if run[at - 1].isdigit() and not run[at].isdigit()]
    for end in ends[:MAX_ENDINGS]:
        text = run[:end]
        if sum(c.isdigit() for c in text) < MIN_PHONE_DIGITS or _GROUPED.fullmatch(text):
            continue
        for region in regions:
            try:
                if phonenumbers.is_valid_number(phonenumbers.parse(text, region)):
                    return candidate.start() + end
            except phonenumbers.NumberParseException:
                continue
    return None


def _beside_kept(span: tuple[int, int], kept: list[tuple[int, int]], text: str) -> tuple[int, int] | None:
    """Return the part of a sure phone number before what must stay; None where it is itself what must stay."""
    start, end = span
    for kept_start, kept_end in kept:
        if kept_start <= start < kept_end:
            return None
        if start < kept_start < end and sum(c.isdigit() for c in text[start:kept_start]) >= MIN_PHONE_DIGITS:
            end = kept_start
    return None if _GROUPED.fullmatch(text[start:end]) else (start, end)


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
