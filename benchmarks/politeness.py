"""Crawl the faulty demo site with 1 to 32 workers and count at the server; then 20,000 fetches in one worker.

First, per number of workers: the crawl ends; each id ends as the site knows it must; no 5 s hold more requests than
the set pace allows, though the actor that keeps the pace is killed mid-way; no disallowed path is asked. Then a
worker's open files and memory are watched over 20,000 fetches: after the first tenth at most 5 files and 50 MB more.

    python -m benchmarks.politeness
    python -m benchmarks.politeness --workers 1 8 --listings 100 --fetches 2000
"""

import argparse
import json
import re
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks import lab
from pipeline.drawn_site.faults import robots_forbids

RATE = 60.0
_RUN_S = 900.0
_SAMPLE_S = 0.5
_REQUESTS_PER_ID = 3.2  # of the demo site: 1 page, 0.4 listings with some 5.5 photos
_MAX_MORE_FILES, _MAX_MORE_MB = 5, 50.0


@dataclass(frozen=True, slots=True)
class Paced:
    """What the server counted of one crawl."""

    workers: int
    seconds: float
    requests: int
    busiest_window: int
    allowed: float
    board_killed: bool
    disallowed_requests: int
    wrong_ids: int


@dataclass(frozen=True, slots=True)
class Held:
    """What a worker held after a tenth of its fetches, and at most after that."""

    fetches: int
    files_at_tenth: int
    files_most: int
    mb_at_tenth: float
    mb_most: float


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 8, 32])
    parser.add_argument("--listings", type=int, default=300, help="ids of the faulty site")
    parser.add_argument("--fetches", type=int, default=20_000, help="0 leaves the second part out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="forecourt-polite-") as text:
        folder = Path(text)
        paced = []
        for workers in arguments.workers:
            paced.append(crawl_faulty(folder / f"w{workers}", workers, arguments.listings))
            print(json.dumps(asdict(paced[-1])), flush=True)
        held = watch_worker(folder / "held", arguments.fetches) if arguments.fetches else None
    ok = all(p.busiest_window <= p.allowed and not p.disallowed_requests and not p.wrong_ids for p in paced)
    if held is not None:
        more_files, more_mb = held.files_most - held.files_at_tenth, held.mb_most - held.mb_at_tenth
        ok = ok and more_files <= _MAX_MORE_FILES and more_mb <= _MAX_MORE_MB
    print(json.dumps({"ok": ok, "paced": [asdict(p) for p in paced], "held": asdict(held) if held else None}))
    return 0 if ok else 1


def crawl_faulty(folder: Path, workers: int, listings: int) -> Paced:
    """Crawl the faulty site with so many workers and kill the board half-way."""
    folder.mkdir()
    with lab.demo_site(folder, "--faults", "--listings", str(listings), "--rate", str(RATE)) as site:
        started_s = time.monotonic()
        crawl = lab.start(
            "crawl.py",
            *("--root", str(folder / "data"), "--site", str(site.file)),
            *("--set", f"ray.num_workers={workers}", "--set", f"crawl.ids_per_part={max(1, listings // 64)}"),
            log=folder / "crawl.log",
        )
        killed = kill_board(site, crawl.pid, listings * _REQUESTS_PER_ID / 3)
        code, answer = lab.finish(crawl, _RUN_S)
        if code:
            raise RuntimeError(f"the crawl with {workers} workers exited with {code}: {answer}")
        seconds = time.monotonic() - started_s
        requests, truth = site.requests(), site.json("/truth.json")["ids"]
        sql = "SELECT listing_id, outcome, error FROM attempts"
        rows = lab.rows(folder / "data", sql)
    found = {row["listing_id"]: (row["outcome"], row["error"]) for row in rows}
    return Paced(
        workers=workers,
        seconds=round(seconds, 1),
        requests=len(requests),
        busiest_window=lab.busiest_window([row["at"] for row in requests]),
        allowed=lab.allowed_in_window(RATE),
        board_killed=killed,
        disallowed_requests=sum(robots_forbids(row["path"]) for row in requests),
        wrong_ids=sum(found.get(i) != (entry["outcome"], entry["error"]) for i, entry in truth.items()),
    )


def kill_board(site: lab.Site, pid: int, after_requests: float) -> bool:
    """SIGKILL the actor that keeps the pace once the site has seen some requests."""
    while psutil.pid_exists(pid) and len(site.requests()) < after_requests:
        time.sleep(0.1)
    boards = lab.named(lab.family(pid), "ray::Board")
    for board in boards:
        with suppress(psutil.NoSuchProcess):
            board.send_signal(signal.SIGKILL)
    return bool(boards)


def watch_worker(folder: Path, fetches: int) -> Held:
    """Crawl a sound site with one worker and sample its open files and memory."""
    folder.mkdir()
    listings = round(fetches / _REQUESTS_PER_ID)
    samples: list[tuple[int, int, int, float]] = []
    with lab.demo_site(folder, "--listings", str(listings), "--rate", "1000") as site:
        text = site.file.read_text()
        # Each connection is an open file: with few, what is not given back stands out.
        site.file.write_text(re.sub(r"concurrency: \d+", "concurrency: 8", text))
        crawl = lab.start(
            "crawl.py",
            *("--root", str(folder / "data"), "--site", str(site.file)),
            *("--set", "ray.num_workers=1", "--set", "crawl.ids_per_part=500"),
            log=folder / "crawl.log",
        )
        while crawl.poll() is None:
            time.sleep(_SAMPLE_S)
            for worker in lab.named(lab.family(crawl.pid), "ray::crawl:"):
                with suppress(psutil.NoSuchProcess):
                    memory = worker.memory_info()
                    megabytes = (memory.rss - memory.shared) / 2**20  # without the mapped pages of shards
                    samples.append((worker.pid, site.num_requests(), worker.num_fds(), megabytes))
        code, answer = lab.finish(crawl, _RUN_S)
        total = site.num_requests()
    if code:
        raise RuntimeError(f"the crawl exited with {code}: {answer}")
    return held(samples, total)


def held(samples: list[tuple[int, int, int, float]], total: int) -> Held:
    """Compare a worker's samples with what it held after the first tenth of the fetches."""
    pids = [pid for pid, *_ in samples]
    longest = max(set(pids), key=pids.count)
    mine = [sample for sample in samples if sample[0] == longest]
    early = [sample for sample in mine if sample[1] <= total / 10] or mine[:1]
    late = [sample for sample in mine if sample[1] > total / 10]
    return Held(
        fetches=late[-1][1] - mine[0][1],
        files_at_tenth=max(files for _, _, files, _ in early),
        files_most=max(files for _, _, files, _ in late),
        mb_at_tenth=round(max(megabytes for *_, megabytes in early), 1),
        mb_most=round(max(megabytes for *_, megabytes in late), 1),
    )


if __name__ == "__main__":
    raise SystemExit(main())
