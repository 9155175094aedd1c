import gzip
import io
from collections import Counter

from protego import Protego

from pipeline.drawn_site.faults import (
    BOMB_MEBIBYTES,
    LASTING,
    LASTING_PAGES,
    LASTING_PHOTOS,
    MAX_SPOILED_TRIES,
    PASSING,
    ROBOTS_FAULTY,
    FaultPlan,
    gzip_bomb,
    robots_forbids,
)

PATHS = [f"/listing/{660_000_000 + number}" for number in range(6000)]


def test_faults_follow_from_seed_and_path() -> None:
    one, same, other = FaultPlan(seed=0), FaultPlan(seed=0), FaultPlan(seed=1)
    assert [one.of(path, "page") for path in PATHS] == [same.of(path, "page") for path in PATHS]
    assert [one.of(path, "page") for path in PATHS] != [other.of(path, "page") for path in PATHS]


def test_every_fault_is_met_and_most_urls_have_none() -> None:
    pages = Counter(fault.kind for path in PATHS if (fault := FaultPlan(seed=0).of(path, "page")))
    photos = Counter(fault.kind for path in PATHS if (fault := FaultPlan(seed=0).of(path, "photo")))
    assert set(pages) == set(PASSING) | set(LASTING) | set(LASTING_PAGES)
    passing_photos = {kind for kind in PASSING if not kind.startswith("passing_block")}
    assert set(photos) == passing_photos | set(LASTING) | set(LASTING_PHOTOS)
    assert pages.total() < 0.25 * len(PATHS)


def test_passing_faults_clear_within_three_tries_and_lasting_ones_never() -> None:
    for path in PATHS:
        fault = FaultPlan(seed=0, scale=3).of(path, "page")
        if fault is not None:
            assert fault.spoils(0)
            assert fault.spoils(MAX_SPOILED_TRIES) == (fault.num_tries is None)
            assert fault.num_tries is None or (fault.outcome is None and fault.error is None)


def test_a_gone_listing_has_no_fault_of_a_live_page() -> None:
    gone = {fault.kind for path in PATHS if (fault := FaultPlan(seed=0, scale=4).of(path, "gone"))}
    assert gone.isdisjoint(LASTING_PAGES)


def test_the_rules_known_to_the_truth_are_those_of_robots_txt() -> None:
    robots = Protego.parse(ROBOTS_FAULTY)
    photos = [
        "/photos/660000001/0-ab.jpg",
        "/photos/private/660000001/0-ab.jpg",
        "/media/660000013/1-x",
        "/members/listing/1",
    ]
    for path in [*PATHS, *photos]:
        allowed = robots.can_fetch("http://127.0.0.1:8099" + path, "Forecourt")
        assert robots_forbids(path) == (not allowed), path


def test_the_gzip_bomb_is_small_and_right() -> None:
    packed = gzip_bomb()
    assert len(packed) < 1 << 20
    num_bytes = 0
    with gzip.open(io.BytesIO(packed)) as unpacked:
        while chunk := unpacked.read(1 << 24):
            num_bytes += len(chunk)
    assert num_bytes == BOMB_MEBIBYTES << 20
