"""Find the JSON a page keeps for its own scripts: `window.__STATE__ = {...}`, `JSON.parse("...")`, a data script."""

import html
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

from pipeline.pages.literals import MAX_MENDED_CHARS, LiteralError, read_json_text, read_value
from pipeline.pages.page import Page, select, split_selector

_SELECTOR = re.compile(r"^(?:script|div|meta|main|body|template|textarea|noscript|input|\*)?(?:$|[#.\[:]\w|[\[>\s@]\S)")
_ASSIGNMENT = re.compile(r"[\w$.\]\"'\s]=\s*(?=[{\[\"'JdaO(])")
MAX_ATTEMPTS = 20
MAX_STARTS = 200


def read_state(page: Page, script: str) -> Any:
    """Return the state that `script` names, the first that can be read; None where the page has none."""
    read_in_vain = 0
    places = ((text, start) for text, starts in _places(page, script) for start in starts)
    for text, start in islice(places, MAX_STARTS):
        if read_in_vain > MAX_MENDED_CHARS:
            break
        try:
            value = read_value(text, start)
        except LiteralError as error:
            read_in_vain += error.end - start
            continue
        except ValueError:
            continue
        if isinstance(value, str):
            value = _inner(value)
        if isinstance(value, dict | list):
            return value
    return None


def is_selector(script: str) -> bool:
    """Tell a CSS selector (`script#__NEXT_DATA__`) from the beginning of a script (`window.__STATE__=`)."""
    text = script.strip()
    return bool(_SELECTOR.match(text)) and not text.endswith("=")


def _places(page: Page, script: str) -> Iterator[tuple[str, list[int]]]:
    if page.tree is None:
        return
    if is_selector(script):
        selector, attribute = split_selector(script)
        for element in select(page.tree, selector)[:MAX_ATTEMPTS]:
            text = (element.get(attribute) if attribute else "".join(element.itertext())) or ""
            if text.lstrip()[:6] in ("{&quot", "[{&quo"):
                text = html.unescape(text)
            starts = [found.end() for found in list(_ASSIGNMENT.finditer(text[:5_000]))[:MAX_ATTEMPTS]]
            yield text, [0, *starts]
        return
    begins: list[tuple[str, list[int]]] = []
    contains: list[tuple[str, list[int]]] = []
    pattern = _prefix(script)
    for element in page.tree.iter("script"):
        text = element.text or ""
        if found := list(pattern.finditer(text))[:MAX_ATTEMPTS]:
            at_start = not text[: found[0].start()].strip(" \t\r\n;")
            (begins if at_start else contains).append((text, [match.end() for match in found]))
    yield from begins
    yield from contains


@lru_cache(maxsize=64)
def _prefix(script: str) -> re.Pattern[str]:
    """Match the beginning of an assignment however it is spaced and quoted."""
    name = script.strip().rstrip("=").rstrip()
    loose = r"\s*".join(re.escape(token) for token in re.findall(r"[\w$]+|[^\w$\s]", name))
    # `=` may be left out of the site file; `(` of a call has none behind it.
    assigned = r"\s*=(?!=)\s*" if script.strip().endswith("=") else r"\s*(?:=(?!=))?\s*"
    return re.compile((r"(?<![\w$])" if re.match(r"[\w$]", name) else "") + loose + assigned)


def _inner(text: str) -> Any:
    try:
        return read_json_text(html.unescape(text) if text.lstrip().startswith(("{&quot;", "[{&quot;")) else text)
    except ValueError:
        return None
