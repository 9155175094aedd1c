import cv2
import numpy as np
import pytest

from pipeline.copies_align import Alignment, agreement, align, features_of
from pipeline.drawn_site.photos import Pixels
from tests.pipeline.copied_photos import bannered, cropped, drawn, repainted, stored

CAR = 660000060
ENOUGH = 0.7


def aligned(first: bytes, second: bytes) -> Alignment | None:
    return align(features_of(first), features_of(second), max_scale=1.5, min_inliers=8)


def share(first: Pixels, second: Pixels) -> float:
    ours, theirs = stored(first), stored(second)
    alignment = aligned(ours, theirs)
    return 0.0 if alignment is None else agreement(ours, theirs, alignment)


@pytest.mark.parametrize("cut", [0.02, 0.05, 0.1, 0.15])
def test_a_crop_that_is_enlarged_back_is_laid_where_it_was_cut(cut: float) -> None:
    photo = drawn(CAR)
    ours, theirs = stored(photo), stored(cropped(photo, cut))
    alignment = aligned(ours, theirs)
    assert alignment is not None
    assert alignment.scale == pytest.approx(1 / (1 - 2 * cut), rel=0.01)
    shown_px = photo.shape[1] * 256 / photo.shape[0]
    assert alignment.shift_px[0] == pytest.approx(-cut * alignment.scale * shown_px, abs=2)
    assert agreement(ours, theirs, alignment) > 0.9


def test_which_of_two_photos_comes_first_hardly_matters() -> None:
    photo = drawn(CAR)
    assert share(cropped(photo), photo) == pytest.approx(share(photo, cropped(photo)), abs=0.05)


def test_a_banner_over_a_corner_leaves_the_rest_the_same() -> None:
    photo = drawn(CAR)
    assert ENOUGH < share(photo, bannered(photo)) < 0.97


def test_a_copy_saved_worse_brighter_and_smaller_is_the_same() -> None:
    photo = drawn(CAR)
    bright = np.clip(photo[::2, ::2] * 1.15, 0, 255).astype(np.uint8)
    ours, theirs = stored(photo), stored(bright, quality=50)
    alignment = aligned(ours, theirs)
    assert alignment is not None
    assert agreement(ours, theirs, alignment) > ENOUGH


def test_another_shot_of_the_same_car_is_another_photo() -> None:
    assert share(drawn(CAR, 1), drawn(CAR, 101)) < ENOUGH
    assert share(drawn(CAR, 1), drawn(CAR, 2)) < ENOUGH


@pytest.mark.parametrize("subject", ["view", "cutout"])
def test_photos_of_different_cars_are_different(subject: str) -> None:
    cars = [drawn(owner, subject=subject) for owner in range(CAR, CAR + 4)]
    assert [share(cars[0], other) < ENOUGH for other in cars[1:]] == [True] * 3


def test_a_picture_of_the_car_in_another_colour_is_another_picture() -> None:
    photo = drawn(CAR, subject="cutout")
    assert aligned(stored(photo), stored(repainted(photo))) is not None, "its edges are all in place"
    assert share(photo, repainted(photo)) < ENOUGH


def test_a_photo_turned_round_is_not_aligned() -> None:
    photo = drawn(CAR)
    assert aligned(stored(photo), stored(np.ascontiguousarray(np.rot90(photo)))) is None


def test_what_shows_nothing_is_not_aligned() -> None:
    flat = stored(np.full((300, 400, 3), 128, np.uint8))
    assert len(features_of(flat)) == 0
    assert aligned(flat, flat) is None
    assert aligned(flat, stored(drawn(CAR))) is None


def test_a_size_beyond_the_limit_is_not_aligned() -> None:
    photo = drawn(CAR)
    ours, theirs = features_of(stored(photo)), features_of(stored(cropped(photo, 0.15)))
    assert align(ours, theirs, max_scale=1.5, min_inliers=8) is not None
    assert align(ours, theirs, max_scale=1.3, min_inliers=8) is None


def test_photos_that_share_no_pixel_once_aligned_do_not_agree() -> None:
    photo = stored(drawn(CAR))
    assert agreement(photo, photo, Alignment(1.0, (10_000.0, 0.0), 50)) == 0.0


def test_the_same_photos_give_the_same_answer_each_time() -> None:
    ours, theirs = stored(drawn(CAR)), stored(bannered(cropped(drawn(CAR))))
    first = aligned(ours, theirs)
    assert first is not None
    assert [aligned(ours, theirs) for _ in range(3)] == [first] * 3


@pytest.mark.parametrize("cut", [0.0, 0.05])
def test_a_copy_stored_at_half_the_size_is_aligned_whatever_the_limit(cut: float) -> None:
    photo = drawn(CAR)
    small = cv2.resize(cropped(photo, cut), (192, 128), interpolation=cv2.INTER_AREA)
    ours, theirs = stored(photo), stored(np.asarray(small, np.uint8))
    alignment = aligned(ours, theirs)
    assert alignment is not None
    assert alignment.scale == pytest.approx(0.5 / (1 - 2 * cut), rel=0.02)
    assert agreement(ours, theirs, alignment) > ENOUGH
