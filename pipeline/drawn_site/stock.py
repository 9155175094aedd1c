"""What the demo site offers: for each id whether it is live, its listing, its photos, and the truth about them.

Everything is a function of (seed, id, first id). Planted on purpose: exact copies, re-encoded and otherwise changed
copies, cars listed twice, stock photos, near-equal but different photos, flat images, cut-outs on white, broken photos.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Protocol

from pipeline.drawn_site.dice import Dice, token, unit
from pipeline.drawn_site.makes import BODY_NAMES, FIRST_YEAR, INTERIORS, MAKES, PAINTS, REFERENCE_YEAR, Make, Model

LIVE_SHARE = 0.4
RELISTED_SHARE = 0.05
RELIST_REACH = 60
SOLD_SHARE = 0.08
CHEAPER_SHARE = 0.2
PLACEHOLDERS = ("north", "harbour")
# Models whose maker's own picture many dealers use: common ones, so that a thousand ids show each several times.
STOCK_MODELS = (("Avalor", "Meridian"), ("Brenko", "Hauler"), ("Castrel", "S4"))
EDITS = ("reencode", "resize", "crop", "banner", "bright")
JUNK_TYPES = ("interior", "gauges", "wheel", "seats", "engine", "key", "boot", "paper")
BROKEN = {
    "truncated_jpeg": "truncated",
    "truncated_png": "truncated",
    "html": "not_an_image",
    "empty": "not_an_image",
    "text": "not_an_image",
    "svg": "not_an_image",
    "heic": "unsupported",
    "bomb_png": "too_many_pixels",
    "bomb_gif": "too_many_pixels",
    "missing": "http_404",
    "oversized": "too_large",
}
# Ids in a row have flat colours of their own, 16 levels apart in some channel; after this many they come again.
FLAT_COLOURS = 4096


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn: a view of the owner's car, a junk subject or a placeholder; `edit` is what was done to it."""

    owner: str
    slot: int
    kind: str
    subject: str
    edit: str = "none"

    @property
    def content(self) -> str:
        """Name the bytes: two photos with this name equal are byte-equal."""
        return f"{self.name}/{self.edit}"

    @property
    def name(self) -> str:
        """Name the picture, whatever was done to it."""
        return f"{self.owner}/{self.slot}"


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo of one listing as the site serves it; `copy_of` and `near_of` are (listing id, index)."""

    path: str
    content_type: str
    picture: Picture | None
    content: str
    kind: str
    junk_type: str | None = None
    broken: str | None = None
    copy: str | None = None
    copy_of: tuple[int, int] | None = None
    near_of: tuple[int, int] | None = None
    stock: str | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """A live listing: `fields` has the columns of the listings table that its page shows, nothing for what it lacks."""

    listing_id: int
    fields: dict[str, Any]
    photos: tuple[Photo, ...]
    relisted_from: int | None = None
    repeats_first_url: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


class Stock(Protocol):
    """Where the site's listings come from."""

    first: int
    last: int

    def state(self, listing_id: int) -> str:
        """Tell `live`, `gone_404`, `gone_410` or `gone_page`."""

    def listing(self, listing_id: int) -> Listing:
        """Return a live listing."""


