import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipeline import copies as script
from pipeline.catalog import query
from pipeline.clusters import ClusterSettings
from pipeline.copies import CopiesSettings
from pipeline.dedup import DedupSettings, dedup
from pipeline.digest import digest
from pipeline.embed import EmbedSettings, embed
from pipeline.embeddings import DEFAULT_ENCODER, embed_stage, embeddings_folder, embeddings_table
from pipeline.lease import hold_lease
from pipeline.runner import RaySettings, connected
from pipeline.verify import verify
from schemas.errors import IntegrityError, LeaseError, ReconcileError, UsageError
from schemas.image import decode_stored
from schemas.receipts import PartWriter, Receipt, read_receipt, read_receipts
from schemas.shards import Shard
from schemas.storage import Root
from schemas.tables import EDGES
from tests.pipeline.copied_photos import bannered, cropped, drawn, source
from tests.pipeline.roots import Listing, new_root, noise, write_part

CAR = 660000060
Vectors = NDArray[np.float16]


@cache
def photo_of(owner: int, slot: int = 1) -> bytes:
    return source(drawn(owner, slot))


@cache
def crop_of(owner: int, share: float = 0.05) -> bytes:
    return source(cropped(drawn(owner), share))


@cache
def banner_of(owner: int) -> bytes:
    return source(bannered(drawn(owner)))


def small_picture(jpeg: bytes) -> NDArray[np.float32]:
    """Reduce a photo to what an encoder might keep of it: rough colours, of norm 1."""
    pixels = cv2.resize(decode_stored(jpeg), (8, 6), interpolation=cv2.INTER_AREA).astype(np.float32).reshape(-1)
    found: NDArray[np.float32] = pixels / max(float(np.linalg.norm(pixels)), 1e-6)
    return found


Shaped = Callable[[list[str], Vectors], tuple[list[str], Vectors]]


def embed_parts(root: Root, *, unreadable: Sequence[str] = (), shaped: Shaped = lambda *rows: rows) -> None:
    """Commit embeddings as embed does; `shaped` may doctor the rows of a part after they were counted."""
    for part in read_receipts(root, "crawl"):
        keys = sorted(query(root, f"SELECT key FROM photos WHERE part = '{part.part}'")["key"].to_pylist())
        read = [key for key in keys if key not in unreadable]
        shard = Shard.open(root, part.file("shards"))
        vectors = np.array([small_picture(shard.get(key)) for key in read], np.float16).reshape(-1, 144)
        shard.close()
        commit_embeddings(root, part, *shaped(read, vectors), counts={"photos": len(keys), "embedded": len(read)})


def commit_embeddings(
    root: Root, part: Receipt, keys: list[str], vectors: Vectors, *, counts: Mapping[str, int]
) -> None:
    writer = PartWriter(root, embed_stage(DEFAULT_ENCODER), part.part, token="test", fence=lambda: None)
    writer.write_table(embeddings_folder(DEFAULT_ENCODER), embeddings_table(keys, vectors))
    inputs = {"ingest": part.files[part.file("shards")].sha256}
    unreadable = counts["photos"] - counts["embedded"]
    writer.commit(counts={**counts, "unreadable": unreadable}, settings={}, inputs=inputs, code_version="test")


def copies(root: Root, clusters: ClusterSettings | None = None, **settings: Any) -> dict[str, Any]:
    return script.copies(root, CopiesSettings(**settings), clusters or ClusterSettings())


def listed(num_listings: int = 3) -> list[Listing]:
    """Each listing shows its own car from two sides; the second has a crop of the first's, the third a banner."""
    shown: list[list[bytes]] = [[photo_of(CAR + n), photo_of(CAR + n, 2)] for n in range(num_listings)]
    shown[1].append(crop_of(CAR))
    shown[2].append(banner_of(CAR))
    return [Listing(str(n), photos) for n, photos in enumerate(shown)]


def fill(root: Root, listings: Sequence[Listing], *, parts: int = 1) -> Root:
    for start in range(parts):
        write_part(root, f"demo-{start}", listings[start::parts])
    dedup(root, DedupSettings(), unite=False)
    embed_parts(root)
    return root


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copied") / "root"
    fill(new_root(folder), listed())
    return folder


