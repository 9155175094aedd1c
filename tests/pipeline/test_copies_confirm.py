from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline.copies_confirm import PairChecker, Place
from schemas.storage import Root
from tests.pipeline.copied_photos import bannered, cropped, drawn, source
from tests.pipeline.roots import Listing, new_root, write_part

CAR = 660000060
PAIRS = np.array([(first, second) for first in range(6) for second in range(first + 1, 6)], np.uint32)


def filled(folder: Path) -> tuple[Root, list[Place]]:
    """Store a photo, its crop and banner, and three photos of other cars, in two parts."""
    root = new_root(folder)
    photo = drawn(CAR)
    write_part(root, "demo-0", [Listing("1", [source(photo), source(cropped(photo))])])
    others = [source(drawn(CAR + step)) for step in (1, 2, 3)]
    write_part(root, "demo-1", [Listing("2", [source(bannered(photo)), *others])])
    places = [Place("demo-0", f"demo/1/{index:03d}") for index in range(2)]
    return root, places + [Place("demo-1", f"demo/2/{index:03d}") for index in range(4)]


def shares(
    root: Root, places: Sequence[Place], pairs: np.ndarray = PAIRS, *, cached_photos: int = 100, threads: int = 2
) -> list[float]:
    with PairChecker(
        root, places, max_scale=1.5, min_inliers=8, cached_photos=cached_photos, threads=threads
    ) as checker:
        found: list[float] = checker.shares(pairs).tolist()
        return found


def test_only_photos_of_one_picture_agree(tmp_path: Path) -> None:
    root, places = filled(tmp_path)
    found = dict(zip(map(tuple, PAIRS.tolist()), shares(root, places), strict=True))
    assert {pair for pair, share in found.items() if share >= 0.7} == {(0, 1), (0, 2), (1, 2)}


def test_neither_cache_nor_threads_nor_the_place_in_the_list_change_what_is_found(tmp_path: Path) -> None:
    root, places = filled(tmp_path)
    wanted = shares(root, places)
    assert shares(root, places, cached_photos=1) == wanted
    assert shares(root, places, threads=1) == wanted
    turned = list(reversed(places))
    assert shares(root, turned, np.sort(5 - PAIRS, axis=1)) == wanted


def test_features_are_kept_up_to_the_limit_and_reused(tmp_path: Path) -> None:
    root, places = filled(tmp_path)
    with PairChecker(root, places, max_scale=1.5, min_inliers=8, cached_photos=2) as checker:
        first = checker.shares(PAIRS).tolist()
        assert len(checker._features) == 2
        assert checker.shares(PAIRS).tolist() == first


def test_the_threads_of_opencv_are_as_before(tmp_path: Path) -> None:
    root, places = filled(tmp_path)
    before = cv2.getNumThreads()
    shares(root, places, PAIRS[:1])
    assert cv2.getNumThreads() == before
