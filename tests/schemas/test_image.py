import csv
import hashlib
import io
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from benchmarks.decode import mutated, psnr
from schemas.errors import ImageError
from schemas.image import ImageSettings, StoredPhoto, decode, decode_stored, encode, sniff, store
from schemas.tables import PHOTOS
from tests.schemas.photos import drawn, oriented, saved, slow

FULL_SIZE = ImageSettings(short_side_px=4000)
NAMES = {"not_an_image", "truncated", "corrupt", "too_many_pixels", "too_small", "unsupported", "too_large"}
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "JPEG2000", "GIF", "BMP")


def reason(data: bytes, settings: ImageSettings = FULL_SIZE) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, settings)
    return caught.value.reason


@cache
def mode_files() -> dict[str, bytes]:
    photo = drawn()
    layered = photo.copy()
    layered.putalpha(Image.linear_gradient("L").resize(photo.size))
    grey, palette = photo.convert("L"), photo.quantize(32)
    return {
        "png grey": saved(grey, "PNG"),
        "png grey alpha": saved(layered.convert("LA"), "PNG"),
        "png alpha": saved(layered, "PNG"),
        "png one bit": saved(photo.convert("1"), "PNG"),
        "png one bit transparent": saved(photo.convert("1"), "PNG", transparency=0),
        "png palette": saved(palette, "PNG"),
        "png palette, one clear entry": saved(palette, "PNG", transparency=3),
        "png palette, alpha entries": saved(palette, "PNG", transparency=bytes([0, 90, 255])),
        "png clear grey": saved(grey, "PNG", transparency=128),
        "png clear colour": saved(photo, "PNG", transparency=(200, 30, 40)),
        "animated png": saved(photo, "PNG", save_all=True, append_images=[photo.rotate(90)]),
        "gif": saved(palette, "GIF"),
        "gif transparent": saved(palette, "GIF", transparency=2),
        "animated gif": saved(photo, "GIF", save_all=True, append_images=[photo.rotate(90)]),
        "webp alpha": saved(layered, "WEBP", lossless=True),
        "webp lossy alpha": saved(layered, "WEBP"),
        "animated webp": saved(layered, "WEBP", save_all=True, append_images=[layered.rotate(90)]),
        "avif": saved(photo, "AVIF"),
        "avif alpha": saved(layered, "AVIF"),
        "animated avif": saved(photo, "AVIF", save_all=True, append_images=[photo.rotate(90)]),
        "jp2": saved(photo, "JPEG2000"),
        "jp2 alpha": saved(layered, "JPEG2000"),
        "jpeg 2000 codestream": saved(photo, "JPEG2000", no_jp2=True),
        "bmp": saved(photo, "BMP"),
        "bmp palette": saved(photo.quantize(16), "BMP"),
        "tiff": saved(photo, "TIFF"),
        "tiff big": saved(photo, "TIFF", big_tiff=True),
        "tiff grey alpha": saved(layered.convert("LA"), "TIFF"),
        "tiff cmyk": saved(photo.convert("CMYK"), "TIFF"),
        "tiff fax": saved(photo.convert("1"), "TIFF", compression="group4"),
        "tiff jpeg": saved(photo, "TIFF", compression="jpeg"),
        **{f"tiff {how}": saved(photo, "TIFF", compression=how) for how in ("tiff_lzw", "packbits", "tiff_deflate")},
        "jpeg grey": saved(grey, "JPEG"),
        "jpeg cmyk": saved(photo.convert("CMYK"), "JPEG"),
        "jpeg progressive": saved(photo, "JPEG", progressive=True),
        "jpeg restart markers": saved(photo, "JPEG", restart_marker_rows=1),
        "jpeg rgb": saved(photo, "JPEG", keep_rgb=True),
        "jpeg and more bytes": saved(photo, "JPEG") + b"\0more" * 999,
        "mpo": saved(photo, "MPO", save_all=True, append_images=[photo.rotate(90)]),
    }


@pytest.mark.parametrize("name", mode_files())
def test_each_kind_of_file_gives_the_pixels_of_a_full_decode(name: str) -> None:
    data = mode_files()[name]
    assert np.array_equal(decode(data, FULL_SIZE).pixels, slow(data))


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_is_read_from_the_bytes(name: str) -> None:
    data = saved(drawn(), name)
    assert sniff(data) == name
    assert decode(data, FULL_SIZE).source_format == name


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("value", range(10))
def test_orientation_is_applied_and_sizes_are_upright(name: str, value: int) -> None:
    data = saved(drawn(400, 300), name, exif=oriented(value))
    picture = decode(data, ImageSettings(short_side_px=100))
    sideways = 5 <= value <= 8
    assert (picture.source_width_px, picture.source_height_px) == ((300, 400) if sideways else (400, 300))
    assert picture.pixels.shape == ((133, 100, 3) if sideways else (100, 133, 3))
    expected = np.asarray(Image.fromarray(slow(data)).resize(picture.pixels.shape[1::-1], Image.Resampling.LANCZOS))
    assert psnr(picture.pixels, expected) > 40


