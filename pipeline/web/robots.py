"""robots.txt by RFC 9309: which rule decides on a path, for one crawler, with the line it stands on.

Two things of common robots.txt files that the RFC leaves open: `Crawl-delay`, and lines that say how content may be
used (`Content-Signal`, `Content-Usage`), all within a group, the latter also before any.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

MAX_ROBOTS_BYTES = 500 * 1024
_MAX_SHOWN = 200

_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_KEPT = _UNRESERVED | frozenset(":/?#[]@!&'()+,;=")
_PIECE = re.compile(r"%[0-9A-Fa-f]{2}|.", re.DOTALL)
# What most paths and patterns are made of: spelt as they came.
_PLAIN = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!&'()+,;=-]*")
_TOKEN = re.compile(r"[A-Za-z_-]+")
_PATH_THEN_TERMS = re.compile(r"(?P<path>[/*]\S*)\s+(?P<terms>.*)")

_AGENT_KEYS = frozenset({"user-agent", "useragent", "user agent"})
_DISALLOW_KEYS = frozenset({"disallow", "dissallow", "dissalow", "disalow", "diasllow", "disallaw"})
_DELAY_KEYS = frozenset({"crawl-delay", "crawl delay", "crawldelay"})
USAGE_KEYS = frozenset({"content-signal", "content-usage"})
_MEMBER_KEYS = _DISALLOW_KEYS | _DELAY_KEYS | USAGE_KEYS | {"allow"}


@dataclass(frozen=True, slots=True)
class Rule:
    """A path pattern, ready to be compared, and what its line says."""

    key: str
    pattern: str
    text: str
    line: int

    @property
    def shown(self) -> str:
        """The line as evidence shows it."""
        return f"{self.key.capitalize()}: {self.text}"[:_MAX_SHOWN]


@dataclass(frozen=True, slots=True)
class Robots:
    """What a robots.txt says to one crawler."""

    rules: tuple[Rule, ...] = ()
    usages: tuple[Rule, ...] = ()
    crawl_delay_s: float = 0.0

    def decide(self, path: str) -> tuple[bool, Rule | None]:
        """Tell whether a path with its query may be asked for, and the rule that decides, if any does."""
        if path == "/robots.txt":
            return True, None
        deciding = longest(self.rules, path)
        # Of equally long patterns the one that allows counts.
        rule = next((rule for rule in deciding if rule.key == "allow"), deciding[0] if deciding else None)
        return rule is None or rule.key == "allow", rule


def agent_token(user_agent: str) -> str:
    """Return the product token of a User-Agent, by which robots.txt addresses it."""
    found = _TOKEN.match(user_agent)
    return found.group().lower() if found else ""


def read_robots(text: str, agent: str) -> Robots:
    """Read the groups that address a crawler by its token; without any, those that address all."""
    groups: dict[str, list[Rule]] = {}
    everyone: list[Rule] = []
    current: list[str] = []
    in_members = True
    for number, key, value in _lines(text):
        if key in _AGENT_KEYS:
            if in_members:
                current, in_members = [], False
            name = "*" if value.startswith("*") else agent_token(value)
            current.append(name)
            groups.setdefault(name, [])
        elif key in _MEMBER_KEYS:
            in_members = True
            for rule in _rules(key, value, number):
                for name in current:
                    groups[name].append(rule)
                if not groups and key in USAGE_KEYS:
                    everyone.append(rule)
    ours = groups.get(agent.lower(), groups.get("*", []))
    return Robots(
        rules=tuple(rule for rule in ours if rule.key in {"allow", "disallow"}),
        usages=tuple(rule for rule in everyone + ours if rule.key in USAGE_KEYS),
        crawl_delay_s=max((_seconds(rule.text) for rule in ours if rule.key == "crawl-delay"), default=0.0),
    )


def cut_robots(body: bytes) -> str:
    """Decode the part of a robots.txt that counts, to the last whole line within the cap."""
    if len(body) > MAX_ROBOTS_BYTES:
        body = body[:MAX_ROBOTS_BYTES]
        body = body[: max(body.rfind(b"\n"), body.rfind(b"\r")) + 1]
    return body.decode("utf-8", "replace").removeprefix("\ufeff")


def longest(rules: Iterable[Rule], path: str) -> Sequence[Rule]:
    """Return the rules with the longest pattern that matches a path; several where they are equally long."""
    asked = normalise_path(path)
    best: list[Rule] = []
    for rule in rules:
        if best and len(rule.pattern) < len(best[0].pattern):
            continue
        if matches(rule.pattern, asked):
            if best and len(rule.pattern) > len(best[0].pattern):
                best = []
            best.append(rule)
    return best


def matches(pattern: str, path: str) -> bool:
    """Tell whether a pattern matches the start of a path, both normalised; `$` at the end matches its end.

    Works without a regular expression, so that no pattern can make it slow.
    """
    anchored = pattern.endswith("$")
    first, *rest = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    place = len(first)
    if not rest:
        return not anchored or place == len(path)
    for part in rest[:-1]:
        found = path.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    if anchored:
        return path.endswith(rest[-1]) and len(path) - len(rest[-1]) >= place
    return path.find(rest[-1], place) >= 0


def normalise_path(path: str) -> str:
    """Spell a path with its query as patterns are spelt: reserved and foreign characters as they came or escaped."""
    path = path.partition("#")[0]
    return path if _PLAIN.fullmatch(path) else "".join(_spell(piece) for piece in _PIECE.findall(path))


def normalise_pattern(pattern: str) -> str:
    """Spell a pattern so that it can be compared with a path; `*` and a last `$` keep their meaning."""
    anchor = "$" if pattern.endswith("$") else ""
    pieces = _PIECE.findall(pattern.removesuffix("$"))
    return "".join(piece if piece == "*" else _spell(piece) for piece in pieces) + anchor


def _spell(piece: str) -> str:
    if len(piece) == 3:
        plain = chr(int(piece[1:], 16))
        return plain if plain in _UNRESERVED else piece.upper()
    return piece if piece in _KEPT else "".join(f"%{byte:02X}" for byte in piece.encode("utf-8", "replace"))


def _lines(text: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        content = line.partition("#")[0].strip()
        key, colon, value = content.partition(":")
        if not colon:
            # Site owners forget the colon; what they mean to forbid is plain.
            key, _, value = content.partition(" ")
        yield number, key.strip().lower(), value.strip()


def _rules(key: str, value: str, line: int) -> Iterator[Rule]:
    if key in _DELAY_KEYS:
        yield Rule("crawl-delay", "", value, line)
    elif key in USAGE_KEYS:
        found = _PATH_THEN_TERMS.fullmatch(value)
        yield Rule(key, normalise_pattern(found["path"] if found else "/"), value, line)
    elif value:
        # An empty value sets nothing; a pattern that starts with neither "/" nor "*" can match nothing, and is
        # taken for a path that lacks its slash where it forbids.
        forbids = key in _DISALLOW_KEYS
        path = f"/{value}" if forbids and value[0] not in "/*" else value
        yield Rule("disallow" if forbids else "allow", normalise_pattern(path), value, line)


def _seconds(text: str) -> float:
    try:
        seconds = float(text.split()[0])
    except (ValueError, IndexError):
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