class DrawnStock:
    """Listings of invented cars at ids `first`..`last`, some 40 % of them live.

    In each `edition` after the first some of these are sold and some cheaper, as a later crawl finds them.
    """

    def __init__(self, *, seed: int, first: int, last: int, edition: int = 0, kept_listings: int = 2048) -> None:
        self.seed = seed
        self.first = first
        self.last = last
        self._edition = edition
        self._kept_listings = kept_listings
        self._kept: OrderedDict[int, Listing] = OrderedDict()

    def state(self, listing_id: int) -> str:
        """Tell `live`, `gone_404`, `gone_410` or `gone_page`."""
        if not self.first <= listing_id <= self.last:
            return "gone_404"
        if self._edition and unit(self.seed, "sold", self._edition, listing_id) < SOLD_SHARE:
            return "gone_410"
        return self._first_state(listing_id)

    def _first_state(self, listing_id: int) -> str:
        draw = unit(self.seed, "live", listing_id)
        if draw < LIVE_SHARE:
            return "live"
        gone = (draw - LIVE_SHARE) / (1 - LIVE_SHARE)
        return "gone_404" if gone < 0.6 else "gone_410" if gone < 0.85 else "gone_page"

    def listing(self, listing_id: int) -> Listing:
        """Return a live listing."""
        known = self._kept.get(listing_id)
        if known is None:
            source = self._source(listing_id)
            known = self._original(listing_id) if source is None else self._relisted(listing_id, self._original(source))
            known = self._repriced(known)
            self._kept[listing_id] = known
            if len(self._kept) > self._kept_listings:
                self._kept.popitem(last=False)
        return known

    def _repriced(self, listing: Listing) -> Listing:
        cheaper = unit(self.seed, "cheaper", self._edition, listing.listing_id) < CHEAPER_SHARE
        if not self._edition or not cheaper or "price" not in listing.fields:
            return listing
        return replace(listing, fields=listing.fields | {"price": _round_price(float(listing.fields["price"]) * 0.95)})

    def _wants_relisting(self, listing_id: int) -> bool:
        return unit(self.seed, "relist", listing_id) < RELISTED_SHARE

    def _source(self, listing_id: int) -> int | None:
        """Find the listing of the same car: the nearest live one before it that is no relisting and has a VIN."""
        if not self._wants_relisting(listing_id):
            return None
        for other in range(listing_id - 1, max(self.first, listing_id - RELIST_REACH) - 1, -1):
            if (
                self._first_state(other) == "live"
                and not self._wants_relisting(other)
                and self._original(other).fields.get("vin")
            ):
                return other
        return None

    def _original(self, listing_id: int) -> Listing:
        make, model, fields = draw_car(self.seed, listing_id)
        plan = _Plan(self.seed, listing_id, self.first)
        plan.fill((make.name, model.name))
        repeats = unit(self.seed, "repeat", listing_id) < 0.04 and len(plan.photos) > 1
        return Listing(listing_id, fields, tuple(plan.photos), repeats_first_url=repeats)

    def _relisted(self, listing_id: int, source: Listing) -> Listing:
        dice = Dice(self.seed, "relisted", listing_id)
        fields = dict(source.fields)
        fields["stock_number"] = f"R{listing_id % 1_000_000:06d}"
        if "price" in fields:
            fields["price"] = _round_price(float(fields["price"]) * dice.between(0.93, 1.0))
        plan = _Plan(self.seed, listing_id, self.first)
        for index, photo in dice.shuffled(list(enumerate(source.photos))):
            if photo.copy is None and photo.stock is None and photo.broken is None and dice.chance(0.75):
                plan.add_copy(
                    photo, of=(source.listing_id, index), edit="none" if dice.chance(0.7) else dice.pick(EDITS)
                )
        return Listing(listing_id, fields, tuple(plan.photos), relisted_from=source.listing_id)


