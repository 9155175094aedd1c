"""The rules of each site, fetched once a day for all workers and kept ready to judge URLs by."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pipeline.web.addresses import Target
from pipeline.web.pace import PaceClient
from pipeline.web.policy import (
    ROBOTS_PATH,
    TDMREP_PATH,
    Decision,
    PolicySettings,
    RobotsRules,
    SiteText,
    TdmRules,
)

_DAY_S = 86_400.0
# A broken file may be mended before the day is over. A site out of reach is asked again at once, so that its circuit
# opens where it stays away.
_BROKEN_S = 60.0
_UNREACHED_S = 1.0
_MAX_SITES = 500


@dataclass(slots=True)
class _Kept:
    rules: RobotsRules | TdmRules
    expires: float


class SiteRules:
    """Judges URLs by robots.txt and tdmrep.json of their sites; fetches both through the function given."""

    def __init__(
        self,
        settings: PolicySettings,
        *,
        agent: str,
        pace: PaceClient,
        fetch: Callable[[str], Awaitable[SiteText]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._agent = agent
        self._pace = pace
        self._fetch = fetch
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._locks: dict[str, asyncio.Lock] = {}

    async def judge(self, target: Target) -> Decision:
        """Decide whether a URL may be asked for."""
        evidence = {}
        robots = await self.robots(target.origin)
        if robots is not None:
            decision = robots.judge(target.path)
            if decision.reason is not None:
                return decision
            evidence = decision.evidence
        if self._settings.tdm and (robots is None or robots.allows(TDMREP_PATH)):
            tdm = await self._tdm(target.origin)
            decision = tdm.judge(target.path)
            if decision.reason is not None:
                return decision
        return Decision(None, evidence)

    async def robots(self, origin: str) -> RobotsRules | None:
        """Return what the robots.txt of a site means for us; None where the settings ask for nothing of it."""
        if not self._settings.robots and not self._settings.content_usage:
            return None
        rules = await self._rules(f"{origin}{ROBOTS_PATH}", self._read_robots)
        assert isinstance(rules, RobotsRules)
        return rules

    def crawl_delay_s(self, origin: str) -> float | None:
        """Return the delay a site asks for; None where its robots.txt is not known yet."""
        kept = self._kept.get(f"{origin}{ROBOTS_PATH}")
        return kept.rules.crawl_delay_s if kept is not None and isinstance(kept.rules, RobotsRules) else None

    async def _tdm(self, origin: str) -> TdmRules:
        rules = await self._rules(f"{origin}{TDMREP_PATH}", TdmRules)
        assert isinstance(rules, TdmRules)
        return rules

    def _read_robots(self, file: SiteText) -> RobotsRules:
        return RobotsRules(file, agent=self._agent, settings=self._settings)

    async def _rules(self, url: str, read: Callable[[SiteText], RobotsRules | TdmRules]) -> RobotsRules | TdmRules:
        kept = self._kept.get(url)
        if kept is not None and self._clock() < kept.expires:
            return kept.rules
        lock = self._locks.setdefault(url, asyncio.Lock())
        try:
            async with lock:
                kept = self._kept.get(url)
                if kept is None or self._clock() >= kept.expires:
                    file, ttl_s = await self._load(url)
                    kept = self._kept[url] = _Kept(read(file), self._clock() + ttl_s)
                    self._kept.move_to_end(url)
                    while len(self._kept) > _MAX_SITES:
                        self._kept.popitem(last=False)
        finally:
            if not lock.locked():
                self._locks.pop(url, None)
        return kept.rules

    async def _load(self, url: str) -> tuple[SiteText, float]:
        shared = await self._pace.get_file(url)
        if shared.text is not None:
            return SiteText.from_json(shared.text), shared.ttl_s
        packed, ttl_s = None, 0.0
        try:
            file = await self._fetch(url)
            ttl_s = _DAY_S if not file.broken else _BROKEN_S if file.reached else _UNREACHED_S
            packed = file.to_json()
        finally:
            # Also where the fetch was cancelled: else others would wait for it.
            self._pace.put_file(url, packed, ttl_s)
        return file, ttl_s
