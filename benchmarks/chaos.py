"""Kill crawls of the faulty demo site at random moments, run them again, and compare the data sets by digest.

Each round starts a crawl, sends SIGKILL to its driver, a worker or the raylet (in turn) at a moment uniform over the
undisturbed run (told by the requests it had made by then, since a machine is not always as fast), runs the same command
until it is done, and checks: the digest equals the undisturbed run's; no worker of the killed run is alive when the
next one takes the lease, before which it asks nothing; the site counted no window over the set pace, the kill and the
rerun included.

    python -m benchmarks.chaos --rounds 50
    python -m benchmarks.chaos --rounds 3 --listings 60 --out out/chaos.json
"""

import argparse
import json
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import lab

CRAWLING = "ray::crawl:"  # how Ray names a process while it does a part
VICTIMS = ("driver", "worker", "raylet")
RATE = 60.0
_RUN_S = 300.0
_MAX_RERUNS = 5


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """The run that all others must equal; times are from its start."""

    digest: str
    first_fetch_s: float
    last_receipt_s: float
    request_times_s: tuple[float, ...]
    parts: int


@dataclass(frozen=True, slots=True)
class Round:
    """What one killed and repeated crawl showed."""

    number: int
    victim: str
    killed_at_s: float
    was_crawling: bool
    reruns: int
    equal: bool
    orphans_at_takeover: tuple[str, ...]
    busiest_window: int
    num_requests: int


