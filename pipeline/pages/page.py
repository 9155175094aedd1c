"""One fetched page: its bytes as text, as a tree, and its own addresses; each worked out when first asked for."""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any
from urllib.parse import urljoin, urlsplit

from cssselect import HTMLTranslator, SelectorError
from cssselect.xpath import XPathExpr
from lxml import etree
from lxml.html import HTMLParser
from w3lib.encoding import html_to_unicode

MAX_PAGE_BYTES = 8 * 2**20
MAX_VISIBLE_CHARS = 20_000
# Bounds for one selector and one element, so that nested elements cost no square of the page.
MAX_SELECTED = 1_000
MAX_TEXT_CHARS = 100_000
MAX_TEXT_ELEMENTS = 10_000
MAX_ATTRIBUTES = 500
MAX_TITLES = 50

_LAST_ENCODING = "windows-1252"
_UNSEEN_TAGS = frozenset({"script", "style", "noscript", "template", "svg", "head"})
_SPACES = re.compile(r"[\s\u200b\ufeff]+")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1f]")


class Page:
    """A page of a site: `html` as fetched, `url` the final address after redirects."""

    def __init__(self, html: bytes, *, url: str, content_type: str | None = None) -> None:
        self.url = url
        self._html = html[:MAX_PAGE_BYTES]
        self._content_type = content_type

    @cached_property
    def text(self) -> str:
        """The page as text, in the encoding its bytes show, its header or itself names, in this order."""
        return _CONTROLS.sub(" ", _decode(self._html, self._content_type))

    @cached_property
    def tree(self) -> Any:
        """The element tree, or None where the page has no element at all or one that would take minutes to read."""
        parser = HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
        data = self.text.encode("utf-8", "replace")
        if not data.strip() or _has_endless_tag(data):
            return None
        try:
            root = etree.fromstring(data, parser)
        except etree.LxmlError:
            return None
        # The parser makes what stands behind </html> a second root; browsers make it part of the page.
        for rest in list(root.itersiblings()) if root is not None else ():
            root.append(rest)
        return root

    @cached_property
    def base_url(self) -> str:
        """What relative addresses of the page are relative to."""
        base = self.first_attribute("//base[@href]/@href") if "<base" in self.text.lower() else None
        return join_url(self.url, base) or self.url if base else self.url

    @cached_property
    def canonical_url(self) -> str | None:
        """The address the page gives itself."""
        link = self.first_attribute("//link[translate(@rel, 'CANOIL', 'canoil')='canonical']/@href")
        return join_url(self.base_url, link or self.first_attribute("//meta[@property='og:url']/@content"))

    @cached_property
    def title(self) -> str | None:
        """The text of the document's title element."""
        if self.tree is None:
            return None
        for element in islice(self.tree.iter("title"), MAX_TITLES):
            if all(parent.tag != "svg" for parent in element.iterancestors()) and (text := element_text(element)):
                return text
        return None

    @cached_property
    def visible_text(self) -> str:
        """What a reader sees of the page, from its start."""
        if self.tree is None:
            return ""
        parts: list[str] = []
        length = 0
        for part in _visible_parts(self.tree):
            parts.append(part)
            length += len(part)
            if length > MAX_VISIBLE_CHARS:
                break
        return squeeze(" ".join(parts))

    def first_attribute(self, xpath: str) -> str | None:
        """Return the first non-empty attribute an XPath selects."""
        if self.tree is None:
            return None
        return next((str(value).strip() for value in self.tree.xpath(xpath) if str(value).strip()), None)


def select(root: Any, selector: str) -> list[Any]:
    """Return the first MAX_SELECTED elements a CSS selector matches, in document order."""
    try:
        return list(_compiled(selector)(root))
    except etree.XPathError:
        # What compiles may still ask for more than the engine can do on this page, such as too deep an expression.
        return []


def split_selector(text: str) -> tuple[str, str | None]:
    """Split `SELECTOR@ATTRIBUTE`; an `@` inside brackets or quotes belongs to the selector."""
    selector, at, attribute = text.rpartition("@")
    if at and attribute and all(c.isalnum() or c in "-_:" for c in attribute):
        return selector.strip() or "*", attribute.strip()
    return text.strip(), None


def check_selector(name: str, text: str) -> None:
    """Refuse what is no CSS selector, naming the field it stands in.

    Raises:
        ValueError: always about `name`, with what the parser says.
    """
    try:
        _compiled(split_selector(text)[0])(etree.fromstring("<html><body/></html>"))
    except (SelectorError, etree.XPathError, ValueError) as error:
        raise ValueError(f"{name}: {text!r} is no CSS selector: {error}") from error


