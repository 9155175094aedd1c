from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.label_queue import PhotoIndex, QueueError, Queues, random_order
from pipeline.label_rows import LabelRow
from schemas.receipts import PartWriter
from schemas.storage import Root
from schemas.tables import DUPLICATES, SCORES, table_of
from tests.pipeline.roots import Listing, new_root, noise, write_part
from tests.pipeline.test_label_rows import row


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Six stored photos of three listings, a seventh not stored; ids that start alike."""
    root = new_root(tmp_path)
    listings = [Listing("1", [noise(1), noise(2), None]), Listing("10", [noise(3)]), Listing("2", [noise(4)] * 3)]
    write_part(root, "demo-0", listings[:2])
    write_part(root, "demo-1", listings[2:])
    return root


def keys_of(index: PhotoIndex) -> list[str]:
    return [index.key(place) for place in range(len(index))]


def no_text(_prompt: str) -> NDArray[np.float32]:
    raise QueueError("no text")


def queues(root: Root, labels: Mapping[str, list[LabelRow]] | None = None, *, seed: str = "a") -> Queues:
    return Queues(root, PhotoIndex(root), lambda key: (labels or {}).get(key, ()), seed, no_text)


def take(
    of: Queues, num: int, *, sampling: str = "random", labeller: str = "ann", held: Collection[str] = ()
) -> list[str]:
    return [of.index.key(p) for p in of.take(num, labeller=labeller, sampling=sampling, prompt="", held=held)]


def write_scores(root: Root, scores: Mapping[str, float | None], *, threshold: float) -> None:
    writer = PartWriter(root, "score", "all", token="test", fence=lambda: None)
    rows = [
        {"key": key, "score": score, "drop_reason": "junk" if score is not None and score > threshold else None}
        for key, score in scores.items()
    ]
    writer.write_table("scores", table_of(rows, SCORES))
    writer.commit(counts={}, settings={}, code_version="test")


def drop(root: Root, key: str) -> None:
    writer = PartWriter(root, "duplicates", "all", token="test", fence=lambda: None)
    rows = [{"key": one, "kept": one != key} for one in keys_of(PhotoIndex(root))]
    writer.write_table("duplicates", table_of(rows, DUPLICATES))
    writer.commit(counts={}, settings={}, code_version="test")


def test_the_index_has_stored_photos_and_their_listings_others(root: Root) -> None:
    index = PhotoIndex(root)
    assert keys_of(index) == ["demo/1/000", "demo/1/001", "demo/10/000", "demo/2/000", "demo/2/001", "demo/2/002"]
    assert (index.find("demo/1/002"), index.find("demo/10/000"), index.find("")) == (None, 2, None)
    assert [photo.key for photo in index.neighbours(0)] == ["demo/1/001"]
    assert [photo.key for photo in index.neighbours(4)] == ["demo/2/000", "demo/2/002"]
    assert (index.photo(4).part, index.photo(4).title) == ("demo-1", "Volvo")


def test_an_empty_root_has_nothing_to_show(tmp_path: Path) -> None:
    of = queues(new_root(tmp_path))
    assert take(of, 3) == []


def test_each_photo_is_handed_out_once_and_what_was_skipped_comes_again(root: Root) -> None:
    of = queues(root)
    first, second = take(of, 4), take(of, 4)
    assert sorted(first + second) == keys_of(of.index)
    assert take(of, 6, held=first) == second, "the first four are still on a page"


def test_two_people_have_queues_of_their_own_in_orders_that_the_seed_decides(root: Root) -> None:
    of = queues(root)
    assert sorted(take(of, 6)) == sorted(take(of, 6, labeller="bob"))
    orders = {tuple(random_order(np.arange(40), seed=s, labeller=n)) for s in "abc" for n in ("ann", "bob")}
    assert len(orders) == 6
    assert take(queues(root), 6) == take(queues(root), 6)


def test_random_draws_are_uniform() -> None:
    places = np.arange(20)
    firsts = Counter(int(random_order(places, seed=str(seed), labeller="ann")[0]) for seed in range(4000))
    chi_square = sum((firsts[place] - 200) ** 2 / 200 for place in range(20))
    assert chi_square < 43.8, "the upper 0.1 % of chi-square with 19 degrees of freedom; the seeds are fixed"


def test_a_photo_labelled_for_another_reason_is_still_drawn_at_random(root: Root) -> None:
    labels = {
        "demo/1/000": [row("junk", key="demo/1/000", sampled_by="uncertain")],
        "demo/1/001": [row("keep", key="demo/1/001", sampled_by="random")],
        "demo/2/000": [row("keep", key="demo/2/000", labeller="bob")],
    }
    drawn = take(queues(root, labels), 6)
    assert "demo/1/000" in drawn, "else the sample would lack what the filter doubts"
    assert "demo/1/001" not in drawn
    assert "demo/2/000" in drawn, "another labeller's draws are their own"


def test_dropped_duplicates_are_not_shown(root: Root) -> None:
    drop(root, "demo/2/001")
    assert sorted(take(queues(root), 6)) == [key for key in keys_of(PhotoIndex(root)) if key != "demo/2/001"]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ("likely_junk", ["demo/2/001", "demo/2/000", "demo/10/000", "demo/1/000"]),
        ("likely_keep", ["demo/1/000", "demo/10/000", "demo/2/000", "demo/2/001"]),
        ("uncertain", ["demo/10/000", "demo/2/000", "demo/1/000", "demo/2/001"]),
    ],
)
def test_the_filters_score_decides_the_order(root: Root, sampling: str, expected: list[str]) -> None:
    scores = {"demo/1/000": -2.0, "demo/1/001": None, "demo/10/000": 0.4, "demo/2/000": 1.0, "demo/2/001": 9.0}
    write_scores(root, scores, threshold=0.5)
    labels = {"demo/2/000": [row("keep", key="demo/2/000", sampled_by="random")]}
    assert take(queues(root), 6, sampling=sampling) == expected
    assert take(queues(root, labels), 6, sampling=sampling) == [key for key in expected if key != "demo/2/000"]


def test_a_new_filter_makes_a_new_order(root: Root) -> None:
    of = queues(root)
    with pytest.raises(QueueError, match=r"score\.py"):
        take(of, 1, sampling="likely_junk")
    write_scores(root, {"demo/1/000": 1.0, "demo/1/001": 2.0}, threshold=5.0)
    assert take(of, 1, sampling="likely_junk") == ["demo/1/001"]
    write_scores(root, {"demo/1/000": 3.0, "demo/1/001": 2.0}, threshold=5.0)
    assert take(of, 1, sampling="likely_junk") == ["demo/1/000"]
