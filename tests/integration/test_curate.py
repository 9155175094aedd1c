"""Curation as a user runs it: crawled from the demo site, killed in every stage, crawled wider, its tables doctored."""

import csv
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from benchmarks import lab
from pipeline import crawl, curate, label, verify
from pipeline.runner import RaySettings, connected
from schemas.errors import RunError
from schemas.receipts import read_receipts
from schemas.storage import Root
from tests.pipeline.test_verify_stages import doubled, rewrite, shorter

pytestmark = pytest.mark.slow
NUM_IDS = 120
FIRST = 660_000_000
NUM_LABELS = 100
SETTINGS = curate.CurateSettings(ray=RaySettings(num_workers=2, part_tries=1))
EMBED = "embed/efficientnet_lite0"
STAGES = ("dedup", EMBED, "copies", "duplicates", "score", "publish")
KILLED_RUN_S = 240.0
# Ends itself where it is about to make a file whose name starts so: the one before is real, this one is not.
KILLED = """
import os, signal, sys
from pipeline.curate import main
from schemas.storage import Root

publish = Root.publish
def dies(root, staged, name):
    if name.startswith(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return publish(root, staged, name)
Root.publish = dies
sys.exit(main(sys.argv[2:]))
"""
Script = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with connected(SETTINGS.ray):
        yield


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Site]:
    with lab.demo_site(tmp_path_factory.mktemp("site"), "--listings", str(NUM_IDS), "--rate", "400") as running:
        yield running


@pytest.fixture(scope="module")
def truth(site: lab.Site) -> dict[str, dict[str, Any]]:
    """What the site knows of each photo that is stored, by key."""
    photos = site.json("/truth.json")["photos"]
    return {key: photo for key, photo in photos.items() if photo["outcome"] == "stored"}


@pytest.fixture(scope="module")
def labels(truth: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    keys = sorted(truth, key=hash_of)[:NUM_LABELS]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("key", "label"))
        writer.writerows((key, "junk" if is_junk(truth[key]) else "keep") for key in keys)
    return path


