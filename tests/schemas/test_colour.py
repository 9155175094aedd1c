import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from schemas.image import ImageSettings, decode
from tests.schemas.photos import (
    ADOBE_RGB,
    DISPLAY_P3,
    PROPHOTO,
    cmyk_profile,
    drawn,
    grey_profile,
    rgb_profile,
    saved,
    slow,
)

FULL_SIZE = ImageSettings(short_side_px=4000)
MAX_LEVELS = 3
PROFILES = {
    "display p3": rgb_profile(DISPLAY_P3, 2.2),
    "adobe rgb": rgb_profile(ADOBE_RGB, 2.2),
    "prophoto": rgb_profile(PROPHOTO, 1.8),
}


def difference(data: bytes) -> int:
    return int(np.abs(decode(data, FULL_SIZE).pixels.astype(int) - slow(data)).max())


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_colours_are_those_of_littlecms(name: str, profile: str) -> None:
    data = saved(drawn(), name, icc_profile=PROFILES[profile], quality=95)
    assert difference(data) <= MAX_LEVELS
    plain = decode(saved(drawn(), name, quality=95), FULL_SIZE).pixels
    assert np.abs(decode(data, FULL_SIZE).pixels.astype(int) - plain).max() > 10


@pytest.mark.parametrize("profile", PROFILES)
def test_alpha_and_palette_keep_their_profile(profile: str) -> None:
    layered = drawn()
    layered.putalpha(Image.linear_gradient("L").resize(layered.size))
    assert difference(saved(layered, "PNG", icc_profile=PROFILES[profile])) <= MAX_LEVELS
    assert difference(saved(layered, "WEBP", icc_profile=PROFILES[profile], lossless=True)) <= MAX_LEVELS
    assert difference(saved(drawn().quantize(64), "PNG", icc_profile=PROFILES[profile])) <= MAX_LEVELS


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF"])
def test_grey_and_press_profiles_are_used(name: str) -> None:
    assert difference(saved(drawn().convert("L"), name, icc_profile=grey_profile(1.8))) <= MAX_LEVELS
    if name != "PNG":
        assert difference(saved(drawn().convert("CMYK"), name, icc_profile=cmyk_profile(), quality=95)) <= MAX_LEVELS


def test_a_profile_in_many_chunks_is_joined() -> None:
    large = PROFILES["prophoto"] + bytes(150_000)
    data = saved(drawn(), "JPEG", icc_profile=large)
    assert data.count(b"ICC_PROFILE\0") == 3
    assert difference(data) <= MAX_LEVELS


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", cmyk_profile()),
        ("RGB", grey_profile(1.8)),
        ("L", PROFILES["prophoto"]),
        ("CMYK", PROFILES["prophoto"]),
        ("RGB", b"no profile at all" * 9),
        ("RGB", PROFILES["prophoto"][:200]),
    ],
)
def test_a_profile_that_does_not_fit_is_left_out(mode: str, profile: bytes) -> None:
    photo = drawn().convert(mode)
    with_profile = decode(saved(photo, "JPEG", icc_profile=profile), FULL_SIZE).pixels
    assert np.array_equal(with_profile, decode(saved(photo, "JPEG"), FULL_SIZE).pixels)


def test_srgb_under_its_own_name_changes_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = drawn()
    assert np.array_equal(decode(saved(photo, "PNG", icc_profile=srgb), FULL_SIZE).pixels, np.asarray(photo))


def test_lab_becomes_rgb() -> None:
    photo = drawn()
    lab = ImageCms.profileToProfile(
        photo, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    data = saved(lab, "TIFF")
    assert difference(data) <= MAX_LEVELS
    assert np.abs(decode(data, FULL_SIZE).pixels.astype(int) - np.asarray(photo)).mean() < 3


def test_transparent_becomes_white() -> None:
    clear = Image.new("RGBA", (8, 8), (200, 10, 10, 0))
    assert (decode(saved(clear, "PNG"), FULL_SIZE).pixels == 255).all()


def test_scaled_decode_orientation_and_profile_go_together() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(drawn(1600, 1200), "JPEG", icc_profile=PROFILES["display p3"], exif=exif.tobytes(), quality=95)
    pixels = decode(data, ImageSettings()).pixels
    expected = Image.fromarray(slow(data)).resize((256, 341), Image.Resampling.LANCZOS)
    assert pixels.shape == (341, 256, 3)
    assert np.abs(pixels.astype(int) - np.asarray(expected)).mean() < 0.5


def test_numbers_stored_wide_are_brought_to_eight_bits() -> None:
    grey = np.asarray(drawn().convert("L"))
    for wide in (grey.astype(np.int32), grey.astype(np.float32), (grey / np.float32(255)).astype(np.float32)):
        pixels = decode(saved(Image.fromarray(wide), "TIFF"), FULL_SIZE).pixels
        assert np.abs(pixels[:, :, 0].astype(int) - grey).max() <= 1


def test_a_real_multi_picture_file_has_its_profile_applied(shared_data: Path) -> None:
    data = (shared_data / "messy_images/iphone_p3.mpo.jpg").read_bytes()
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == "MPO"
    assert difference(data) <= MAX_LEVELS