@pytest.mark.parametrize("name", ["PNG", "TIFF", "JPEG2000"])
def test_deep_grey_becomes_its_high_byte(name: str) -> None:
    deep = np.asarray(drawn().convert("L")).astype(np.uint16) * 257
    pixels = decode(saved(Image.fromarray(deep), name), FULL_SIZE).pixels
    assert np.array_equal(pixels[:, :, 0], (deep >> 8).astype(np.uint8))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not_an_image"),
        (b"<!doctype html><html></html>", "not_an_image"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "not_an_image"),
        (b"\x1a\x45\xdf\xa3webm", "not_an_image"),
        (b"BMW 320d, one owner, full history", "not_an_image"),
        (b"%PDF-1.7", "not_an_image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unsupported"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "unsupported"),
        (b"8BPS\0\1", "unsupported"),
        (b"\xff\x0a\xfa", "unsupported"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\xff\xd8\xff\xd9", "corrupt"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"GIF89a", "truncated"),
    ],
)
def test_what_is_no_readable_photo_is_named(data: bytes, expected: str) -> None:
    assert reason(data) == expected


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.95])
def test_a_cut_file_is_truncated(name: str, share: float) -> None:
    data = saved(drawn(), name)
    assert reason(data[: int(len(data) * share)]) == "truncated"


@pytest.mark.parametrize("name", FORMATS)
def test_pixels_are_capped_before_they_are_decoded(name: str) -> None:
    data = saved(drawn(320, 240), name)
    assert reason(data, ImageSettings(max_pixels=320 * 240 - 1)) == "too_many_pixels"
    assert decode(data, ImageSettings(max_pixels=320 * 240)).source_width_px == 320


def test_a_bomb_is_refused_by_its_header_at_once() -> None:
    screen = b"GIF89a\xff\xff\x29\x04\0\0\0"
    frame = b",\0\0\0\0\xff\xff\xff\xff\0\2\2\x4c\1\0;"
    bomb = bytearray(saved(drawn(), "PNG"))
    bomb[16:24] = b"\0\1\0\0\0\1\0\0"
    start_s = time.perf_counter()
    assert reason(screen + frame) == "too_many_pixels"
    assert reason(bytes(bomb)) == "corrupt"  # its checksum was not forged
    assert time.perf_counter() - start_s < 0.5


def test_the_other_caps_hold() -> None:
    photo = drawn(40, 30)
    data = saved(photo, "JPEG", exif=b"Exif\0\0" + bytes(5000))
    assert reason(data, ImageSettings(max_source_bytes=len(data) - 1)) == "too_large"
    assert reason(data, ImageSettings(max_metadata_bytes=5000)) == "too_large"
    assert reason(data, ImageSettings(min_side_px=31)) == "too_small"
    frames = saved(photo, "WEBP", save_all=True, append_images=[photo.rotate(angle) for angle in (90, 180)])
    assert reason(frames, ImageSettings(max_frames=2)) == "too_large"
    assert decode(frames, ImageSettings(max_frames=3)).source_format == "WEBP"


def test_a_photo_is_never_enlarged_and_a_line_stays_a_line() -> None:
    assert decode(saved(drawn(60, 40), "PNG"), ImageSettings()).pixels.shape == (40, 60, 3)
    assert decode(saved(drawn(600, 400), "PNG"), ImageSettings()).pixels.shape == (256, 384, 3)
    line = Image.new("RGB", (5000, 1), (10, 200, 30))
    assert decode(saved(line, "PNG"), ImageSettings()).pixels.shape == (1, 5000, 3)
    assert decode(saved(line.resize((3000, 4)), "JPEG"), ImageSettings(), short_side_px=1).pixels.shape == (1, 750, 3)


def test_a_photo_longer_than_a_jpeg_can_be_is_not_stored() -> None:
    with pytest.raises(ImageError) as caught:
        store(saved(Image.new("RGB", (70_000, 1)), "PNG"), ImageSettings())
    assert caught.value.reason == "unsupported"


