"""What a site file tells about reading a page, and the reading: markup, a state blob, or CSS selectors.

Several kinds may be given; the first that has a field answers it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, get_args

import jmespath
from jmespath.exceptions import JMESPathError
from pydantic import model_validator

from pipeline.pages.json_ld import read_json_ld
from pipeline.pages.money import Place
from pipeline.pages.page import Page, check_selector, element_text, select, split_selector, squeeze
from pipeline.pages.photo_urls import Offered, merge_photos, offered_in, srcset
from pipeline.pages.state import is_selector, read_state
from pipeline.pages.values import TEXT_FIELDS, clean_listing, complete_listing
from schemas.settings import Section, result

Kind = Literal["json_ld", "state", "css"]
KINDS: tuple[str, ...] = get_args(Kind)

LISTING_FIELDS = (
    *TEXT_FIELDS,
    "year",
    "price",
    "currency",
    "odometer",
    "odometer_unit",
    "city_mpg",
    "highway_mpg",
    "vin",
)
PHOTOS_FIELD = "photos"
# Words that site files use for two of the columns.
ALIASES = {"mileage": "odometer", "mileage_unit": "odometer_unit"}
FIELD_NAMES = frozenset({*LISTING_FIELDS, PHOTOS_FIELD, *ALIASES})

MAX_TRIED_ELEMENTS = 50
MAX_SOURCES = 20
_LAZY_ATTRIBUTES = (
    "data-src", "data-lazy", "data-lazy-src", "data-original", "data-full", "data-zoom-image", "data-large",
    "data-image", "data-hi-res-src",
)  # fmt: skip
_SRCSET_ATTRIBUTES = ("srcset", "data-srcset", "data-lazy-srcset")
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".avif")
_EVIDENCE = ("price", "odometer", "vin", "year", "make", "model")


class StateSettings(Section):
    """Where a page keeps its state, and where in the state each field is."""

    script: str = result(..., "What the script starts with, or a CSS selector, also SELECTOR@ATTRIBUTE")
    fields: dict[str, str] = result(..., "Field -> JMESPath expression over the state", min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "StateSettings":
        _check_names(self.fields)
        for name, expression in self.fields.items():
            try:
                compiled_path(expression)
            except JMESPathError as error:
                raise ValueError(f"{name}: {expression!r} is no JMESPath expression: {squeeze(str(error))}") from error
        if not self.script.strip():
            raise ValueError('script is empty; say what the script starts with ("window.__STATE__=") or a CSS selector')
        if is_selector(self.script):
            check_selector("script", self.script)
        return self


class CssSettings(Section):
    """The CSS selector of each field."""

    fields: dict[str, str] = result(..., "Field -> CSS selector, or SELECTOR@ATTRIBUTE", min_length=1)
    within: str | None = result(
        None, "CSS selector of the listing's part of the page, first match; `head ...` is read from all"
    )

    @model_validator(mode="after")
    def _check(self) -> "CssSettings":
        _check_names(self.fields)
        for name, text in self.fields.items():
            check_selector(name, text)
        if self.within is not None:
            check_selector("within", self.within)
        return self


class ExtractSettings(Section):
    """How a listing is read from a page: one or several kinds, in the order of trust."""

    kind: tuple[Kind, ...] = result(
        ..., "json_ld, state or css; a list asks them in turn, field by field", min_length=1
    )
    state: StateSettings | None = result(None, "Settings of the kind state")
    css: CssSettings | None = result(None, "Settings of the kind css")
    currency: str | None = result(None, "ISO 4217 code, where the page names none", pattern="^[A-Z]{3}$")
    odometer_unit: Literal["mi", "km"] | None = result(None, "mi or km, where the page names none")

    @model_validator(mode="before")
    @classmethod
    def _sort(cls, values: Any) -> Any:
        """Bring `script`, `fields` and `within`, written beside a single kind, under that kind."""
        if not isinstance(values, Mapping) or "kind" not in values:
            return values
        values = dict(values)
        kinds = [values["kind"]] if isinstance(values["kind"], str) else values["kind"]
        if not isinstance(kinds, list | tuple):
            return values
        values["kind"] = tuple(kinds)
        loose = {key: values.pop(key) for key in ("script", "fields", "within") if key in values}
        with_fields = [kind for kind in kinds if kind in ("state", "css") and values.get(kind) is None]
        if loose and len(with_fields) != 1:
            under = " and ".join(f"`{kind}:`" for kind in kinds if kind in ("state", "css")) or "the kind state or css"
            raise ValueError(f"{', '.join(map(repr, loose))} must stand under {under}")
        if loose:
            values[str(with_fields[0])] = loose
        if values.get("json_ld") in ({}, None):
            values.pop("json_ld", None)
        return values

    @model_validator(mode="after")
    def _check(self) -> "ExtractSettings":
        for kind in ("state", "css"):
            given = getattr(self, kind) is not None
            if kind in self.kind and not given:
                needs = "`script` and `fields`" if kind == "state" else "`fields`"
                raise ValueError(f"kind {kind} needs {needs}")
            if given and kind not in self.kind:
                raise ValueError(f"`{kind}:` is given, but kind does not name {kind}")
        if len(set(self.kind)) != len(self.kind):
            raise ValueError("kind names one kind twice")
        return self


@dataclass(frozen=True, slots=True)
class Extraction:
    """A listing as read: its columns, the addresses of its photos, and whether it is a listing at all."""

    listing: dict[str, Any]
    photo_urls: tuple[str, ...]
    is_listing: bool


def extract_listing(page: Page, settings: ExtractSettings) -> Extraction:
    """Read a page by each kind in turn; the first answer wins, field by field."""
    place = Place.of(page.url, currency=settings.currency, odometer_unit=settings.odometer_unit)
    listing: dict[str, Any] = {}
    photo_urls: tuple[str, ...] = ()
    is_vehicle = False
    for kind in settings.kind:
        raw = _read_kind(kind, page, settings)
        for name, value in clean_listing(raw, place).items():
            listing.setdefault(name, value)
        is_vehicle = is_vehicle or bool(raw.get("_vehicle"))
        if not photo_urls:
            photo_urls = merge_photos(raw.get("_offered") or offered_in(raw.get(PHOTOS_FIELD)), page.base_url)
    complete_listing(listing, place)
    is_listing = _is_listing(listing, photo_urls, is_vehicle)
    return Extraction(listing=listing, photo_urls=photo_urls, is_listing=is_listing)


def _is_listing(listing: Mapping[str, Any], photo_urls: tuple[str, ...], is_vehicle: bool) -> bool:
    """Accept a vehicle's markup that says anything, a VIN, or two of the facts that a vehicle on sale has."""
    facts = sum(1 for name in _EVIDENCE if listing.get(name) is not None)
    if is_vehicle and (facts or (listing.get("title") and photo_urls)):
        return True
    offered = any(listing.get(name) is not None for name in ("price", "odometer"))
    return bool(listing.get("vin")) or facts >= 2 or (offered and listing.get("title") is not None)


