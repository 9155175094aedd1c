from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.publish import publish
from pipeline.publish_content import Fractions, PublishSettings
from schemas.manifest import read_manifest, read_rows
from schemas.storage import Root
from tests.pipeline.published import Car, ingest
from tests.pipeline.roots import new_root

ALL_TRAIN = Fractions(train=1, val=0, test=0)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return new_root(tmp_path / "root")


def rows_of(root: Root) -> dict[str, dict[str, Any]]:
    batches = read_rows(root, read_manifest(root, "cars"))
    return {row["listing_id"]: row for row in pa.Table.from_batches(batches).to_pylist()}


def publish_all_train(root: Root, **values: Any) -> dict[str, Any]:
    return publish(root, "cars", PublishSettings(fractions=ALL_TRAIN, **values))


def test_a_price_is_in_the_bin_whose_lower_edge_it_reaches(root: Root) -> None:
    prices = ["0.01", "9999.99", "10000", "14999.99", "15000", "59999.99", "60000", "9999999999.99"]
    ingest(root, "demo-0", [Car(str(at), columns={"price_usd": Decimal(price)}) for at, price in enumerate(prices)])
    publish_all_train(root)
    rows = rows_of(root)
    assert [rows[str(at)]["price_bin"] for at in range(len(prices))] == [0, 0, 1, 1, 2, 8, 9, 9]
    classes = read_manifest(root, "cars").vocabulary.price_classes
    assert (len(classes), classes[0], classes[1], classes[9]) == (
        10,
        "below $10,000",
        "$10,000 to $15,000",
        "$60,000 and more",
    )


def test_a_missing_target_is_null_and_a_price_of_nothing_is_missing(root: Root) -> None:
    nothing: Mapping[str, Any] = {"make": " ", "year": None, "price_usd": None}
    ingest(
        root,
        "demo-0",
        [
            Car("1", columns={"model": None}),
            Car("2", columns={"year": None}),
            Car("3", columns={"price_usd": 0}),
            Car("4", columns=nothing),
        ],
    )
    assert publish_all_train(root).items() >= {"no_target_dropped": 1, "kept": 3}.items()
    rows = rows_of(root)
    assert (rows["1"]["make_model"], rows["1"]["make_model_id"], rows["1"]["price_bin"]) == (None, None, 1)
    assert (rows["2"]["year_id"], rows["3"]["price_bin"]) == (None, None)


@pytest.mark.parametrize(
    ("require", "kept"),
    [
        ("any", "1234"),
        (["price"], "134"),
        (["price", "year"], "13"),
        (["make_model", "year", "price"], "1"),
        ([], "12345"),
    ],
)
def test_a_photo_must_have_the_targets_that_are_asked_for(root: Root, require: Any, kept: str) -> None:
    missing: dict[str, dict[str, Any]] = {
        "1": {},
        "2": {"price_usd": None, "year": None},
        "3": {"model": None},
        "4": {"make": "", "year": None},
        "5": {"price_usd": None, "year": None, "make": None},
    }
    ingest(root, "demo-0", [Car(name, columns=columns) for name, columns in missing.items()])
    publish_all_train(root, require=require)
    assert "".join(sorted(rows_of(root))) == kept


def test_spellings_that_differ_in_case_or_blanks_are_one_class_shown_as_most_spell_it(root: Root) -> None:
    spelled = [
        ("BMW", "3 Series"),
        ("Bmw", "3  series"),
        ("BMW", "3 Series"),
        ("bmw ", "3 Series"),
        ("BMW", "3-Series"),
    ]
    ingest(root, "demo-0", [Car(str(at), columns={"make": a, "model": b}) for at, (a, b) in enumerate(spelled)])
    publish_all_train(root)
    rows = rows_of(root)
    assert [rows[str(at)]["make_model"] for at in range(5)] == [*["BMW 3 Series"] * 4, "BMW 3-Series"]
    assert read_manifest(root, "cars").vocabulary.make_models == ["BMW 3 Series", "BMW 3-Series"]
    assert rows["1"]["model"] == "3  series"


def test_of_equally_frequent_names_the_first_in_order_is_in(root: Root) -> None:
    ingest(root, "demo-0", [Car(str(at), columns={"model": model}) for at, model in enumerate("CABBD")])
    answer = publish_all_train(root, num_make_models=3)
    assert read_manifest(root, "cars").vocabulary.make_models == ["Volvo B", "Volvo A", "Volvo C"]
    assert (answer["make_models"], answer["make_model_coverage"]) == (3, pytest.approx(4 / 5))
    left_out = rows_of(root)["4"]
    assert (left_out["make_model"], left_out["make_model_id"], left_out["model"]) == ("Unknown", 0, "D")


def test_the_vocabulary_is_of_the_training_split_and_what_it_lacks_is_unknown(root: Root) -> None:
    ingest(root, "demo-0", [Car(str(at), columns={"model": f"M{at % 3}", "year": 2000 + at}) for at in range(40)])
    publish(root, "cars", PublishSettings(fractions=Fractions(train=0.5, val=0.25, test=0.25)))
    words, rows = read_manifest(root, "cars").vocabulary, rows_of(root)
    assert words.years == sorted(row["year"] for row in rows.values() if row["split"] == "train")
    for row in rows.values():
        assert words.make_model_classes[row["make_model_id"]] == row["make_model"]
        known = row["year"] in words.years
        assert words.year_classes[row["year_id"]] == (str(row["year"]) if known else "Unknown")
        assert known == (row["split"] == "train")
    val = read_manifest(root, "cars").splits["val"]
    assert (val.year_coverage, val.make_model_coverage) == (0.0, 1.0)


def test_without_cuts_any_price_is_one_bin(root: Root) -> None:
    ingest(root, "demo-0", [Car("1")])
    publish_all_train(root, price_cuts=[])
    assert rows_of(root)["1"]["price_bin"] == 0
    assert read_manifest(root, "cars").vocabulary.price_classes == ["any price"]
