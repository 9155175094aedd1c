"""Crawl 10,000, 100,000 and 1,000,000 ids of a site that has no listing: the driver's memory and the cost per id.

The site is simulated: each page is a 404 that no network carried; plan, lease, Ray, parts and commits are the real
ones. With `--http` a real server of this machine answers, which costs some times as much. The cost is the processor
time of the crawl's processes. Start-up is aside: each crawl has 20 parts more than its size, and those that come first
do not count. Where cores are shared, the same work takes up to twice the processor time from one second to the next: so
a fixed piece of work is timed all along, and the cost of an id is told in that; sizes take turns, and of each the
median counts. Claim: the driver's memory stays within 200 MB, and the cost per id within 20 %.

    python -m benchmarks.growth
    python -m benchmarks.growth --http --sizes 10000 100000
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self
from unittest import mock

import psutil

from benchmarks import lab
from pipeline import crawl as crawl_script
from pipeline import crawl_part as crawl_part_module
from pipeline.crawl_part import crawl_part
from pipeline.crawl_settings import CrawlSpec
from pipeline.fetch import Answer
from pipeline.runner import PartContext

_FIRST_ID = 700_000_000
_SAMPLE_S = 0.1
_STARTED_PARTS = 20  # commits after which workers have loaded what they need, and Ray has started all of its own
_IDS_PER_PART = 1000
_WORK_STEPS = 10_000  # of the fixed piece of work: about 1 ms
_SITE = """\
name: nothing
base_url: http://127.0.0.1:9
listing_url: /listing/{id}
ids: {first: 700000000, last: 700000000}
extract: {kind: json_ld}
politeness: {requests_per_second: 100000, contact: "mailto:growth@example.org"}
allow_private_addresses: true
"""


@dataclass(slots=True)
class Usage:
    """What a crawl's driver held in memory, and its processes' time by the number of committed parts."""

    rss_bytes: list[int] = field(default_factory=list)
    cpu_s: dict[int, float] = field(default_factory=dict)
    samples: list["Sample"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sample:
    """Committed parts, the processors' time so far, and what the fixed piece of work took just now."""

    parts: int
    cpu_s: float
    work_s: float


@dataclass(frozen=True, slots=True)
class Crawl:
    """One crawl's figures."""

    ids: int
    seconds: float
    cpu_s: float
    us_per_id: float
    work_per_id: float
    driver_peak_mb: float
    parts: int


class NothingThere:
    """Stands for the Fetcher where the site is simulated: every page is gone."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._answer = Answer("http://127.0.0.1:9/listing", 404, {"content-type": "text/html"}, b"<h1>gone</h1>")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def get(self, *_: Any, **__: Any) -> Answer:
        """Answer as the site would."""
        return self._answer


def simulated_part(context: PartContext, spec: CrawlSpec) -> Mapping[str, int]:
    """Crawl a part of the site where nothing is."""
    with mock.patch.object(crawl_part_module, "Fetcher", NothingThere):
        return crawl_part(context, spec)


def main() -> int:
    """Measure and print; with `--drive`, be the crawl that is measured."""
    if sys.argv[1:2] == ["--drive"]:
        with mock.patch.object(crawl_script, "crawl_part", simulated_part):
            return crawl_script.main(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=5, help="how often each size is crawled (5)")
    parser.add_argument("--http", action="store_true", help="a real server of this machine answers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="forecourt-growth-") as text:
        folder = Path(text)
        if arguments.http:
            with lab.demo_site(folder, "--listings", "0", "--rate", "100000") as site:
                return measure(folder, site.file, arguments.sizes, arguments.rounds, simulated=False)
        (folder / "site.yaml").write_text(_SITE)
        return measure(folder, folder / "site.yaml", arguments.sizes, arguments.rounds, simulated=True)


def measure(folder: Path, site: Path, sizes: list[int], rounds: int, *, simulated: bool) -> int:
    """Crawl each size in turn, `rounds` times; print each crawl and the verdict."""
    rows = []
    for _ in range(rounds):
        for size in sizes:
            rows.append(crawl(folder, site, size, simulated=simulated))
            print(json.dumps(asdict(rows[-1])), flush=True)
    memory = [statistics.median(row.driver_peak_mb for row in rows if row.ids == size) for size in sizes]
    costs = [statistics.median(row.work_per_id for row in rows if row.ids == size) for size in sizes]
    growth_mb, spread = max(memory) - min(memory), max(costs) / min(costs) - 1
    ok = growth_mb <= 200 and spread <= 0.2
    answer = {"ok": ok, "driver_growth_mb": round(growth_mb, 1), "work_per_id": costs, "cost_spread": round(spread, 3)}
    print(json.dumps(answer))
    return 0 if ok else 1


def crawl(folder: Path, site: Path, size: int, *, simulated: bool) -> Crawl:
    """Crawl `size` ids, after those of the start-up, into a fresh root; its seconds include the start-up."""
    shutil.rmtree(folder / f"root-{size}", ignore_errors=True)
    started_s = time.monotonic()
    program = ["-m", "benchmarks.growth", "--drive"] if simulated else [str(lab.ROOM / "pipeline/crawl.py")]
    arguments = ["--root", str(folder / f"root-{size}"), "--site", str(site)]
    num_ids = size + _STARTED_PARTS * _IDS_PER_PART
    arguments += ["--ids", f"{_FIRST_ID}:{_FIRST_ID + num_ids - 1}", "--set", "crawl.listings_in_flight=32"]
    arguments += ["--set", f"crawl.ids_per_part={_IDS_PER_PART}"]
    with (folder / f"{size}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *program, *arguments], cwd=lab.ROOM, stdout=subprocess.PIPE, stderr=log, text=True
        )
    with watched(process.pid, folder / f"root-{size}/receipts/crawl") as usage:
        code, answer = lab.finish(process, 7200.0)
    if code or answer["gone"] != num_ids:
        raise RuntimeError(f"the crawl of {size} ids ended with {code}: {answer}")
    seconds = time.monotonic() - started_s
    begun = next(place for place, sample in enumerate(usage.samples) if sample.parts >= _STARTED_PARTS)
    ended = next(place for place, sample in enumerate(usage.samples) if sample.parts == usage.samples[-1].parts)
    first, last = usage.samples[begun], usage.samples[ended]
    s_per_id = (last.cpu_s - first.cpu_s) / ((last.parts - first.parts) * _IDS_PER_PART)
    work_s = statistics.mean(sample.work_s for sample in usage.samples[begun : ended + 1])
    return Crawl(
        ids=size,
        seconds=round(seconds, 1),
        cpu_s=round(sum(usage.cpu_s.values()), 1),
        us_per_id=round(s_per_id * 1e6, 1),
        work_per_id=round(s_per_id / work_s, 4),
        driver_peak_mb=round(max(usage.rss_bytes) / 2**20, 1),
        parts=answer["parts"],
    )


@contextmanager
def watched(pid: int, receipts: Path) -> Iterator[Usage]:
    """Sample a crawl's processes and commits until the block ends."""
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
                parts = len(list(receipts.glob("*.json")))
                usage.samples.append(Sample(parts, sum(usage.cpu_s.values()), fixed_work_s()))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield usage
    finally:
        stop.set()
        thread.join()


def fixed_work_s() -> float:
    """Time a fixed piece of work of the kind that a crawl does: small objects, text, a dictionary."""
    started_s = time.thread_time()
    made: dict[int, str] = {}
    for step in range(_WORK_STEPS):
        made[step % 1000] = str(step)
    return time.thread_time() - started_s


if __name__ == "__main__":
    raise SystemExit(main())
