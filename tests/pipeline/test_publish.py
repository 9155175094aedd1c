import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import publish as script
from pipeline.catalog import Catalog, query
from pipeline.embeddings import embeddings_table
from pipeline.lease import hold_lease
from pipeline.publish import publish
from pipeline.publish_content import Fractions, PublishSettings
from schemas.errors import LeaseError, ReconcileError, RunError, UsageError
from schemas.manifest import Manifest, latest_version, read_manifest, read_rows
from schemas.receipts import PartWriter, read_receipt
from schemas.storage import Root
from schemas.tables import DATASET_OUTCOMES, DATASET_PHOTOS, SCORES
from tests.pipeline.published import Car, commit, ingest, write_duplicates, write_scores
from tests.pipeline.roots import new_root

DEFAULTS = PublishSettings()
NO_TARGET = {"make": None, "model": None, "year": None, "price_usd": None}


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return new_root(tmp_path / "root")


def rows_of(root: Root, table: str = "photos", reference: str = "cars") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.Table.from_batches(
        read_rows(root, read_manifest(root, reference), table)
    ).to_pylist()
    return rows


def cars(*numbers: int, **columns: Any) -> list[Car]:
    return [Car(str(number), columns=columns) for number in numbers]


def content_of(root: Root) -> dict[str, bytes]:
    """Return the bytes of all that is published, but for times."""
    folder = Path(root.path("datasets"))
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not name.endswith("manifest.json")}


def write_embeddings(root: Root, part: str, keys: Sequence[str], *, unreadable: int) -> None:
    table = embeddings_table(keys, np.full((len(keys), 4), 0.5, np.float16))
    writer = PartWriter(root, "embed/tiny", part, token="test", fence=lambda: None)
    writer.write_table("embeddings/tiny", table)
    writer.commit(counts={"embedded": len(keys), "unreadable": unreadable}, settings={}, code_version="test")


def test_kept_photos_have_targets_and_a_split_and_every_photo_an_outcome(root: Root) -> None:
    ingest(root, "demo-0", [Car("1", 2), Car("2", columns={"price_usd": None})])
    write_duplicates(root, [["demo/1/000", "demo/1/001"]], reason="exact_duplicate")
    write_scores(root)
    answer = publish(root, "cars", PublishSettings(fractions=Fractions(train=1, val=0, test=0)))
    counted = {"photos": 3, "exact_dropped": 1, "kept": 2, "groups": 2, "train": 2, "val": 0, "test": 0}
    assert answer.items() >= {**counted, "dataset": "cars", "unchanged": False}.items()
    first, second = rows_of(root)
    place = {"key": "demo/1/000", "part": "demo-0", "split": "train", "group_id": "demo/1", "site": "demo"}
    targets = {"make": "Volvo", "model": "V70", "year": 2011, "price_bin": 1, "make_model": "Volvo V70"}
    assert first.items() >= {**place, **targets, "make_model_id": 1, "year_id": 1, "width_px": 341}.items()
    assert (second["price_usd"], second["price_bin"], second["make_model_id"]) == (None, None, 1)
    outcomes = {row["key"]: (row["outcome"], row["drop_reason"]) for row in rows_of(root, "outcomes")}
    assert outcomes["demo/1/001"] == ("dropped", "exact_duplicate")
    assert outcomes["demo/2/000"] == ("kept", None)


def test_a_photo_is_out_for_the_first_reason_that_holds(root: Root) -> None:
    ingest(root, "demo-0", [*(Car(str(i), columns=NO_TARGET) for i in range(4)), *cars(4)])
    write_duplicates(root, [["demo/4/000", "demo/0/000", "demo/1/000"]])
    write_scores(root, ["demo/0/000", "demo/1/000", "demo/2/000"])
    write_embeddings(root, "demo-0", [f"demo/{i}/000" for i in range(1, 5)], unreadable=1)
    answer = publish(root, "cars", DEFAULTS)
    counts = {"unreadable": 1, "near_dropped": 1, "junk_dropped": 1, "no_target_dropped": 1, "kept": 1, "photos": 5}
    assert answer.items() >= counts.items()
    reasons = {row["key"][5]: row["drop_reason"] for row in rows_of(root, "outcomes")}
    assert reasons == {"0": "unreadable", "1": "near_duplicate", "2": "junk", "3": "no_target", "4": None}