def draw_car(seed: int, listing_id: int) -> tuple[Make, Model, dict[str, Any]]:
    """Draw the make, model and fields of the car at an id; price follows make, model, trim, age and miles."""
    dice = Dice(seed, "car", listing_id)
    make = dice.weighted(MAKES, [make.share for make in MAKES])
    model = dice.weighted(make.models, [1 / (place + 1.2) for place in range(len(make.models))])
    age = min(int(22 * dice.between(0, 1) ** 1.7), REFERENCE_YEAR - FIRST_YEAR)
    year = REFERENCE_YEAR - age
    miles = int((age + dice.between(0.1, 0.9)) * dice.between(6000, 14500))
    level = dice.weighted((0, 1, 2), (5, 3, 2))
    worth = model.new_price_usd * (1 + 0.1 * level) * math.exp(-0.105 * age) * (1 - min(miles / 600_000, 0.3))
    worth *= dice.between(0.94, 1.06)
    fuel = "Electric" if make.name == "Halden" else dice.weighted(("Gasoline", "Diesel", "Hybrid"), (7, 2, 1))
    metric = dice.chance(0.15)
    fields: dict[str, Any] = {
        "make": make.name,
        "model": model.name,
        "trim": ("Base", "Sport", "Premium")[level],
        "year": year,
        "body_style": BODY_NAMES[model.body],
        "price": _round_price(worth / 1.16 if metric else worth),
        "currency": "EUR" if metric else "USD",
        "odometer": int(miles * 1.609344) if metric else miles,
        "odometer_unit": "km" if metric else "mi",
        "exterior_color": dice.weighted(list(PAINTS), [share for _, share in PAINTS.values()]),
        "interior_color": dice.weighted(list(INTERIORS), (10, 5, 4, 2, 1)),
        "engine": "Electric motor"
        if fuel == "Electric"
        else f"{dice.pick((1.5, 2.0, 2.5, 3.0))} L {dice.pick((4, 6))} cylinders",
        "transmission": "Automatic" if fuel == "Electric" or dice.chance(0.8) else "Manual",
        "drive_type": dice.pick(("FWD", "RWD", "AWD")),
        "fuel_type": fuel,
        "vin": make_vin(seed, listing_id),
        "stock_number": f"D{listing_id % 1_000_000:06d}",
    }
    if fuel != "Electric":
        fields["city_mpg"] = dice.whole(16, 32)
        fields["highway_mpg"] = fields["city_mpg"] + dice.whole(4, 9)
    for name, share in (("vin", 0.2), ("price", 0.04), ("odometer", 0.06), ("trim", 0.1), ("interior_color", 0.1)):
        if dice.chance(share):
            fields.pop(name)
    if "odometer" not in fields:
        fields.pop("odometer_unit")
    if "price" not in fields:
        fields.pop("currency")
    fields["title"] = " ".join(str(fields[part]) for part in ("year", "make", "model", "trim") if part in fields)
    return make, model, fields


def _round_price(worth: float) -> Decimal:
    return Decimal(max(900, int(worth / 50) * 50))


_VIN_LETTERS = "0123456789ABCDEFGHJKLMNPRSTUVWXYZ"
_VIN_VALUES = dict(zip("0123456789ABCDEFGHJKLMNPRSTUVWXYZ", map(int, "012345678912345678123457923456789"), strict=True))
_VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)


def make_vin(seed: int, listing_id: int) -> str:
    """Make a VIN with the right check digit; the serial part keeps VINs of different ids apart."""
    dice = Dice(seed, "vin", listing_id)
    head = "".join(dice.pick(_VIN_LETTERS) for _ in range(8))
    letters = [*head, "0", dice.pick(_VIN_LETTERS[10:]), dice.pick(_VIN_LETTERS), *f"{listing_id % 1_000_000:06d}"]
    check = sum(_VIN_VALUES[letter] * weight for letter, weight in zip(letters, _VIN_WEIGHTS, strict=True)) % 11
    letters[8] = "X" if check == 10 else str(check)
    return "".join(letters)


