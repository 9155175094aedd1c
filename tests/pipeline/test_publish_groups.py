import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.catalog import Catalog
from pipeline.publish_groups import count_inherited, first_of_component, split_groups, tie_groups
from schemas.tables import DATASET_OUTCOMES, DUPLICATES, LISTINGS, table_of
from tests.pipeline.roots import new_root

SHARES = {"train": 0.6, "val": 0.2}
# Valid by their check digit: the example of 49 CFR 565 and others worked out from it.
VINS = ("1M8GDM9AXKP042788", "1HGCM82633A004352", "JH4TB2H26CC000000")
Listing = tuple[str, str]


class Tables:
    """The tables that groups are made from, in one catalog for many data sets."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        for view in ("listings", "duplicates"):
            catalog.execute(f"DROP VIEW {view}")

    def load(
        self,
        vins: Mapping[Listing, str | None],
        clusters: Sequence[Sequence[Listing]],
        stock: Sequence[Sequence[Listing]] = (),
    ) -> None:
        """Load listings of a photo each, and one more for each cluster of equal pictures that shows it."""
        listings = [{"site": s, "listing_id": i, "vin": vin, "num_photos": 1} for (s, i), vin in vins.items()]
        self.catalog.load("listings", table_of(listings, LISTINGS))
        photos = [{"key": f"{site}/{one}/000", "site": site, "listing_id": one} for site, one in vins]
        everything = [*stock, *clusters]
        photos += [
            {"key": f"{site}/{one}/{number + 1:03d}", "site": site, "listing_id": one}
            for number, cluster in enumerate(everything)
            for site, one in cluster
        ]
        self.catalog.load(
            "stored", pa.Table.from_pylist(photos, schema=pa.schema(dict.fromkeys(photos[0], pa.string())))
        )
        rows: list[dict[str, Any]] = [
            {"key": photo["key"], "kept": True} for photo in photos if photo["key"][-3:] == "000"
        ]
        for number, cluster in enumerate(everything):
            keys = [f"{site}/{one}/{number + 1:03d}" for site, one in cluster]
            reason = "stock_photo" if number < len(stock) else "near_duplicate"
            about = {"tier": "near", "cluster_id": min(keys), "cluster_size": len(keys), "cluster_listings": len(keys)}
            for position, key in enumerate(keys):
                kept = position == 0 and reason != "stock_photo"
                rows.append({"key": key, "kept": kept, "drop_reason": None if kept else reason, **about})
        self.catalog.load("duplicates", table_of(rows, DUPLICATES))

    def split(self, parent: pa.Table | None = None) -> dict[Listing, tuple[str, str]]:
        """Return (group, split) of each listing."""
        tie_groups(self.catalog, max_vin_listings=3)
        split_groups(self.catalog, None if parent is None else parent.to_reader(), **SHARES)
        rows = self.catalog.query("FROM grouped").to_pylist()
        return {(row["site"], row["listing_id"]): (row["group_id"], row["split"]) for row in rows}

    def outcomes(self) -> pa.Table:
        """Return what a version made now would hold, as the next one's parent."""
        rows = self.catalog.query(
            "SELECT key, site, listing_id, 'kept' AS outcome, NULL AS drop_reason, group_id, split"
            " FROM stored JOIN grouped USING (site, listing_id)"
        )
        return table_of(rows.to_pylist(), DATASET_OUTCOMES)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tables]:
    with Catalog(new_root(tmp_path_factory.mktemp("groups") / "root")) as catalog:
        yield Tables(catalog)


def ids(*names: str) -> list[Listing]:
    return [("demo", name) for name in names]


def groups(tables: Tables) -> dict[str, str]:
    return {listing_id: group.removeprefix("demo/") for (_, listing_id), (group, _) in tables.split().items()}


def test_a_chain_of_pictures_ties_all_its_listings_and_the_smallest_names_the_group(tables: Tables) -> None:
    tables.load(dict.fromkeys(ids("1", "2", "3", "4")), [ids("3", "2"), ids("2", "4")])
    assert groups(tables) == {"1": "1", "2": "2", "3": "2", "4": "2"}


def test_a_stock_photo_ties_nothing(tables: Tables) -> None:
    tables.load(dict.fromkeys(ids("1", "2", "3", "4")), [ids("3", "4")], stock=[ids("1", "2", "3", "4")])
    assert groups(tables) == {"1": "1", "2": "2", "3": "3", "4": "3"}


@pytest.mark.parametrize("vin", [*VINS, f" {VINS[0].lower()} "])
def test_a_vin_with_a_right_check_digit_ties(tables: Tables, vin: str) -> None:
    tables.load({("demo", "1"): vin, ("demo", "2"): vin.strip().upper()}, [])
    assert groups(tables) == {"1": "1", "2": "1"}


