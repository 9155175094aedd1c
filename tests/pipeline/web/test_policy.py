import json
import time

import pytest

from pipeline.web.policy import (
    PolicySettings,
    RobotsRules,
    SiteText,
    TdmRules,
    judge_headers,
    judge_page,
    keeps_from_training,
)

URL = "https://cars.example/robots.txt"
ALL = PolicySettings()


def robots(text: str = "", status: int | None = 200, settings: PolicySettings = ALL, **more: object) -> RobotsRules:
    file = SiteText(URL, status, text, **more)  # type: ignore[arg-type]  # the fields of a SiteText by name
    return RobotsRules(file, agent="forecourt", settings=settings)


def tdm(text: str, path: str, status: int | None = 200) -> str | None:
    return TdmRules(SiteText("u", status, text)).judge(path).reason


def header(name: str, *values: str, settings: PolicySettings = ALL) -> str | None:
    return judge_headers([(name, value) for value in values], agent="Forecourt", settings=settings).reason


def page(html: str, settings: PolicySettings = ALL) -> str | None:
    return judge_page(html.encode(), agent="forecourt", settings=settings).reason


def test_evidence_names_the_rule_its_line_and_where_it_is_from() -> None:
    decision = robots("User-agent: *\nDisallow: /members/").judge("/members/1")
    assert decision.reason == "robots"
    assert decision.evidence == {"robots": {"url": URL, "status": 200, "rule": "Disallow: /members/", "line": 2}}
    assert json.loads(json.dumps(decision.evidence)) == decision.evidence


def test_what_is_allowed_has_evidence_too() -> None:
    assert robots("User-agent: *\nDisallow: /x").judge("/car").evidence == {"robots": {"url": URL, "status": 200}}
    assert robots(status=404).judge("/car").evidence == {"robots": {"url": URL, "status": 404}}


@pytest.mark.parametrize(
    ("status", "reason"),
    [(404, None), (403, None), (301, None), (500, "robots"), (503, "robots"), (429, "robots"), (None, "robots")],
)
def test_missing_robots_allow_and_broken_ones_disallow(status: int | None, reason: str | None) -> None:
    decision = robots("User-agent: *\nDisallow: /", status).judge("/car")
    assert decision.reason == reason
    assert decision.evidence.get("passing") is (True if reason else None)


def test_a_site_out_of_reach_is_told_from_one_that_breaks_off() -> None:
    assert robots(status=None, error="connect", reached=False).judge("/car").unreachable == "connect"
    assert robots(status=None, error="timeout").judge("/car").unreachable is None


def test_a_crawl_delay_beyond_the_limit_disallows() -> None:
    slow = robots("User-agent: *\nCrawl-delay: 86400")
    assert slow.judge("/car").reason == "robots"
    assert slow.judge("/car").evidence["robots"]["rule"] == "Crawl-delay: 86400"
    assert robots("User-agent: *\nCrawl-delay: 10").crawl_delay_s == 10.0


def test_robots_can_be_switched_off() -> None:
    off = robots("User-agent: *\nDisallow: /\nCrawl-delay: 5", settings=PolicySettings(robots=False))
    assert off.judge("/car").reason is None
    assert off.crawl_delay_s == 0.0


@pytest.mark.parametrize(
    ("lines", "path", "reason"),
    [
        ("Content-Signal: search=yes, ai-train=no", "/car", "content_usage"),
        ("content-signal: ai-train=yes", "/car", None),
        ("Content-Usage: train-ai=n", "/car", "content_usage"),
        ("Content-Usage: /photos/ train-ai=n", "/photos/1", "content_usage"),
        ("Content-Usage: /photos/ train-ai=n", "/car", None),
        ("Content-Usage: train-ai=n\nContent-Usage: /open/ train-ai=y", "/open/1", None),
        ("Content-Usage: train-ai=n\nContent-Usage: /open/ train-ai=y", "/car", "content_usage"),
        ("Content-Usage: train-ai=n\nContent-Usage: train-ai=y", "/car", "content_usage"),
        ("Content-Usage: search=n", "/car", None),
    ],
)
def test_usage_terms_in_robots_count(lines: str, path: str, reason: str | None) -> None:
    text = f"User-agent: *\n{lines}\nAllow: /"
    assert robots(text).judge(path).reason == reason
    assert robots(text, settings=PolicySettings(content_usage=False)).judge(path).reason is None


@pytest.mark.parametrize(
    ("terms", "kept"),
    [
        ("train-ai=n", True),
        ("train-ai=y", False),
        ("TRAIN-AI = N", True),
        ("ai-train=no", True),
        ("search=y, train-ai=n", True),
        ("search=n", False),
        ("ai-input=no", False),
        ("bots=n", True),
        ("bots=n, train-ai=y", False),
        ("tdm=n", True),
        ("train-genai=n", True),
        ("train-ai=?0", True),
        ("train-ai", False),
        ("", False),
    ],
)
def test_terms_that_say_no_to_training(terms: str, kept: bool) -> None:
    assert keeps_from_training([terms]) is kept


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["noai"], "noai"),
        (["NOAI"], "noai"),
        (["noimageai"], "noai"),
        (["nofollow, noai"], "noai"),
        (["all", "noimageai"], "noai"),
        (["forecourt: noai"], "noai"),
        (["otherbot: noai"], None),
        (["otherbot: nofollow, noai"], None),
        (["otherbot: nofollow, forecourt: noai"], "noai"),
        (["otherbot: noai", "noimageai"], "noai"),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], "noai"),
        (["max-snippet: 20, noai"], "noai"),
        (["noindex"], None),
        (["none"], None),
        (["noaix"], None),
        ([""], None),
    ],
)
def test_x_robots_tag(values: list[str], reason: str | None) -> None:
    assert header("X-Robots-Tag", *values) == reason
    assert header("X-Robots-Tag", *values, settings=PolicySettings(noai=False)) is None


