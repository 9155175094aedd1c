"""The photos of a listing from the addresses a page offers: absolute, in order, each once, the largest size.

Two addresses are the same photo where they differ only in what image servers use for sizes (`?w=640`, `_640x480`,
`/thumb/`). On doubt they are different photos: a photo fetched twice is found by its hash later, a lost one is lost.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pipeline.pages.page import join_url

# The most that `crawl.max_photos` takes, so that the crawl decides.
MAX_PHOTOS = 1_000
MAX_URL_CHARS = 2048
MAX_OFFERED = 5_000
MAX_SIZES = 50
MAX_ADDRESSES = 20_000
MAX_SRCSET_CHARS = 50_000
# No image server makes addresses of more path segments and parameters; marks of size are not looked for there.
MAX_URL_PIECES = 100

_NAMED_WIDTHS = {
    "thumb": 150, "thumbs": 150, "thumbnail": 150, "thumbnails": 150, "tiny": 80, "small": 320, "preview": 320,
    "medium": 640, "large": 1024, "big": 1024, "xlarge": 1600, "xxlarge": 2048, "hires": 3000, "full": 4000,
    "fullsize": 4000, "original": 4000, "originals": 4000, "orig": 4000,
}  # fmt: skip
# A page that offers an address without any size mark offers the file itself, of which the others are made.
_UNMARKED_WIDTH = 3500
_NAMES = "|".join(sorted(_NAMED_WIDTHS, key=len, reverse=True))
_PIXELS = r"\d{2,4}"
_SEGMENT_SIZE = re.compile(
    rf"(?:s?(?P<w>{_PIXELS})x(?P<h>{_PIXELS})|(?P<aspect>\d{{1,2}})x\d{{1,2}}|[wW]_?(?P<w2>{_PIXELS})|(?P<name>{_NAMES})"
    r"|fit-in|resize|s-l(?P<w3>\d{2,4}))",
    re.IGNORECASE,
)
_TRANSFORMS = re.compile(r"(?:[a-z]{1,3}_[\w.:-]+,)*[wh]_(\d{2,4})(?:,[a-z]{1,3}_[\w.:-]+)*")
_GOOGLE_SIZE = re.compile(r"=(?:w(\d{2,4})|s(\d{2,4}))(?:-[a-z]{1,2}\d{0,4})*$")
_STEM_SIZE = re.compile(
    rf"[-_.@](?:(?P<w>{_PIXELS})x(?P<h>{_PIXELS})|[wW](?P<w2>{_PIXELS})|(?P<w3>{_PIXELS})(?:w|px)|(?P<name>{_NAMES}))$"
    r"|[-_](?P<w4>\d{2,4})x(?P<h4>\d{2,4})(?=[-_.])",
    re.IGNORECASE,
)
_STEM_NAME_FIRST = re.compile(rf"^(?P<name>{_NAMES})[-_](?=\w)", re.IGNORECASE)
_EBAY_SIZE = re.compile(r"^\$_(\d{1,3})$")
_EBAY_WIDTHS = {"57": 1600, "10": 1024, "59": 960, "3": 800, "20": 800, "27": 640, "12": 500, "1": 400}
_EXTENSION = re.compile(r"\.(?:jpe?g|webp|avif)$", re.IGNORECASE)
_WIDTH_PARAMS = frozenset({"w", "width", "imwidth", "wid", "maxwidth", "max-w", "mw"})
_HEIGHT_PARAMS = frozenset({"h", "height", "imheight", "hei", "maxheight", "max-h", "mh"})
_LOOK_PARAMS = frozenset({"q", "quality", "qlt", "dpr", "fit", "auto", "format", "fm", "fmt", "impolicy", "sharp"})
_SIZE_PARAMS = frozenset({"size", "sz", "resize", "tr", "rule", "downsize", "dim", "dimensions"})
_SIZE_VALUE = re.compile(
    rf"(?:[a-z]{{0,6}}[-_:]?)(\d{{2,4}})(?:\D{{1,4}}\d{{2,4}})?(?:\.\w{{3,4}})?|({_NAMES})", re.IGNORECASE
)
_URL_KEYS = (
    "contentUrl", "@id", "url", "src", "href", "uri", "link", "imageUrl", "imageURL", "image", "photo", "original",
    "full", "fullSize", "xxl", "xl", "xlarge", "large", "l", "big", "medium", "m", "md", "default", "small", "s", "sm",
    "thumbnail", "thumbnailUrl", "thumb",
)  # fmt: skip
_SMALL_KEYS = {
    "thumbnail": 150, "thumbnailUrl": 150, "thumb": 150, "small": 320, "s": 320, "sm": 320, "medium": 640, "m": 640,
    "md": 640,
}  # fmt: skip
# An address that a comma ends has no descriptor; another's goes on to the next comma.
_SRCSET_ITEM = re.compile(r"([^\s,]\S*+)(?:(?<=,)|([^,]*+))")
_DESCRIPTOR = re.compile(r"(?<!\S)([\d.]{1,12})([wxh])(?!\S)")


@dataclass(frozen=True, slots=True)
class Offered:
    """One address of a photo and its width in pixels, where the page tells it."""

    url: str
    width_px: float | None = None


_Placed = tuple[str, float, str]  # key, width in pixels, address


def merge_photos(photos: Iterable[Iterable[Offered]], base_url: str) -> tuple[str, ...]:
    """Return one address a photo, in the order of first appearance; each item of `photos` is one photo's sizes."""
    best: list[tuple[float, str]] = []
    known: dict[str, int] = {}
    placed: dict[Offered, _Placed | None] = {}  # pages offer one address many times
    for offers in photos:
        for offer in (offers := list(islice(offers, MAX_SIZES))):
            if offer not in placed and len(placed) < MAX_ADDRESSES:
                placed[offer] = _place(offer, base_url)
        sizes = [size for offer in offers if (size := placed.get(offer))]
        if not sizes:
            continue
        index = next((known[key] for key, _, _ in sizes if key in known), len(best))
        if index == len(best):
            if len(best) >= MAX_PHOTOS:
                continue
            best.append((-1.0, ""))
        for key, rank, url in sizes:
            known.setdefault(key, index)
            if rank > best[index][0]:
                best[index] = (rank, url)
    return tuple(dict.fromkeys(url for _, url in best))


