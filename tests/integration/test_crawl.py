"""The crawl as a user runs it, on a real Ray against the demo site: what it finds, keeps, refuses, takes up again."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import lab
from pipeline import crawl, dedup, verify
from pipeline.runner import RaySettings, connected
from schemas.shards import Shard

pytestmark = pytest.mark.slow
NUM_IDS = 120
FIRST = 660_000_000
Main = Callable[[Sequence[str]], int]
Script = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with connected(RaySettings(num_workers=2)):
        yield


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Site]:
    with lab.demo_site(tmp_path_factory.mktemp("site"), "--listings", str(NUM_IDS), "--rate", "400") as running:
        yield running


@pytest.fixture(scope="module")
def faulty_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Site]:
    folder = tmp_path_factory.mktemp("faulty")
    with lab.demo_site(folder, "--faults", "--listings", str(NUM_IDS), "--rate", "400") as running:
        yield running


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Script:
    """Run a script in this process, on the Ray of this module; give its exit code and last line."""

    def run(main: Main, root: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = main(["--root", str(root), *arguments])
        return code, json.loads(capsys.readouterr().out.strip().splitlines()[-1])

    return run


def crawl_arguments(site: lab.Site, *more: str, ids_per_part: int = 40) -> list[str]:
    settings = ["--set", f"crawl.ids_per_part={ids_per_part}", "--set", "ray.num_workers=2"]
    return ["--site", str(site.file), *settings, *more]


@pytest.mark.parametrize("which", ["site", "faulty_site"])
def test_every_id_and_photo_ends_as_the_site_knows_it_must(
    which: str, request: pytest.FixtureRequest, script: Script, tmp_path: Path
) -> None:
    site: lab.Site = request.getfixturevalue(which)
    code, line = script(crawl.main, tmp_path / "data", *crawl_arguments(site))
    assert code == 0, line
    truth = site.json("/truth.json")
    attempts = {r["listing_id"]: (r["outcome"], r["error"]) for r in lab.rows(tmp_path / "data", "FROM attempts")}
    assert attempts == {i: (entry["outcome"], entry["error"]) for i, entry in truth["ids"].items()}
    photos = {r["key"]: (r["outcome"], r["error"]) for r in lab.rows(tmp_path / "data", "FROM photos")}
    listed = {key: photo for key, photo in truth["photos"].items() if photo["outcome"] is not None}
    assert photos == {key: (photo["outcome"], photo["error"]) for key, photo in listed.items()}
    assert line["ids"] == NUM_IDS
    assert line["photos"] == len(photos)
    assert script(verify.main, tmp_path / "data")[1]["ok"]


def test_a_second_run_asks_for_nothing(site: lab.Site, script: Script, tmp_path: Path) -> None:
    _, first = script(crawl.main, tmp_path / "data", *crawl_arguments(site))
    asked = len(site.requests())
    code, second = script(crawl.main, tmp_path / "data", *crawl_arguments(site))
    assert (code, second["done_now"], first["done_now"]) == (0, 0, first["parts"])
    assert len(site.requests()) == asked
    assert {**second, "done_now": 0, "seconds": 0} == {**first, "done_now": 0, "seconds": 0}


def test_the_digest_does_not_know_part_size_workers_or_widening(site: lab.Site, script: Script, tmp_path: Path) -> None:
    script(crawl.main, tmp_path / "once", *crawl_arguments(site))
    first_half = f"{FIRST + 10}:{FIRST + 69}"
    script(crawl.main, tmp_path / "twice", *crawl_arguments(site, "--ids", first_half, ids_per_part=50))
    _, wide = script(crawl.main, tmp_path / "twice", *crawl_arguments(site, ids_per_part=50))
    assert wide["ids"] == NUM_IDS
    once, twice = (script(verify.main, tmp_path / name, "--digest")[1] for name in ("once", "twice"))
    assert once["ok"]
    assert twice["ok"]
    assert once["digest"] == twice["digest"]


def test_a_file_of_ids_makes_what_the_range_makes(site: lab.Site, script: Script, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"{FIRST + i}\n" for i in range(NUM_IDS)))
    listed = tmp_path / "listed.yaml"
    text = site.file.read_text()
    head, _, tail = text.partition("ids:\n")
    listed.write_text(f"{head}ids: {{file: {ids}}}\n" + tail.partition("gone:")[1] + tail.partition("gone:")[2])
    script(crawl.main, tmp_path / "range", *crawl_arguments(site))
    code, line = script(crawl.main, tmp_path / "file", "--site", str(listed), "--set", "ray.num_workers=2")
    assert (code, line["ids"]) == (0, NUM_IDS)
    digests = [script(verify.main, tmp_path / name, "--digest")[1]["digest"] for name in ("range", "file")]
    assert digests[0] == digests[1]


def test_planted_copies_and_stock_photos_are_found_and_nothing_else(
    site: lab.Site, script: Script, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    script(crawl.main, root, *crawl_arguments(site))
    code, line = script(dedup.main, root, "--set", "dedup.max_distance=0")
    assert code == 0
    truth = site.json("/truth.json")["photos"]
    stored = {key: photo for key, photo in truth.items() if photo["outcome"] == "stored"}
    by_content: dict[str, list[str]] = {}
    for key, photo in stored.items():
        by_content.setdefault(photo["content"], []).append(key)
    assert clusters(root) == {frozenset(keys) for keys in by_content.values() if len(keys) > 1}
    assert line["photos"] == line["kept"] + line["exact_dropped"] + line["stock_dropped"] == len(stored)
    code, line = script(dedup.main, root)
    assert code == 0
    assert line["near_dropped"] > 0
    assert all(len({stored[key]["picture"] for key in keys}) == 1 for keys in clusters(root))


def clusters(root: Path) -> set[frozenset[str]]:
    found: dict[str, set[str]] = {}
    for row in lab.rows(root, "FROM duplicates WHERE cluster_id IS NOT NULL"):
        found.setdefault(row["cluster_id"], set()).add(row["key"])
    return {frozenset(keys) for keys in found.values()}


def test_recrawl_takes_changes_and_loses_nothing(script: Script, tmp_path: Path) -> None:
    size = ("--listings", "60", "--rate", "400")
    root, port = tmp_path / "data", 0
    with lab.demo_site(tmp_path, *size) as before:
        port = int(before.address.rpartition(":")[2])
        _, first = script(crawl.main, root, *crawl_arguments(before))
        old = {r["listing_id"]: r for r in lab.rows(root, "FROM listings")}
    with lab.demo_site(tmp_path, *size, "--edition", "1", "--port", str(port)) as after:
        code, line = script(crawl.main, root, *crawl_arguments(after, "--recrawl"))
    assert code == 0
    new = {r["listing_id"]: r for r in lab.rows(root, "FROM listings")}
    assert new.keys() == old.keys()
    assert any(new[i]["price"] != old[i]["price"] for i in new)
    assert {**line, "seconds": 0, "bytes": 0} == {**first, "seconds": 0, "bytes": 0}
    assert script(verify.main, root)[1]["ok"]
    assert {r["generation"] for r in receipts(root)} == {2}
    assert not [name for name in os.listdir(root / "photos") if ".g2." not in name]


def test_retry_asks_only_what_failed_for_passing_reasons(faulty_site: lab.Site, script: Script, tmp_path: Path) -> None:
    root = tmp_path / "data"
    once = ("--set", "fetch.max_tries=1")
    faulty_site.reset_tries()
    _, hasty = script(crawl.main, root, *crawl_arguments(faulty_site, *once))
    asked = len(faulty_site.requests())
    code, line = script(crawl.main, root, *crawl_arguments(faulty_site, "--retry", "transient"))
    assert code == 0
    assert hasty["failed"] > line["failed"]
    assert len(faulty_site.requests()) - asked < asked / 2
    script(crawl.main, tmp_path / "patient", *crawl_arguments(faulty_site))
    digests = [script(verify.main, path, "--digest")[1]["digest"] for path in (root, tmp_path / "patient")]
    assert digests[0] == digests[1]


def test_other_settings_stop_the_run_and_overwrite_redoes(site: lab.Site, script: Script, tmp_path: Path) -> None:
    root = tmp_path / "data"
    script(crawl.main, root, *crawl_arguments(site))
    small = ("--set", "image.short_side_px=64")
    code, line = script(crawl.main, root, *crawl_arguments(site, *small))
    assert code == 2
    assert "image.short_side_px: 256 there, 64 asked for" in line["error"]
    code, line = script(crawl.main, root, *crawl_arguments(site, *small, "--overwrite"))
    assert (code, line["done_now"]) == (0, line["parts"])
    sides = lab.rows(root, "SELECT max(least(width_px, height_px)) AS side FROM photos")
    assert sides == [{"side": 64}]
    assert script(verify.main, root)[1]["ok"]
    code, line = script(crawl.main, root, *crawl_arguments(site, "--overwrite", ids_per_part=30))
    assert code == 2
    assert "crawl.ids_per_part" in line["error"]


def test_plain_tools_read_what_was_crawled(site: lab.Site, script: Script, tmp_path: Path) -> None:
    script(crawl.main, tmp_path / "data", *crawl_arguments(site))
    stored = lab.rows(tmp_path / "data", "FROM photos WHERE outcome = 'stored'")
    for receipt in receipts(tmp_path / "data"):
        with Shard(tmp_path / "data" / "shards" / f"{receipt['part']}.lmdb") as shard:
            keys = [r["key"] for r in stored if r["part"] == receipt["part"]]
            assert sorted(shard.keys()) == sorted(keys)
            assert all(jpeg.startswith(b"\xff\xd8") for jpeg in shard.get_many(keys))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--set", "crawl.idsperpart=3"], 2, "unknown setting crawl.idsperpart"),
        (["--set", "crawler.x=3"], 2, "unknown section 'crawler'"),
        (["--set", "crawl.ids_per_part=0"], 2, "crawl.ids_per_part"),
        (["--ids", "9:3"], 2, "reversed"),
        (["--ids", "x"], 2, "A:B"),
        (["--config", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["--set", f"crawl.min_free_bytes={1 << 60}"], 1, "free some space"),
    ],
)
def test_bad_input_stops_before_work(
    arguments: list[str], code: int, words: str, site: lab.Site, script: Script, tmp_path: Path
) -> None:
    asked = len(site.requests())
    found, line = script(crawl.main, tmp_path / "data", "--site", str(site.file), *arguments)
    assert found == code
    assert words in line["error"]
    assert len(site.requests()) == asked


def test_a_site_without_contact_a_foreign_folder_and_another_version_are_refused(
    site: lab.Site, script: Script, tmp_path: Path
) -> None:
    silent = tmp_path / "silent.yaml"
    silent.write_text("\n".join(line for line in site.file.read_text().splitlines() if "contact" not in line))
    code, line = script(crawl.main, tmp_path / "data", "--site", str(silent))
    assert (code, "contact" in line["error"]) == (2, True)
    code, line = script(crawl.main, tmp_path, "--site", str(site.file))
    assert (code, "name an empty or a new folder" in line["error"]) == (1, True)
    (tmp_path / "old").mkdir()
    (tmp_path / "old/root.json").write_text('{"format_version": 99}')
    code, line = script(crawl.main, tmp_path / "old", "--site", str(site.file))
    assert (code, "format 99" in line["error"]) == (2, True)


def receipts(root: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((root / "receipts/crawl").glob("*.json"))]
