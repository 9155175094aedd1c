"""The settings of a crawl, and which of them decide the result."""

import json
import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.fetch import FetchSettings
from pipeline.parts import Block
from pipeline.runner import RaySettings
from pipeline.sites import SiteFile
from pipeline.web.pace import PaceSettings
from schemas.image import ImageSettings
from schemas.settings import Section, operational, result, result_settings
from schemas.shards import ShardSettings

Rate = Annotated[Decimal, Field(gt=0)]
Refresh = Literal["missing", "transient", "recrawl", "overwrite"]
_REQUESTS_PER_ID = 20
_PART_REQUESTS_PER_SECOND = 5.0


class CrawlSettings(Section):
    """What is crawled in one go, and how much at once."""

    ids_per_part: int = result(1000, "ids in a part: the unit of work, retry and resume", ge=1)
    max_photos: int = result(200, "photos taken of one listing; a page is not trusted to be short", ge=1, le=1000)
    seed: str = operational("forecourt", "key of the order in which parts and ids are asked")
    listings_in_flight: int = operational(16, "listings of a part worked on at once", ge=1)
    photos_in_flight: int = operational(32, "photos of a part in memory at once", ge=1)
    decode_threads: int = operational(2, "threads that decode; the codecs release the GIL", ge=1)
    part_deadline_s: float = operational(3600.0, "s a part may take beyond ten times what the pace needs", gt=0)
    min_free_bytes: int = operational(256 << 20, "free disk space without which no crawl starts", ge=0)
    alarm_share: float = operational(0.5, "share of failed ids that stops the run", gt=0, le=1)
    alarm_after: int = operational(500, "ids after which that share counts", ge=1)


class CrawlRun(Section):
    """All settings of a crawl, one section a module."""

    crawl: CrawlSettings = CrawlSettings()
    image: ImageSettings = ImageSettings()
    fetch: FetchSettings = FetchSettings()
    pace: PaceSettings = PaceSettings()
    shards: ShardSettings = ShardSettings()
    rates: dict[str, Rate] = result({}, "US dollars for one unit of a currency, such as {EUR: 1.16}")
    ray: RaySettings = RaySettings()


@dataclass(frozen=True, slots=True)
class CrawlSpec:
    """What a worker is told about its part: ids it lacks, and those it has that may be asked again."""

    site: SiteFile
    settings: CrawlRun
    missing: Block
    again: Block
    refresh: Refresh


def parts_in_flight(site: SiteFile, settings: CrawlRun) -> int:
    """Return how many parts a host's rate can feed; more would only each take longer to commit."""
    return settings.ray.num_workers or math.ceil(site.politeness.requests_per_second / _PART_REQUESTS_PER_SECOND)


def part_deadline_s(site: SiteFile, settings: CrawlRun) -> float:
    """Return how long a part may take: ten times what the pace takes at twenty requests an id, and an hour."""
    num_requests = settings.crawl.ids_per_part * _REQUESTS_PER_ID * parts_in_flight(site, settings)
    return settings.crawl.part_deadline_s + 10 * num_requests / site.politeness.requests_per_second


def pinned_settings(site: SiteFile, settings: CrawlRun) -> dict[str, Any]:
    """Return what decides the result: a part made with something else is not reused."""
    page = site.model_dump(mode="json", include={"base_url", "listing_url", "gone", "extract"})
    pinned: dict[str, Any] = json.loads(json.dumps({**result_settings(settings), "site": page}, default=str))
    return pinned
