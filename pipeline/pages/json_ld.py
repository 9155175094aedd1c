"""Read a listing from schema.org markup: JSON-LD scripts and microdata, however they are nested.

A page holds many nodes: breadcrumbs, the dealer, similar cars. The listing is the node of a vehicle or product that the
page is about, together with the nodes that offer it (`Product -> offers -> Offer -> itemOffered -> Car`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from lxml import etree

from pipeline.pages.literals import MAX_MENDED_CHARS, read_documents
from pipeline.pages.page import Page
from pipeline.pages.schema_org import Node, local_name, read_node, text_of, types_of

MAX_NODES = 50_000
MAX_CANDIDATES = 200
MAX_SCRIPTS = 200
MAX_MICRODATA_ITEMS = 30
MAX_MICRODATA_SCOPES = 150
MAX_MICRODATA_PROPERTIES = 1_000
MAX_MICRODATA_DEPTH = 10
# Over the whole page: items, properties that an `itemref` adds, and elements that extruct copies to get their text.
MAX_PAGE_SCOPES = 5_000
MAX_REFERRED = 2_000
MAX_COPIED = 50_000
_ELEMENTS_A_COPY_COSTS = 20
_CHARS_AN_ELEMENT_COSTS = 100
MAX_DEPTH = 60
MAX_STRICT_CHARS = 1_000_000

VEHICLES = frozenset(
    "vehicle car usedcar newcar motorcycle motorizedbicycle busorcoach truck van motorhome recreationalvehicle".split()
)
PRODUCTS = frozenset("product individualproduct productmodel productgroup someproducts".split())
OFFERS = frozenset("offer aggregateoffer offerforpurchase offerforlease demand".split())
# What stands under these belongs to something else than the page's own subject.
_OTHERS = frozenset("issimilarto isrelatedto isaccessoryorsparepartfor isconsumablefor review reviews".split())
# What leads from an offer, a page or a graph down to the thing itself; anything else leads to a part of it (`model`).
_DOWN = frozenset("itemoffered offers mainentity mainentityofpage about @graph item hasvariant".split())
_LISTS = frozenset("itemlistelement hasoffercatalog makesoffer owns items".split())
_VEHICLE_SCORE, _PRODUCT_SCORE = 2, 1


@dataclass(slots=True)
class Candidate:
    """A node that may be the listing, with the nodes that offer it, nearest first."""

    node: Node
    rank: int
    listed: bool
    companions: list[Node] = field(default_factory=list)


def read_json_ld(page: Page) -> dict[str, Any]:
    """Return the raw values of the listing in the page's markup; empty where it has none.

    `_vehicle` tells that the markup itself says it is a vehicle, `_names` are the sellers to cut from texts.
    """
    documents = [*_scripts(page), *_microdata(page)]
    if not documents:
        return {}
    walk = _Walk(documents)
    chosen = _choose(walk.candidates, page)
    if chosen is None:
        return {}
    raw = _read_candidate(chosen, walk)
    for other in walk.candidates:
        if other is not chosen and not other.listed and _same_thing(raw, more := _read_candidate(other, walk)):
            raw = {**more, **raw, "_vehicle": raw["_vehicle"] or more["_vehicle"]}
    if "price" not in raw and len(walk.lone_offers) == 1:
        offer = read_node([], [walk.lone_offers[0]], walk.resolve)
        raw.update({name: offer[name] for name in ("price", "currency") if name in offer})
    _from_breadcrumbs(raw, walk)
    if page.title:
        raw["title"] = page.title
    return raw


class _Walk:
    """Every node of the page's markup, in document order, and what was learnt on the way."""

    def __init__(self, documents: Sequence[Any]) -> None:
        self.candidates: list[Candidate] = []
        self.lone_offers: list[Node] = []
        self.breadcrumbs: list[str] = []
        self._by_id: dict[str, Node] = {}
        for document in documents:
            self._index(document)
        for document in documents:
            self._visit(document)

    def resolve(self, value: Any) -> Any:
        """Follow a reference (`{"@id": ...}` alone) to the node it names."""
        if isinstance(value, Mapping) and "@id" in value and len(value) <= 2 and isinstance(value["@id"], str):
            return self._by_id.get(value["@id"], value)
        return value

    def _index(self, document: Any) -> None:
        for node, _path in _nodes(document):
            name = node.get("@id")
            if isinstance(name, str) and len(node) > len(self._by_id.get(name, ())):
                self._by_id[name] = node

    def _visit(self, document: Any) -> None:
        owners: set[int] = set()
        for node, path in _nodes(document):
            kinds = types_of(node)
            keys = [key for _, key in path]
            if kinds & {"breadcrumblist"}:
                self._note_breadcrumbs(node)
            if any(key in _OTHERS for key in keys) or not kinds:
                continue
            listed = any(key in _LISTS for key in keys)
            if kinds & (VEHICLES | PRODUCTS) and len(node) > len({"@type", "@id"} & node.keys()):
                companions = _companions(path)
                if companions is None or len(self.candidates) >= MAX_CANDIDATES:
                    continue
                rank = _VEHICLE_SCORE if kinds & VEHICLES else _PRODUCT_SCORE
                owners.update(map(id, companions))
                self.candidates.append(Candidate(node, rank, listed, companions))
            elif kinds & OFFERS and not any(types_of(owner) & (OFFERS | PRODUCTS | VEHICLES) for owner, _ in path):
                self.lone_offers.append(node)
        self.candidates = [c for c in self.candidates if id(c.node) not in owners]

    def _note_breadcrumbs(self, node: Node) -> None:
        items = node.get("itemListElement")
        for item in items if isinstance(items, list) else []:
            if isinstance(item, Mapping):
                inner = item.get("item")
                name = text_of(item.get("name")) or (text_of(inner.get("name")) if isinstance(inner, Mapping) else None)
                self.breadcrumbs.append(name or "")


