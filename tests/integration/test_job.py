"""The crawl as a job of a Ray cluster: a head started here, `ray job submit` as the README has it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import lab

pytestmark = pytest.mark.slow
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """Start a head and give its dashboard's address; it is ended by its process, never by `ray stop`."""
    port, dashboard = free_port(), free_port()
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
    command += [f"--dashboard-port={dashboard}", "--object-store-memory=100000000", f"--temp-dir=/tmp/rj{os.getpid()}"]
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{dashboard}"
        wait_until_it_answers(f"{address}/api/version", process)
        yield address
    finally:
        started_here = lab.family(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        for left in lab.wait_gone(started_here, 10):
            left.kill()


def wait_until_it_answers(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + 90
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(f"{url} does not answer; the head's exit is {process.poll()}")


def submit(head: str, command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Submit a job and wait for it; a head answers some seconds before it can take one."""
    deadline_s = time.monotonic() + 300
    while True:
        done = subprocess.run(
            [RAY, "job", "submit", "--address", head, "--working-dir", ".", "--", *command],
            cwd=lab.ROOM,
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        if "No available agent" not in done.stderr or time.monotonic() > deadline_s:
            return done
        time.sleep(1)


def test_a_submitted_job_crawls_and_prints_its_last_line(head: str, tmp_path: Path) -> None:
    with lab.demo_site(tmp_path, "--listings", "40", "--rate", "400") as site:
        root = tmp_path / "data"
        crawl = ["python", "pipeline/crawl.py", "--root", str(root), "--site", str(site.file)]
        done = submit(head, crawl)
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(json.loads(line) for line in reversed(done.stdout.splitlines()) if line.startswith("{"))
    assert (line["ids"], line["done_now"]) == (40, 1)
    assert lab.run("verify.py", "--root", str(root))["ok"]