def _read_kind(kind: str, page: Page, settings: ExtractSettings) -> dict[str, Any]:
    if kind == "json_ld":
        return read_json_ld(page)
    if kind == "state" and settings.state is not None:
        return _read_state_fields(page, settings.state)
    if kind == "css" and settings.css is not None:
        return _read_css_fields(page, settings.css)
    return {}


def _read_state_fields(page: Page, settings: StateSettings) -> dict[str, Any]:
    state = read_state(page, settings.script)
    if state is None:
        return {}
    raw: dict[str, Any] = {}
    for name, expression in settings.fields.items():
        try:
            raw[ALIASES.get(name, name)] = compiled_path(expression).search(state)
        except (JMESPathError, TypeError, ValueError, RecursionError):
            # The state of this page has not the shape the expression was written for.
            continue
    return raw


def _read_css_fields(page: Page, settings: CssSettings) -> dict[str, Any]:
    whole = part = page.tree
    if whole is not None and settings.within is not None:
        part = next(iter(select(whole, settings.within)), None)
    if part is None:
        return {}
    raw: dict[str, Any] = {}
    for name, text in settings.fields.items():
        selector, attribute = split_selector(text)
        elements = select(whole if selector.startswith("head ") else part, selector)
        if name == PHOTOS_FIELD:
            raw["_offered"] = [_offered_by(element, attribute) for element in elements]
        else:
            values = (_value_of(element, attribute) for element in elements[:MAX_TRIED_ELEMENTS])
            raw[ALIASES.get(name, name)] = next(filter(None, values), None)
    return raw


def _value_of(element: Any, attribute: str | None) -> str | None:
    if attribute is not None:
        return str(element.get(attribute) or element.get(attribute.lower()) or "").strip() or None
    text = element_text(element)
    return text or element.get("content") or element.get("value")


def _offered_by(element: Any, attribute: str | None) -> list[Offered]:
    """Return every size of the photo an element shows: its srcset, its lazy address, the file its link opens."""
    values = [element.get(attribute)] if attribute is not None else []
    if attribute in _SRCSET_ATTRIBUTES:
        return srcset(values[0] or "")
    offers: list[Offered] = []
    if attribute in (None, "src"):
        sets = [element.get(name) for name in _SRCSET_ATTRIBUTES]
        parent = element.getparent()
        if parent is not None and parent.tag == "picture":
            sources = islice(parent.iterchildren("source"), MAX_SOURCES)
            sets += [source.get(name) for source in sources for name in _SRCSET_ATTRIBUTES]
        offers = [offer for text in sets if text for offer in srcset(text)]
        if not offers:
            values += [element.get(name) for name in ("src", *_LAZY_ATTRIBUTES)]
            values += [_linked_image(element)]
        if element.tag == "a":
            values += [element.get("href")]
    return offers + [Offered(value) for value in values if value]


def _linked_image(element: Any) -> str | None:
    parent = element.getparent()
    href = parent.get("href") if parent is not None and parent.tag == "a" else None
    return href if href and href.lower().partition("?")[0].endswith(_IMAGE_ENDINGS) else None


@lru_cache(maxsize=512)
def compiled_path(expression: str) -> Any:
    """Compile a JMESPath expression once a process."""
    return jmespath.compile(expression)


def _check_names(fields: Mapping[str, str]) -> None:
    if unknown := sorted(fields.keys() - FIELD_NAMES):
        raise ValueError(f"unknown field {', '.join(unknown)}; a listing has {', '.join(sorted(FIELD_NAMES))}")