def _companions(path: Sequence[tuple[Node, str]]) -> list[Node] | None:
    """Return the nodes that offer a node, nearest first; None where it is only a part of another thing."""
    companions: list[Node] = []
    for at, (owner, _key) in enumerate(path):
        if types_of(owner) & (OFFERS | PRODUCTS | VEHICLES):
            if any(key not in _DOWN for _, key in path[at:]):
                return None
            companions.insert(0, owner)
    return companions


def _nodes(document: Any) -> Iterator[tuple[Node, tuple[tuple[Node, str], ...]]]:
    """Yield every object with its ancestors and the keys that led to it; an explicit stack bears any depth."""
    stack: list[tuple[Any, tuple[tuple[Node, str], ...]]] = [(document, ())]
    for _ in range(MAX_NODES):
        if not stack:
            return
        value, path = stack.pop()
        if isinstance(value, list):
            stack.extend((item, path) for item in reversed(value) if isinstance(item, dict | list))
        elif isinstance(value, dict):
            yield value, path
            if len(path) < MAX_DEPTH:
                inner = [
                    (v, (*path, (value, local_name(k).lower()))) for k, v in value.items() if isinstance(v, dict | list)
                ]
                stack.extend(reversed(inner))


def _choose(candidates: Sequence[Candidate], page: Page) -> Candidate | None:
    """Prefer what bears the page's address, then what is in no list, a vehicle, and says more; then the first."""
    if not candidates:
        return None
    own = {_bare_url(page.url), _bare_url(page.canonical_url)} - {None}

    def merit(candidate: Candidate) -> tuple[bool, bool, int, bool]:
        nodes = [candidate.node, *candidate.companions]
        urls = {_bare_url(text_of(node.get(key))) for node in nodes for key in ("url", "@id", "mainEntityOfPage")}
        return bool(urls & own), not candidate.listed, candidate.rank, _says_much(candidate)

    return max(candidates, key=merit)


def _says_much(candidate: Candidate) -> bool:
    names = {local_name(key) for node in [candidate.node, *candidate.companions] for key in node}
    return (
        len(names & {"offers", "price", "mileageFromOdometer", "vehicleIdentificationNumber", "priceSpecification"}) > 0
    )


def _read_candidate(candidate: Candidate, walk: _Walk) -> dict[str, Any]:
    things = [candidate.node, *(c for c in candidate.companions if types_of(c) & (PRODUCTS | VEHICLES))]
    offers = [c for c in candidate.companions if types_of(c) & OFFERS]
    raw = read_node(things, offers, walk.resolve)
    raw["_vehicle"] = any(types_of(node) & VEHICLES for node in things)
    return raw


