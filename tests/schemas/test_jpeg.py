import struct

import numpy as np
import pytest
from PIL import Image

from schemas.errors import ImageError
from schemas.image import ImageSettings, decode
from schemas.jpeg import num_scans, progressive_share, read_jpeg
from tests.schemas.photos import drawn, oriented, saved

FULL_SIZE = ImageSettings(short_side_px=4000)
END = b"\xff\xd9"


def segment(code: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(body) + 2) + body


def reason(data: bytes, settings: ImageSettings = FULL_SIZE) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, settings)
    return caught.value.reason


def kept(share: float) -> ImageSettings:
    return ImageSettings(short_side_px=4000, min_read_share=share)


def cut(share: float, **options: bool) -> bytes:
    """Cut the picture's data, not its header, at a share of its bytes."""
    data = saved(drawn(), "JPEG", quality=90, **options)
    start = data.index(b"\xff\xda")
    return data[: start + int((len(data) - start) * share)]


@pytest.mark.parametrize("progressive", [False, True])
def test_only_the_end_marker_missing_is_truncated_unless_the_share_read_may_do(progressive: bool) -> None:
    whole = saved(drawn(), "JPEG", progressive=progressive)
    assert reason(whole[:-2]) == "truncated"
    assert np.array_equal(decode(whole[:-2], kept(1.0)).pixels, decode(whole, FULL_SIZE).pixels)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_a_cut_picture_is_truncated_also_where_an_end_marker_was_put_back(share: float, progressive: bool) -> None:
    data = cut(share, progressive=progressive)
    assert reason(data) == "truncated"
    if not progressive:
        assert reason(data + END) == "truncated"


def test_the_share_read_of_a_sequential_picture_is_that_of_its_lines() -> None:
    data = cut(0.5)
    pixels = decode(data, kept(0.3)).pixels
    lines = int(np.flatnonzero((pixels != 128).any(axis=(1, 2)))[-1]) + 1
    share = lines / len(pixels)
    assert 0.3 < share < 0.7
    assert reason(data, kept(share + 0.02)) == "truncated"
    assert decode(data, kept(share - 0.02)).pixels.shape == pixels.shape


def test_the_share_read_of_a_progressive_picture_grows_with_its_scans() -> None:
    data = saved(drawn(), "JPEG", progressive=True)
    header = read_jpeg(data)
    assert progressive_share(header.payload, last_scan_share=1.0) == 1.0
    starts = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(starts) == num_scans(data)
    shares = [progressive_share(read_jpeg(data[:at]).payload, last_scan_share=1.0) for at in starts[1:]]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] < 0.5
    assert reason(data[: starts[-1]], kept(0.5)) == "truncated"
    assert decode(data[: int(len(data) * 0.99)], kept(0.5)).pixels.any()


def test_junk_between_segments_and_behind_the_end_is_passed_over() -> None:
    data = saved(drawn(), "JPEG")
    expected = decode(data, FULL_SIZE).pixels
    for messy in (
        data[:20] + b"junk\0" + data[20:] + b"more" * 99,
        data[:2] + b"\xff\xff\xff" + data[3:],
        data[:2] + segment(0xEE, b"Adobe\0d") + data[2:],
        data[:2] + segment(0xE2, b"ICC_PROFILE\0\1\2half of it") + data[2:],
        data[:2] + segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff") + data[2:],
        data[:2] + segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff") + data[2:],
    ):
        assert np.array_equal(decode(messy, FULL_SIZE).pixels, expected)
        assert decode(messy, FULL_SIZE).source_format == "JPEG"


def test_a_sampling_that_one_decoder_does_not_know_is_left_to_the_other() -> None:
    data = bytearray(saved(drawn(), "JPEG", subsampling=0))
    frame = data.index(b"\xff\xc0")
    data[frame + 11] = 0x31
    data[frame + 5 : frame + 7] = struct.pack(">H", 160)
    assert decode(bytes(data), FULL_SIZE).pixels.shape == (160, 320, 3)


def test_kinds_that_no_reader_has_are_unsupported() -> None:
    data = saved(drawn(), "JPEG")
    frame = data.index(b"\xff\xc0")
    deep, hierarchical, two_channels, no_lines = (bytearray(data) for _ in range(4))
    deep[frame + 4] = 12
    hierarchical[frame + 1] = 0xC5
    two_channels[frame + 9] = 2
    no_lines[frame + 5 : frame + 7] = b"\0\0"
    for changed in (deep, hierarchical, two_channels, no_lines):
        assert reason(bytes(changed)) == "unsupported"


def test_scans_without_end_are_refused_by_their_number() -> None:
    data = saved(drawn(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    bomb = bytearray(data[:-2] + data[last:-2] * 20_000)
    assert reason(bytes(bomb)) == "too_many_pixels"


def test_several_pictures_make_it_mpo_unless_one_is_a_gain_map() -> None:
    data = saved(drawn(), "MPO", save_all=True, append_images=[drawn(seed=1)])
    assert read_jpeg(data).num_frames == 2
    assert read_jpeg(data).format == "MPO"
    gain_map = data[:2] + segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version="1.0"/>') + data[2:]
    assert read_jpeg(gain_map).format == "JPEG"


def test_the_payload_has_no_metadata() -> None:
    photo = drawn()
    data = saved(photo, "JPEG", exif=oriented(6), comment=b"by hand", icc_profile=bytes(200))
    header = read_jpeg(data)
    assert header.orientation == 6
    assert header.metadata_bytes > 200
    assert b"Exif" not in header.payload
    assert b"by hand" not in header.payload


def test_cmyk_is_no_negative() -> None:
    white = Image.new("CMYK", (64, 64), (0, 0, 0, 0))
    assert (decode(saved(white, "JPEG"), FULL_SIZE).pixels > 250).all()