@pytest.mark.parametrize("side", [256, 96, 64])
@pytest.mark.parametrize("size", [(1600, 1200), (1021, 767), (700, 1333)])
def test_the_scaled_decode_stays_close_to_lanczos_from_full_size(size: tuple[int, int], side: int) -> None:
    data = saved(drawn(*size), "JPEG", quality=92)
    picture = decode(data, ImageSettings(), short_side_px=side)
    expected = Image.open(io.BytesIO(data)).resize(picture.pixels.shape[1::-1], Image.Resampling.LANCZOS)
    assert psnr(picture.pixels, np.asarray(expected)) > 40


def test_stored_photos_carry_their_columns() -> None:
    data = saved(drawn(800, 600), "WEBP")
    photo = store(data, ImageSettings())
    assert (photo.width_px, photo.height_px) == (341, 256)
    assert photo.columns().keys() <= set(PHOTOS.names)
    assert photo.sha256 == hashlib.sha256(photo.jpeg).hexdigest()
    assert (photo.source_bytes, photo.size_bytes) == (len(data), len(photo.jpeg))
    with Image.open(io.BytesIO(photo.jpeg)) as stored:
        assert (stored.format, stored.size, stored.mode) == ("JPEG", (341, 256), "RGB")
        assert set(stored.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert stored.layer[0][1:3] == (2, 2)  # type: ignore[attr-defined]  # set by the JPEG reader: 4:2:0
        assert np.array_equal(decode_stored(photo.jpeg), np.asarray(stored))


def test_encoding_is_repeatable() -> None:
    pixels = np.asarray(drawn())
    assert encode(pixels, 90) == encode(pixels[:, :, :].copy(order="F"), 90) != encode(pixels, 80)


def test_threads_give_the_same_photos_and_leave_pillow_as_it_was() -> None:
    files = [data for name, data in mode_files().items() if not name.startswith("avif")] * 3
    flags = {"pixels": Image.MAX_IMAGE_PIXELS, "lenient": ImageFile.LOAD_TRUNCATED_IMAGES}
    alone = [store(data, ImageSettings(short_side_px=64)) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together: list[StoredPhoto] = list(pool.map(lambda data: store(data, ImageSettings(short_side_px=64)), files))
    assert together == alone
    assert flags == {"pixels": Image.MAX_IMAGE_PIXELS, "lenient": ImageFile.LOAD_TRUNCATED_IMAGES}


def test_decoding_lets_other_threads_run() -> None:
    data = saved(drawn(2400, 1800), "JPEG")
    ticks, done = [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            ticks[0] += 1
            time.sleep(0.0005)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(10)  # nobody gets the lock unless it is let go
    other = threading.Thread(target=count)
    try:
        other.start()
        for _ in range(5):
            decode(data, ImageSettings())
    finally:
        done.set()
        sys.setswitchinterval(interval)
        other.join()
    assert ticks[0] > 20


def test_mutated_files_are_decoded_or_refused_by_a_known_name() -> None:
    sources = list(mode_files().values())
    started_s, names = time.monotonic(), []
    for index in range(400):
        if time.monotonic() - started_s > 20:
            break
        try:
            names.append(decode(mutated(sources, index), ImageSettings()).pixels.dtype.name)
        except ImageError as error:
            names.append(error.reason)
    assert len(names) > 100
    assert set(names) <= NAMES | {"uint8"}


def test_real_messy_files_come_out_as_expected(shared_data: Path) -> None:
    wrong = []
    with (shared_data / "messy_images/expectations.csv").open(newline="", encoding="utf-8") as listed:
        for row in csv.DictReader(listed):
            data = (shared_data / "messy_images" / row["file"]).read_bytes()
            try:
                photo = store(data, ImageSettings())
                found = ("yes", photo.source_format, str(photo.source_width_px), str(photo.source_height_px))
            except ImageError as error:
                answer = "no" if error.reason in NAMES else error.reason
                found = (answer, row["format"], row["width"], row["height"])
            if found != (row["should_decode"], row["format"], row["width"], row["height"]):
                wrong.append((row["file"], found))
    assert wrong == []


def test_real_photos_stay_close_to_lanczos_from_full_size(shared_data: Path) -> None:
    values = []
    for path in sorted((shared_data / "cars").glob("*.jpg"))[::60]:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as opened:
            if opened.info.get("icc_profile") or opened.mode != "RGB" or min(opened.size) < 200:
                continue
            pixels = decode(data, ImageSettings(), short_side_px=64).pixels
            expected = opened.resize(pixels.shape[1::-1], Image.Resampling.LANCZOS)
        values.append(psnr(pixels, np.asarray(expected)))
    assert len(values) > 10
    assert min(values) >= 38
    assert np.mean(values) >= 40
