import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import datasets
import numpy as np
import pytest
from PIL import Image

from pipeline import publish as script
from pipeline import publish_export as module
from pipeline.publish import publish
from pipeline.publish_content import Fractions, PublishSettings
from pipeline.publish_export import export
from schemas.errors import UsageError
from schemas.manifest import Manifest, read_manifest
from schemas.storage import Root
from tests.pipeline.roots import Listing, new_root, noise, stored_photo, write_part

# Not every listing gives all: one has no price, one a model that others lack.
COLUMNS: dict[str, dict[str, Any]] = {
    "1": {"model": "V70", "year": 2011, "price_usd": 12_500},
    "2.b": {"model": "V70", "year": 2012},
    "3_x": {"model": "XC 90", "price_usd": 70_000},
}


_READ_TARS = """
import json, sys
import webdataset
for sample in webdataset.WebDataset(sys.argv[1:], shardshuffle=False, empty_check=False).decode("pil"):
    print(json.dumps([sample["__key__"], sample["__url__"], sample["jpg"].width, sample["json"]]))
"""


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = new_root(tmp_path / "root")
    for part, names in (("demo-0", ["1", "2.b"]), ("demo-1", ["3_x"])):
        listings = [
            Listing(name, [noise(ord(name[0])), noise(ord(name[0]) + 100)], columns=COLUMNS[name]) for name in names
        ]
        write_part(root, part, listings)
    return root


def published(root: Root, **values: Any) -> Manifest:
    publish(root, "cars", PublishSettings(fractions=Fractions(train=0.5, val=0.5, test=0), **values))
    return read_manifest(root, "cars")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_webdataset_reads_each_photo_with_its_targets(root: Root, tmp_path: Path) -> None:
    manifest = published(root)
    answer = export(root, manifest, "webdataset", tmp_path / "out")
    tars = sorted(map(str, (tmp_path / "out" / "data").iterdir()))
    # The library leaves the files it reads open, which in this process would be an error.
    command = [sys.executable, "-W", "ignore", "-c", _READ_TARS, *tars]
    read = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    rows: dict[str, dict[str, Any]] = {}
    for name, url, width_px, row in map(json.loads, read.stdout.splitlines()):
        assert unquote(name) == row["key"]
        assert Path(url).name.startswith(row["split"])
        assert row["width_px"] == width_px
        rows[row["key"]] = row
    assert set(rows) == {f"demo/{name}/{index:03d}" for name in COLUMNS for index in range(2)}
    assert (
        rows["demo/1/000"].items()
        >= {"price_usd": 12500.0, "price_bin": 1, "year": 2011, "make_model": "Volvo V70"}.items()
    )
    assert rows["demo/2.b/001"]["price_bin"] is None
    assert answer.items() >= {"exported": 6, "withdrawn": 0, "replaced": 0, "format": "webdataset"}.items()


def test_datasets_reads_pictures_and_classes(root: Root, tmp_path: Path) -> None:
    manifest = published(root)
    export(root, manifest, "datasets", tmp_path / "out")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: loaded[split].num_rows for split in loaded} == {
        hub: manifest.splits[split].photos
        for split, hub in (("train", "train"), ("val", "validation"))
        if manifest.splits[split].photos
    }
    rows = {row["key"]: row for split in loaded for row in loaded[split]}
    assert len(rows) == 6
    picture = rows["demo/3_x/001"]["image"]
    expected = Image.open(io.BytesIO(stored_photo(noise(ord("3") + 100)).jpeg))
    assert np.array_equal(np.asarray(picture), np.asarray(expected))
    features = next(iter(loaded.values())).features
    assert features["price_bin"].names == manifest.vocabulary.price_classes
    assert features["make_model_id"].names == manifest.vocabulary.make_model_classes
    named = features["price_bin"].int2str(rows["demo/3_x/000"]["price_bin"])
    assert named == "$60,000 and more"
    assert rows["demo/2.b/000"]["price_bin"] is None


def test_the_parquet_files_alone_load_too(root: Root, tmp_path: Path) -> None:
    export(root, published(root), "datasets", tmp_path / "out")
    files = sorted(map(str, (tmp_path / "out" / "data").glob("*.parquet")))
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded[0]["image"].size == (96, 72)


@pytest.mark.parametrize("form", ["webdataset", "datasets"])
def test_photos_are_cut_into_files_and_come_out_the_same_each_time(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(module, "_PHOTOS_PER_FILE", 2)
    manifest = published(root)
    export(root, manifest, form, tmp_path / "one")
    export(root, manifest, form, tmp_path / "two")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    expected = sum(-(-manifest.splits[split].photos // 2) for split in manifest.splits)
    assert len(list((tmp_path / "one" / "data").iterdir())) == expected
    listed = json.loads((tmp_path / "one" / "export.json").read_text(encoding="ascii"))["files"]
    assert set(listed) == set(files_of(tmp_path / "one")) - {"export.json"}


def test_half_an_export_is_never_there(root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = published(root)
    with monkeypatch.context() as patched:
        patched.setattr(module, "sync_file", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            export(root, manifest, "webdataset", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not export(root, manifest, "webdataset", tmp_path / "out")["unchanged"]
    assert export(root, manifest, "webdataset", tmp_path / "out")["unchanged"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "root"]


def _interrupt(path: Path) -> None:
    raise KeyboardInterrupt


def test_a_folder_with_something_else_in_it_is_refused(root: Root, tmp_path: Path) -> None:
    manifest = published(root)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("", encoding="ascii")
    with pytest.raises(UsageError, match="is no export"):
        export(root, manifest, "webdataset", tmp_path / "full")
    export(root, manifest, "webdataset", tmp_path / "out")
    with pytest.raises(UsageError, match="holds another export"):
        export(root, manifest, "datasets", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert export(root, manifest, "datasets", tmp_path / "empty")["exported"] == 6


def test_photos_withdrawn_or_replaced_since_are_left_out_and_counted(root: Root, tmp_path: Path) -> None:
    manifest = published(root)
    write_part(root, "demo-1", [Listing("3_x", [noise(1), None], columns=COLUMNS["3_x"])])
    answer = export(root, manifest, "webdataset", tmp_path / "out")
    assert answer.items() >= {"exported": 4, "withdrawn": 1, "replaced": 1}.items()


def test_the_script_exports_an_older_version_too(
    root: Root, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = published(root)
    published(root, num_make_models=0)
    arguments = ["--dataset", first.reference, "--export", "webdataset", "--out", str(tmp_path / "out")]
    assert script.main(["--root", root.text, *arguments]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last.items() >= {"version": first.version, "exported": 6, "unchanged": False}.items()
    with tarfile.open(next((tmp_path / "out" / "data").iterdir())) as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}
