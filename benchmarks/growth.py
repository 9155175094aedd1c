"""Crawl 10,000, 100,000 and 1,000,000 ids of a site that has no listing: the driver's memory and the cost per id.

The site is real HTTP on this machine and answers each id with 404; a short crawl first measures what start-up takes.
Claim: the driver's memory stays within 200 MB, and the cost per id within 20 %.

    python -m benchmarks.growth
    python -m benchmarks.growth --sizes 2000 20000
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from benchmarks import lab

_FIRST_ID = 700_000_000
_WARM_UP_IDS = 10
_SAMPLE_S = 0.5


@dataclass(slots=True)
class Peak:
    """The most memory a process has held, and the least after its first samples."""

    rss_bytes: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Crawl:
    """One crawl's figures."""

    ids: int
    seconds: float
    us_per_id: float
    driver_peak_mb: float
    parts: int


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="forecourt-growth-") as text:
        folder = Path(text)
        with lab.demo_site(folder, "--listings", "0", "--rate", "100000") as site:
            start_up_s = crawl(site, folder, _WARM_UP_IDS, 0.0).seconds
            rows = []
            for size in arguments.sizes:
                rows.append(crawl(site, folder, size, start_up_s))
                print(json.dumps(asdict(rows[-1])), flush=True)
    memory = [row.driver_peak_mb for row in rows]
    costs = [row.us_per_id for row in rows]
    growth_mb, spread = max(memory) - min(memory), max(costs) / min(costs) - 1
    ok = growth_mb <= 200 and spread <= 0.2
    summary = {"ok": ok, "start_up_s": start_up_s, "driver_growth_mb": growth_mb, "cost_spread": round(spread, 3)}
    print(json.dumps({**summary, "crawls": [asdict(row) for row in rows]}))
    return 0 if ok else 1


def crawl(site: lab.Site, folder: Path, size: int, start_up_s: float) -> Crawl:
    """Crawl `size` ids into a fresh root; its seconds include the start-up, its cost per id does not."""
    started_s = time.monotonic()
    process = lab.start(
        "crawl.py",
        *("--root", str(folder / f"root-{size}"), "--site", str(site.file)),
        *("--ids", f"{_FIRST_ID}:{_FIRST_ID + size - 1}"),
        *("--set", "crawl.listings_in_flight=32"),
        log=folder / f"{size}.log",
    )
    with watched(process.pid) as peak:
        code, answer = lab.finish(process, 7200.0)
    if code or answer["gone"] != size:
        raise RuntimeError(f"the crawl of {size} ids ended with {code}: {answer}")
    seconds = time.monotonic() - started_s
    cost_us = max(seconds - start_up_s, 0.0) / size * 1e6
    return Crawl(size, round(seconds, 1), round(cost_us, 1), round(max(peak.rss_bytes) / 2**20, 1), answer["parts"])


@contextmanager
def watched(pid: int) -> Iterator[Peak]:
    """Sample a process's memory until the block ends."""
    peak, stop = Peak(), threading.Event()

    def sample() -> None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            while not stop.wait(_SAMPLE_S):
                peak.rss_bytes.append(process.memory_info().rss)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    raise SystemExit(main())
