import numpy as np
import pytest

from pipeline.drawn_site.drawing import CarLook, draw_cutout, draw_exterior
from pipeline.drawn_site.junk import draw_flat, draw_junk, draw_placeholder
from pipeline.drawn_site.makes import BY_NAME, MAKES, Make, Model
from pipeline.drawn_site.stock import JUNK_TYPES
from schemas.hashes import coarse_hash

PAINT, INTERIOR = (36, 70, 142), (44, 44, 48)


def look(make: Make, model: Model, key: str = "one", year: int = 2020) -> CarLook:
    return CarLook(key, make, model, year, PAINT, INTERIOR)


def sedan(key: str = "one", year: int = 2020) -> CarLook:
    make = BY_NAME["Avalor"]
    return look(make, make.models[0], key, year)


def share_of_change(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.mean(np.abs(one.astype(int) - other.astype(int)).max(axis=2) > 24))


def test_the_same_look_and_slot_draw_the_same_pixels() -> None:
    assert np.array_equal(draw_exterior(sedan(), 3), draw_exterior(sedan(), 3))


def test_slots_of_a_listing_and_listings_of_a_model_differ() -> None:
    drawn = [draw_exterior(sedan(key), slot) for key in ("one", "two", "three") for slot in range(6)]
    assert len({coarse_hash(pixels) for pixels in drawn}) == len(drawn)


@pytest.mark.parametrize("slot", range(6))
def test_a_second_shot_from_nearly_the_same_place_is_another_photo_of_the_same_size(slot: int) -> None:
    first, second = draw_exterior(sedan(), slot), draw_exterior(sedan(), slot + 100)
    assert first.shape == second.shape
    assert coarse_hash(first) != coarse_hash(second)


def test_makes_differ_in_shape_where_paint_view_and_body_are_equal() -> None:
    hatchbacks = [(make, model) for make in MAKES for model in make.models if model.body == "hatchback"]
    drawn = [draw_cutout(look(make, Model("Same", "hatchback", 1)), 0) for make, _ in hatchbacks]
    changes = [share_of_change(one, other) for place, one in enumerate(drawn) for other in drawn[place + 1 :]]
    assert len(hatchbacks) >= 4
    assert min(changes) > 0.01


def test_every_model_is_drawn_dark_on_white_from_every_side() -> None:
    for make in MAKES:
        for model in make.models:
            for slot in range(3):
                pixels = draw_cutout(look(make, model), slot)
                covered = float(np.mean(pixels.min(axis=2) < 200))
                assert pixels.dtype == np.uint8
                assert 0.08 < covered < 0.8, (make.name, model.name, slot, covered)


def test_age_shows_on_the_same_car() -> None:
    assert share_of_change(draw_cutout(sedan(year=2005), 1), draw_cutout(sedan(year=2026), 1)) > 0.01


@pytest.mark.parametrize("subject", JUNK_TYPES)
def test_junk_is_drawn_in_colour_and_differs_between_listings(subject: str) -> None:
    drawn = [draw_junk(sedan(key), subject, slot) for key in ("one", "two") for slot in (1, 2)]
    assert all(pixels.ndim == 3 and pixels.std() > 10 for pixels in drawn)
    assert len({coarse_hash(pixels) for pixels in drawn}) == len(drawn)


def test_flat_images_that_differ_differ_after_coarse_hashing() -> None:
    assert len({coarse_hash(draw_flat(number)) for number in range(0, 4096, 37)}) == len(range(0, 4096, 37))


def test_placeholders_of_two_dealers_differ() -> None:
    assert not np.array_equal(draw_placeholder("placeholder-north"), draw_placeholder("placeholder-harbour"))