def offered_in(value: Any) -> Iterator[list[Offered]]:
    """Yield the photos of a raw value: addresses, image objects, lists; a list of objects in a list is one's sizes."""
    for count, item in enumerate(value if isinstance(value, list | tuple) else [value]):
        if count >= MAX_OFFERED:
            return
        if isinstance(item, list | tuple) and any(isinstance(size, Mapping) for size in item):
            yield [offer for size in item[:20] for offer in _sizes(size)]
        elif isinstance(item, list | tuple):
            yield from ([Offered(text)] for text in item[:MAX_OFFERED] if isinstance(text, str))
        elif sizes := _sizes(item):
            yield sizes


def srcset(text: str) -> list[Offered]:
    """Read the addresses of a srcset attribute; `2x` counts as wider than `1x`."""
    offers = []
    for item in islice(_SRCSET_ITEM.finditer(text[:MAX_SRCSET_CHARS]), MAX_SIZES):
        url, descriptors = item.groups("")
        found = _DESCRIPTOR.search(descriptors)
        width = _width(found.group(1)) if found else None
        # Densities have no width; above any width in a name, they still rank among themselves.
        is_density = found is not None and found.group(2) != "w" and width is not None
        offers.append(Offered(url.rstrip(","), 10_000 + (width or 0) if is_density else width))
    return offers


def _width(value: Any) -> float | None:
    """Return a width as a number; None where it is none that a picture can have."""
    try:
        width = float(str(value).removesuffix("px"))
    except ValueError:
        return None
    return width if 0 < width < math.inf else None


def _sizes(item: Any) -> list[Offered]:
    if isinstance(item, str):
        return [Offered(item)]
    if not isinstance(item, Mapping):
        return []
    width = item.get("width") or item.get("w")
    if isinstance(width, Mapping):
        width = width.get("value")
    width_px = _width(width)
    offers: list[Offered] = []
    for key in _URL_KEYS:
        value = item.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, Mapping):
            value = next((value[k] for k in _URL_KEYS if isinstance(value.get(k), str)), None)
        if isinstance(value, str) and value and not (key == "@id" and (offers or value.startswith(("#", "_:")))):
            offers.append(Offered(value, _SMALL_KEYS.get(key, width_px)))
    if not offers and (sizes := item.get("sizes")):
        nested = sizes.values() if isinstance(sizes, Mapping) else sizes if isinstance(sizes, list) else []
        offers = [offer for size in nested for offer in _sizes(size if isinstance(size, str | Mapping) else None)]
    page_like = {"url", "href", "link", "@id"}
    images = [offer for offer in offers if offer.url not in {item.get(key) for key in page_like}]
    # An image object's `url` may be the page that shows it; its `contentUrl` is the image.
    return images if images and "contentUrl" in item else offers