@pytest.mark.parametrize(
    ("reason", "count"),
    [
        ("exact_duplicate", "exact_dropped"),
        ("near_duplicate", "near_dropped"),
        ("copy", "copy_dropped"),
        ("stock_photo", "stock_dropped"),
    ],
)
def test_each_reason_of_duplicates_has_its_count(root: Root, reason: str, count: str) -> None:
    ingest(root, "demo-0", cars(1, 2, 3))
    write_duplicates(root, [["demo/1/000", "demo/2/000"]], reason=reason)
    expected = 2 if reason == "stock_photo" else 1
    assert publish(root, "cars", DEFAULTS).items() >= {count: expected, "kept": 3 - expected, "photos": 3}.items()


def test_stages_that_were_not_run_are_named_and_publish_goes_without(root: Root) -> None:
    ingest(root, "demo-0", cars(1, 2))
    answer = publish(root, "cars", DEFAULTS)
    assert [note.split(":")[0] for note in answer["notes"]] == ["no duplicates are known", "no embeddings", "no scores"]
    assert answer["kept"] == 2


def test_publishing_again_changes_nothing(root: Root) -> None:
    ingest(root, "demo-0", cars(1, 2, 3))
    write_duplicates(root)
    first = publish(root, "cars", DEFAULTS)
    files = {path: path.stat().st_mtime_ns for path in Path(root.path("datasets")).rglob("*")}
    again = publish(root, "cars", DEFAULTS)
    assert again.items() >= {"unchanged": True, "version": first["version"], "parent": None}.items()
    assert {path: path.stat().st_mtime_ns for path in Path(root.path("datasets")).rglob("*")} == files


def test_the_version_is_that_of_the_content_whatever_the_parts_and_the_name(tmp_path: Path) -> None:
    one, many = new_root(tmp_path / "one"), new_root(tmp_path / "many")
    ingest(one, "demo-0", cars(*range(9)))
    for number in reversed(range(9)):
        ingest(many, f"demo-{number}", cars(number))
    versions = [publish(root, name, DEFAULTS)["version"] for root, name in ((one, "cars"), (many, "other"))]
    assert versions[0] == versions[1]
    assert sum(read_manifest(many, "other").parts.values()) == 9


def test_other_settings_or_photos_make_another_version_beside_the_first(root: Root) -> None:
    ingest(root, "demo-0", cars(1, 2, 3))
    first = publish(root, "cars", DEFAULTS)["version"]
    before = content_of(root)
    second = publish(root, "cars", PublishSettings(price_cuts=[5_000, 20_000]))
    assert second["parent"] == f"cars@{first}"
    assert latest_version(root, "cars") == second["version"] != first
    assert {row["price_bin"] for row in rows_of(root)} == {1}
    ingest(root, "demo-1", cars(4))
    third = publish(root, "cars", DEFAULTS)
    assert len({first, second["version"], third["version"]}) == 3
    assert {name: data for name, data in content_of(root).items() if first in name} == {
        name: data for name, data in before.items() if first in name
    }
    assert len(rows_of(root, reference=f"cars@{first}")) == 3


def test_going_back_to_what_was_published_names_that_version_again(root: Root) -> None:
    ingest(root, "demo-0", cars(1, 2, 3))
    first = publish(root, "cars", DEFAULTS)["version"]
    publish(root, "cars", PublishSettings(num_make_models=0))
    back = publish(root, "cars", DEFAULTS)
    assert back.items() >= {"version": first, "unchanged": True}.items()
    assert latest_version(root, "cars") == first


def test_groups_keep_the_split_of_the_parent_also_where_fractions_change(root: Root) -> None:
    ingest(root, "demo-0", cars(*range(30)))
    publish(root, "cars", DEFAULTS)
    before = {row["key"]: row["split"] for row in rows_of(root)}
    ingest(root, "demo-1", cars(*range(30, 60)))
    half = PublishSettings(fractions=Fractions(train=0, val=0, test=1))
    publish(root, "cars", half)
    after = {row["key"]: row["split"] for row in rows_of(root)}
    assert {key: after[key] for key in before} == before
    assert {split for key, split in after.items() if key not in before} == {"test"}
    assert read_manifest(root, "cars").inheritance.groups == 30
    alone = publish(root, "cars", PublishSettings(fractions=half.fractions, parent="none"))
    assert (alone["parent"], alone["test"]) == (None, 60)


def test_a_parent_of_another_name_passes_its_splits_on(root: Root) -> None:
    ingest(root, "demo-0", cars(*range(20)))
    publish(root, "old", DEFAULTS)
    publish(root, "new", PublishSettings(fractions=Fractions(train=0, val=1, test=0), parent="old"))
    splits = [{row["key"]: row["split"] for row in rows_of(root, reference=name)} for name in ("old", "new")]
    assert splits[0] == splits[1]
    with pytest.raises(UsageError, match="no data set 'none-such'"):
        publish(root, "new", PublishSettings(parent="none-such"))