@pytest.fixture
def root(made_once: Path, tmp_path: Path) -> Root:
    """Three cars in three listings, deduplicated and embedded."""
    shutil.copytree(made_once, tmp_path / "root")
    return Root.open(str(tmp_path / "root"))


@pytest.fixture
def empty(tmp_path: Path) -> Root:
    return new_root(tmp_path / "empty")


def dropped(root: Root) -> dict[str, str]:
    rows = query(root, "SELECT key, drop_reason FROM duplicates WHERE NOT kept").to_pylist()
    return {row["key"]: row["drop_reason"] for row in rows}


def edges_of(root: Root) -> list[tuple[str, str]]:
    rows = query(root, "SELECT key_a, key_b FROM edges_copy").to_pylist()
    return [(row["key_a"], row["key_b"]) for row in rows]


def test_crops_and_banners_are_copies_and_photos_of_one_car_from_two_sides_are_not(root: Root) -> None:
    counts = copies(root)
    assert dropped(root) == {"demo/1/002": "copy", "demo/2/002": "copy"}
    assert edges_of(root) == [("demo/0/000", "demo/1/002"), ("demo/0/000", "demo/2/002")]
    assert counts.items() >= {
        "photos": 8, "compared": 8, "tied_by_hash": 0, "without_embedding": 0, "edges": 2, "copy_dropped": 2,
        "exact_dropped": 0, "stock_dropped": 0, "kept": 6, "clusters": 1, "unchanged": False,
    }.items()  # fmt: skip
    rows = query(root, "FROM edges_copy").to_pylist()
    assert {row["tier"] for row in rows} == {"copy"}
    assert [0 <= row["distance"] < 30 for row in rows] == [True, True]
    assert root.read_table("edges/copy/all.parquet").schema.equals(EDGES)
    assert verify(root).ok


def test_the_copy_of_most_pixels_stays_then_that_of_the_smallest_key(empty: Root) -> None:
    larger = source(np.asarray(cv2.resize(drawn(CAR), None, fx=1.5, fy=1.5), np.uint8))
    small, large = Listing("1", [crop_of(CAR)]), Listing("2", [larger])
    fill(empty, [small, large, Listing("0", [banner_of(CAR)])])
    copies(empty)
    assert dropped(empty) == {"demo/0/000": "copy", "demo/1/000": "copy"}
    assert edges_of(empty) == [("demo/2/000", "demo/0/000"), ("demo/2/000", "demo/1/000")]


def test_a_picture_cut_for_many_cars_is_a_stock_photo_and_goes_whole(empty: Root) -> None:
    cuts = [photo_of(CAR), *(crop_of(CAR, share) for share in (0.04, 0.06, 0.08))]
    fill(empty, [Listing(str(n), [cut, photo_of(CAR + 1 + n)]) for n, cut in enumerate(cuts)])
    counts = copies(empty)
    assert dropped(empty) == {f"demo/{n}/000": "stock_photo" for n in range(4)}
    assert (counts["stock_dropped"], counts["kept"]) == (4, 4)
    assert copies(empty, ClusterSettings(stock_listings=5))["copy_dropped"] == 3


def test_exact_copies_are_represented_by_the_one_that_stays_and_share_its_cluster(empty: Root) -> None:
    fill(empty, [Listing("1", [photo_of(CAR)]), Listing("2", [photo_of(CAR)]), Listing("3", [crop_of(CAR)])])
    counts = copies(empty)
    assert dropped(empty) == {"demo/2/000": "exact_duplicate", "demo/3/000": "copy"}
    assert (counts["photos"], counts["compared"], counts["tied_by_hash"]) == (3, 2, 1)
    assert set(query(empty, "SELECT cluster_size AS size FROM duplicates")["size"].to_pylist()) == {3}


