import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protego import Protego

from pipeline.web.robots import (
    MAX_ROBOTS_BYTES,
    agent_token,
    cut_robots,
    matches,
    normalise_path,
    normalise_pattern,
    read_robots,
)


def allows(text: str, path: str, agent: str = "forecourt") -> bool:
    return read_robots(text, agent).decide(path)[0]


@pytest.mark.parametrize(
    ("rules", "path", "allowed"),
    [
        ("Disallow: /", "/car", False),
        ("Disallow:", "/car", True),
        ("Disallow: /car", "/cars/1", False),
        ("Disallow: /car/", "/car", True),
        ("Disallow: /Car", "/car", True),
        ("Disallow: /listing\nAllow: /listing/1", "/listing/1", True),
        ("Allow: /listing/1\nDisallow: /listing", "/listing/2", False),
        ("Allow: /p\nDisallow: /", "/page", True),
        ("Allow: /folder\nDisallow: /folder", "/folder/page", True),
        ("Allow: /page\nDisallow: /*.htm", "/page.htm", False),
        ("Allow: /page\nDisallow: /*.ph", "/page.php5", True),
        ("Allow: /$\nDisallow: /", "/", True),
        ("Allow: /$\nDisallow: /", "/page.htm", False),
        ("Disallow: /listing/*13$\nAllow: /listing/*513$", "/listing/600513", True),
        ("Disallow: /listing/*13$\nAllow: /listing/*513$", "/listing/600413", False),
        ("Disallow: /listing/*13$\nAllow: /listing/*513$", "/listing/600131", True),
        ("Disallow: /*.pdf$", "/a.pdf?x", True),
        ("Disallow: *.pdf", "/a.pdf", False),
        ("Disallow: /a*b*c", "/a1b2c3", False),
        ("Disallow: /a*b*c$", "/abcbc", False),
        ("Disallow: /a*b*c$", "/abcb", True),
        ("Disallow: /a*a$", "/a", True),
        ("Disallow: /a**b", "/ab", False),
        ("Disallow: /?id=", "/?id=1", False),
        ("Disallow: /a$b", "/a$b", False),
        ("Disallow: /index.html", "/", True),
        ("Allow: /index.html\nDisallow: /", "/", False),
        ("Disallow: /", "/robots.txt", True),
        ("Disallow /car", "/car", False),
        ("Dissallow: /car", "/car", False),
        ("Disallow: car", "/car", False),
        ("Allow: car\nDisallow: /car", "/car", False),
        ("Disallow: /car # for robots", "/car", False),
        ("disallow : /car", "/car", False),
        ("Sitemap: https://a.example/x\nDisallow: /car", "/car", False),
        ("Nonsense\n: /\nDisallow: /car", "/car", False),
    ],
)
def test_the_longest_rule_decides(rules: str, path: str, allowed: bool) -> None:
    assert allows(f"User-agent: *\n{rules}\n", path) is allowed


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/foo/bar?baz=quz", "/foo/bar?baz=quz"),
        ("/foo/bar?baz=http://foo.bar", "/foo/bar?baz=http://foo.bar"),
        ("/foo/bar/\u30c4", "/foo/bar/%E3%83%84"),
        ("/foo/bar/%E3%83%84", "/foo/bar/%e3%83%84"),
        ("/foo/bar/%62%61%7A", "/foo/bar/baz"),
        ("/a b", "/a%20b"),
        ("/file-with-a-%2A.html", "/file-with-a-*.html"),
        ("/foo-%24", "/foo-$"),
        ("/%7ejoe/", "/~joe/x"),
        ("/100%", "/100%25"),
    ],
)
def test_paths_and_patterns_are_compared_in_one_spelling(pattern: str, path: str) -> None:
    assert not allows(f"User-agent: *\nDisallow: {pattern}", path)


@pytest.mark.parametrize(("pattern", "path"), [("/a%2Fb", "/a/b"), ("/a%3Fb", "/a?b"), ("/x-%2A", "/x-y")])
def test_an_escaped_reserved_character_is_another_one(pattern: str, path: str) -> None:
    assert allows(f"User-agent: *\nDisallow: {pattern}", path)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("User-agent: Forecourt\nDisallow: /car", False),
        ("User-agent: FORECOURT/2.0\nDisallow: /car", False),
        ("User-agent: fore\nDisallow: /car", True),
        ("User-agent: forecourt-images\nDisallow: /car", True),
        ("User-agent: court\nDisallow: /car", True),
        ("User-agent: *\nDisallow: /\nUser-agent: forecourt\nDisallow: /other", True),
        ("User-agent: forecourt\nUser-agent: other\nDisallow: /car", False),
        (
            "User-agent: forecourt\nDisallow: /a\nUser-agent: x\nDisallow: /b\nUser-agent: forecourt\nDisallow: /car",
            False,
        ),
        ("User-agent: *\nDisallow: /a\nUser-agent: x\nDisallow:\nUser-agent: *\nDisallow: /car", False),
        ("User-agent: forecourt\nUser-agent: *\nDisallow: /car", False),
        ("User-agent: forecourt\n\n\nDisallow: /car", False),
        ("User-agent: forecourt\nSitemap: x\nUser-agent: other\nDisallow: /car", False),
        ("User-agent: *\nCrawl-delay: 9\n\nUser-agent: badbot\nDisallow: /", True),
        ("User-agent: * # all\nDisallow: /car", False),
        ("Disallow: /car", True),
        ("", True),
        ("User-agent: *\rDisallow: /car", False),
        ("User-agent: *\r\nDisallow: /car", False),
        ("User-agent: *\u2028Disallow: /car", True),
        ("<html><body>Not found</body></html>", True),
    ],
)
def test_the_groups_of_our_name_are_merged_and_come_before_those_of_all(text: str, allowed: bool) -> None:
    assert allows(text, "/car") is allowed