def test_a_split_is_inherited_through_a_listing_whose_photos_were_all_dropped(root: Root) -> None:
    ingest(root, "demo-0", cars(*range(30)))
    clusters = [[f"demo/{i}/000", f"demo/{i + 1}/000"] for i in range(0, 30, 2)]
    write_duplicates(root, clusters)
    publish(root, "cars", DEFAULTS)
    before = {row["key"]: row["split"] for row in rows_of(root, "outcomes")}
    write_duplicates(root)
    publish(root, "cars", PublishSettings(fractions=Fractions(train=0, val=0, test=1)))
    assert {row["key"]: row["split"] for row in rows_of(root)} == before


def test_several_sites_publish_together(root: Root) -> None:
    ingest(root, "demo-0", cars(1, 2))
    ingest(root, "other-0", cars(1), site="other")
    publish(root, "cars", DEFAULTS)
    assert read_manifest(root, "cars").sites == {"demo": 2, "other": 1}
    assert {row["group_id"] for row in rows_of(root)} == {"demo/1", "demo/2", "other/1"}


def test_a_missing_doubled_or_stray_row_fails_the_run(root: Root) -> None:
    ingest(root, "demo-0", cars(1, 2))
    write_duplicates(root)
    write_scores(root)
    ingest(root, "demo-1", cars(3))
    with pytest.raises(ReconcileError, match="stored and have no row in duplicates: demo/3/000"):
        publish(root, "cars", DEFAULTS)
    write_duplicates(root)
    with pytest.raises(ReconcileError, match="have no row in scores: demo/3/000"):
        publish(root, "cars", DEFAULTS)
    write_scores(root)
    publish(root, "cars", DEFAULTS)
    ingest(root, "demo-1", [])
    with pytest.raises(ReconcileError, match="not stored and have a row in duplicates: demo/3/000"):
        publish(root, "cars", DEFAULTS)
    ingest(root, "demo-1", cars(2))
    with pytest.raises(ReconcileError, match="more than one row in photos: demo/2/000"):
        publish(root, "cars", DEFAULTS)
    assert len(root.list_folders("datasets/cars")) == 1


def test_embeddings_that_lack_more_than_they_count_as_unreadable_fail_the_run(root: Root) -> None:
    ingest(root, "demo-0", cars(1, 2, 3))
    write_embeddings(root, "demo-0", ["demo/1/000"], unreadable=1)
    with pytest.raises(ReconcileError, match="lacks 2 photos"):
        publish(root, "cars", DEFAULTS)


def test_an_unreadable_photo_needs_no_score(root: Root) -> None:
    ingest(root, "demo-0", cars(1, 2))
    write_embeddings(root, "demo-0", ["demo/1/000"], unreadable=1)
    rows = [{"key": "demo/1/000", "score": 0.0}]
    commit(root, "score", "all", {"scores": pa.Table.from_pylist(rows, schema=SCORES)})
    assert publish(root, "cars", DEFAULTS).items() >= {"unreadable": 1, "kept": 1}.items()


def test_where_nothing_is_left_there_is_nothing_to_publish(root: Root) -> None:
    ingest(root, "demo-0", cars(1, **NO_TARGET))
    with pytest.raises(RunError, match=r"no photo is left to publish.*'no_target_dropped': 1"):
        publish(root, "cars", DEFAULTS)
    assert root.list_folders("datasets") == []


@pytest.mark.parametrize("at", range(7))
def test_interrupted_at_any_step_and_run_again_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole, cut = new_root(tmp_path / "whole"), new_root(tmp_path / "cut")
    for root in (whole, cut):
        ingest(root, "demo-0", cars(*range(5)))
    publish(whole, "cars", DEFAULTS)
    steps = 0

    def stop() -> None:
        nonlocal steps
        steps += 1
        if steps > at:
            raise KeyboardInterrupt

    def rename(root: Root, staged: Path, name: str) -> None:
        stop()
        renamed(root, staged, name)

    def write(root: Root, name: str, data: bytes, *, durable: bool = True) -> None:
        if name.endswith("LATEST"):
            stop()
        written(root, name, data, durable=durable)

    renamed, written = Root.publish, Root.write_bytes
    with monkeypatch.context() as patched:
        # What a kill leaves is what was staged and renamed so far: nothing is tidied up.
        patched.setattr(PartWriter, "abandon", lambda writer: None)
        patched.setattr(Root, "publish", rename)
        patched.setattr(Root, "write_bytes", write)
        with pytest.raises(KeyboardInterrupt):
            publish(cut, "cars", DEFAULTS)
    assert latest_version(cut, "cars") is None
    publish(cut, "cars", DEFAULTS)
    assert content_of(cut) == content_of(whole)
    assert list(Path(cut.path("")).rglob("*.tmp*")) == []


