import struct

import numpy as np
import pytest
from PIL import Image

from schemas.containers import read_gif, read_jpeg2000, read_webp
from schemas.errors import ImageError
from schemas.image import ImageSettings, decode
from tests.schemas.photos import DISPLAY_P3, drawn, oriented, rgb_profile, saved, slow

FULL_SIZE = ImageSettings(short_side_px=4000)


def reason(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, FULL_SIZE)
    return caught.value.reason


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG"])
def test_only_the_first_frame_must_have_arrived(name: str) -> None:
    frames = [drawn(seed=seed) for seed in range(3)]
    data = saved(frames[0], name, save_all=True, append_images=frames[1:])
    expected = decode(data, FULL_SIZE).pixels
    assert np.array_equal(decode(data[: int(len(data) * 0.8)], FULL_SIZE).pixels, expected)
    assert reason(data[: int(len(data) * 0.2)]) == "truncated"


def test_gif_frames_are_counted_and_the_payload_ends_with_the_first() -> None:
    photo = drawn(40, 30)
    data = saved(photo, "GIF", save_all=True, append_images=[photo.rotate(90), photo.rotate(180)], comment=b"c" * 300)
    header = read_gif(data)
    assert header.num_frames == 3
    assert header.metadata_bytes > 300
    assert len(header.payload) < len(data) / 2


def test_a_gif_frame_beyond_the_screen_counts_in_the_size() -> None:
    data = bytearray(saved(drawn(40, 30).quantize(8), "GIF"))
    data[6:10] = struct.pack("<HH", 10, 10)
    assert (read_gif(bytes(data)).width_px, read_gif(bytes(data)).height_px) == (40, 30)


def test_webp_metadata_is_read_and_left_out() -> None:
    layered = drawn()
    layered.putalpha(200)
    data = saved(layered, "WEBP", icc_profile=rgb_profile(DISPLAY_P3, 2.2), exif=oriented(8), xmp=b"<x/>")
    header = read_webp(data)
    assert header.orientation == 8
    assert header.icc == rgb_profile(DISPLAY_P3, 2.2)
    assert b"EXIF" not in header.payload
    assert np.array_equal(decode(data + b"more", FULL_SIZE).pixels, decode(data, FULL_SIZE).pixels)
    assert decode(data, FULL_SIZE).pixels.shape == slow(data).shape


def test_a_jpeg_2000_profile_is_found() -> None:
    data = saved(drawn(), "JPEG2000")
    profile = rgb_profile(DISPLAY_P3, 2.2)
    at = data.index(b"colr") - 4
    (length,) = struct.unpack_from(">I", data, at)
    box = struct.pack(">I4sBBB", 11 + len(profile), b"colr", 2, 0, 0) + profile
    head = data.index(b"jp2h") - 4
    (head_length,) = struct.unpack_from(">I", data, head)
    grown = struct.pack(">I", head_length + len(box) - length)
    changed = data[:head] + grown + data[head + 4 : at] + box + data[at + length :]
    assert read_jpeg2000(changed).icc == profile
    plain, managed = (decode(each, FULL_SIZE).pixels.astype(int) for each in (data, changed))
    assert np.abs(plain - managed).max() > 10


def test_large_jpeg_2000_pictures_are_refused_earlier_than_others() -> None:
    data = saved(Image.new("L", (600, 500)), "JPEG2000")
    with pytest.raises(ImageError, match="too_many_pixels"):
        decode(data, ImageSettings(max_slow_pixels=299_999))
    assert decode(data, ImageSettings(max_slow_pixels=300_000)).source_height_px == 500


@pytest.mark.parametrize("lost", [1, 2, 40])
def test_a_jpeg_2000_picture_needs_all_its_tiles_and_their_end(lost: int) -> None:
    data = saved(drawn(), "JPEG2000", no_jp2=True, tile_size=(128, 128))
    assert np.array_equal(decode(data + b"more", FULL_SIZE).pixels, slow(data))
    assert reason(data[:-lost]) == "truncated"


def test_upside_down_bitmaps_are_read() -> None:
    data = bytearray(saved(drawn(), "BMP"))
    data[22:26] = struct.pack("<i", -240)
    assert np.array_equal(decode(bytes(data), FULL_SIZE).pixels, np.asarray(drawn())[::-1])


def test_headers_that_contradict_each_other_are_corrupt() -> None:
    data = saved(drawn(), "JPEG2000")
    at = data.index(b"ihdr") + 4
    assert reason(data[:at] + struct.pack(">I", 9000) + data[at + 4 :]) == "corrupt"


def test_turned_avif_boxes_are_followed_and_broken_exif_is_not_read() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker of cameras"
    data = saved(drawn(), "AVIF", exif=exif.tobytes())
    assert decode(data, FULL_SIZE).pixels.shape == (320, 240, 3)
    at = data.index(b"MM\0*")
    broken = data[: at + 8] + b"\0\x7f" + data[at + 10 :]
    assert decode(broken, FULL_SIZE).pixels.shape == (320, 240, 3)