def test_a_byte_order_mark_hides_nothing() -> None:
    assert not allows(cut_robots("\ufeffUser-agent: *\nDisallow: /car".encode()), "/car")


def test_the_deciding_line_is_told() -> None:
    allowed, rule = read_robots("User-agent: *\nAllow: /\n\nDisallow: /Cars/*.jpg$ # ours\n", "forecourt").decide(
        "/Cars/1.jpg"
    )
    assert rule is not None
    assert (allowed, rule.line, rule.shown) == (False, 4, "Disallow: /Cars/*.jpg$")
    assert read_robots("User-agent: *\nDisallow: /x", "forecourt").decide("/y") == (True, None)


@pytest.mark.parametrize(
    ("text", "delay_s"),
    [
        ("User-agent: *\nCrawl-delay: 2.5", 2.5),
        ("User-agent: *\nCrawl-delay: 2\nCrawl-delay: 5", 5.0),
        ("User-agent: *\nCrawl-delay: 2\nUser-agent: forecourt\nCrawl-delay: 7", 7.0),
        ("User-agent: other\nCrawl-delay: 2", 0.0),
        ("User-agent: *\nCrawl-delay: -1", 0.0),
        ("User-agent: *\nCrawl-delay: nan", 0.0),
        ("User-agent: *\nCrawl-delay: inf", 0.0),
        ("User-agent: *\nCrawl-delay:", 0.0),
        ("User-agent: *\nCrawl-delay: soon", 0.0),
    ],
)
def test_crawl_delay_is_read_from_our_group(text: str, delay_s: float) -> None:
    assert read_robots(text, "forecourt").crawl_delay_s == delay_s


def test_usage_lines_are_taken_from_our_group_and_from_before_any() -> None:
    text = (
        "Content-Usage: train-ai=n\nUser-agent: *\nContent-Signal: ai-train=no\n"
        "Content-Usage: /a/* train-ai=y\nAllow: /"
    )
    usages = read_robots(text, "forecourt").usages
    assert [(usage.key, usage.pattern) for usage in usages] == [
        ("content-usage", "/"),
        ("content-signal", "/"),
        ("content-usage", "/a/*"),
    ]
    assert len(read_robots(f"{text}\nUser-agent: forecourt\nAllow: /", "forecourt").usages) == 1


def test_a_long_file_counts_to_the_last_whole_line_within_the_cap() -> None:
    line = b"Disallow: /0123456789\n"
    body = b"User-agent: *\n" + line * (MAX_ROBOTS_BYTES // len(line) + 10)
    text = cut_robots(body)
    assert MAX_ROBOTS_BYTES - len(line) < len(text) <= MAX_ROBOTS_BYTES
    assert text.endswith("/0123456789\n")


@pytest.mark.parametrize(
    ("agent", "token"),
    [("Forecourt/0.1 (+mailto:a@b)", "forecourt"), ("My-Bot_x 1", "my-bot_x"), ("", ""), ("1bot", "")],
)
def test_the_token_is_the_name_before_the_version(agent: str, token: str) -> None:
    assert agent_token(agent) == token


PATHS = st.text(alphabet="ab/.?=~-", max_size=8).map(lambda text: f"/{text}")
PATTERNS = st.text(alphabet="ab/.*?=~-", max_size=8).map(lambda text: f"/{text}")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.booleans(), PATTERNS, st.booleans()), max_size=5), PATHS)
def test_we_agree_with_protego_where_it_follows_the_rfc(rules: list[tuple[bool, str, bool]], path: str) -> None:
    # Left out: what protego reads its own way (index.html, a literal dollar, "//", partial names).
    lines = [f"{'Allow' if allow else 'Disallow'}: {pattern}" for allow, pattern, _ in rules if "//" not in pattern]
    text = "\n".join(["User-agent: *", *lines])
    if "//" not in path:
        theirs: Any = Protego.parse(text)
        assert allows(text, path) == theirs.can_fetch(f"http://a.example{path}", "forecourt")


def slow_matches(pattern: str, path: str) -> bool:
    if not pattern:
        return True
    if pattern == "$":
        return not path
    if pattern[0] == "*":
        return any(slow_matches(pattern[1:], path[start:]) for start in range(len(path) + 1))
    return bool(path) and path[0] == pattern[0] and slow_matches(pattern[1:], path[1:])


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="ab*", max_size=7), st.booleans(), st.text(alphabet="ab", max_size=8))
def test_matching_is_what_its_definition_says(pattern: str, anchored: bool, path: str) -> None:
    full = pattern + ("$" if anchored else "")
    assert matches(full, path) == slow_matches(full, path)


@given(st.text(alphabet=string.printable + "\u00e9\u30c4", max_size=20))
def test_spelling_twice_changes_nothing_more(path: str) -> None:
    assert normalise_path(normalise_path(path)) == normalise_path(path)
    assert normalise_pattern(normalise_pattern(path)) == normalise_pattern(path)


@given(st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    read_robots(text, "forecourt").decide("/car")


def test_hostile_patterns_take_no_time() -> None:
    text = "User-agent: *\n" + "Disallow: /" + "*a" * 50_000 + "$\n"
    assert allows(text, "/" + "a" * 8000)
