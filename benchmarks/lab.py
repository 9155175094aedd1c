"""What the crawl's measurements share: the demo site and a crawl as processes, and what the site saw."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.catalog import query
from schemas.storage import Root

ROOM = Path(__file__).resolve().parent.parent
WINDOW_S = 5.0
_START_S = 60.0


@dataclass(frozen=True, slots=True)
class Site:
    """A running demo site: its address, the site file that a crawl needs, its process."""

    address: str
    file: Path
    process: "subprocess.Popen[str]"

    def requests(self, since_s: float = 0.0) -> list[dict[str, Any]]:
        """Return what was asked since a moment of the machine's monotonic clock, the lab's own questions aside."""
        said = self.json(f"/requests.json?since={since_s}")
        return [dict(zip(said["columns"], row, strict=True)) for row in said["rows"]]

    def num_requests(self) -> int:
        """Return how many requests the site has answered."""
        return int(self.json("/requests.json?since=1e18")["total"])

    def reset_tries(self) -> None:
        """Let the site forget how often each URL was asked, so that its passing faults come again."""
        with urllib.request.urlopen(f"{self.address}/reset-tries", timeout=_START_S) as answer:
            answer.read()

    def json(self, path: str) -> Any:
        """Ask the site for one of its own documents."""
        with urllib.request.urlopen(self.address + path, timeout=_START_S) as answer:
            return json.loads(answer.read())


@contextmanager
def demo_site(folder: Path, *arguments: str) -> Iterator[Site]:
    """Run the demo site on a free port, its site file in `folder`."""
    file = folder / "site.yaml"
    command = [sys.executable, str(ROOM / "pipeline/demo_site.py"), "--port", "0", "--write-site", str(file)]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        with process.stdout as stdout:
            address = stdout.readline().strip()
        if not address:
            raise RuntimeError(f"the demo site did not start: exit {process.wait(_START_S)}")
        yield Site(address, file, process)
    finally:
        process.terminate()
        process.wait()


def start(script: str, *arguments: str, log: Path | None = None) -> "subprocess.Popen[str]":
    """Start a script of the pipeline; its stderr goes to `log`."""
    errors = log.open("a") if log else subprocess.DEVNULL
    try:
        return subprocess.Popen(
            [sys.executable, str(ROOM / "pipeline" / script), *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    finally:
        if log:
            errors.close()  # type: ignore[union-attr]  # a file where a log is named


def finish(process: "subprocess.Popen[str]", timeout_s: float) -> tuple[int, dict[str, Any]]:
    """Wait for a script; give its exit code and last line (empty where it was killed)."""
    out, _ = process.communicate(timeout=timeout_s)
    lines = out.strip().splitlines()
    return process.returncode, json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}


def run(script: str, *arguments: str, timeout_s: float = 3600.0, log: Path | None = None) -> dict[str, Any]:
    """Run a script that must succeed; give its last line."""
    code, answer = finish(start(script, *arguments, log=log), timeout_s)
    if code:
        raise RuntimeError(f"{script} {' '.join(arguments)} exited with {code}: {answer}")
    return answer


def rows(root: Path, sql: str) -> list[dict[str, Any]]:
    """Return the rows of a query over a root."""
    listed: list[dict[str, Any]] = query(Root.open(str(root)), sql).to_pylist()
    return listed


def busiest_window(times_s: Sequence[float], window_s: float = WINDOW_S) -> int:
    """Return the most requests that any window of `window_s` holds."""
    ordered = sorted(times_s)
    most = first = 0
    for last, moment in enumerate(ordered):
        while ordered[first] <= moment - window_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def allowed_in_window(rate: float, window_s: float = WINDOW_S) -> float:
    """Return how many requests a window may hold at a set rate."""
    return window_s * rate * 1.05 + 1


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all that came from it."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def named(processes: Sequence[psutil.Process], word: str) -> list[psutil.Process]:
    """Return those of the processes whose command line starts with a word or has it as its program."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            command = process.cmdline()
            if command and (command[0].startswith(word) or command[0].endswith(f"/{word}")):
                found.append(process)
    return found


def wait_gone(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait until processes have ended; give those that have not."""
    deadline_s = time.monotonic() + timeout_s
    alive = list(processes)
    while alive and time.monotonic() < deadline_s:
        alive = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        time.sleep(0.1)
    return alive
