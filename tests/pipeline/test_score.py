"""The score stage on small real roots: photos, labels and embeddings committed as their stages commit them."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import score as stage
from pipeline.catalog import query
from pipeline.embeddings import embed_stage, embeddings_folder, embeddings_table
from pipeline.filter_record import filter_plots, filter_report, labelled_photos
from pipeline.score import ScoreSettings, load_filter, main, score
from schemas.errors import ReconcileError, UsageError
from schemas.receipts import PartWriter
from schemas.storage import Root
from schemas.tables import LABELS, table_of
from tests.pipeline.roots import Listing, new_root, noise, write_part

ENCODER = "efficientnet_lite0"
DIM = 16
NUM_LISTINGS, NUM_PHOTOS = 24, 4
PHOTO = noise(1)


def is_junk(key: str) -> bool:
    """The last photo but one and the last of each listing are junk."""
    return int(key[-3:]) >= NUM_PHOTOS - 2


def vector(key: str) -> NDArray[np.float16]:
    rng = np.random.default_rng([*key.encode()])
    drawn = rng.normal(size=DIM) * 0.3
    drawn[0] += 1.0 if is_junk(key) else -1.0
    unit: NDArray[np.float16] = (drawn / np.linalg.norm(drawn)).astype(np.float16)
    return unit


def keys_of(listings: Sequence[int]) -> list[str]:
    return [f"demo/{listing:03d}/{index:03d}" for listing in listings for index in range(NUM_PHOTOS)]


KEYS = keys_of(range(NUM_LISTINGS))


def make_root(folder: Path, *, parts: int = 2) -> Root:
    root = new_root(folder)
    for part in range(parts):
        listings = range(part, NUM_LISTINGS, parts)
        write_part(root, f"demo-{part}", [Listing(f"{one:03d}", [PHOTO] * NUM_PHOTOS + [None]) for one in listings])
    return root


def write_embeddings(root: Root, keys: Sequence[str] = KEYS, *, parts: int = 2) -> None:
    for part in range(parts):
        own = [key for key in keys if int(key.split("/")[1]) % parts == part]
        writer = PartWriter(root, embed_stage(ENCODER), f"demo-{part}", token="test", fence=lambda: None)
        writer.write_table(embeddings_folder(ENCODER), embeddings_table(own, np.stack([vector(key) for key in own])))
        writer.commit(counts={"photos": len(own)}, settings={})


def write_labels(root: Root, labels: Mapping[str, str], *, sampled_by: str = "random") -> None:
    row = {"sampled_by": sampled_by, "labeller": "ann", "labelled_at": datetime(2026, 12, 1, tzinfo=UTC)}
    types = {"junk": "interior"}
    rows = [{**row, "key": key, "label": label, "junk_type": types.get(label)} for key, label in labels.items()]
    writer = PartWriter(root, "label", f"ann-{sampled_by}", token="test", fence=lambda: None)
    writer.write_table("labels", table_of(rows, LABELS))
    writer.commit(counts={"labels": len(rows)}, settings={})


def truth(listings: Sequence[int]) -> dict[str, str]:
    return {key: "junk" if is_junk(key) else "keep" for key in keys_of(listings)}


@pytest.fixture
def scored(tmp_path: Path) -> Root:
    root = make_root(tmp_path)
    write_embeddings(root)
    write_labels(root, truth(range(16)))
    score(root, ScoreSettings())
    return root


def test_every_stored_photo_gets_a_row_and_the_junk_is_dropped(scored: Root) -> None:
    rows = query(scored, "SELECT key, score, drop_reason FROM scores ORDER BY key").to_pylist()
    assert [row["key"] for row in rows] == KEYS
    assert [row["drop_reason"] == "junk" for row in rows] == [is_junk(key) for key in KEYS]
    assert all(row["score"] is not None for row in rows)


def test_the_last_line_tells_what_is_lost_and_removed(
    scored: Root, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", str(tmp_path)]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["unchanged"] is True
    assert said["photos"] == said["junk_dropped"] + said["kept"] + said["unscored"] == len(KEYS)
    assert (said["labels"], said["keepers"], said["junk"]) == (64, 32, 32)
    assert said["fnr"] == 0.0
    assert said["junk_removed"] == 1.0
    # 16 listings of two keepers each: no better than 16 independent photos.
    assert said["fnr_upper95"] == pytest.approx(1 - 0.05 ** (1 / 16))
    assert said["labels_needed"] == 2 * 299
    assert np.isfinite(said["threshold"])


def test_the_filter_loads_again_and_gives_the_scores_that_are_stored(scored: Root) -> None:
    junk_filter = load_filter(scored)
    vectors = np.stack([vector(key) for key in KEYS])
    stored = query(scored, "SELECT score FROM scores ORDER BY key")["score"].to_numpy()
    assert junk_filter.scores(vectors) == pytest.approx(stored, abs=1e-5)
    report = filter_report(scored)
    assert report is not None
    assert junk_filter.threshold == report["threshold"]
    assert junk_filter.encoder == ENCODER


def test_the_plots_are_png_and_the_types_of_junk_are_told(scored: Root) -> None:
    plots = filter_plots(scored)
    assert set(plots) == {"curve", "confusion"}
    assert all(png.startswith(b"\x89PNG") for png in plots.values())
    report = filter_report(scored)
    assert report is not None
    assert report["junk_types"] == [{"junk_type": "interior", "labels": 32, "removed": 32}]


def test_a_wrong_label_stands_first_among_those_to_look_at_again(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    write_embeddings(root)
    wrong = keys_of([3])[0]
    write_labels(root, {**truth(range(16)), wrong: "junk"})
    assert score(root, ScoreSettings())["disagreements"] == 1
    first, *others = labelled_photos(root)
    assert (first.key, first.label, first.disagrees) == (wrong, "junk", True)
    assert not any(one.disagrees for one in others)


def test_the_same_labels_give_the_same_bytes_however_parts_are_cut(tmp_path: Path) -> None:
    made = []
    for parts in (1, 3):
        root = make_root(tmp_path / str(parts), parts=parts)
        write_embeddings(root, parts=parts)
        write_labels(root, truth(range(16)))
        score(root, ScoreSettings())
        rows = query(root, "SELECT * FROM scores ORDER BY key").to_pylist()
        made.append((rows, [(tmp_path / str(parts) / "filters" / f"all{x}").read_bytes() for x in (".npz", ".json")]))
    assert made[0] == made[1]


def test_new_labels_are_taken_up_and_the_files_before_are_gone(scored: Root, tmp_path: Path) -> None:
    write_labels(scored, truth(range(16, 24)), sampled_by="uncertain")
    said = score(scored, ScoreSettings())
    assert (said["unchanged"], said["labels"], said["random_keepers"]) == (False, 96, 32)
    assert {path.name.split(".")[1] for path in (tmp_path / "filters").iterdir()} == {"g2"}


def test_without_labels_nothing_is_marked_and_no_embedding_is_needed(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    said = score(root, ScoreSettings())
    assert "no photo is marked as junk: a filter needs 10 of each label" in said["message"]
    assert (said["labels"], said["threshold"], said["labels_needed"]) == (0, None, 299)
    assert said["photos"] == said["unscored"] == len(KEYS)
    marked = query(root, "SELECT count(*) AS n FROM scores WHERE score IS NOT NULL OR drop_reason IS NOT NULL")
    assert marked["n"][0].as_py() == 0
    with pytest.raises(UsageError, match="no junk filter: no photo is marked"):
        load_filter(root)


def test_too_few_labels_say_what_is_missing(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    write_embeddings(root)
    write_labels(root, {key: label for key, label in truth(range(8)).items() if label == "keep" or key < "demo/003"})
    said = score(root, ScoreSettings())
    assert "there are junk: 6 labels of 3 listings" in said["message"]
    assert said["unscored"] == len(KEYS)


def test_labels_of_no_random_draw_make_a_filter_without_a_bound(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    write_embeddings(root)
    write_labels(root, truth(range(16)), sampled_by="uncertain")
    said = score(root, ScoreSettings())
    assert said["fnr_upper95"] is None
    assert "no keeper was sampled at random" in said["message"]
    assert said["junk_dropped"] == len(KEYS) // 2


def test_a_photo_without_an_embedding_is_unscored(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    write_embeddings(root, KEYS[:-1])
    write_labels(root, truth(range(16)))
    said = score(root, ScoreSettings())
    assert (said["unscored"], said["photos"]) == (1, len(KEYS))


def test_an_embedding_of_no_stored_photo_stops_the_run(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    write_embeddings(root, [*KEYS, "demo/000/009"])
    write_labels(root, truth(range(16)))
    with pytest.raises(ReconcileError, match="demo/000/009"):
        score(root, ScoreSettings())
    assert filter_report(root) is None


def test_labels_without_embeddings_name_the_command_that_makes_them(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    write_labels(root, truth(range(16)))
    with pytest.raises(UsageError, match=r"pipeline/embed\.py"):
        score(root, ScoreSettings())


def test_the_door_of_training_is_light() -> None:
    text = Path(stage.__file__).read_text(encoding="utf-8")
    top = [line for line in text.splitlines() if line.startswith(("import", "from"))]
    assert not any(heavy in line for line in top for heavy in ("sklearn", "matplotlib", "torch", "duckdb", "score_fit"))