def test_a_damaged_version_is_written_again(root: Root) -> None:
    ingest(root, "demo-0", cars(1, 2))
    publish(root, "cars", DEFAULTS)
    manifest = read_manifest(root, "cars")
    Path(root.path(manifest.files_of("photos")[0])).write_bytes(b"")
    assert not publish(root, "cars", DEFAULTS)["unchanged"]
    assert len(rows_of(root)) == 2
    receipt = read_receipt(root, "publish", manifest.reference)
    assert receipt is not None
    assert receipt.generation == 2
    assert root.list(f"{manifest.folder}/photos") == [f"{manifest.folder}/photos/00000.g2.parquet"]


def test_a_report_in_a_versions_folder_stays(root: Root) -> None:
    ingest(root, "demo-0", cars(1, 2))
    publish(root, "cars", DEFAULTS)
    report = f"{read_manifest(root, 'cars').folder}/report.html"
    root.write_bytes(report, b"<p>")
    publish(root, "cars", PublishSettings(num_make_models=0))
    assert root.exists(report)


def test_the_manifest_lists_parts_files_and_what_made_it(root: Root) -> None:
    ingest(root, "demo-0", cars(1, 2))
    ingest(root, "demo-2", cars(3))
    publish(root, "cars", DEFAULTS)
    manifest = read_manifest(root, "cars")
    assert manifest.parts == {"demo-0": 2, "demo-2": 1}
    for name, entry in manifest.files.items():
        data = root.read_bytes(name)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.bytes, entry.sha256)
    assert manifest.settings["price_cuts"] == DEFAULTS.price_cuts
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert root.read_table(manifest.files_of("photos")[0]).schema.equals(DATASET_PHOTOS)
    assert root.read_table(manifest.files_of("outcomes")[0]).schema.equals(DATASET_OUTCOMES)


def test_the_catalog_shows_the_latest_photos_and_why_each_other_is_out(root: Root) -> None:
    ingest(root, "demo-0", [*cars(1), *cars(2, **NO_TARGET)])
    version = publish(root, "cars", DEFAULTS)["version"]
    rows = query(root, "SELECT dataset, version, key FROM datasets").to_pylist()
    assert rows == [{"dataset": "cars", "version": version, "key": "demo/1/000"}]
    with Catalog(root) as catalog:
        reason = catalog.query("SELECT outcome, reason FROM outcomes WHERE key = 'demo/2/000'").to_pylist()
    assert reason == [{"outcome": "dropped", "reason": "no_target"}]


def test_two_runs_at_once_are_refused(root: Root) -> None:
    ingest(root, "demo-0", cars(1))
    with hold_lease(root, "publish"), pytest.raises(LeaseError):
        publish(root, "cars", DEFAULTS)


def test_the_script_prints_the_counts_that_curate_passes_on(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    ingest(root, "demo-0", cars(*range(4)))
    assert script.main(["--root", root.text, "--dataset", "cars"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = (
        "photos unreadable exact_dropped near_dropped copy_dropped stock_dropped junk_dropped no_target_dropped".split()
    )
    assert last["photos"] == sum(last[name] for name in names[1:]) + last["kept"] == 4
    assert last["kept"] == last["train"] + last["val"] + last["test"]
    assert {"groups", "dataset", "version", "seconds"} <= last.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "takes --dataset"),
        (["--dataset", "../cars"], "letters, digits"),
        (["--dataset", "cars", "--export", "datasets"], "takes --out"),
        (["--dataset", "cars", "--export", "datasets", "--out", "x"], "no data set 'cars'"),
        (["--dataset", "cars", "--set", "publish.fractions.val=0.5"], "must sum to 1, found 1.4"),
        (["--dataset", "cars", "--set", "publish.price_cuts=[2, 1]"], "must rise"),
        (["--dataset", "cars", "--set", "publish.require=[colour]"], "publish.require"),
        (["--dataset", "cars", "--set", "publish.cuts=[1]"], "unknown setting publish.cuts"),
    ],
)
def test_misuse_exits_2_and_says_what_was_expected(
    root: Root, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert script.main(["--root", root.text, *arguments]) == 2
    assert message in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