def test_noindex_counts_where_the_settings_say_so() -> None:
    strict = PolicySettings(noindex=True)
    assert header("x-robots-tag", "none", settings=strict) == "noai"
    assert page('<meta name="robots" content="noindex">', strict) == "noai"


def test_tdm_and_usage_headers() -> None:
    assert header("TDM-Reservation", "1") == "tdm"
    assert header("tdm-reservation", "0") is None
    assert header("tdm-reservation", "1", settings=PolicySettings(tdm=False)) is None
    assert header("Content-Usage", "train-ai=n") == "content_usage"
    assert header("Content-Signal", "ai-train=no") == "content_usage"
    assert header("Content-Signal", "ai-train=no", settings=PolicySettings(content_usage=False)) is None
    evidence = judge_headers([("Content-Usage", "train-ai=n")], agent="forecourt", settings=ALL).evidence
    assert evidence == {"content-usage": "train-ai=n"}


@pytest.mark.parametrize(
    ("html", "reason"),
    [
        ('<meta name="robots" content="noai">', "noai"),
        ("<META NAME='ROBOTS' CONTENT='NoImageAI, nofollow' />", "noai"),
        ("<meta name=robots content=noai>", "noai"),
        ('<meta content="index,noai" name="robots">', "noai"),
        ('<meta\nname = "forecourt"\ncontent = "noai">', "noai"),
        ('<meta name="googlebot" content="noai">', None),
        ('<meta name="robots" content="index, follow">', None),
        ('<meta name="description" content="noai">', None),
        ('<meta name="tdm-reservation" content="1">', "tdm"),
        ('<meta name="tdm-reservation" content="0">', None),
        ('<!-- <meta name="robots" content="noai"> -->', None),
        ('<script>var a = \'<meta name="robots" content="noai">\';</script>', None),
        ('<script>1</script><meta name="robots" content="noai">', "noai"),
        ('<meta name="a" content="x > y"><meta name="robots" content="noai">', "noai"),
        ('<meta><p name="robots" content="noai">', None),
        ("<meta name=robots", None),
        ("", None),
    ],
)
def test_meta_tags(html: str, reason: str | None) -> None:
    assert page(f"<html><head>{html}</head></html>") == reason


@pytest.mark.parametrize(
    "piece", ["<!--", "<meta ", "<meta name=" + "a" * 50, "<script>", "<meta " + "a" * 3000, '<meta x="']
)
def test_hostile_pages_take_no_time(piece: str) -> None:
    html = (piece * (2_000_000 // len(piece))).encode()
    began = time.perf_counter()
    judge_page(html, agent="forecourt", settings=ALL)
    assert time.perf_counter() - began < 2.0


@pytest.mark.parametrize(
    ("entries", "path", "reason"),
    [
        ([{"location": "/", "tdm-reservation": 1}], "/car", "tdm"),
        ([{"location": "/", "tdm-reservation": 0}], "/car", None),
        ([{"location": "/photos/*.jpg", "tdm-reservation": 1}], "/photos/1.jpg", "tdm"),
        ([{"location": "/photos/*.jpg", "tdm-reservation": 1}], "/photos/1.png", None),
        ([{"location": "/", "tdm-reservation": 1}, {"location": "/open/", "tdm-reservation": 0}], "/open/1", None),
        ([{"location": "/a", "tdm-reservation": 0}, {"location": "/a", "tdm-reservation": 1}], "/a", "tdm"),
        ([{"location": "photos/", "tdm-reservation": 1}], "/photos/1", "tdm"),
        ([{"location": 7, "tdm-reservation": 1}, "x"], "/car", None),
        ({"location": "/", "tdm-reservation": "1"}, "/car", "tdm"),
        ([], "/car", None),
    ],
)
def test_tdm_files(entries: object, path: str, reason: str | None) -> None:
    assert tdm(json.dumps(entries), path) == reason


def test_tdm_files_that_say_nothing_reserve_nothing_and_broken_ones_everything() -> None:
    assert tdm("<html>no such page", "/car") is None
    assert tdm("[" * 100_000, "/car") is None
    assert tdm("", "/car", status=404) is None
    assert tdm("", "/car", status=500) == "tdm"
    assert tdm("", "/car", status=None) == "tdm"


def test_site_texts_travel_between_workers() -> None:
    file = SiteText(URL, None, "caf\u00e9", "connect", reached=False)
    assert SiteText.from_json(file.to_json()) == file
