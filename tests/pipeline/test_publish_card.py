import json
from pathlib import Path

import mlcroissant
import pytest

from pipeline import publish_card as module
from pipeline.publish import publish
from pipeline.publish_content import PublishSettings
from schemas.manifest import read_manifest
from schemas.storage import Root
from schemas.tables import DATASET_PHOTOS
from tests.pipeline.published import Car, ingest, write_duplicates
from tests.pipeline.roots import new_root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = new_root(tmp_path / "root")
    ingest(root, "demo-0", [Car(str(number), 2, columns={"year": 2000 + number}) for number in range(9)])
    ingest(root, "other-0", [Car("1", columns={"price_usd": None})], site="other")
    return root


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("num_files", [1, 3])
def test_croissant_describes_rows_that_mlcroissant_reads(
    root: Root, monkeypatch: pytest.MonkeyPatch, num_files: int
) -> None:
    monkeypatch.setattr("pipeline.publish._ROWS_PER_FILE", 21 // num_files)
    publish(root, "cars", PublishSettings())
    manifest = read_manifest(root, "cars")
    assert len(manifest.files_of("photos")) == num_files
    described = mlcroissant.Dataset(root.path(f"{manifest.folder}/croissant.json"))
    assert described.metadata.ctx.issues.errors == set()
    records = list(described.records("photos"))
    rows = {record["photos/key"].decode(): record for record in records}
    assert len(rows) == len(records) == 19
    assert rows["demo/3/001"]["photos/year"] == 2003
    assert rows["demo/3/001"]["photos/price_usd"] == 12_500.0
    assert rows["other/1/000"]["photos/site"] == b"other"


def test_each_column_is_explained(root: Root) -> None:
    assert set(module.COLUMNS) == set(DATASET_PHOTOS.names)
    publish(root, "cars", PublishSettings())
    described = json.loads(root.read_bytes(f"{read_manifest(root, 'cars').folder}/croissant.json"))
    assert [field["name"] for field in described["recordSet"][0]["field"]] == DATASET_PHOTOS.names


def test_the_card_says_what_is_in_it_and_what_is_not(root: Root) -> None:
    write_duplicates(root, [["demo/1/000", "demo/2/000"]])
    publish(root, "cars", PublishSettings())
    manifest = read_manifest(root, "cars")
    card = root.read_bytes(f"{manifest.folder}/README.md").decode()
    assert card.startswith("# cars\n\n18 photos of 10 vehicle listings in 9 groups.")
    for line in ("| near dropped | 1 |", "| `demo` | 17 |", "| kept | 18 |", "## Licence", "## Known limits"):
        assert line in card
    assert f"Version `{manifest.version}`" in card
    for number in (manifest.splits[split].photos for split in ("train", "val", "test")):
        assert f"| {number:,} |" in card
    assert "no scores: no junk is dropped" in card


def test_the_card_of_a_later_version_tells_what_it_inherits(root: Root) -> None:
    publish(root, "cars", PublishSettings())
    first = read_manifest(root, "cars").reference
    write_duplicates(root, [["demo/1/000", "demo/2/000"]])
    publish(root, "cars", PublishSettings())
    card = root.read_bytes(f"{read_manifest(root, 'cars').folder}/README.md").decode()
    assert f"after `{first}`" in card
    assert "Of the parent 9 groups keep their split; 1 groups were several there" in card