@pytest.fixture(scope="module")
def crawled(site: lab.Site, labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crawled") / "data"
    ingest(folder, site)
    add_labels(folder, labels)
    return folder


@pytest.fixture(scope="module")
def curated(crawled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return a curated root that no test may change, and the last line of the run."""
    folder = copied(crawled, tmp_path_factory.mktemp("curated"))
    return folder, run(folder)


def hash_of(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=8).digest()


def is_junk(photo: dict[str, Any]) -> bool:
    return bool(photo["kind"] != "exterior")


def ingest(folder: Path, site: lab.Site, *arguments: str, ids_per_part: int = 40) -> None:
    sets = ("--set", f"crawl.ids_per_part={ids_per_part}", "--set", "ray.num_workers=2")
    assert crawl.main(["--root", str(folder), "--site", str(site.file), *sets, *arguments]) == 0


def add_labels(folder: Path, labels: Path) -> None:
    how = ("--sampled-by", "random", "--labeller", "ann")
    assert label.main(["--root", str(folder), "--import", str(labels), *how]) == 0


def run(folder: Path) -> dict[str, Any]:
    return curate.curate(Root.open(str(folder)), SETTINGS, dataset="cars")


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to / "data")
    return to / "data"


def digest(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert verify.main(["--root", str(folder), "--digest"]) == 0
    return str(json.loads(capsys.readouterr().out.splitlines()[-1])["digest"])


def marks(folder: Path) -> dict[str, list[str]]:
    """Return the receipts there are, each as its JSON."""
    root = Root.open(str(folder))
    return {stage: [receipt.model_dump_json() for receipt in read_receipts(root, stage)] for stage in STAGES}


def test_what_the_site_planted_is_found_and_cars_are_kept(
    curated: tuple[Path, dict[str, Any]], truth: dict[str, dict[str, Any]]
) -> None:
    folder, answer = curated
    assert answer["photos"] == len(truth)
    dropped = [answer[f"{name}_dropped"] for name in ("exact", "near", "copy", "stock", "junk", "no_target")]
    assert answer["photos"] == answer["unreadable"] + sum(dropped) + answer["kept"]
    assert answer["kept"] == answer["train"] + answer["val"] + answer["test"]

    clusters = {row["key"]: row["cluster_id"] or row["key"] for row in lab.rows(folder, "FROM duplicates")}
    copies = {key: photo for key, photo in truth.items() if photo["copy"] and photo["copy_of"] in truth}
    found = Counter(photo["copy"] for key, photo in copies.items() if clusters[key] == clusters[photo["copy_of"]])
    planted = Counter(photo["copy"] for photo in copies.values())
    assert found["exact"] == planted["exact"] > 0
    assert found.total() - found["exact"] >= 0.9 * (planted.total() - planted["exact"]) > 0
    assert [pair for pair in clusters.items() if len({truth[key]["picture"] for key in pair}) > 1] == []

    outcomes = {row["key"]: row["reason"] for row in lab.rows(folder, "SELECT key, reason FROM outcomes")}
    judged = [key for key in truth if outcomes[key] in (None, "junk")]
    junk = [key for key in judged if is_junk(truth[key])]
    assert sum(outcomes[key] == "junk" for key in junk) >= 0.95 * len(junk) > 0
    cars = [key for key in judged if not is_junk(truth[key])]
    assert sum(outcomes[key] is None for key in cars) >= 0.95 * len(cars) > 0


def test_a_second_run_does_nothing_and_says_the_same(curated: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = copied(curated[0], tmp_path)
    before = marks(folder)
    again = run(folder)
    assert marks(folder) == before
    assert all(before.values())
    timed = {"seconds", "seconds_by_stage", "unchanged"}
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in curated[1].items() if k not in timed}


def test_the_digest_does_not_know_part_size(
    site: lab.Site,
    labels: Path,
    curated: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ingest(tmp_path / "data", site, ids_per_part=17)
    add_labels(tmp_path / "data", labels)
    run(tmp_path / "data")
    assert digest(tmp_path / "data", capsys) == digest(curated[0], capsys)


def test_a_wider_crawl_keeps_the_splits_of_all_groups_but_those_counted(site: lab.Site, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    splits = "SELECT DISTINCT listing_id, group_id, split FROM datasets"
    ingest(folder, site, "--ids", f"{FIRST}:{FIRST + 79}")
    first = run(folder)
    before = {row["listing_id"]: row for row in lab.rows(folder, splits)}
    ingest(folder, site)
    answer = run(folder)
    after = {row["listing_id"]: row for row in lab.rows(folder, splits)}
    assert answer["photos"] > first["photos"]
    assert answer["parent"] == f"cars@{first['version']}"
    assert len(after) > len(before) > 20
    moved = {row["group_id"] for listing, row in before.items() if after.get(listing, row)["split"] != row["split"]}
    assert len(moved) <= answer["groups_moved"]
    assert answer["groups_moved"] == 0 or answer["groups_merged"] > 0


def test_killed_in_each_stage_and_run_again_it_ends_as_undisturbed(
    crawled: Path, curated: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(crawled, tmp_path)
    moments = ("edges/hash/", "embeddings/", "edges/copy/", "receipts/duplicates/", "receipts/score/", "datasets/")
    assert [killed_at(folder, moment) for moment in moments] == [-signal.SIGKILL] * len(moments)
    answer = run(folder)
    assert {k: answer[k] for k in ("photos", "kept", "version")} == {
        k: curated[1][k] for k in ("photos", "kept", "version")
    }
    assert digest(folder, capsys) == digest(curated[0], capsys)


def killed_at(folder: Path, moment: str) -> int:
    """Run all stages until a file of that name is to be made; return the exit code of the run."""
    command = [sys.executable, "-c", KILLED, moment, "--root", str(folder), "--dataset", "cars"]
    command += ["--set", "ray.num_workers=2", "--set", "ray.part_tries=1"]
    checkout = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(command, cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    family: dict[int, psutil.Process] = {}
    deadline_s = time.monotonic() + KILLED_RUN_S
    try:
        while process.poll() is None:
            assert time.monotonic() < deadline_s, f"{moment} was not reached"
            family |= {one.pid: one for one in lab.family(process.pid)[1:]}
            # Embeddings are made in workers, which a kill of the run leaves to end by themselves.
            if moment == "embeddings/" and any((folder / "receipts" / EMBED).glob("*.json")):
                process.kill()
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
        for one in family.values():
            with suppress(psutil.NoSuchProcess):
                one.kill()
    return process.returncode


def of(stage: str, part: str, table: str, change: Callable[[pa.Table], pa.Table], **by: int) -> Callable[[Root], None]:
    """Change a table and what its receipt counts, as a faulty stage would have."""

    def doctor(root: Root) -> None:
        (receipt,) = [one for one in read_receipts(root, stage) if one.part == part]
        counts = {name: receipt.counts[name] + more for name, more in by.items()}
        rewrite(root, stage, part, table, change, **counts)

    return doctor


PART = f"demo-{FIRST}"
DOCTORED: dict[str, Callable[[Root], None]] = {
    "a lost photo": of("crawl", PART, "photos", shorter, photos=-1, stored=-1),
    "a doubled photo": of("crawl", PART, "photos", doubled, photos=1, stored=1),
    "a doubled hash edge": of("dedup", "all", "edges/hash", doubled, edges=1),
    "a lost embedding": of(EMBED, PART, "embeddings/efficientnet_lite0", shorter, embedded=-1),
    "a doubled embedding": of(EMBED, PART, "embeddings/efficientnet_lite0", doubled, embedded=1),
    "a doubled copy edge": of("copies", "all", "edges/copy", doubled, edges=1),
    "a lost row of duplicates": of("duplicates", "all", "duplicates", shorter, photos=-1, kept=-1),
    "a doubled row of duplicates": of("duplicates", "all", "duplicates", doubled, photos=1, kept=1),
    "a lost score": of("score", "all", "scores", shorter, photos=-1),
    "a doubled score": of("score", "all", "scores", doubled, photos=1),
}


@pytest.mark.parametrize("doctor", DOCTORED.values(), ids=DOCTORED)
def test_a_lost_or_doubled_row_fails_the_next_run(
    curated: tuple[Path, dict[str, Any]], tmp_path: Path, doctor: Callable[[Root], None]
) -> None:
    folder = copied(curated[0], tmp_path)
    versions = sorted((folder / "datasets" / "cars").iterdir())
    doctor(Root.open(str(folder)))
    with pytest.raises(
        RunError, match=r"more than one|more rows than|lacks|have no row|its rows|twice|embeddings hold"
    ):
        run(folder)
    assert sorted((folder / "datasets" / "cars").iterdir()) == versions
