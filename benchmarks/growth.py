"""Crawl 10,000, 100,000 and 1,000,000 ids of a site that has no listing: the driver's memory and the cost per id.

The site is real HTTP on this machine and answers each id with 404; a short crawl first measures what start-up takes.
The cost is the processor time of the crawl's processes, which other work on the machine changes little; wall time is
shown beside it. Claim: the driver's memory stays within 200 MB, and the cost per id within 20 %.

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
class Usage:
    """What a crawl's driver held in memory, and the processor time of each of its processes."""

    rss_bytes: list[int] = field(default_factory=list)
    cpu_s: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Crawl:
    """One crawl's figures."""

    ids: int
    seconds: float
    cpu_s: float
    us_per_id: float
    wall_us_per_id: float
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
            start_up = crawl(site, folder, _WARM_UP_IDS, None)
            rows = []
            for size in arguments.sizes:
                rows.append(crawl(site, folder, size, start_up))
                print(json.dumps(asdict(rows[-1])), flush=True)
    memory = [row.driver_peak_mb for row in rows]
    costs = [row.us_per_id for row in rows]
    growth_mb, spread = max(memory) - min(memory), max(costs) / min(costs) - 1
    ok = growth_mb <= 200 and spread <= 0.2
    summary = {"ok": ok, "start_up": asdict(start_up), "driver_growth_mb": growth_mb, "cost_spread": round(spread, 3)}
    print(json.dumps({**summary, "crawls": [asdict(row) for row in rows]}))
    return 0 if ok else 1


def crawl(site: lab.Site, folder: Path, size: int, start_up: Crawl | None) -> Crawl:
    """Crawl `size` ids into a fresh root; its seconds include the start-up, its costs per id do not."""
    started_s = time.monotonic()
    process = lab.start(
        "crawl.py",
        *("--root", str(folder / f"root-{size}"), "--site", str(site.file)),
        *("--ids", f"{_FIRST_ID}:{_FIRST_ID + size - 1}"),
        *("--set", "crawl.listings_in_flight=32"),
        log=folder / f"{size}.log",
    )
    with watched(process.pid) as usage:
        code, answer = lab.finish(process, 7200.0)
    if code or answer["gone"] != size:
        raise RuntimeError(f"the crawl of {size} ids ended with {code}: {answer}")
    seconds = time.monotonic() - started_s
    cpu_s = sum(usage.cpu_s.values())
    return Crawl(
        ids=size,
        seconds=round(seconds, 1),
        cpu_s=round(cpu_s, 1),
        us_per_id=round((cpu_s - (start_up.cpu_s if start_up else 0.0)) / size * 1e6, 1),
        wall_us_per_id=round((seconds - (start_up.seconds if start_up else 0.0)) / size * 1e6, 1),
        driver_peak_mb=round(max(usage.rss_bytes) / 2**20, 1),
        parts=answer["parts"],
    )


@contextmanager
def watched(pid: int) -> Iterator[Usage]:
    """Sample a crawl's processes until the block ends."""
    usage, stop = Usage(), threading.Event()

    def sample() -> None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            while not stop.wait(_SAMPLE_S):
                usage.rss_bytes.append(process.memory_info().rss)
                for member in lab.family(pid):
                    with suppress(psutil.NoSuchProcess):
                        spent = member.cpu_times()
                        usage.cpu_s[member.pid] = spent.user + spent.system

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield usage
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    raise SystemExit(main())
