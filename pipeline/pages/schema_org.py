"""The properties of schema.org's vehicles, products and offers, as the fields of a listing."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Node = Mapping[str, Any]
Resolve = Callable[[Any], Any]

# A field and the properties that hold it, the better first. All have been seen on real pages.
_PROPERTIES: dict[str, tuple[str, ...]] = {
    "title": ("name", "headline", "title"),
    "make": ("brand", "make", "vehicleMake", "manufacturer"),
    "model": ("model", "vehicleModel", "modelName"),
    "trim": ("trim", "vehicleTrim", "vehicleConfiguration"),
    "year": (
        "vehicleModelDate", "modelDate", "modelYear", "year", "productionDate", "dateVehicleFirstRegistered",
        "releaseDate", "dateOfFirstRegistration", "firstRegistration",
    ),
    "body_style": ("bodyType", "vehicleBodyType", "bodyStyle"),
    "odometer": ("mileageFromOdometer", "mileage", "odometer", "vehicleMileage"),
    "exterior_color": ("color", "vehicleExteriorColor", "exteriorColor"),
    "interior_color": ("vehicleInteriorColor", "interiorColor"),
    "transmission": ("vehicleTransmission", "transmission"),
    "drive_type": ("driveWheelConfiguration", "driveType", "drivetrain"),
    "fuel_type": ("fuelType", "vehicleFuelType"),
    "vin": ("vehicleIdentificationNumber", "vin", "vehicleIdentificationNo"),
    "stock_number": ("stockNumber", "sku", "productID", "mpn"),
    "description": ("description", "disambiguatingDescription"),
}  # fmt: skip
_PHOTO_PROPERTIES = ("image", "images", "photo", "photos", "associatedMedia", "primaryImageOfPage")
# Names that sites give to `additionalProperty` and to identifiers.
_NAMED = {
    "mileage": "odometer", "odometer": "odometer", "kilometers": "odometer", "kilometres": "odometer",
    "kilometerstand": "odometer", "laufleistung": "odometer", "kilometrage": "odometer", "km": "odometer",
    "year": "year", "model year": "year", "baujahr": "year", "erstzulassung": "year", "first registration": "year",
    "make": "make", "brand": "make", "marke": "make", "model": "model", "modell": "model", "trim": "trim",
    "vin": "vin", "fin": "vin", "stock": "stock_number", "stock number": "stock_number", "stock #": "stock_number",
    "fuel": "fuel_type", "fuel type": "fuel_type", "kraftstoff": "fuel_type", "transmission": "transmission",
    "gearbox": "transmission", "getriebe": "transmission", "body type": "body_style", "body style": "body_style",
    "color": "exterior_color", "colour": "exterior_color", "exterior color": "exterior_color",
    "farbe": "exterior_color", "interior color": "interior_color", "engine": "engine", "drivetrain": "drive_type",
    "drive type": "drive_type", "city mpg": "city_mpg", "highway mpg": "highway_mpg",
}  # fmt: skip
_SELLER_PROPERTIES = ("seller", "offeredBy", "provider", "vendor", "author", "sellerName", "dealer")
_LIST_PRICES = ("listprice", "strikethroughprice", "msrp", "suggestedretailprice", "srp", "invoiceprice")
_LEASE_WORDS = ("leaseout", "lease")
_MAX_OFFERS = 50
# What of one list is looked at: twice the photos a listing may have. Many nodes may refer to one list.
MAX_LISTED = 2_000
MAX_SELLERS = 20


def read_node(things: Sequence[Node], offers: Sequence[Node], resolve: Resolve) -> dict[str, Any]:
    """Return the raw fields of a vehicle: of `things` (the vehicle, then the products around it) and their offers."""
    things = [_local(node) for node in things]
    all_offers = [*(_local(offer) for offer in offers), *(o for thing in things for o in _offers_of(thing, resolve))]
    raw: dict[str, Any] = {}
    for name, properties in _PROPERTIES.items():
        raw[name] = _first(things if name != "title" else [*things, *all_offers], properties, resolve)
    raw["make"] = _make(things, resolve)
    raw["engine"], engine_fuel = _engine(things, resolve)
    raw["fuel_type"] = raw["fuel_type"] or engine_fuel
    raw["city_mpg"] = raw["highway_mpg"] = _first(things, ("fuelEfficiency", "fuelConsumption", "mpg"), resolve)
    raw["price"], raw["currency"] = _price(all_offers, things, resolve)
    _from_named_properties(raw, things, resolve)
    _from_title(raw)
    photos = [photo for node in things for name in _PHOTO_PROPERTIES for photo in _listed(resolve(node.get(name)))]
    photos = photos or [photo for node in all_offers for photo in _listed(resolve(node.get("image")))]
    raw["photos"] = [resolve(photo) for photo in photos] or _listed(
        _first(things, ("thumbnailUrl", "thumbnail"), resolve)
    )
    raw["_names"] = _sellers([*things, *all_offers], resolve)
    return {name: value for name, value in raw.items() if value not in (None, "", [], {})}


def types_of(node: Node) -> frozenset[str]:
    """Return the types of a node in small letters, without their vocabulary."""
    kinds = node.get("@type", node.get("type") if "@context" in node else None)
    listed = kinds if isinstance(kinds, list) else [kinds]
    return frozenset(local_name(kind).lower() for kind in listed[:20] if isinstance(kind, str))


def local_name(name: str) -> str:
    """Return a name without its vocabulary: `https://schema.org/Car`, `schema:Car` and `Car` are one."""
    return re.split(r"[/#:]", name.strip().rstrip("/"))[-1] if not name.startswith("@") else name


def text_of(value: Any) -> str | None:
    """Return a short text of a value, for comparing."""
    for _ in range(4):
        if isinstance(value, list):
            value = value[0] if value else None
        elif isinstance(value, Mapping):
            value = next((value[k] for k in ("name", "@value", "value", "@id", "url") if value.get(k)), None)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).strip()[:500] or None


def _local(node: Node) -> Node:
    return {local_name(str(key)): value for key, value in node.items()}


def _first(nodes: Iterable[Node], properties: Sequence[str], resolve: Resolve) -> Any:
    for node in nodes:
        for name in properties:
            value = node.get(name)
            if value in (None, "", [], {}):
                continue
            value = [resolve(item) for item in value[:MAX_LISTED]] if isinstance(value, list) else resolve(value)
            if isinstance(value, Mapping) and not _says(value):
                continue
            return value
    return None


def _says(value: Mapping[str, Any]) -> bool:
    return any(key for key in value if key not in ("@type", "@id", "@context", "type"))


def _listed(value: Any) -> list[Any]:
    if value in (None, "", {}):
        return []
    if isinstance(value, Mapping) and isinstance(value.get("@list", value.get("itemListElement")), list):
        inner = value.get("@list", value.get("itemListElement"))
        return [item.get("item", item) if isinstance(item, Mapping) else item for item in inner[:MAX_LISTED]]
    return value[:MAX_LISTED] if isinstance(value, list) else [value]


def _make(things: Sequence[Node], resolve: Resolve) -> Any:
    for node in things:
        for name in _PROPERTIES["make"]:
            value = resolve(node.get(name))
            if isinstance(value, Mapping) and not {"name", "@value", "value"} & value.keys():
                continue
            text = text_of(value)
            if text and not text.startswith(("http://", "https://", "#", "_:")):
                return text
    # A model given as an object may itself name its brand.
    model = _first(things, ("model",), resolve)
    inner = model.get("brand", model.get("manufacturer")) if isinstance(model, Mapping) else None
    return text_of(resolve(inner))


def _engine(things: Sequence[Node], resolve: Resolve) -> tuple[Any, Any]:
    value = _first(things, ("vehicleEngine", "engine"), resolve)
    engine = value[0] if isinstance(value, list) and value else value
    if not isinstance(engine, Mapping):
        return engine, None
    engine = _local(engine)
    fuel = engine.get("fuelType")
    for name in ("name", "description", "engineType"):
        if text := text_of(engine.get(name)):
            return text, fuel
    size = engine.get("engineDisplacement")
    if isinstance(size, list) and size:
        size = size[0]
    if isinstance(size, Mapping) and text_of(size.get("value")) not in (None, "0"):
        unit = {"LTR": "L", "CMQ": "cc"}.get(str(size.get("unitCode")), str(size.get("unitText") or ""))
        return f"{text_of(size.get('value'))} {unit}".strip(), fuel
    return (size if isinstance(size, str) else None), fuel


def _offers_of(node: Node, resolve: Resolve) -> list[Node]:
    found: list[Node] = []
    waiting = [resolve(item) for item in _listed(resolve(node.get("offers")))]
    while waiting and len(found) < _MAX_OFFERS:
        offer = waiting.pop(0)
        if isinstance(offer, Mapping):
            found.append(_local(offer))
            waiting += [resolve(item) for item in _listed(resolve(found[-1].get("offers")))][:_MAX_OFFERS]
        elif isinstance(offer, str | int | float):
            found.append({"price": offer})
    return found


def _price(offers: Sequence[Node], things: Sequence[Node], resolve: Resolve) -> tuple[Any, Any]:
    """Return the price asked and its currency; prices by the month and list prices only where there is no other."""
    later: tuple[Any, Any] = (None, None)
    for node in [*offers, *things]:
        if any(word in local_name(str(node.get("businessFunction", ""))).lower() for word in _LEASE_WORDS):
            continue
        for part in [node, *_specifications(node, resolve)]:
            amount = next((part[k] for k in ("price", "lowPrice", "minPrice") if _is_amount(part.get(k))), None)
            if amount is None:
                continue
            currency = part.get("priceCurrency") or part.get("currency") or node.get("priceCurrency")
            kind = local_name(str(part.get("priceType") or part.get("name") or "")).replace(" ", "").lower()
            if (
                part.get("billingDuration")
                or part.get("billingIncrement")
                or part.get("unitText") in ("MONTH", "month")
            ):
                continue
            if kind in _LIST_PRICES:
                later = later if later[0] is not None else (amount, currency)
                continue
            return amount, currency
    return later


def _specifications(node: Node, resolve: Resolve) -> list[Node]:
    return [_local(s) for s in map(resolve, _listed(resolve(node.get("priceSpecification")))) if isinstance(s, Mapping)]


def _is_amount(value: Any) -> bool:
    if isinstance(value, list | Mapping):
        value = text_of(value)
    if isinstance(value, str):
        return any(c.isdigit() and c != "0" for c in value)
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _from_named_properties(raw: dict[str, Any], things: Sequence[Node], resolve: Resolve) -> None:
    for node in things:
        for key in ("additionalProperty", "identifier"):
            for item in map(resolve, _listed(node.get(key))):
                if not isinstance(item, Mapping):
                    continue
                local = _local(item)
                name = text_of(local.get("name")) or text_of(local.get("propertyID")) or ""
                target = _NAMED.get(name.casefold().strip(" :*"))
                value = local.get("value")
                if target and raw.get(target) in (None, "", [], {}) and value not in (None, "", []):
                    raw[target] = item if target == "odometer" else value
    if not raw.get("vin"):
        # Some sites give the VIN as the product's number; what has not its shape is no VIN.
        raw["vin"] = [raw.get("stock_number"), *(node.get("serialNumber") for node in things)]
        raw["vin"] = next(
            (v for v in map(text_of, raw["vin"]) if v and re.fullmatch(r"(?i)[A-HJ-NPR-Z0-9]{17}", v)), None
        )
    if raw.get("vin") and raw["vin"] == text_of(raw.get("stock_number")):
        del raw["stock_number"]


def _from_title(raw: dict[str, Any]) -> None:
    """Take a year that only the name tells, where it begins with it: `2019 Acura MDX`."""
    title = text_of(raw.get("title")) or ""
    found = re.match(
        r"(?:(?:new|used|certified|pre-owned|neu|gebraucht|gebrauchter)\s+){0,3}((?:19|20)\d\d)\s+\D", title, re.I
    )
    if found and not raw.get("year"):
        raw["year"] = found.group(1)


def _sellers(nodes: Sequence[Node], resolve: Resolve) -> list[str]:
    names: list[str] = []
    for node in nodes:
        for key in _SELLER_PROPERTIES:
            for seller in map(resolve, _listed(resolve(node.get(key)))):
                if isinstance(seller, str):
                    names.append(seller)
                elif isinstance(seller, Mapping):
                    names += [
                        str(seller[k]) for k in ("name", "legalName", "alternateName") if isinstance(seller.get(k), str)
                    ]
    kept = [name.strip() for name in dict.fromkeys(names) if 4 <= len(name.strip()) <= 200 and "://" not in name]
    return kept[:MAX_SELLERS]
