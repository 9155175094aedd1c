import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import publish as script
from pipeline.publish import publish
from pipeline.publish_content import Fractions, PublishSettings
from pipeline.publish_diff import diff
from schemas.storage import Root
from tests.pipeline.published import Car, ingest, write_duplicates, write_scores
from tests.pipeline.roots import new_root

ALL_TRAIN = PublishSettings(fractions=Fractions(train=1, val=0, test=0))


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return new_root(tmp_path / "root")


def test_photos_are_added_and_removed_by_reason(root: Root) -> None:
    ingest(root, "demo-0", [Car(str(number)) for number in range(6)])
    ingest(root, "demo-1", [Car("6")])
    write_duplicates(root, [["demo/0/000", "demo/1/000"]])
    write_scores(root, ["demo/2/000"])
    first = publish(root, "cars", ALL_TRAIN)["version"]
    ingest(root, "demo-1", [Car("7")])
    write_duplicates(root, [["demo/3/000", "demo/4/000"]], reason="copy")
    write_scores(root, ["demo/5/000"])
    answer = publish(root, "cars", ALL_TRAIN)
    assert answer["withdrawn"] == 1
    found = diff(root, f"cars@{first}", "cars")
    assert found["added"] == {"junk": 1, "near_duplicate": 1, "new": 1}
    assert found["removed"] == {"copy": 1, "junk": 1, "withdrawn": 1}
    assert (found["kept_a"], found["kept_b"]) == (5, 5)
    assert found["moved"] == {}


def test_splits_targets_words_and_settings_are_compared(root: Root) -> None:
    ingest(root, "demo-0", [Car(str(number), columns={"model": f"M{number}"}) for number in range(3)])
    first = publish(root, "cars", ALL_TRAIN)["version"]
    changed: dict[str, dict[str, Any]] = {
        "0": {"model": "M0", "price_usd": 99_000},
        "1": {"model": "M9"},
        "2": {"model": "M2", "year": 1999},
    }
    ingest(root, "demo-0", [Car(name, columns=columns) for name, columns in changed.items()])
    all_val = PublishSettings(fractions=Fractions(train=0, val=1, test=0), parent="none", price_cuts=[50_000])
    publish(root, "cars", all_val)
    found = diff(root, f"cars@{first}", "cars")
    assert found["moved"] == {"train to val": 3}
    counts = {"price_bin": 2, "make_model": 3, "year": 1, "price_usd": 1, "picture": 0, "group_id": 0}
    assert found["changed"] == counts
    assert found["make_models_removed"] == ["Volvo M0", "Volvo M1", "Volvo M2"]
    assert (found["years_removed"], found["price_cuts_changed"]) == ([2011], True)
    assert "fractions.val: 0.0 there, 1.0 asked for" in found["settings"]


def test_a_version_differs_in_nothing_from_itself(root: Root) -> None:
    ingest(root, "demo-0", [Car("1")])
    publish(root, "cars", ALL_TRAIN)
    found = diff(root, "cars", "cars")
    assert (found["added"], found["removed"], found["moved"], found["settings"]) == ({}, {}, {}, [])
    assert not any(found["changed"].values())


def test_the_script_prints_a_table_and_the_last_line(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    ingest(root, "demo-0", [Car("1")])
    first = publish(root, "cars", ALL_TRAIN)["version"]
    ingest(root, "demo-1", [Car("2")])
    second = publish(root, "cars", ALL_TRAIN)["version"]
    assert script.main(["--root", root.text, "--dataset", "cars", "--diff", first, second]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert json.loads(last).items() >= {"a": f"cars@{first}", "b": f"cars@{second}", "added": {"new": 1}}.items()
    assert any(line.split() == ["added", "new", "1"] for line in table)
    assert script.main(["--root", root.text, "--diff", "cars@none-such", "cars"]) == 2
