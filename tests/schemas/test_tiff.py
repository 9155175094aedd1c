import struct

import numpy as np
import pytest
from PIL import Image

from schemas.errors import ImageError
from schemas.image import ImageSettings, decode
from schemas.tiff import ICC_PROFILE, orientation_of, read_directory, read_tiff
from tests.schemas.photos import drawn, oriented, saved, slow

FULL_SIZE = ImageSettings(short_side_px=4000)


def reason(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, FULL_SIZE)
    return caught.value.reason


def changed(data: bytes, tag: int, value: int) -> bytes:
    """Write another number into an entry of a little-endian TIFF."""
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, at) == (tag,):
            return data[: at + 8] + struct.pack("<I", value) + data[at + 12 :]
    raise AssertionError(f"no tag {tag}")


@pytest.mark.parametrize("value", [1, 6, 8])
def test_orientation_is_read_in_either_byte_order(value: int) -> None:
    assert orientation_of(oriented(value)) == value
    little = b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0" + bytes([value, 0, 0, 0]) + bytes(4)
    assert orientation_of(b"Exif\0\0" + little) == value


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"II*\0", b"MM\0*\xff\xff\xff\xff", oriented(9), oriented(0), b"junk"]
)
def test_an_orientation_that_does_not_exist_is_upright(exif: bytes) -> None:
    assert orientation_of(exif) == 1


def test_the_codec_gets_a_directory_without_metadata() -> None:
    data = saved(drawn(), "TIFF", icc_profile=bytes(300), description="one owner", exif=oriented(3))
    header = read_tiff(data)
    directory = read_directory(header.payload)
    assert header.orientation == 3
    assert header.icc == bytes(300)
    assert not directory.entries.keys() & {ICC_PROFILE, 270, 274}
    assert np.array_equal(decode(data, FULL_SIZE).pixels, np.asarray(drawn())[::-1, ::-1])


@pytest.mark.parametrize("how", ["raw", "tiff_lzw", "packbits", "jpeg", "zstd"])
@pytest.mark.parametrize("lost", [5, 1000])
def test_a_file_that_ends_early_is_truncated(how: str, lost: int) -> None:
    data = saved(drawn(), "TIFF", compression=how, icc_profile=bytes(300))
    assert reason(data[:-lost]) == "truncated"


def test_raw_lines_are_never_read_beyond_the_file() -> None:
    data = saved(drawn(64, 48), "TIFF")
    taller = changed(changed(data, 257, 500), 278, 500)
    assert reason(taller) == "truncated"


def test_what_the_codec_was_not_built_with_is_unsupported() -> None:
    data = saved(drawn(), "TIFF", compression="tiff_lzw")
    for compression in (50001, 34676, 12345):
        assert reason(changed(data, 259, compression)) == "unsupported"


def test_several_pages_show_the_first() -> None:
    data = saved(drawn(), "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    assert np.array_equal(decode(data, FULL_SIZE).pixels, np.asarray(drawn()))


def test_sixteen_bit_colour_becomes_eight() -> None:
    photo = drawn(32, 24)
    deep = np.asarray(photo).astype("<u2") * 257
    data = bytearray(saved(photo.resize((32, 48)), "TIFF"))
    # The same file with twice the depth and half the lines: 3 x 16 bits.
    directory = read_directory(bytes(data))
    start = directory.number(273, 0)
    data[start : start + deep.nbytes] = deep.tobytes()
    bits = data.index(b"\x08\0\x08\0\x08\0")
    data[bits : bits + 6] = b"\x10\0\x10\0\x10\0"
    halved = changed(bytes(data), 257, 24)
    assert np.array_equal(decode(halved, FULL_SIZE).pixels, np.asarray(photo))


def test_a_directory_with_endless_or_looping_lists_is_refused() -> None:
    assert reason(b"II*\0\x08\0\0\0\xff\xff" + bytes(70_000 * 12)) == "corrupt"
    assert reason(b"II*\0\x08\0\0\0\1\0") == "truncated"
    data = saved(drawn(), "TIFF")
    assert np.array_equal(slow(data), decode(data, FULL_SIZE).pixels)