def _same_thing(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Two nodes describe one vehicle where what tells vehicles apart agrees in something and differs in nothing."""
    agreed = 0
    for name in ("vin", "stock_number", "title", "make", "model", "year", "price"):
        mine, theirs = text_of(one.get(name)), text_of(other.get(name))
        if mine and theirs:
            if mine.casefold() == theirs.casefold():
                agreed += {"vin": 4, "title": 2, "stock_number": 2, "model": 2}.get(name, 1)
            elif name in ("vin", "model", "year", "make", "price"):
                return False
    return agreed >= 2


def _from_breadcrumbs(raw: dict[str, Any], walk: _Walk) -> None:
    """Take a model the markup lacks from the breadcrumb behind the make, where the title confirms it."""
    make, title = text_of(raw.get("make")), text_of(raw.get("title"))
    if raw.get("model") or not make or not title:
        return
    for name, following in zip(walk.breadcrumbs, walk.breadcrumbs[1:], strict=False):
        if name.casefold() == make.casefold() and following:
            model = following.removeprefix(name).strip()
            if model and f" {model.casefold()} " in f" {title.casefold()} ":
                raw["model"] = model
            return


def _bare_url(url: str | None) -> str | None:
    if not url or not url.startswith(("http://", "https://", "/")):
        return None
    try:
        path = urlsplit(url).path.rstrip("/")
    except ValueError:
        return None
    return path or None


def _scripts(page: Page) -> Iterator[Any]:
    if "ld+json" not in page.text.lower() or page.tree is None:
        return
    from extruct.jsonld import JsonLdExtractor  # its package imports rdflib and more; scripts that read no page wait

    extractor = JsonLdExtractor()
    scripts = (script for script in page.tree.iter("script") if "ld+json" in (script.get("type") or "").lower())
    broken_chars = 0
    for script in islice(scripts, MAX_SCRIPTS):
        text = script.text or ""
        # One script at a time: a broken one must not cost the others. extruct reads the sound ones.
        if script.get("type") == "application/ld+json" and len(text) < MAX_STRICT_CHARS:
            try:
                yield from extractor.extract_items(script)
                continue
            except (ValueError, RecursionError, IndexError):
                broken_chars += len(text)
        if broken_chars > MAX_MENDED_CHARS:  # mending is slow: a page may be as broken as one script may be
            return
        yield from read_documents(text)


def _microdata(page: Page) -> Iterator[Any]:
    """Yield the page's outermost microdata items that may hold a listing, in the form of JSON-LD."""
    if "itemtype" not in page.text.lower() or page.tree is None:
        return
    from extruct.w3cmicrodata import MicrodataExtractor  # as above

    wanted = VEHICLES | PRODUCTS | OFFERS | {"breadcrumblist"}
    if page.tree.xpath("count(//*[@itemscope])") > MAX_PAGE_SCOPES:
        return
    _bound_references(page.tree)
    taken = copied = 0
    for element in page.tree.xpath("//*[@itemscope and @itemtype]"):
        if not _item_types(element) & wanted:
            continue
        outer = [_item_types(parent) for parent in element.iterancestors() if parent.get("itemscope") is not None]
        if any(kinds & wanted for kinds in outer) or (cost := _cost(element)) is None or copied + cost > MAX_COPIED:
            continue
        copied += cost
        taken += 1
        if taken > MAX_MICRODATA_ITEMS:
            return
        try:
            items = MicrodataExtractor(nested=True).extract_items(element, page.base_url)
        except (ValueError, RecursionError, AttributeError, etree.LxmlError):
            continue
        nodes = [_as_json_ld(item, 0) for item in items[:1]]
        yield {"itemListElement": nodes} if any("itemlist" in kinds for kinds in outer) else nodes


def _cost(element: Any) -> int | None:
    """Count the elements extruct would copy to read an item; None where its cost would be out of all proportion.

    It copies all that is within a property that is no item, and its cost grows with the cube of items in items.
    """
    scopes = properties = depth = within = cost = 0
    for event, node in etree.iterwalk(element, events=("start", "end")):
        is_scope = node.get("itemscope") is not None
        is_property = node.get("itemprop") is not None
        step = 1 if event == "start" else -1
        depth += step * is_scope
        within += step * (is_scope or is_property)
        if step > 0:
            scopes += is_scope
            properties += is_property
            size = 1 + (len(node.text or "") + len(node.tail or "")) // _CHARS_AN_ELEMENT_COSTS
            cost += within * size + _ELEMENTS_A_COPY_COSTS * (is_scope or is_property)
            if (
                scopes > MAX_MICRODATA_SCOPES + 1
                or properties > MAX_MICRODATA_PROPERTIES
                or depth > MAX_MICRODATA_DEPTH + 1
                or cost > MAX_COPIED
            ):
                return None
    return cost


def _bound_references(tree: Any) -> None:
    """Take the `itemref` from all items where together they would add too many properties."""
    referring = tree.xpath("//*[@itemref]")
    num_names = sum(len(element.get("itemref").split()) for element in referring)
    if num_names * tree.xpath("count(//*[@itemprop])") > MAX_REFERRED:
        for element in referring:
            del element.attrib["itemref"]


def _item_types(element: Any) -> set[str]:
    return {local_name(kind).lower() for kind in (element.get("itemtype") or "").split()}


def _as_json_ld(item: Any, depth: int) -> Any:
    if isinstance(item, list):
        return [_as_json_ld(inner, depth) for inner in item]
    if not isinstance(item, Mapping) or depth > MAX_DEPTH:
        return item
    properties = item.get("properties")
    node = {str(k): _as_json_ld(v, depth + 1) for k, v in (properties or {}).items()}
    if item.get("type"):
        node["@type"] = item["type"]
    if item.get("id"):
        node["@id"] = item["id"]
    if not properties and "value" in item:
        node["name"] = item["value"]
    return node
