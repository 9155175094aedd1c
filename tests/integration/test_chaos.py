"""Kill a crawl (driver, worker, raylet) and run it again: the same data set. benchmarks/chaos.py does it 50 times."""

from pathlib import Path

import pytest

from benchmarks.chaos import chaos


@pytest.mark.slow
def test_killed_crawls_end_as_the_undisturbed_one(tmp_path: Path) -> None:
    rounds, summary = chaos(tmp_path, 3, 60, seed=1)
    assert summary["ok"], rounds
    assert any(r.reruns for r in rounds)
