"""What owners say about the use of their pages and photos, and what follows for us: pure decisions with evidence.

We collect photos to train models, so what counts is:

* robots.txt (reason `robots`): a path that it disallows to us is not asked for. Missing (4xx): all is allowed. Broken
  (5xx, 429) or out of reach: nothing is, `passing` in the evidence, and where not even a connection stands, that is
  the URL's failure. More than five redirects count as missing.
* `X-Robots-Tag` and robots meta tags (`noai`): `noai` and `noimageai`, addressed to all or to us. `noindex` and
  `none` speak to search engines and do not count unless `fetch.policy.noindex` says so.
* TDMRep (`tdm`): a reservation in `/.well-known/tdmrep.json`, a header or a meta tag. We hold no licence, so any policy
  beside it changes nothing. A file that is broken or out of reach reserves everything.
* Content-Signal `ai-train=no`, Content-Usage `train-ai=n` and their kin (`content_usage`), in robots.txt or a header.

On doubt a URL is not asked for. Each decision comes with evidence: small, plain values for `attempts.policy`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.web.robots import Robots, Rule, longest, normalise_pattern, read_robots
from schemas.settings import Section, result

ROBOTS_PATH = "/robots.txt"
TDMREP_PATH = "/.well-known/tdmrep.json"
# In evidence: the refusal is for a file that could not be read now.
PASSING = "passing"
_MAX_SHOWN = 200
# X-Robots-Tag directives that themselves carry a colon, and so are not the name of a crawler.
_VALUED_DIRECTIVES = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_NOAI = frozenset({"noai", "noimageai"})
_NOINDEX = frozenset({"noindex", "noimageindex", "none"})
_NO = frozenset({"n", "no", "?0", "0", "false"})
_YES = frozenset({"y", "yes", "?1", "1", "true"})
# Terms for training, and wider ones that hold where no term for training is stated.
_TRAINING_TERMS = frozenset({"ai-train", "train-ai", "train-genai", "ai", "genai"})
_WIDER_TERMS = frozenset({"bots", "tdm"})
_TERM = re.compile(r"([a-z][a-z0-9-]*)\s*=\s*([a-z0-9?]+)")
_MARK = re.compile(rb"<!--|<script\b|<style\b|<meta\b", re.IGNORECASE)
_ENDS = {b"<!--": re.compile(rb"-->"), b"<scr": re.compile(rb"</script", re.I), b"<sty": re.compile(rb"</style", re.I)}
_META_BYTES = 2048
_MAX_METAS = 500
_ATTRIBUTE = re.compile(r"""(?<![a-z:-])([a-z:-]++)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))|(>)""", re.IGNORECASE)


class PolicySettings(Section):
    """Which statements of owners count (section `fetch.policy`); all by default."""

    robots: bool = result(True, "obey robots.txt")
    noai: bool = result(True, "leave out what X-Robots-Tag or a robots meta tag marks noai or noimageai")
    noindex: bool = result(False, "leave out noindex, noimageindex and none too: they speak to search engines")
    tdm: bool = result(True, "leave out what TDMRep reserves")
    content_usage: bool = result(True, "leave out what Content-Signal or Content-Usage keeps from training")
    max_crawl_delay_s: float = result(300.0, "s; a longer Crawl-delay counts as disallowing all", gt=0)


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows for a URL or an answer: `reason` is None where nothing forbids the use.

    `unreachable` names what went wrong where not even a connection to the site could be made: that forbids too, but
    says nothing of the owner's will.
    """

    reason: str | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    unreachable: str | None = None


