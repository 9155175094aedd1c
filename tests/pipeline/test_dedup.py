import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from pipeline import dedup as script
from pipeline.catalog import query
from pipeline.dedup import DedupSettings, dedup
from pipeline.dedup_exact import find_exact
from pipeline.lease import hold_lease
from pipeline.runner import RaySettings, connected
from pipeline.verify import verify
from schemas.errors import IntegrityError, LeaseError, ReconcileError
from schemas.receipts import read_receipt
from schemas.storage import Root
from schemas.tables import DUPLICATES, EDGES
from tests.pipeline.roots import Listing, cut_out, flat, new_root, noise, png, stored_photo, write_part


def rows_of(root: Root) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in query(root, "FROM duplicates").to_pylist()}


def dropped(root: Root) -> dict[str, str]:
    return {key: row["drop_reason"] for key, row in rows_of(root).items() if not row["kept"]}


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return new_root(tmp_path / "root")


def test_every_stored_photo_has_one_row_and_alone_it_is_in_no_cluster(root: Root) -> None:
    write_part(root, "demo-0", [Listing("1", [noise(1), None, noise(2)]), Listing("2", [noise(3)])])
    counts = dedup(root, DedupSettings())
    alone = {"tier": None, "cluster_id": None, "cluster_size": None, "cluster_listings": None, "drop_reason": None}
    assert rows_of(root) == {
        key: {"key": key, "kept": True, **alone} for key in ("demo/1/000", "demo/1/002", "demo/2/000")
    }
    assert (counts["photos"], counts["kept"], counts["clusters"]) == (3, 3, 0)


def test_of_equal_photos_the_smallest_key_stays_whatever_part_it_is_in(root: Root) -> None:
    write_part(root, "demo-0", [Listing("2", [noise(1)])])
    write_part(root, "demo-1", [Listing("1", [noise(1), noise(2)])])
    counts = dedup(root, DedupSettings())
    assert dropped(root) == {"demo/2/000": "exact_duplicate"}
    cluster = {"tier": "exact", "cluster_id": "demo/1/000", "cluster_size": 2, "cluster_listings": 2}
    for key in ("demo/1/000", "demo/2/000"):
        assert rows_of(root)[key].items() >= cluster.items()
    edges = query(root, "FROM edges_hash").to_pylist()
    assert edges == [{"key_a": "demo/1/000", "key_b": "demo/2/000", "tier": "exact", "distance": 0.0}]
    assert counts.items() >= {"photos": 3, "exact_dropped": 1, "stock_dropped": 0, "kept": 2, "clusters": 1}.items()


def test_the_same_url_twice_in_a_listing_is_a_duplicate_over_one_listing(root: Root) -> None:
    write_part(root, "demo-0", [Listing("1", [noise(1), noise(1)])])
    dedup(root, DedupSettings())
    assert dropped(root) == {"demo/1/001": "exact_duplicate"}
    assert rows_of(root)["demo/1/000"]["cluster_listings"] == 1


def test_the_copy_with_most_source_pixels_stays_and_the_cluster_is_named_by_its_smallest_key(root: Root) -> None:
    small, large = cut_out(), cut_out(scale=2)
    assert stored_photo(small).coarse_hash == stored_photo(large).coarse_hash
    assert stored_photo(small).sha256 != stored_photo(large).sha256
    write_part(root, "demo-0", [Listing("1", [small]), Listing("2", [large]), Listing("3", [large])])
    dedup(root, DedupSettings())
    assert dropped(root) == {"demo/1/000": "exact_duplicate", "demo/3/000": "exact_duplicate"}
    assert {row["cluster_id"] for row in rows_of(root).values()} == {"demo/1/000"}
    assert set(query(root, "FROM edges_hash")["key_a"].to_pylist()) == {"demo/2/000"}


def test_drop_all_keeps_no_copy_of_what_is_there_twice(root: Root) -> None:
    write_part(root, "demo-0", [Listing("1", [noise(1)]), Listing("2", [noise(1), noise(2)])])
    counts = dedup(root, DedupSettings(policy="drop_all"))
    assert dropped(root) == dict.fromkeys(["demo/1/000", "demo/2/000"], "exact_duplicate")
    assert (counts["exact_dropped"], counts["kept"]) == (2, 1)


@pytest.mark.parametrize("policy", ["keep_one", "drop_all"])
def test_a_picture_of_many_different_cars_is_a_stock_photo_and_goes_whole(root: Root, policy: str) -> None:
    listings = [Listing(str(i), [noise(9), noise(100 + i)], vin=f"VIN{i}" if i % 2 else None) for i in range(4)]
    write_part(root, "demo-0", listings)
    counts = dedup(root, DedupSettings.model_validate({"policy": policy}))
    assert dropped(root) == {f"demo/{i}/000": "stock_photo" for i in range(4)}
    assert (counts["stock_dropped"], counts["exact_dropped"], counts["kept"]) == (4, 0, 4)


