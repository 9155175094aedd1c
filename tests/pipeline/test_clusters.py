from pathlib import Path
from typing import Any

import pytest

from pipeline.catalog import Catalog, query
from pipeline.clusters import ClusterSettings, conflicts, unite
from pipeline.verify import verify
from schemas.errors import IntegrityError, ReconcileError, UsageError
from schemas.receipts import PartWriter, inputs_fingerprint
from schemas.storage import Root
from schemas.tables import DUPLICATES, EDGES, table_of
from tests.pipeline.roots import Listing, new_root, noise, write_part


def key(listing: int) -> str:
    return f"demo/{listing}/000"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Twelve listings of one photo each; two share a VIN."""
    root = new_root(tmp_path / "root")
    known: list[dict[str, Any]] = [{"model": "V70", "price_usd": 1000 * (i // 2)} for i in range(12)]
    vins = {8: "WVW1", 9: "wvw1 "}
    write_part(root, "demo-0", [Listing(str(i), [noise(i)], vin=vins.get(i), columns=known[i]) for i in range(12)])
    return root


def write_edges(root: Root, stage: str, *edges: tuple[int, int, str]) -> None:
    folder = {"dedup": "edges/hash", "copies": "edges/copy"}[stage]
    inputs = {"ingest": inputs_fingerprint(root)}
    if stage == "copies":
        inputs["dedup"] = inputs_fingerprint(root, ("dedup",))
    rows = [{"key_a": key(a), "key_b": key(b), "tier": tier, "distance": 0.0} for a, b, tier in edges]
    writer = PartWriter(root, stage, "all", token="test", fence=lambda: None)
    writer.write_table(folder, table_of(rows, EDGES))
    counts = {"edges": len(rows)}
    if stage == "dedup":
        counts |= {f"{tier}_edges": sum(edge[2] == tier for edge in edges) for tier in ("exact", "near")}
    writer.commit(counts=counts, settings={}, inputs=inputs)


def rows_of(root: Root) -> dict[int, dict[str, Any]]:
    return {int(row["key"].split("/")[1]): row for row in query(root, "FROM duplicates").to_pylist()}


def reasons(root: Root) -> dict[int, str]:
    return {listing: row["drop_reason"] for listing, row in rows_of(root).items() if not row["kept"]}


CHAIN = ((4, 5, "exact"), (3, 4, "near"), (3, 6, "near"))


def test_stars_of_three_tiers_become_one_cluster_named_by_its_smallest_key(root: Root) -> None:
    write_edges(root, "dedup", *CHAIN)
    write_edges(root, "copies", (7, 3, "copy"), (7, 1, "copy"))
    counts = unite(root, ClusterSettings(stock_listings=12))
    assert reasons(root) == {5: "exact_duplicate", 4: "near_duplicate", 6: "near_duplicate", 3: "copy", 1: "copy"}
    clustered = {listing: row for listing, row in rows_of(root).items() if row["cluster_id"]}
    assert sorted(clustered) == [1, 3, 4, 5, 6, 7]
    assert {(row["cluster_id"], row["cluster_size"], row["cluster_listings"]) for row in clustered.values()} == {
        (key(1), 6, 6)
    }
    tiers = {listing: row["tier"] for listing, row in clustered.items()}
    assert tiers == {1: "copy", 3: "near", 4: "exact", 5: "exact", 6: "near", 7: "copy"}, "the strongest that ties it"
    assert counts == {
        "photos": 12, "exact_dropped": 1, "near_dropped": 2, "copy_dropped": 2, "stock_dropped": 0, "kept": 7,
        "clusters": 1, "unchanged": False,
    }  # fmt: skip
    assert verify(root).ok


def test_drop_all_drops_exact_copies_whole_and_of_others_keeps_one(root: Root) -> None:
    write_edges(root, "dedup", (0, 1, "exact"), (2, 3, "near"), (4, 5, "exact"), (6, 4, "near"))
    unite(root, ClusterSettings(policy="drop_all", stock_listings=12))
    assert reasons(root) == {
        0: "exact_duplicate", 1: "exact_duplicate", 3: "near_duplicate", 4: "near_duplicate", 5: "exact_duplicate",
    }  # fmt: skip


@pytest.mark.parametrize(("first", "is_stock"), [(6, True), (8, False)])
def test_a_cluster_over_enough_different_cars_is_a_stock_photo_over_all_tiers(
    root: Root, first: int, is_stock: bool
) -> None:
    """Listings 8 and 9 share a VIN, so they are one car."""
    write_edges(root, "dedup", (first, first + 1, "exact"), (first, 10, "near"))
    write_edges(root, "copies", (first, 11, "copy"))
    counts = unite(root, ClusterSettings(stock_listings=4))
    assert (counts["stock_dropped"], counts["kept"]) == ((4, 8) if is_stock else (0, 9))
    assert (set(reasons(root).values()) == {"stock_photo"}) == is_stock


def test_copies_of_an_earlier_state_of_the_hashes_are_passed_by(root: Root) -> None:
    write_edges(root, "dedup", (0, 1, "exact"))
    write_edges(root, "copies", (2, 3, "copy"))
    assert unite(root, ClusterSettings())["copy_dropped"] == 1
    write_edges(root, "dedup", (0, 1, "exact"), (4, 5, "near"))
    counts = unite(root, ClusterSettings())
    assert (counts["copy_dropped"], counts["near_dropped"], counts["unchanged"]) == (0, 1, False)
    write_edges(root, "copies", (2, 3, "copy"))
    assert unite(root, ClusterSettings())["copy_dropped"] == 1
    assert unite(root, ClusterSettings())["unchanged"]


def test_without_the_hashes_or_with_those_of_fewer_photos_it_says_what_to_run(root: Root) -> None:
    with pytest.raises(UsageError, match=r"dedup has not run; run: python pipeline/dedup\.py"):
        unite(root, ClusterSettings())
    write_edges(root, "dedup", (0, 1, "exact"))
    write_part(root, "demo-1", [Listing("20", [noise(20)])])
    with pytest.raises(UsageError, match="has not seen all photos"):
        unite(root, ClusterSettings())


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([(0, 2, "exact"), (1, 2, "near")], "demo/2/000, ... to more than one photo"),
        ([(0, 1, "near"), (1, 2, "near")], "demo/2/000, ... to a copy of their own tier"),
        ([(0, 1, "exact"), (1, 2, "near")], "demo/2/000, ... to a copy of their own tier"),
        ([(0, 1, "exact"), (1, 0, "exact")], "to a copy of their own tier"),
    ],
)
def test_edges_that_are_no_stars_are_an_error(root: Root, edges: list[tuple[int, int, str]], message: str) -> None:
    write_edges(root, "dedup", *edges)
    with pytest.raises(IntegrityError, match=message):
        unite(root, ClusterSettings())
    assert root.list("duplicates") == []


def test_an_edge_of_a_photo_that_is_not_stored_does_not_reconcile(root: Root) -> None:
    write_edges(root, "dedup", (0, 1, "exact"), (2, 99, "exact"))
    with pytest.raises(ReconcileError, match="edges tie 4 photos, which have 3 rows"):
        unite(root, ClusterSettings())


def test_no_edges_leave_each_photo_alone(root: Root) -> None:
    write_edges(root, "dedup")
    counts = unite(root, ClusterSettings())
    assert (counts["photos"], counts["kept"], counts["clusters"]) == (12, 12, 0)
    assert root.read_table("duplicates/all.parquet").schema.equals(DUPLICATES)


def test_conflicts_are_clusters_whose_listings_disagree_and_no_stock_photos(root: Root) -> None:
    stock = [(6, other, "exact") for other in (7, 10, 11)]
    write_edges(root, "dedup", (0, 1, "exact"), (2, 4, "near"), *stock)
    unite(root, ClusterSettings())
    with Catalog(root) as catalog:
        assert conflicts(catalog).to_pylist() == [
            {
                "cluster_id": key(2), "listings": 2, "photos": 2,
                "make": False, "model": False, "price_usd": True,
            }
        ]  # fmt: skip