def test_the_result_depends_neither_on_parts_nor_on_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for parts, listings in ((1, listed()), (3, listed()[::-1])):
        monkeypatch.setattr(script, "_PHOTOS_A_STRETCH", 1000 // parts**6)
        root = fill(new_root(tmp_path / str(parts)), listings, parts=parts)
        copies(root, cached_photos=1 if parts == 3 else 100, threads=parts)
        found.append((digest(root), root.read_table("edges/copy/all.parquet").to_pylist()))
    assert found[0] == found[1]


@pytest.mark.slow
def test_pairs_that_a_cluster_compares_come_out_the_same(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    copies(root)
    expected = root.read_table("edges/copy/all.parquet")
    root.remove("edges/copy/all.parquet")
    monkeypatch.setattr(script, "_PAIRS_A_CALL", 5)
    with connected(RaySettings()):  # held by the test, so that it is what any address leads to
        script.copies(root, CopiesSettings(), ClusterSettings(), ray=RaySettings(address="auto"))
    assert root.read_table(root.list("edges/copy")[0]).equals(expected)


@pytest.mark.slow
def test_with_the_default_encoder_crops_and_banners_are_found(empty: Root) -> None:
    write_part(empty, "demo-0", listed())
    dedup(empty, DedupSettings(), unite=False)
    embed(empty, EmbedSettings(device="cpu"))
    copies(empty)
    assert dropped(empty) == {"demo/1/002": "copy", "demo/2/002": "copy"}
    assert verify(empty).ok


def test_running_again_does_nothing_until_inputs_or_settings_change(root: Root) -> None:
    first = copies(root)
    again = copies(root, threads=1)
    assert again["unchanged"]
    assert {**again, "unchanged": False, "seconds": 0} == {**first, "seconds": 0}
    assert not copies(root, min_share=0.75)["unchanged"]
    write_part(root, "demo-9", [Listing("9", [noise(9)])])
    with pytest.raises(UsageError, match=r"dedup has not seen all photos.*dedup\.py"):
        copies(root, min_share=0.75)
    dedup(root, DedupSettings(), unite=False)
    with pytest.raises(UsageError, match=r"missing for 1 of 2 parts as they are now \(demo-9\).*embed\.py"):
        copies(root, min_share=0.75)
    embed_parts(root)
    assert copies(root, min_share=0.75)["photos"] == 9
    receipt = read_receipt(root, "copies", "all")
    assert receipt is not None
    assert receipt.generation == 3


def test_other_embeddings_of_a_part_are_compared_again(root: Root) -> None:
    copies(root)
    embed_parts(root, unreadable=["demo/1/002"])
    counts = copies(root)
    assert (counts["unchanged"], counts["compared"], counts["without_embedding"]) == (False, 7, 1)
    assert dropped(root) == {"demo/2/002": "copy"}, "what embed could not read takes no part"
    assert verify(root).ok


def test_without_dedup_or_embeddings_it_says_what_to_run(empty: Root) -> None:
    write_part(empty, "demo-0", [Listing("1", [noise(1)])])
    with pytest.raises(UsageError, match=r"dedup has not run; run: python pipeline/dedup\.py --root"):
        copies(empty)
    dedup(empty, DedupSettings())
    with pytest.raises(UsageError, match=r"no embeddings of 'efficientnet_lite0'.*python pipeline/embed\.py --root"):
        copies(empty)
    assert read_receipt(empty, "copies", "all") is None


def test_a_recrawled_part_whose_embeddings_are_of_before_is_refused(root: Root) -> None:
    write_part(root, "demo-0", listed()[:2])
    dedup(root, DedupSettings(), unite=False)
    with pytest.raises(UsageError, match=r"missing for 1 of 1 parts as they are now \(demo-0\)"):
        copies(root)


DOCTORED: dict[str, tuple[Shaped, str]] = {
    "a lost row": (lambda keys, vectors: (keys[1:], vectors[1:]), r"8 photos are stored in part demo-0.* has 7 of"),
    "a doubled row": (
        lambda keys, vectors: ([keys[0], *keys], np.concatenate([vectors[:1], vectors])),
        "more than one row for demo/0/000",
    ),
    "a row of no photo": (
        lambda keys, vectors: ([*keys[:-1], "demo/7/000"], vectors),
        "no stored photo for demo/7/000",
    ),
}


@pytest.mark.parametrize("how", DOCTORED)
def test_embeddings_that_are_not_one_a_photo_fail_the_run_and_nothing_is_committed(root: Root, how: str) -> None:
    shaped, message = DOCTORED[how]
    embed_parts(root, shaped=shaped)
    with pytest.raises(ReconcileError, match=message) as told:
        copies(root)
    assert "embed.py makes it again" in str(told.value)
    assert root.list("edges/copy") == []
    assert read_receipt(root, "copies", "all") is None


def test_an_edge_to_a_photo_that_is_not_there_fails_the_run(root: Root) -> None:
    receipt = read_receipt(root, "dedup", "all")
    assert receipt is not None
    writer = PartWriter(root, "dedup", "all", token="test", fence=lambda: None)
    row = {"key_a": "demo/0/000", "key_b": "demo/7/000", "tier": "exact", "distance": 0.0}
    writer.write_table("edges/hash", pa.Table.from_pylist([row], schema=EDGES))
    writer.commit(counts={"edges": 1}, settings={}, inputs=receipt.inputs)
    with pytest.raises(ReconcileError, match="8 stored photos are not 8 to compare, 1 tied"):
        copies(root)


def test_a_photo_whose_bytes_are_gone_fails_the_run(root: Root) -> None:
    root.remove("shards/demo-0.lmdb")
    with pytest.raises(IntegrityError, match=r"demo-0\.lmdb"):
        copies(root)
    assert root.list("edges/copy") == []


def test_switched_off_it_needs_no_embeddings_and_takes_back_what_it_had_found(root: Root) -> None:
    copies(root)
    counts = copies(root, enabled=False)
    assert (counts["edges"], counts["kept"], dropped(root)) == (0, 8, {})
    assert copies(root, enabled=False, min_share=0.9)["unchanged"]
    assert verify(root).ok
    shutil.rmtree(root.path("embeddings"))
    shutil.rmtree(root.path("receipts/embed"))
    assert copies(root, enabled=False)["unchanged"]


def test_a_root_without_photos_gives_empty_tables(empty: Root) -> None:
    write_part(empty, "demo-0", [Listing("1")])
    dedup(empty, DedupSettings())
    counts = copies(empty)
    assert (counts["photos"], counts["compared"], counts["edges"], counts["kept"]) == (0, 0, 0, 0)
    assert verify(empty).ok


def test_two_runs_at_once_are_refused(root: Root) -> None:
    with hold_lease(root, "copies"), pytest.raises(LeaseError, match="is alive"):
        copies(root)


def test_what_killed_runs_left_goes_and_a_lost_file_is_made_again(root: Root) -> None:
    copies(root)
    before = digest(root)
    for name in ("edges/copy/all.g2.parquet", "edges/copy/all.g2.parquet.dead.tmp"):
        root.write_bytes(name, b"x")
    assert copies(root)["unchanged"]
    assert root.list("edges/copy") == ["edges/copy/all.parquet"]
    root.remove("edges/copy/all.parquet")
    assert not copies(root)["unchanged"]
    assert digest(root) == before
    assert verify(root).ok


def test_killed_at_any_moment_and_run_again_the_digest_is_the_same(root: Root, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(root.path(""), whole)
    copies(Root.open(str(whole)))
    command = [sys.executable, "pipeline/copies.py", "--root", root.path("")]
    checkout = Path(__file__).resolve().parents[2]
    killed = 0
    for delay_s in (1.0, 2.0):
        with subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            deadline_s = time.monotonic() + 60
            while not Path(root.path("leases/copies.json")).exists() and time.monotonic() < deadline_s:
                time.sleep(0.02)
            time.sleep(delay_s * 0.1)
            os.kill(process.pid, signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
    assert killed
    # The lease of a killed run is taken over once its heart is still.
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["copy_dropped"] == 2
    assert digest(root) == digest(Root.open(str(whole)))
    assert verify(root).ok


def test_the_script_prints_one_line_and_refuses_unknown_settings(
    root: Root, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--root", root.text, "--set", "dedup.policy=drop_all", "--set", "embed.weights=w.pth"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    dropped_by = ("exact_dropped", "near_dropped", "copy_dropped", "stock_dropped")
    assert last["photos"] == last["kept"] + sum(last[name] for name in dropped_by) == 8
    assert last["photos"] == last["compared"] + last["tied_by_hash"] + last["without_embedding"]
    assert script.main(["--root", root.text, "--set", "copies.min_shar=1"]) == 2
    assert "min_shar" in json.loads(capsys.readouterr().out)["error"]