def test_listings_that_share_a_vin_are_one_car_relisted_and_no_stock_photo(root: Root) -> None:
    relisted = [Listing(str(i), [noise(9)], vin=vin) for i, vin in enumerate(["WVW1", "wvw1 ", "WVW1", "WVW2", ""])]
    write_part(root, "demo-0", relisted)
    dedup(root, DedupSettings())
    assert set(dropped(root).values()) == {"exact_duplicate"}
    assert rows_of(root)["demo/0/000"]["cluster_listings"] == 5
    dedup(root, DedupSettings(stock_listings=3))
    assert set(dropped(root).values()) == {"stock_photo"}


def test_equal_ids_of_two_sites_are_two_listings(root: Root) -> None:
    write_part(root, "demo-0", [Listing("1", [noise(1)])])
    write_part(root, "other-0", [Listing("1", [noise(1)])], site="other", stage="importers")
    dedup(root, DedupSettings(stock_listings=2))
    assert dropped(root) == {"demo/1/000": "stock_photo", "other/1/000": "stock_photo"}


def test_flat_images_and_cut_outs_that_share_a_hash_and_differ_are_not_merged(root: Root) -> None:
    pictures = [flat(250), flat(255), flat(252), cut_out(plate="ABC 123"), cut_out(plate="XYZ 987")]
    hashes = [stored_photo(picture).coarse_hash for picture in pictures]
    assert len(set(hashes[:3])) == 1
    assert len(set(hashes[3:])) == 1
    write_part(root, "demo-0", [Listing("1", pictures)])
    counts = dedup(root, DedupSettings())
    assert (counts["clusters"], counts["kept"]) == (0, len(pictures))


def test_copies_of_each_of_several_pictures_that_share_a_hash_are_found_apart(root: Root) -> None:
    write_part(root, "demo-0", [Listing("1", [flat(250), flat(255)]), Listing("2", [flat(255), flat(250)])])
    dedup(root, DedupSettings())
    assert dropped(root) == dict.fromkeys(["demo/2/000", "demo/2/001"], "exact_duplicate")
    assert rows_of(root)["demo/2/000"]["cluster_id"] == "demo/1/001"


def resaved(source: bytes, *, quality: int = 80, scale: float = 1.0) -> bytes:
    picture = Image.open(BytesIO(source)).convert("RGB")
    file = BytesIO()
    picture.resize((round(picture.width * scale), round(picture.height * scale))).save(file, "JPEG", quality=quality)
    return file.getvalue()


def near_pictures(num: int) -> list[bytes]:
    """Return a photo and copies of it of other hash and bytes, that its pixels confirm."""
    first = noise(21, width_px=400, height_px=300)
    return [first, *(resaved(first, quality=45 + 5 * i, scale=1.0 - 0.03 * i) for i in range(num - 1))]


def test_a_photo_saved_again_is_a_near_duplicate_and_the_larger_one_stays(root: Root) -> None:
    first = noise(1, width_px=400, height_px=300)
    again, small = resaved(first, quality=50), resaved(first, scale=0.6)
    assert len({stored_photo(source).coarse_hash for source in (first, again, small)}) == 3
    write_part(root, "demo-0", [Listing("2", [first]), Listing("1", [small, noise(2)]), Listing("3", [again])])
    counts = dedup(root, DedupSettings())
    assert dropped(root) == {"demo/1/000": "near_duplicate", "demo/3/000": "near_duplicate"}
    assert (counts["edges"], counts["exact_edges"], counts["near_edges"], counts["near_dropped"]) == (2, 0, 2, 2)
    edges = {(row["key_a"], row["key_b"]): row for row in query(root, "FROM edges_hash").to_pylist()}
    assert set(edges) == {("demo/2/000", "demo/1/000"), ("demo/2/000", "demo/3/000")}
    apart = (stored_photo(first).phash ^ stored_photo(small).phash).bit_count()
    assert edges["demo/2/000", "demo/1/000"].items() >= {"tier": "near", "distance": apart}.items()
    assert {row["tier"] for key, row in rows_of(root).items() if row["cluster_id"]} == {"near"}
    assert verify(root).ok


def test_exact_copies_of_a_near_copy_are_in_its_cluster(root: Root) -> None:
    again = resaved(noise(1), quality=50)
    write_part(root, "demo-0", [Listing("1", [noise(1), again]), Listing("2", [noise(1), again])])
    dedup(root, DedupSettings())
    assert dropped(root) == {
        "demo/1/001": "near_duplicate", "demo/2/000": "exact_duplicate", "demo/2/001": "exact_duplicate",
    }  # fmt: skip
    assert {row["cluster_id"] for row in rows_of(root).values()} == {"demo/1/000"}