class _Plan:
    """The photos of one listing while they are put together."""

    def __init__(self, seed: int, listing_id: int, first: int) -> None:
        self.photos: list[Photo] = []
        self._seed = seed
        self._id = listing_id
        self._first = first
        self._dice = Dice(seed, "photos", listing_id)

    def fill(self, model: tuple[str, str]) -> None:
        """Put together an original listing's photos: 0, or 3 to 8 and what is planted on top."""
        dice = self._dice
        if dice.chance(0.02):
            return
        self._lead(model)
        for slot in range(1, dice.whole(3, 7)):
            exterior = dice.chance(0.36)
            self._own(slot, "exterior" if exterior else "junk", "view" if exterior else dice.pick(JUNK_TYPES))
            if exterior and dice.chance(0.05):
                self._burst(slot)
        if dice.chance(0.05):
            self._own(20, "exterior", "cutout")
        if dice.chance(0.03):
            colour = (self._id - self._first) % FLAT_COLOURS
            self._own(30, "junk", f"flat{colour}")
        self._planted()

    def _lead(self, model: tuple[str, str]) -> None:
        dice = self._dice
        if dice.chance(0.08):
            name = dice.pick(PLACEHOLDERS)
            self._add(Picture(f"placeholder-{name}", 0, "junk", "placeholder"), stock=f"placeholder-{name}")
        if model in STOCK_MODELS and dice.chance(0.3):
            name = "-".join(model).lower()
            self._add(Picture(f"stock-{name}", 0, "exterior", "cutout"), stock=f"stock-{name}")
        self._own(0, "exterior", "cutout" if dice.chance(0.06) else "view")

    def _planted(self) -> None:
        dice = self._dice
        sound = [(index, photo) for index, photo in enumerate(self.photos) if photo.stock is None]
        if dice.chance(0.16):
            index, photo = dice.pick(sound)
            self.add_copy(photo, of=(self._id, index), edit="none")
        if dice.chance(0.2):
            index, photo = dice.pick(sound)
            self.add_copy(photo, of=(self._id, index), edit=dice.pick(EDITS))
        if dice.chance(0.14):
            self._broken(dice.pick(list(BROKEN)))

    def _own(self, slot: int, kind: str, subject: str) -> None:
        self._add(Picture(str(self._id), slot, kind, subject))

    def _burst(self, slot: int) -> None:
        near_of = (self._id, len(self.photos) - 1)
        self._add(Picture(str(self._id), slot + 100, "exterior", "view"), near_of=near_of)

    def add_copy(self, photo: Photo, *, of: tuple[int, int], edit: str) -> None:
        """Show a photo again: its very bytes (`none`) or an edit of it, under another URL, name and perhaps type."""
        assert photo.picture is not None
        if photo.picture.subject.startswith("flat"):
            edit = "none"
        self._add(replace(photo.picture, edit=edit), copy="exact" if edit == "none" else edit, copy_of=of)

    def _add(self, picture: Picture, **planted: Any) -> None:
        index = len(self.photos)
        style = self._dice.weighted(("photos", "media", "lie", "private", "reserved"), (82, 10, 5, 1.5, 1.5))
        name = f"{index}-{token(self._seed, 'name', self._id, index)}"
        folder = {"media": "/media", "private": "/photos/private", "reserved": "/photos/reserved"}.get(style, "/photos")
        suffix, content_type = ("png", "image/png") if style == "lie" else ("jpg", "image/jpeg")
        if style != "lie" and encoding_of(picture) != "jpeg":
            suffix = encoding_of(picture)
            content_type = f"image/{suffix}"
        junk_type = (
            None if picture.kind == "exterior" else "flat" if picture.subject.startswith("flat") else picture.subject
        )
        path = f"{folder}/{self._id}/{name}" + ("" if style == "media" else f".{suffix}")
        self.photos.append(Photo(path, content_type, picture, picture.content, picture.kind, junk_type, **planted))

    def _broken(self, kind: str) -> None:
        index = len(self.photos)
        path = f"/photos/{self._id}/{index}-{token(self._seed, 'name', self._id, index)}.jpg"
        cut = kind.startswith("truncated")
        picture = (
            Picture(str(self._id), 40, "exterior", "cutout" if kind == "truncated_png" else "view") if cut else None
        )
        self.photos.append(Photo(path, "image/jpeg", picture, f"broken/{self._id}/{index}", "broken", broken=kind))


def encoding_of(picture: Picture) -> str:
    """Tell the format of a picture's bytes: jpeg, and for some png or webp."""
    if picture.subject == "placeholder":
        return "png"
    if picture.edit in ("none", "crop", "banner"):
        plain = picture.subject == "cutout" or picture.subject.startswith("flat")
        return Dice("encoding", picture.name).weighted(("jpeg", "png", "webp"), (2, 1, 0) if plain else (18, 0, 1))
    return "jpeg"
