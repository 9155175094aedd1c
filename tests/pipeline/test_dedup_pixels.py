import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from pipeline.dedup_pixels import PhotoPairs, Shrunk, same_photo, shrunk
from schemas.errors import IntegrityError
from tests.pipeline.roots import Listing, cut_out, flat, new_root, stored_photo, write_part


def street(*, paint: tuple[int, int, int] = (180, 30, 30), step_px: int = 0) -> Image.Image:
    """Draw a car before houses, 640 x 480; `step_px` is how far the camera went aside, near things move more."""
    draw = np.random.default_rng(4)
    far = Image.fromarray(draw.integers(60, 200, (12, 16, 3), dtype=np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    picture = Image.new("RGB", (640, 480))
    picture.paste(far, (-step_px // 4, 0))
    picture.paste((70, 70, 75), (0, 330, 640, 480))
    left = 140 - step_px
    picture.paste(paint, (left, 230, left + 360, 340))
    picture.paste(paint, (left + 80, 160, left + 270, 230))
    picture.paste((40, 50, 60), (left + 95, 175, left + 175, 230))
    picture.paste((40, 50, 60), (left + 185, 175, left + 255, 230))
    for x in (left + 50, left + 260):
        picture.paste((15, 15, 15), (x, 310, x + 60, 370))
    return picture


def saved(picture: Image.Image, quality: int = 92) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def thumb(source: bytes) -> Shrunk:
    return shrunk(stored_photo(source).jpeg)


def cropped(picture: Image.Image, share: float) -> Image.Image:
    right, down = round(picture.width * share), round(picture.height * share)
    return picture.crop((right, down, picture.width - right, picture.height - down))


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "q50": lambda p: saved(p, 50),
    "half as large": lambda p: saved(p.resize((320, 240), Image.Resampling.LANCZOS)),
    "a crop of 1 %": lambda p: saved(cropped(p, 0.01)),
    "10 % brighter, white cut off": lambda p: saved(ImageEnhance.Brightness(p).enhance(1.1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_the_same_photo(change: str) -> None:
    assert same_photo(thumb(saved(street())), thumb(CHANGES[change](street())))
    assert same_photo(thumb(CHANGES[change](street())), thumb(saved(street())))


@pytest.mark.parametrize("paint", [(30, 60, 170), (180, 90, 30), (235, 235, 235)])
def test_another_paint_on_the_same_car_is_another_photo(paint: tuple[int, int, int]) -> None:
    assert not same_photo(thumb(saved(street())), thumb(saved(street(paint=paint))))


def test_a_view_from_one_step_aside_is_another_photo() -> None:
    assert not same_photo(thumb(saved(street())), thumb(saved(street(step_px=16))))


def test_a_small_part_that_differs_makes_another_photo_of_a_clean_drawing() -> None:
    assert not same_photo(thumb(cut_out(plate="ABC 123")), thumb(cut_out(plate="XYZ 987")))


def test_flat_pictures_prove_nothing() -> None:
    assert not same_photo(thumb(flat(250)), thumb(flat(250)))
    assert not same_photo(thumb(flat(250)), thumb(flat(120)))


def test_pairs_of_a_root_are_confirmed_in_the_order_asked(tmp_path: Path) -> None:
    root = new_root(tmp_path / "root")
    sources = [
        saved(street()),
        saved(street(), 60),
        saved(street(paint=(30, 60, 170))),
        saved(ImageOps.mirror(street())),
    ]
    write_part(root, "demo-0", [Listing("1", sources[:2])])
    write_part(root, "demo-1", [Listing("2", sources[2:])])
    places = [("demo-0", "demo/1/000"), ("demo-0", "demo/1/001"), ("demo-1", "demo/2/000"), ("demo-1", "demo/2/001")]

    def locate(ranks: NDArray[np.int64]) -> Iterator[tuple[int, str, str]]:
        yield from ((rank, *places[rank]) for rank in ranks.tolist())

    pairs = np.array([[2, 0], [1, 0], [3, 0], [3, 1]])
    with PhotoPairs(root, locate, threads=2) as photos:
        assert photos.confirm(pairs).tolist() == [False, True, False, False]
    with PhotoPairs(root, locate, threads=2, mirrored=True) as photos:
        assert photos.confirm(pairs).tolist() == [False, True, True, True]
    root.remove("shards/demo-1.lmdb")
    with PhotoPairs(root, locate, threads=2) as photos, pytest.raises(IntegrityError, match=r"demo-1\.lmdb"):
        photos.confirm(pairs)