def main() -> int:
    """Run the rounds and print what they showed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--listings", type=int, default=200, help="ids of the faulty site")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS), help="whom to kill, in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the rounds here as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="forecourt-chaos-") as folder:
        rounds, summary = chaos(Path(folder), arguments.rounds, arguments.listings, arguments.seed, arguments.victims)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({**summary, "rounds": [asdict(r) for r in rounds]}, indent=1))
    print(json.dumps(summary))
    return 0 if summary["ok"] else 1


def chaos(
    folder: Path, num_rounds: int, listings: int, seed: int, victims: Sequence[str] = VICTIMS
) -> tuple[list[Round], dict[str, Any]]:
    """Run an undisturbed crawl and `num_rounds` disturbed ones in `folder`."""
    dice = random.Random(seed)
    with lab.demo_site(folder, "--faults", "--listings", str(listings), "--rate", str(RATE)) as site:
        undisturbed(site, folder / "warm")  # the site draws each photo once
        site.reset_tries()
        still = undisturbed(site, folder / "still")
        rounds = []
        for number in range(num_rounds):
            victim = victims[number % len(victims)]
            moment_s = dice.uniform(0.0, still.last_receipt_s)
            outcome = disturbed(site, folder / f"round-{number}", still, number, victim, moment_s)
            print(json.dumps(asdict(outcome)), flush=True)
            rounds.append(outcome)
    allowed = lab.allowed_in_window(RATE)
    summary = {
        "rounds": len(rounds),
        "equal": sum(r.equal for r in rounds),
        "killed_between_first_fetch_and_last_receipt": sum(r.was_crawling for r in rounds),
        "finished_before_the_kill": sum(r.victim == "none" for r in rounds),
        "by_victim": dict(Counter(r.victim for r in rounds)),
        "orphans_at_takeover": sum(len(r.orphans_at_takeover) for r in rounds),
        "busiest_5s_window": max(r.busiest_window for r in rounds),
        "allowed_in_5s": allowed,
        "undisturbed": {**asdict(still), "request_times_s": len(still.request_times_s)},
    }
    fine = all(r.equal and not r.orphans_at_takeover and r.busiest_window <= allowed for r in rounds)
    return rounds, {"ok": fine, **summary}


def undisturbed(site: lab.Site, root: Path) -> Undisturbed:
    """Crawl once without a kill."""
    started_s = time.monotonic()
    wall_s = time.time()
    lab.run("crawl.py", *arguments_of(site, root), timeout_s=_RUN_S, log=root.with_suffix(".log"))
    requests = site.requests(started_s)
    receipts = [path.stat().st_mtime for path in receipts_of(root)]
    return Undisturbed(
        digest=digest(root),
        first_fetch_s=min(row["at"] for row in requests) - started_s,
        last_receipt_s=max(receipts) - wall_s,
        request_times_s=tuple(row["at"] - started_s for row in requests),
        parts=num_receipts(root),
    )


def disturbed(site: lab.Site, root: Path, still: Undisturbed, number: int, victim: str, moment_s: float) -> Round:
    """Crawl, kill at a moment, run again until done."""
    log = root.with_suffix(".log")
    site.reset_tries()
    started_s = time.monotonic()
    crawl = lab.start("crawl.py", *arguments_of(site, root), log=log)
    wait_until_as_far(site, crawl, still, started_s, moment_s)
    before = lab.family(crawl.pid)
    crawling = lab.named(before, CRAWLING)
    has_fetched, parts_done = bool(site.requests(started_s)), num_receipts(root)
    killed = kill(crawl.pid, before, victim) if crawl.poll() is None else "none"
    code, _ = wait_for(crawl)
    reruns, orphans = 0, []
    while code and reruns < _MAX_RERUNS:
        reruns += 1
        crawl = lab.start("crawl.py", *arguments_of(site, root), log=log)
        orphans += alive_at_takeover(root, crawl, crawling)
        code, _ = wait_for(crawl)
    lab.wait_gone(before, 15.0)
    times = [row["at"] for row in site.requests(started_s)]
    return Round(
        number=number,
        victim=killed,
        killed_at_s=round(moment_s, 2),
        was_crawling=killed != "none" and has_fetched and parts_done < still.parts,
        reruns=reruns,
        equal=code == 0 and digest(root) == still.digest,
        orphans_at_takeover=tuple(orphans),
        busiest_window=lab.busiest_window(times),
        num_requests=len(times),
    )


def wait_until_as_far(site: lab.Site, crawl: Any, still: Undisturbed, started_s: float, moment_s: float) -> None:
    """Wait until a crawl is as far as the undisturbed one was at a moment: by requests, before any by time."""
    made = [at_s for at_s in still.request_times_s if at_s <= moment_s]
    if not made:
        time.sleep(max(0.0, moment_s - (time.monotonic() - started_s)))
        return
    deadline_s = started_s + _RUN_S
    while len(site.requests(started_s)) < len(made) and crawl.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.02)
    time.sleep(moment_s - made[-1])


def kill(pid: int, processes: list[psutil.Process], victim: str) -> str:
    """Send SIGKILL to the victim, or to the driver where there is none yet; give what was killed."""
    word = {"worker": CRAWLING, "raylet": "raylet"}.get(victim)
    found = lab.named(processes, word) if word else []
    target = found[0] if found else psutil.Process(pid)
    target.send_signal(signal.SIGKILL)
    return victim if found else "driver"


def alive_at_takeover(root: Path, crawl: Any, crawling: list[psutil.Process]) -> list[str]:
    """Wait until a rerun owns the lease, before which it asks nothing; describe the old run's workers alive then."""
    while crawl.poll() is None:
        if owner(root) == crawl.pid:
            alive = lab.named([p for p in crawling if p.is_running()], CRAWLING)
            return [f"{p.cmdline()[0].strip()} pid {p.pid} {p.status()}" for p in alive]
        time.sleep(0.05)
    return []


def owner(root: Path) -> int | None:
    """Return the process that holds the crawl's lease."""
    with suppress(FileNotFoundError):
        return int(json.loads((root / "leases/crawl.json").read_text())["pid"])
    return None


def receipts_of(root: Path) -> list[Path]:
    """Return the receipts of a root that a crawl may be writing."""
    return list((root / "receipts/crawl").glob("*.json"))


def num_receipts(root: Path) -> int:
    """Count the committed parts."""
    return len(receipts_of(root))


def wait_for(crawl: Any) -> tuple[int, dict[str, Any]]:
    """Wait for a crawl that may have been killed."""
    return lab.finish(crawl, _RUN_S)


def arguments_of(site: lab.Site, root: Path) -> list[str]:
    """Return the arguments of each crawl: small parts, so that a kill finds some committed and some not."""
    return ["--root", str(root), "--site", str(site.file), "--set", "crawl.ids_per_part=10"]


def digest(root: Path) -> str:
    """Return the root's digest."""
    return str(lab.run("verify.py", "--root", str(root), "--digest")["digest"])


if __name__ == "__main__":
    raise SystemExit(main())