@pytest.mark.parametrize(
    "vin",
    [
        "1M8GDM9A1KP042788",  # a wrong check digit
        "WVWZZZ1KZAW000001",  # a European one, which has none
        "11111111111111111",  # passes the check, and is a row of ones
        "1M8GDM9AXKP04278",  # too short
        "1M8GDM9AXKPO42788",  # O is no letter of a VIN
        "",
    ],
)
def test_another_vin_ties_nothing(tables: Tables, vin: str) -> None:
    tables.load({("demo", "1"): vin, ("demo", "2"): vin}, [])
    assert groups(tables) == {"1": "1", "2": "2"}


def test_a_vin_of_too_many_listings_is_a_placeholder_and_ties_nothing(tables: Tables) -> None:
    tables.load(dict.fromkeys(ids("1", "2", "3"), VINS[0]), [])
    assert set(groups(tables).values()) == {"1"}
    tables.load(dict.fromkeys(ids("1", "2", "3", "4"), VINS[0]), [])
    assert set(groups(tables).values()) == {"1", "2", "3", "4"}


def test_sites_are_tied_and_the_smallest_site_and_id_name_the_group(tables: Tables) -> None:
    tables.load({("b", "1"): VINS[1], ("a", "10"): None, ("a", "9"): VINS[1]}, [[("b", "1"), ("a", "10")]])
    assert {group for group, _ in tables.split().values()} == {"a/10"}


def test_a_groups_split_is_that_of_its_hash_and_shares_are_as_asked(tables: Tables) -> None:
    tables.load(dict.fromkeys(ids(*map(str, range(4000)))), [])
    found = [split for _, split in tables.split().values()]
    shares = {split: found.count(split) / 4000 for split in ("train", "val", "test")}
    assert shares == {"train": pytest.approx(0.6, abs=0.03), "val": pytest.approx(0.2, abs=0.03)} | {
        "test": pytest.approx(0.2, abs=0.03)
    }


def test_merged_groups_take_train_before_val_before_test_and_are_counted(tables: Tables) -> None:
    names = ids(*map(str, range(60)))
    tables.load(dict.fromkeys(names), [])
    before, parent = tables.split(), tables.outcomes()
    of = {split: [one for one in names if before[one][1] == split] for split in ("train", "val", "test")}
    ties = [[of["test"][0], of["val"][0], of["train"][0]], [of["test"][1], of["val"][1]], [of["val"][2], of["val"][3]]]
    tables.load(dict.fromkeys(names), ties)
    after = tables.split(parent)
    assert {after[one][1] for one in ties[0]} == {"train"}
    assert {after[one][1] for one in ties[1] + ties[2]} == {"val"}
    moved = {one for one in names if before[one][1] != after[one][1]}
    assert moved == {of["test"][0], of["val"][0], of["test"][1]}
    assert count_inherited(tables.catalog) == {"groups": 56, "merged": 3, "moved": 3, "withdrawn": 0}


def test_a_smaller_listing_that_joins_a_group_renames_it_and_moves_it_nowhere(tables: Tables) -> None:
    names = ids(*(f"5{i:02d}" for i in range(40)))
    tables.load(dict.fromkeys(names), [])
    before, parent = tables.split(), tables.outcomes()
    joined = {one: ("demo", f"1{one[1]}") for one in names}
    tables.load(dict.fromkeys([*names, *joined.values()]), [[one, other] for one, other in joined.items()])
    after = tables.split(parent)
    assert {one: split for one, (_, split) in after.items() if one in before} == {
        one: s for one, (_, s) in before.items()
    }
    assert all(after[one] == after[joined[one]] and after[one][0] == "/".join(joined[one]) for one in names)
    assert count_inherited(tables.catalog).items() >= {"groups": 40, "merged": 0, "moved": 0}.items()


def test_components_are_those_of_a_plain_search() -> None:
    draw = random.Random(0)
    for _ in range(50):
        num_nodes = draw.randint(1, 30)
        ties = [(draw.randrange(num_nodes), draw.randrange(num_nodes)) for _ in range(draw.randint(0, 25))]
        expected = list(range(num_nodes))
        for _ in range(num_nodes):
            for a, b in ties:
                expected[a] = expected[b] = min(expected[a], expected[b])
        found = first_of_component(num_nodes, np.array(ties, np.int32).reshape(-1, 2).T)
        assert found.tolist() == expected