def test_without_a_distance_there_is_no_near_tier_and_the_setting_is_on_record(root: Root) -> None:
    write_part(root, "demo-0", [Listing("1", [noise(1), resaved(noise(1), quality=50)])])
    assert dedup(root, DedupSettings(max_distance=0))["near_dropped"] == 0
    again = dedup(root, DedupSettings())
    assert (again["unchanged"], again["near_dropped"]) == (False, 1)
    receipt = read_receipt(root, "dedup", "all")
    assert receipt is not None
    assert receipt.settings["dedup"] == {"max_distance": 8, "mirrored": False, "max_compared": 32}


def test_mirrored_photos_are_near_duplicates_where_asked(root: Root) -> None:
    mirrored = png(ImageOps.mirror(Image.open(BytesIO(noise(1)))))
    write_part(root, "demo-0", [Listing("1", [noise(1), mirrored])])
    assert dedup(root, DedupSettings())["kept"] == 2
    assert dedup(root, DedupSettings(mirrored=True))["near_dropped"] == 1
    assert dropped(root) == {"demo/1/001": "near_duplicate"}


def test_near_stars_do_not_depend_on_parts_or_on_the_order_photos_come_in(tmp_path: Path) -> None:
    pictures = near_pictures(6)
    listings = [Listing(str(i), [pictures[i % 6], noise(i)]) for i in range(9)]
    found = []
    for number, order in enumerate((listings, listings[::-1], listings[3:] + listings[:3])):
        root = new_root(tmp_path / str(number))
        for start in range(0, 9, 4 - number):
            write_part(root, f"demo-{start}", order[start : start + 4 - number])
        dedup(root, DedupSettings())
        found.append((rows_of(root), query(root, "FROM edges_hash").to_pylist()))
    assert found[0] == found[1] == found[2]
    assert len(found[0][1]) == 8


def test_the_result_does_not_depend_on_how_the_photos_lie_in_parts(tmp_path: Path) -> None:
    listings = [
        Listing(str(i), [noise(i % 3), noise(10 + i), cut_out(scale=1 + i % 2)], vin=f"V{i // 2}") for i in range(7)
    ]
    one, many = new_root(tmp_path / "one"), new_root(tmp_path / "many")
    write_part(one, "demo-0", listings)
    for i, listing in enumerate(reversed(listings)):
        write_part(many, f"demo-{i}", [listing])
    for root in (one, many):
        dedup(root, DedupSettings(stock_listings=3))
    assert rows_of(one) == rows_of(many)


def test_running_again_does_nothing_until_photos_or_settings_change(root: Root) -> None:
    write_part(root, "demo-0", [Listing("1", [noise(1), noise(1)])])
    assert not dedup(root, DedupSettings())["unchanged"]
    again = dedup(root, DedupSettings())
    assert (again["unchanged"], again["photos"], again["exact_dropped"]) == (True, 2, 1)
    assert not dedup(root, DedupSettings(policy="drop_all"))["unchanged"]
    write_part(root, "demo-1", [Listing("2", [noise(2)])])
    assert dedup(root, DedupSettings(policy="drop_all"))["photos"] == 3
    generations = {stage: read_receipt(root, stage, "all") for stage in ("dedup", "duplicates")}
    assert {stage: receipt and receipt.generation for stage, receipt in generations.items()} == {
        "dedup": 2,  # which copies stay does not decide which photos are copies
        "duplicates": 3,
    }
    assert root.list("duplicates") == ["duplicates/all.g3.parquet"]


def test_an_empty_root_gives_empty_tables_of_the_right_schema(root: Root) -> None:
    counts = dedup(root, DedupSettings())
    assert (counts["photos"], counts["kept"], counts["clusters"]) == (0, 0, 0)
    assert root.read_table("duplicates/all.parquet").schema.equals(DUPLICATES)
    assert root.read_table("edges/hash/all.parquet").schema.equals(EDGES)


def test_a_photo_with_two_rows_is_not_taken_for_its_own_duplicate(root: Root) -> None:
    write_part(root, "demo-0", [Listing("1", [noise(1)])])
    write_part(root, "demo-1", [Listing("1", [noise(1)])])
    with pytest.raises(ReconcileError, match="demo/1/000"):
        dedup(root, DedupSettings())


