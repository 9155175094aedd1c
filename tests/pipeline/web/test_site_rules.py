import asyncio
from collections.abc import AsyncIterator

import pytest

from pipeline.web.addresses import read_url
from pipeline.web.pace import PaceClient, local_pace
from pipeline.web.policy import PolicySettings, SiteText
from pipeline.web.site_rules import SiteRules

CAR = read_url("http://cars.example/car")


class Web:
    """Site files by address, and which were asked for."""

    def __init__(self, **texts: SiteText) -> None:
        self.texts = texts
        self.asked: list[str] = []
        self.now = 0.0

    async def fetch(self, url: str) -> SiteText:
        self.asked.append(url)
        await asyncio.sleep(0.01)
        return self.texts.get("robots" if url.endswith("robots.txt") else "tdm", SiteText(url, 404))

    def rules(self, pace: PaceClient, settings: PolicySettings | None = None) -> SiteRules:
        return SiteRules(
            settings or PolicySettings(), agent="forecourt", pace=pace, fetch=self.fetch, clock=lambda: self.now
        )


@pytest.fixture
async def pace() -> AsyncIterator[PaceClient]:
    client = local_pace()
    yield client
    await client.aclose()


async def test_files_are_fetched_once_by_all_workers_that_share_a_pace(pace: PaceClient) -> None:
    web = Web(robots=SiteText("r", 200, "User-agent: *\nCrawl-delay: 3"))
    one, other = web.rules(pace), web.rules(pace)
    assert one.crawl_delay_s(CAR.origin) is None
    decisions = await asyncio.gather(*(rules.judge(CAR) for rules in (one, other) for _ in range(5)))
    assert {decision.reason for decision in decisions} == {None}
    assert sorted(web.asked) == ["http://cars.example/.well-known/tdmrep.json", "http://cars.example/robots.txt"]
    assert one.crawl_delay_s(CAR.origin) == other.crawl_delay_s(CAR.origin) == 3.0


@pytest.mark.parametrize(
    ("file", "kept_s"),
    [
        (SiteText("r", 200, ""), 86_400.0),
        (SiteText("r", 404), 86_400.0),
        (SiteText("r", 503), 60.0),
        (SiteText("r", None, error="timeout"), 60.0),
        (SiteText("r", None, error="connect", reached=False), 1.0),
    ],
)
async def test_a_good_file_counts_for_a_day_and_a_broken_one_for_less(file: SiteText, kept_s: float) -> None:
    web = Web(robots=file)
    rules = web.rules(local_pace())
    await rules.robots(CAR.origin)
    web.now = kept_s - 0.5
    await rules.robots(CAR.origin)
    assert len(web.asked) == 1
    fresh = web.rules(local_pace())
    fresh._kept = rules._kept
    web.now = kept_s + 0.5
    await fresh.robots(CAR.origin)
    assert len(web.asked) == 2


async def test_a_fetch_that_was_given_up_leaves_the_file_to_others(pace: PaceClient) -> None:
    web = Web()
    first = asyncio.create_task(web.rules(pace).judge(CAR))
    while not web.asked:
        await asyncio.sleep(0.001)
    first.cancel()
    decision = await asyncio.wait_for(web.rules(pace).judge(CAR), 3.0)
    assert decision.reason is None


async def test_nothing_is_fetched_that_no_setting_asks_for(pace: PaceClient) -> None:
    web = Web()
    off = PolicySettings(robots=False, content_usage=False, tdm=False)
    assert (await web.rules(pace, off).judge(CAR)).evidence == {}
    assert web.asked == []