@lru_cache(maxsize=512)
def _compiled(selector: str) -> Any:
    # Not lxml.cssselect: its `:contains` calls a function that lxml does not always find again.
    # What `:has()` holds is asked downwards and may not be turned round.
    translator = HTMLTranslator() if ":has(" in selector.lower() else _UpwardTranslator()
    return etree.XPath(f"({translator.css_to_xpath(selector)})[position() <= {MAX_SELECTED}]")


class _UpwardTranslator(HTMLTranslator):
    """Ask from an element to what stands before or above it.

    cssselect asks the other way round, and joining what is found below many elements costs the square of the page.
    """

    def xpath_descendant_combinator(self, left: XPathExpr, right: XPathExpr) -> XPathExpr:
        return right.add_condition(f"ancestor::{left}")

    def xpath_child_combinator(self, left: XPathExpr, right: XPathExpr) -> XPathExpr:
        return right.add_condition(f"parent::{left}")

    def xpath_direct_adjacent_combinator(self, left: XPathExpr, right: XPathExpr) -> XPathExpr:
        return right.add_condition(f"preceding-sibling::*[1]/self::{left}")

    def xpath_indirect_adjacent_combinator(self, left: XPathExpr, right: XPathExpr) -> XPathExpr:
        return right.add_condition(f"preceding-sibling::{left}")


def element_text(element: Any) -> str:
    """Return the text of an element, from its start, without that of its scripts and styles."""
    unseen = frozenset({"script", "style", "template"})
    parts: list[str] = []
    length = 0
    for part in _visible_parts(element, unseen=unseen, max_elements=MAX_TEXT_ELEMENTS):
        parts.append(part[: MAX_TEXT_CHARS - length])
        length += len(parts[-1])
        if length >= MAX_TEXT_CHARS:
            break
    return squeeze(" ".join(parts))


def squeeze(text: str) -> str:
    """Make every run of white space one space; narrow and no-break spaces count as white space."""
    return _SPACES.sub(" ", text).strip()


def join_url(base: str, link: str | None) -> str | None:
    """Make a link absolute; None where it is no http(s) address."""
    if not link:
        return None
    link = _SPACES.sub(" ", link).strip().replace(" ", "%20").encode("utf-8", "replace").decode("utf-8")
    try:
        joined = urljoin(base, link)
        parts = urlsplit(joined)
        return joined if parts.scheme in ("http", "https") and parts.hostname else None
    except ValueError:
        return None


def _visible_parts(
    root: Any, *, unseen: frozenset[str] = _UNSEEN_TAGS, max_elements: int | None = None
) -> Iterator[str]:
    skipping: Any = None
    walk = etree.iterwalk(root, events=("start", "end"))
    for event, element in islice(walk, max_elements and 2 * max_elements):
        if event == "start":
            if skipping is None and element.tag in unseen and element is not root:
                skipping = element
            if skipping is None and element.text:
                yield element.text
        else:
            if element is skipping:
                skipping = None
            if skipping is None and element is not root and element.tail:
                yield element.tail


class _EndlessTagError(Exception):
    """A tag has more attributes than the parser can put into a tree in time."""


class _AttributeCount:
    """Counts attributes as the parser meets them; a tree's cost grows with their square."""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if len(attributes) > MAX_ATTRIBUTES:
            raise _EndlessTagError(tag)

    def close(self) -> None:
        return None


def _has_endless_tag(data: bytes) -> bool:
    count: Any = _AttributeCount()  # what a target does not want it may leave out, which lxml's types do not know
    try:
        etree.fromstring(data, HTMLParser(encoding="utf-8", target=count))
    except _EndlessTagError:
        return True
    except etree.LxmlError:
        return False
    return False


def _decode(html: bytes, content_type: str | None) -> str:
    # Bytes that read as UTF-8 are UTF-8, whatever a header says: by chance this does not happen to other encodings.
    if b"\x1b" not in html and not html.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = html.decode("utf-8", "replace")
        broken = text.count("\ufffd")
        if not broken:
            return text.removeprefix("\ufeff")
        # One cut or damaged character among good ones is damage; mostly damage is another encoding.
        if broken * 20 < len(html) - len(html.translate(None, bytes(range(0x80, 0x100)))):
            return text.removeprefix("\ufeff")
    try:
        return html_to_unicode(content_type, html, default_encoding=_LAST_ENCODING)[1]
    except (LookupError, UnicodeError):
        # Python's codecs know names that are no encoding of text (`hex`, `idna`); a browser passes over these.
        return html.decode(_LAST_ENCODING, "replace")
