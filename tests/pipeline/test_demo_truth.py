"""What the demo holds its curation against."""

import csv
from pathlib import Path
from typing import Any

from pipeline.demo_truth import hold_against, stored_photos, write_labels
from pipeline.global_stage import WHOLE
from schemas.receipts import PartWriter
from schemas.storage import Root
from schemas.tables import DUPLICATES, SCORES, table_of
from tests.pipeline.roots import new_root


def commit(root: Root, stage: str, rows: list[dict[str, Any]]) -> None:
    folder, schema = ("duplicates", DUPLICATES) if stage == "duplicates" else ("scores", SCORES)
    writer = PartWriter(root, stage, WHOLE, token="test", fence=lambda: None)
    writer.write_table(folder, table_of(rows, schema))
    writer.commit(counts={}, settings={}, code_version="test")


def photo(**known: Any) -> dict[str, Any]:
    return {"kind": "exterior", "copy": None, "copy_of": None, "stock": None, "picture": "a", **known}


def test_labels_are_drawn_at_random_the_same_each_time(tmp_path: Path) -> None:
    photos = stored_photos(120)
    kinds = {key: one["kind"] for key, one in photos.items()}
    assert write_labels(photos, tmp_path / "a.csv", 40) == 40
    write_labels(dict(reversed(photos.items())), tmp_path / "b.csv", 40)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["label"] == ("keep" if kinds[row["key"]] == "exterior" else "junk") for row in rows)
    assert {row["label"] for row in rows} == {"keep", "junk"}


def test_what_was_found_is_counted_against_what_was_planted(tmp_path: Path) -> None:
    photos = {
        "d/1/000": photo(picture="a"),
        "d/2/000": photo(picture="a", copy="exact", copy_of="d/1/000"),
        "d/3/000": photo(picture="b"),
        "d/4/000": photo(picture="c", copy="crop", copy_of="d/3/000"),
        "d/5/000": photo(picture="s", stock="s"),
        "d/6/000": photo(picture="e", kind="junk"),
        "d/7/000": photo(picture="f"),
    }
    duplicates = {
        "d/1/000": ("d/1/000", None),
        "d/2/000": ("d/1/000", "exact_duplicate"),
        "d/5/000": ("d/5/000", "stock_photo"),
        "d/7/000": ("d/1/000", "copy"),
    }
    root = new_root(tmp_path)
    rows = []
    for key in photos:
        cluster, reason = duplicates.get(key, (None, None))
        rows.append(
            {
                **{"key": key, "cluster_id": cluster, "cluster_size": 1, "cluster_listings": 1},
                **{"kept": reason is None, "drop_reason": reason},
            }
        )
    commit(root, "duplicates", rows)
    commit(root, "score", [{"key": key, "drop_reason": "junk" if key == "d/6/000" else None} for key in photos])
    counted = {
        row["planted"].split(" (")[0]: (row["right"], row["of"]) for row in hold_against(root, photos).to_pylist()
    }
    assert counted == {
        "exact copies found": (1, 1),
        "changed copies found": (0, 1),
        "stock photos dropped": (1, 1),
        "photos called a copy that are one": (2, 3),
        "junk removed": (1, 1),
        "photos of cars kept": (3, 3),
    }