@dataclass(frozen=True, slots=True)
class SiteText:
    """A file by which a site speaks to crawlers, as it was fetched.

    No status where there was no answer; `reached` where at least a connection stood.
    """

    url: str
    status: int | None
    text: str = ""
    error: str | None = None
    reached: bool = True

    @property
    def missing(self) -> bool:
        """Whether the site says that there is no such file; 429 says only that it is busy."""
        return self.status is not None and 300 <= self.status < 500 and self.status != 429

    @property
    def broken(self) -> bool:
        """Whether it is unknown what the file says."""
        return self.status is None or self.status >= 500 or self.status == 429

    def source(self) -> dict[str, Any]:
        """Say where the text is from, for evidence."""
        said: dict[str, Any] = {"url": self.url, "status": self.status}
        return said if self.error is None else said | {"error": self.error}

    def unheard(self, reason: str) -> Decision:
        """Forbid what a broken file speaks of; the evidence says that this may pass."""
        return Decision(reason, {reason: self.source(), PASSING: True}, None if self.reached else self.error)

    def to_json(self) -> str:
        """Pack for other workers."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, packed: str) -> "SiteText":
        """Unpack what `to_json` made."""
        return cls(**json.loads(packed))


class RobotsRules:
    """What the robots.txt of a site means for us."""

    def __init__(self, file: SiteText, *, agent: str, settings: PolicySettings) -> None:
        self.file = file
        self._settings = settings
        found = file.status is not None and 200 <= file.status < 300
        self._robots = read_robots(file.text, agent) if found else Robots()

    @property
    def crawl_delay_s(self) -> float:
        """Seconds between two requests, 0 where none are asked for."""
        return self._robots.crawl_delay_s if self._settings.robots else 0.0

    def allows(self, path: str) -> bool:
        """Tell whether robots.txt lets us ask for a path with its query."""
        return self.judge(path).reason != "robots"

    def judge(self, path: str) -> Decision:
        """Decide on a path with its query before it is asked for."""
        evidence: dict[str, Any] = {"robots": self.file.source()}
        if self._settings.robots:
            if self.file.broken:
                return self.file.unheard("robots")
            if self.crawl_delay_s > self._settings.max_crawl_delay_s:
                evidence["robots"]["rule"] = f"Crawl-delay: {self.crawl_delay_s:g}"
                return Decision("robots", evidence)
            allowed, rule = self._robots.decide(path)
            if rule is not None:
                evidence["robots"] |= _shown(rule)
            if not allowed:
                return Decision("robots", evidence)
        if self._settings.content_usage and (rule := self._kept_from_training(path)) is not None:
            return Decision("content_usage", {"content_usage": self.file.source() | _shown(rule)})
        return Decision(None, evidence)

    def _kept_from_training(self, path: str) -> Rule | None:
        for key in ("content-usage", "content-signal"):
            for rule in longest([rule for rule in self._robots.usages if rule.key == key], path):
                if keeps_from_training([rule.text]):
                    return rule
        return None


class TdmRules:
    """What the TDMRep file of a site reserves: the longest location that matches counts, on a tie the reservation."""

    def __init__(self, file: SiteText) -> None:
        self._file = file
        self._locations = () if file.missing or file.broken else tuple(_locations(file.text))

    def judge(self, path: str) -> Decision:
        """Decide on a path with its query before it is asked for."""
        if self._file.broken:
            return self._file.unheard("tdm")
        for rule in longest(self._locations, path):
            if rule.key == "reserved":
                return Decision("tdm", {"tdm": self._file.source() | {"location": rule.text[:_MAX_SHOWN]}})
        return Decision()


def judge_headers(headers: Iterable[tuple[str, str]], *, agent: str, settings: PolicySettings) -> Decision:
    """Decide by the headers of an answer; a name may come more than once."""
    said = [(name.lower(), value) for name, value in headers]
    if (words := _unwanted(settings)) and (found := _robots_tag(_values(said, "x-robots-tag"), agent, words)):
        return Decision("noai", {"x-robots-tag": found})
    if settings.tdm and any(value.strip() == "1" for value in _values(said, "tdm-reservation")):
        return Decision("tdm", {"tdm-reservation": "1"})
    if settings.content_usage:
        for name in ("content-usage", "content-signal"):
            if keeps_from_training(values := _values(said, name)):
                return Decision("content_usage", {name: ", ".join(values)[:_MAX_SHOWN]})
    return Decision()


def judge_page(html: bytes, *, agent: str, settings: PolicySettings) -> Decision:
    """Decide by the meta tags of a page."""
    words = _unwanted(settings)
    for name, content in _metas(html):
        if name in {"robots", agent.lower()} and (found := words & set(re.split(r"[\s,]+", content.lower()))):
            return Decision("noai", {f"meta {name}": ", ".join(sorted(found))})
        if settings.tdm and name == "tdm-reservation" and content.strip() == "1":
            return Decision("tdm", {"meta tdm-reservation": "1"})
    return Decision()


def keeps_from_training(values: Sequence[str]) -> bool:
    """Tell whether usage terms say no to training; a wider no yields to a yes to training."""
    terms = {key: value for text in values for key, value in _TERM.findall(text.lower())}
    training = [terms[key] for key in _TRAINING_TERMS & terms.keys()]
    if any(value in _NO for value in training):
        return True
    return not any(value in _YES for value in training) and any(
        terms[key] in _NO for key in _WIDER_TERMS & terms.keys()
    )


def _unwanted(settings: PolicySettings) -> frozenset[str]:
    return (_NOAI if settings.noai else frozenset()) | (_NOINDEX if settings.noindex else frozenset())


def _values(headers: Sequence[tuple[str, str]], name: str) -> list[str]:
    return [value for found, value in headers if found == name]


def _robots_tag(values: Sequence[str], agent: str, words: frozenset[str]) -> str | None:
    """Find a directive among `words` that is addressed to all or to us; a name counts to the end of its header."""
    for value in values:
        addressed = "*"
        for part in value.lower().split(","):
            name, colon, rest = part.partition(":")
            if colon and name.strip() not in _VALUED_DIRECTIVES:
                addressed, part = name.strip(), rest
            if addressed in {"*", agent.lower()} and (found := words & set(part.split())):
                return ", ".join(sorted(found))
    return None


def _metas(html: bytes) -> Iterator[tuple[str, str]]:
    """Yield name and content of meta tags outside comments, scripts and styles, in one pass over the page."""
    place = num_metas = 0
    while num_metas < _MAX_METAS and (mark := _MARK.search(html, place)) is not None:
        place = mark.end()
        if (end := _ENDS.get(mark.group()[:4].lower())) is not None:
            if (closed := end.search(html, place)) is None:
                return
            place = closed.end()
            continue
        num_metas += 1
        tag = html[place : place + _META_BYTES].decode("utf-8", "replace")
        values: dict[str, str] = {}
        for key, double, single, bare, closing in _ATTRIBUTE.findall(tag):
            if closing:
                break
            values[key.lower()] = double or single or bare
        if "name" in values and "content" in values:
            yield values["name"].strip().lower(), values["content"]


def _locations(text: str) -> Iterator[Rule]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        return
    for position, entry in enumerate(entries if isinstance(entries, list) else [entries], 1):
        if isinstance(entry, dict) and isinstance(location := entry.get("location"), str):
            reserved = entry.get("tdm-reservation") in (1, "1", True)
            path = location if location[:1] in ("/", "*") else f"/{location}"
            yield Rule("reserved" if reserved else "free", normalise_pattern(path), location, position)


def _shown(rule: Rule) -> dict[str, Any]:
    return {"rule": rule.shown, "line": rule.line}