# One data set: listings by number with the number of a VIN, then clusters of them by position, some of stock photos.
data_sets = st.tuples(
    st.dictionaries(st.integers(0, 40), st.sampled_from([None, None, 0, 1, 2]), min_size=1, max_size=40),
    st.lists(st.lists(st.integers(0, 1000), min_size=2, max_size=5), max_size=15),
    st.integers(0, 3),
)
_AT_ONCE = 20


def vin_of(number: int) -> str:
    """Make a VIN that is right: 49 CFR 565.15 (c), written once more."""
    values = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", "12345678123457923456789", strict=True))
    vin = f"1HGCM826X3A{number:06d}"
    weights = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
    total = sum(int(values.get(sign, sign)) * weight for sign, weight in zip(vin, weights, strict=True) if weight)
    return f"{vin[:8]}{'0123456789X'[total % 11]}{vin[9:]}"


def named(number: int, drawn: Any) -> tuple[dict[Listing, str | None], list[list[Listing]], list[list[Listing]]]:
    """Turn a drawn data set into listings of two sites of its own with their VINs, clusters, and stock photos."""
    vin_numbers, chosen, num_stock = drawn
    vins = {
        (f"{number:02d}{'ab'[one % 2]}", str(one)): None if vin is None else vin_of(10 * number + vin)
        for one, vin in vin_numbers.items()
    }
    names = list(vins)
    clusters = [list(dict.fromkeys(names[at % len(names)] for at in cluster)) for cluster in chosen]
    return vins, clusters[num_stock:], clusters[:num_stock]


def ties_of(vins: Mapping[Listing, str | None], clusters: Sequence[Sequence[Listing]]) -> list[list[Listing]]:
    """Name all that must not be parted."""
    shared: dict[str, list[Listing]] = {}
    for one, vin in vins.items():
        if vin is not None:
            shared.setdefault(vin, []).append(one)
    return [*map(list, clusters), *(tie for tie in shared.values() if 2 <= len(tie) <= 3)]


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    first=st.lists(data_sets, min_size=_AT_ONCE, max_size=_AT_ONCE),
    second=st.lists(data_sets, min_size=_AT_ONCE, max_size=_AT_ONCE),
)
def test_no_tie_is_on_two_sides_and_adding_listings_moves_only_what_they_tie(
    tables: Tables, first: Any, second: Any
) -> None:
    drawn = [named(number, one) for number, one in enumerate(first)]
    more = [
        named(number, (one[0] | other[0] | one[0], other[1], 0))
        for number, (one, other) in enumerate(zip(first, second, strict=True))
    ]
    vins = {one: vin for listings, _, _ in drawn for one, vin in listings.items()}
    clusters = [cluster for _, of_set, _ in drawn for cluster in of_set]
    stock = [cluster for _, _, of_set in drawn for cluster in of_set]
    tables.load(vins, clusters, stock)
    before, parent = tables.split(), tables.outcomes()
    assert_no_tie_is_parted(before, ties_of(vins, clusters))

    all_vins = {one: vin for listings, _, _ in more for one, vin in listings.items()}
    all_clusters = clusters + [cluster for _, of_set, _ in more for cluster in of_set]
    tables.load(all_vins, all_clusters, stock)
    after = tables.split(parent)
    assert_no_tie_is_parted(after, ties_of(all_vins, all_clusters))
    assert_moves_are_counted(before, after, count_inherited(tables.catalog))


def assert_no_tie_is_parted(found: Mapping[Listing, tuple[str, str]], ties: Sequence[Sequence[Listing]]) -> None:
    assert [tie for tie in ties if len({found[one] for one in tie}) != 1] == []
    # What no chain of ties connects is no group: groups are not larger than they must be.
    group = {one: one for one in found}
    for _ in range(len(found)):
        changed = False
        for tie in ties:
            smallest = min(group[one] for one in tie)
            changed |= any(group[one] != smallest for one in tie)
            group |= dict.fromkeys(tie, smallest)
        if not changed:
            break
    assert {one: "/".join(group[one]) for one in found} == {one: name for one, (name, _) in found.items()}


def assert_moves_are_counted(before: Any, after: Any, counts: Mapping[str, int]) -> None:
    parents: dict[str, set[str]] = {}
    for one, (group, _) in before.items():
        parents.setdefault(after[one][0], set()).add(group)
    moved = {before[one][0] for one in before if before[one][1] != after[one][1]}
    assert counts["moved"] == len(moved)
    assert counts["merged"] == sum(len(groups) > 1 for groups in parents.values())
    # Only a group that merged may move.
    merged = set().union(*(groups for groups in parents.values() if len(groups) > 1))
    assert moved <= merged
