from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pipeline.same_picture import StoredPhotos, first_match, same_picture, thumbnail
from schemas.errors import IntegrityError
from tests.pipeline.roots import Listing, cut_out, flat, new_root, noise, stored_photo, write_part


def thumb(source: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    return thumbnail(stored_photo(source).jpeg)


def saved_again(source: bytes, quality: int) -> bytes:
    file = BytesIO()
    Image.open(BytesIO(source)).save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.mark.parametrize("quality", [75, 90, 97])
@pytest.mark.parametrize(
    "source", [noise(1, width_px=480, height_px=360), cut_out(plate="ABC 123")], ids=["photo", "cut-out"]
)
def test_a_photo_saved_again_or_larger_is_the_same_picture(source: bytes, quality: int) -> None:
    assert same_picture(thumb(source), thumb(saved_again(source, quality)))
    assert same_picture(thumb(cut_out()), thumb(cut_out(scale=2)))


def test_another_plate_another_photo_and_another_light_are_other_pictures() -> None:
    plain = cut_out(plate="ABC 123")
    lit = BytesIO()
    ImageEnhance.Brightness(Image.open(BytesIO(plain))).enhance(0.8).save(lit, "PNG")
    for other in (cut_out(plate="XYZ 987"), cut_out(), noise(1), lit.getvalue()):
        assert not same_picture(thumb(plain), thumb(other))


def test_flat_pictures_are_the_same_only_where_they_are_equal() -> None:
    assert same_picture(thumb(flat(200)), thumb(flat(200)))
    assert not same_picture(thumb(flat(200)), thumb(flat(201)))


def test_the_first_of_several_matches_counts() -> None:
    pictures = [thumb(noise(1)), thumb(noise(2)), thumb(noise(2))]
    assert first_match(thumb(noise(2)), pictures) == 1
    assert first_match(thumb(noise(3)), pictures) is None


def test_stored_photos_come_from_the_shard_of_their_part(tmp_path: Path) -> None:
    root = new_root(tmp_path / "root")
    write_part(root, "demo-0", [Listing("1", [noise(1)])])
    write_part(root, "demo-1", [Listing("2", [noise(2)])], stage="importers")
    photos = StoredPhotos(root)
    assert photos.get("demo-0", "demo/1/000") == stored_photo(noise(1)).jpeg
    assert photos.get("demo-1", "demo/2/000") == stored_photo(noise(2)).jpeg
    with pytest.raises(IntegrityError, match="demo/3/000"):
        photos.get("demo-1", "demo/3/000")
    with pytest.raises(IntegrityError, match="demo-9"):
        photos.get("demo-9", "demo/3/000")
    photos.close()