def _place(offer: Offered, base_url: str) -> _Placed | None:
    if len(offer.url) > MAX_URL_CHARS or offer.url.lstrip()[:5].lower() == "data:":
        return None
    url = join_url(base_url, offer.url.replace("&amp;", "&"))
    if url is None or len(url) > MAX_URL_CHARS:
        return None
    url = url.partition("#")[0]
    key, width = photo_key(url)
    return key, offer.width_px if offer.width_px is not None else width if width is not None else _UNMARKED_WIDTH, url


def photo_key(url: str) -> tuple[str, float | None]:
    """Return the address without its marks of size, and the width that they name."""
    if url.count("/") + url.count("&") > MAX_URL_PIECES:
        return url, None
    parts = urlsplit(url)
    widths: list[float] = []
    segments = parts.path.split("/")
    stem_at = len(segments) - 1
    kept = [
        _segment_key(s, i == stem_at, widths, previous=segments[i - 1] if i else "") for i, s in enumerate(segments)
    ]
    params = [
        f"{name}={value}"
        for name, value in parse_qsl(parts.query, keep_blank_values=True, max_num_fields=None)
        if not _is_size(name.lower(), value, widths)
    ]
    path = "/".join(segment for segment in kept if segment is not None)
    return f"{parts.netloc.lower()}{path}?{'&'.join(params)}", max(widths) if widths else None


def _segment_key(segment: str, is_stem: bool, widths: list[float], *, previous: str) -> str | None:
    """Return what of a path segment names the photo, None where it only names a size."""
    segment = unquote(segment)
    bare = _EXTENSION.sub("", segment)
    if previous.lower() == "quality" and segment.isdigit():
        return None
    if found := _SEGMENT_SIZE.fullmatch(bare.rstrip(">")):
        if found.group("w") or found.group("w2") or found.group("w3") or found.group("name"):
            _note(widths, found.group("w") or found.group("w2") or found.group("w3"), found.group("name"))
        elif found.group("aspect"):
            widths.append(float(found.group("aspect")))
        return None
    if segment.lower() == "quality":
        return None
    if found := _TRANSFORMS.fullmatch(bare):
        _note(widths, found.group(1), None)
        return None
    if not is_stem:
        return segment
    if found := _EBAY_SIZE.match(bare):
        widths.append(_EBAY_WIDTHS.get(found.group(1), 300))
        return None
    return _stem_key(bare, widths)


def _stem_key(stem: str, widths: list[float]) -> str:
    if found := _GOOGLE_SIZE.search(stem):
        _note(widths, found.group(1) or found.group(2), None)
        stem = stem[: found.start()]
    for _ in range(3):
        if not (found := _STEM_SIZE.search(stem)):
            break
        sizes = found.groupdict()
        _note(widths, sizes["w"] or sizes["w2"] or sizes["w3"] or sizes["w4"], sizes["name"])
        stem = stem[: found.start()] + stem[found.end() :]
    if found := _STEM_NAME_FIRST.match(stem):
        _note(widths, None, found.group("name"))
        stem = stem[found.end() :]
    return stem


def _is_size(name: str, value: str, widths: list[float]) -> bool:
    if name in _WIDTH_PARAMS | _HEIGHT_PARAMS and re.fullmatch(r"\d{2,4}(?:px)?", value):
        if name in _WIDTH_PARAMS:
            widths.append(float(value.removesuffix("px")))
        return True
    if name in _SIZE_PARAMS and (found := _SIZE_VALUE.fullmatch(value)):
        _note(widths, found.group(1), found.group(2))
        return True
    return name in _LOOK_PARAMS


def _note(widths: list[float], pixels: str | None, name: str | None) -> None:
    if pixels:
        widths.append(float(pixels))
    elif name:
        widths.append(float(_NAMED_WIDTHS[name.lower()]))
