import struct
import zlib

import numpy as np
import pytest

from schemas.errors import ImageError
from schemas.image import ImageSettings, decode
from schemas.png import SIGNATURE, pixel_bytes, read_png, read_share
from tests.schemas.photos import drawn, saved, slow

FULL_SIZE = ImageSettings(short_side_px=4000)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*, lines: bytes, width: int = 8, height: int = 8, bits: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def reason(data: bytes, settings: ImageSettings = FULL_SIZE) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, settings)
    return caught.value.reason


LINE = b"\0" + bytes(range(24))


def test_lines_that_are_not_there_make_it_truncated_though_the_stream_ends_well() -> None:
    assert decode(png(lines=LINE * 8), FULL_SIZE).pixels.any()
    assert reason(png(lines=LINE * 5)) == "truncated"
    assert decode(png(lines=LINE * 5), ImageSettings(min_read_share=0.6)).pixels[:5].any()


def test_a_black_picture_is_whole() -> None:
    assert not decode(png(lines=bytes(25 * 8)), FULL_SIZE).pixels.any()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_share_read_decides_what_is_kept(share: float) -> None:
    data = saved(drawn(), "PNG")
    short = data[: int(len(data) * share)]
    held = read_share(read_png(short))
    assert 0 < held < 1
    assert reason(short) == "truncated"
    assert reason(short, ImageSettings(min_read_share=min(held + 0.01, 1))) == "truncated"
    pixels = decode(short, ImageSettings(short_side_px=4000, min_read_share=held - 0.01)).pixels
    whole_lines = int(held * 240)
    assert np.array_equal(pixels[:whole_lines], slow(data)[:whole_lines])


def test_interlaced_lines_are_counted_by_pass() -> None:
    lines = sum(height * (1 + width) for width, height in ((1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)))
    data = png(lines=bytes(lines), colour=0, interlace=1)
    assert pixel_bytes(read_png(data)) == lines
    assert decode(data, FULL_SIZE).pixels.shape == (8, 8, 3)
    assert reason(png(lines=bytes(lines - 1), colour=0, interlace=1)) == "truncated"
    # The last of seven lines comes with the sixth pass: it says nothing of the seventh.
    grey = bytes(
        byte for size in ((1, 1), (1, 1), (2, 1), (2, 2), (4, 2)) for byte in (b"\0" + b"\xc8" * size[0]) * size[1]
    )
    grey += (b"\0" + b"\xc8" * 4) * 4 + (b"\0" + b"\xc8" * 8) * 3
    assert (decode(png(lines=grey, height=7, colour=0, interlace=1), FULL_SIZE).pixels == 200).all()
    assert reason(png(lines=grey[:-9], height=7, colour=0, interlace=1)) == "truncated"


def test_deep_colour_becomes_its_high_byte() -> None:
    deep = np.arange(8 * 8 * 3, dtype=np.uint16).reshape(8, 24) * 300
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in deep)
    assert np.array_equal(decode(png(lines=lines, bits=16), FULL_SIZE).pixels.reshape(8, 24), deep >> 8)


def test_a_text_that_inflates_without_end_is_too_large_and_fast() -> None:
    bomb = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(50_000_000), 9))
    data = saved(drawn(), "PNG")
    assert reason(data[:33] + bomb + data[33:]) == "too_large"
    international = chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(bytes(50_000_000), 9))
    assert reason(data[:33] + international + data[33:]) == "too_large"


def test_broken_chunks_before_the_data_are_corrupt_and_behind_it_nothing() -> None:
    data = saved(drawn(), "PNG")
    wrong = bytearray(data)
    wrong[30] ^= 1
    assert reason(bytes(wrong)) == "corrupt"
    expected = slow(data)
    for messy in (data[:-12], data[:-12] + b"\0\0\0\1!!!!", data[:-5], data + b"more"):
        assert np.array_equal(decode(messy, FULL_SIZE).pixels, expected)


def test_apple_pngs_are_unsupported() -> None:
    data = saved(drawn(), "PNG")
    assert reason(data[:8] + chunk(b"CgBI", b"\x50\0\x20\2") + data[8:]) == "unsupported"


def test_animation_control_that_contradicts_itself_does_not_matter() -> None:
    data = saved(drawn(), "PNG")
    control = chunk(b"acTL", bytes(8)) + chunk(b"acTL", b"\0\0\0\2\0\0\0\0") + chunk(b"fcTL", bytes(26))
    assert np.array_equal(decode(data[:33] + control + data[33:], FULL_SIZE).pixels, slow(data))