def test_a_shard_that_is_gone_stops_the_run_and_nothing_is_committed(root: Root) -> None:
    write_part(root, "demo-0", [Listing("1", [cut_out(plate="ABC 123")])])
    write_part(root, "demo-1", [Listing("2", [cut_out(plate="XYZ 987")])])
    root.remove("shards/demo-1.lmdb")
    with pytest.raises(IntegrityError, match=r"demo-1\.lmdb"):
        dedup(root, DedupSettings())
    assert read_receipt(root, "dedup", "all") is None
    assert root.list("duplicates") == root.list("edges/hash") == []


def test_two_runs_at_once_are_refused(root: Root) -> None:
    with hold_lease(root, "dedup"), pytest.raises(LeaseError, match="is alive"):
        dedup(root, DedupSettings())


LEFT_BY_KILLED_RUNS = (
    "duplicates/all.parquet.dead.tmp", "edges/hash/all.g2.parquet.dead.tmp", "receipts/dedup/all.json.77.tmp",
    "duplicates/all.g2.parquet", "edges/hash/all.g2.parquet",
)  # fmt: skip


def test_a_rerun_removes_what_killed_runs_left_though_nothing_has_changed(root: Root) -> None:
    write_part(root, "demo-0", [Listing("1", [noise(1), noise(1)])])
    for name in LEFT_BY_KILLED_RUNS:
        root.write_bytes(name, b"x")
    dedup(root, DedupSettings())
    assert verify(root).ok
    for name in LEFT_BY_KILLED_RUNS:
        root.write_bytes(name, b"x")
    assert dedup(root, DedupSettings())["unchanged"]
    assert verify(root).ok


def test_the_script_prints_one_line_and_refuses_unknown_settings(
    root: Root, capsys: pytest.CaptureFixture[str]
) -> None:
    write_part(root, "demo-0", [Listing("1", [noise(1), noise(1)])])
    assert script.main(["--root", root.text, "--set", "dedup.policy=drop_all"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["photos"] == last["kept"] + last["exact_dropped"] + last["stock_dropped"] == 2
    assert script.main(["--root", root.text, "--set", "dedup.polcy=drop_all"]) == 2
    assert "polcy" in json.loads(capsys.readouterr().out)["error"]


def test_a_png_and_its_byte_equal_pixels_under_another_format_are_copies(root: Root) -> None:
    picture = Image.open(BytesIO(noise(5)))
    bitmap = BytesIO()
    picture.save(bitmap, "BMP")
    write_part(root, "demo-0", [Listing("1", [png(picture), bitmap.getvalue()])])
    dedup(root, DedupSettings())
    assert dropped(root) == {"demo/1/001": "exact_duplicate"}


def test_a_part_that_a_crawl_commits_meanwhile_waits_for_the_next_run(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_part(root, "demo-0", [Listing("1", [noise(1)]), Listing("2", [noise(1)])])

    def crawled_meanwhile(root: Root, catalog: Any) -> None:
        find_exact(root, catalog)
        monkeypatch.undo()
        write_part(root, "demo-10", [Listing("11", [noise(1)])])

    monkeypatch.setattr(script, "find_exact", crawled_meanwhile)
    assert dedup(root, DedupSettings())["photos"] == 2
    assert set(rows_of(root)) == {"demo/1/000", "demo/2/000"}
    again = dedup(root, DedupSettings())
    assert (again["unchanged"], again["photos"], again["exact_dropped"]) == (False, 3, 2)
    assert dedup(root, DedupSettings())["unchanged"]
    assert verify(root).ok


@pytest.mark.parametrize("name", ["edges/hash/all.parquet", "duplicates/all.parquet"])
def test_a_lost_or_cut_file_of_its_own_is_made_again(root: Root, name: str) -> None:
    write_part(root, "demo-0", [Listing("1", [noise(1)]), Listing("2", [noise(1)])])
    dedup(root, DedupSettings())
    before = rows_of(root)
    root.remove(name)
    assert not dedup(root, DedupSettings())["unchanged"]
    assert rows_of(root) == before
    (made,) = root.list(name.rsplit("/", 1)[0])
    root.write_bytes(made, b"PAR1")
    assert not dedup(root, DedupSettings())["unchanged"]
    assert rows_of(root) == before
    assert verify(root).ok


@pytest.mark.slow
def test_on_a_cluster_the_same_edges_are_found(tmp_path: Path) -> None:
    listings = [Listing(str(i), [source, noise(40 + i)]) for i, source in enumerate(near_pictures(4))]
    edges = []
    with connected(RaySettings(num_workers=1)):
        for name, address in (("here", None), ("cluster", "auto")):
            root = new_root(tmp_path / name)
            write_part(root, "demo-0", listings)
            dedup(root, DedupSettings(ray_from_photos=0), ray=RaySettings(address=address))
            edges.append(query(root, "FROM edges_hash").to_pylist())
    assert edges[0] == edges[1]
    assert len(edges[0]) == 3
