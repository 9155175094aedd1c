"""The one place where bytes become pixels: for ingest, training and serving alike.

A photo is sniffed, its header read and held against the caps, then its first frame is decoded strictly, brought to
upright 8-bit sRGB over white, and its short side to the stored size. Codecs and resize compute in integers, so that any
machine and number of threads gives the same pixels, and let go of the interpreter lock while they work.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from schemas.colour import over_white, split_alpha, to_srgb
from schemas.errors import ImageError
from schemas.hashes import coarse_hash, phash
from schemas.header import UPRIGHT, Header, usable_profile
from schemas.jpeg import changed_share, has_end, last_scan_at, num_scans, progressive_share
from schemas.png import padded, read_share
from schemas.resize import SHRINK_MARGIN, resized, shrunk, stored_size
from schemas.settings import Section, result
from schemas.sniff import read_header, sniff

__all__ = ["ImageSettings", "Picture", "StoredPhoto", "decode", "decode_stored", "encode", "sniff", "store"]

_JPEG_EIGHTHS = 8
# Of a JPEG with an end marker but damaged data, at least this much must have come out.
_INTACT_SHARE = 0.99
_UNREAD_LEVEL = 128
_JPEG_COLOURS = {1: "GRAY", 3: "RGB", 4: "CMYK"}
_JPEG_END = b"\xff\xd9"
_LONGEST_JPEG_SIDE_PX = 65_500
# Passes over the blocks of a progressive JPEG, in pixels: about two seconds.
_MAX_SCANNED_PIXELS = 1_000_000_000
# Pillow warns above this many pixels, and warnings cannot be held back for one thread.
_PILLOW_WARNS_ABOVE_PX = 89_478_485

_OPENERS: Mapping[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "JPEG2000": Jpeg2KImageFile,
    "PNG": PngImageFile,
    "TIFF": TiffImageFile,
    "WEBP": WebPImageFile,
}
_UPRIGHT_BY: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_ORIENTATION_TAG = 0x0112
# Words in the messages of codecs.
_CUT_SHORT = ("truncated", "not enough image data", "unexpected end of file", "premature end")
_NOT_SUPPORTED = (
    "unsupported",
    "not supported",
    "cannot handle",
    "unknown pixel mode",
    "unknown raw mode",
    "not available",
)


class ImageSettings(Section):
    """How photos are decoded and stored."""

    short_side_px: int = result(256, "px of the stored short side; a smaller photo keeps its size", ge=1)
    quality: int = result(90, "JPEG quality of stored photos", ge=1, le=100)
    min_side_px: int = result(1, "px; a photo whose source is narrower is too_small", ge=1)
    max_source_bytes: int = result(64 << 20, "bytes; larger files are too_large", ge=1)
    max_pixels: int = result(
        48 << 20, "px of the source; more would not decode within 1 GiB", ge=1, le=_PILLOW_WARNS_ABOVE_PX
    )
    max_slow_pixels: int = result(
        16 << 20, "px of a JPEG 2000, which takes five times the time and memory", ge=1, le=_PILLOW_WARNS_ABOVE_PX
    )
    max_frames: int = result(5000, "frames; more are too_large, though only the first is decoded", ge=1)
    max_metadata_bytes: int = result(16 << 20, "bytes of EXIF, text and profiles; more are too_large", ge=0)
    min_read_share: float | None = result(
        None,
        "share of a truncated JPEG or PNG that must have arrived to keep it, the rest flat; null rejects",
        ge=0,
        le=1,
    )


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded photo: `pixels` (H, W, 3) uint8, upright sRGB; source size as seen upright."""

    pixels: NDArray[np.uint8]
    source_format: str
    source_width_px: int
    source_height_px: int


@dataclass(frozen=True, slots=True)
class StoredPhoto:
    """What a shard and the photos table keep of a photo."""

    jpeg: bytes
    source_format: str
    source_width_px: int
    source_height_px: int
    source_bytes: int
    width_px: int
    height_px: int
    size_bytes: int
    sha256: str
    coarse_hash: str
    phash: int

    def columns(self) -> dict[str, Any]:
        """Return the columns of the photos table, which is all but the JPEG."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "jpeg"}


def store(data: bytes, settings: ImageSettings) -> StoredPhoto:
    """Decode, hash and encode a photo.

    Raises:
        ImageError: with the reason a row stores.
    """
    picture = decode(data, settings)
    height, width = picture.pixels.shape[:2]
    if max(height, width) > _LONGEST_JPEG_SIDE_PX:
        raise ImageError("unsupported", f"{width}x{height} px is longer than a JPEG can be")
    jpeg = encode(picture.pixels, settings.quality)
    return StoredPhoto(
        jpeg=jpeg,
        source_format=picture.source_format,
        source_width_px=picture.source_width_px,
        source_height_px=picture.source_height_px,
        source_bytes=len(data),
        width_px=width,
        height_px=height,
        size_bytes=len(jpeg),
        sha256=hashlib.sha256(jpeg).hexdigest(),
        coarse_hash=coarse_hash(picture.pixels),
        phash=phash(picture.pixels),
    )


def decode(data: bytes, settings: ImageSettings, *, short_side_px: int | None = None) -> Picture:
    """Decode a photo's first frame to upright sRGB with its short side at `short_side_px`, or at the settings'.

    Raises:
        ImageError: not_an_image, truncated, corrupt, too_many_pixels, too_small, unsupported, too_large.
    """
    try:
        return _decode(data, settings, short_side_px or settings.short_side_px)
    except ImageError:
        raise
    except Exception as error:
        # The row boundary: codecs fail in as many ways as files are broken.
        raise ImageError(_reason(error), f"{type(error).__name__}: {error}") from error


def encode(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """Encode as JPEG 4:2:0 without metadata."""
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality, colorspace="RGB", colorsubsampling="420", fastdct=False
    )
    return encoded


def decode_stored(jpeg: bytes) -> NDArray[np.uint8]:
    """Decode a photo that `encode` wrote, to (H, W, 3) RGB."""
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(jpeg, "RGB", fastdct=False, fastupsample=False)
    return pixels


@dataclass(frozen=True, slots=True)
class _Frame:
    """A decoded frame, perhaps at a smaller scale; the source covers `covered` of its px."""

    image: Image.Image
    width_px: int
    height_px: int
    covered: tuple[float, float]
    orientation: int
    icc: bytes | None


def _decode(data: bytes, settings: ImageSettings, short_side_px: int) -> Picture:
    if len(data) > settings.max_source_bytes:
        raise ImageError("too_large", f"{len(data)} bytes, {settings.max_source_bytes} allowed")
    header = read_header(data)
    if header.format in ("JPEG", "MPO"):
        _hold_against_caps(header, settings)
        frame = _decode_jpeg(header, settings, short_side_px)
    elif header.format == "AVIF":
        frame = _decode_avif(header, settings)
    else:
        _hold_against_caps(header, settings)
        frame = _decode_other(header, settings)
    size = stored_size(frame.width_px, frame.height_px, short_side_px)
    image = _finished(frame, size, sample_bits=header.sample_bits if header.format == "TIFF" else 16)
    width, height = frame.width_px, frame.height_px
    if frame.orientation in _UPRIGHT_BY:
        image = image.transpose(_UPRIGHT_BY[frame.orientation])
    if frame.orientation in _SIDEWAYS:
        width, height = height, width
    return Picture(np.array(image), header.format, width, height)


def _hold_against_caps(header: Header, settings: ImageSettings) -> None:
    """Refuse by the header what would take too much to decode."""
    size, pixels = f"{header.width_px}x{header.height_px} px", header.width_px * header.height_px
    slow = header.format == "JPEG2000"
    limit = min(settings.max_pixels, settings.max_slow_pixels) if slow else settings.max_pixels
    if pixels > limit:
        raise ImageError("too_many_pixels", f"{size}, {limit} px allowed")
    if header.progressive and pixels * num_scans(header.payload) > _MAX_SCANNED_PIXELS:
        raise ImageError("too_many_pixels", f"{num_scans(header.payload)} scans of {size}")
    if min(header.width_px, header.height_px) < settings.min_side_px:
        raise ImageError("too_small", f"{size}, {settings.min_side_px} px asked for")
    if header.num_frames > settings.max_frames:
        raise ImageError("too_large", f"{header.num_frames} frames, {settings.max_frames} allowed")
    if header.metadata_bytes > settings.max_metadata_bytes:
        raise ImageError("too_large", f"{header.metadata_bytes} bytes of metadata")


def _decode_jpeg(header: Header, settings: ImageSettings, short_side_px: int) -> _Frame:
    """Decode at the smallest scale that leaves `SHRINK_MARGIN` times the stored size."""
    width, height = stored_size(header.width_px, header.height_px, short_side_px)
    eighths = _JPEG_EIGHTHS
    while eighths > 1:
        smaller = _eighths_of(header, eighths - 1)
        if smaller[0] < SHRINK_MARGIN * width or smaller[1] < SHRINK_MARGIN * height:
            break
        eighths -= 1
    try:
        image = _turbo(header, eighths, strict=True)
    except ValueError as error:
        image, eighths = _decode_damaged_jpeg(header, settings, eighths, str(error))
    covered = header.width_px * eighths / _JPEG_EIGHTHS, header.height_px * eighths / _JPEG_EIGHTHS
    return _Frame(image, header.width_px, header.height_px, covered, header.orientation, header.icc)


def _decode_damaged_jpeg(
    header: Header, settings: ImageSettings, eighths: int, problem: str
) -> tuple[Image.Image, int]:
    """Decode what the strict way refused, unless too little of the picture arrived."""
    ended = has_end(header.payload) and "Premature end of JPEG" not in problem
    if not ended and settings.min_read_share is None:
        raise ImageError("truncated", problem)
    needed = _INTACT_SHARE if settings.min_read_share is None else settings.min_read_share
    try:
        image = _turbo(header, eighths, strict=False)
    except ValueError:
        # An error, no warning: most often a chroma subsampling that only Pillow's decoder knows.
        image, eighths = _load(_open(header, JpegImageFile)), _JPEG_EIGHTHS
    share = _share_of_jpeg(header, image) if not ended or not header.progressive else 1.0
    if share < needed:
        raise ImageError("truncated", f"{share:.0%} of the picture arrived: {problem}")
    return image, eighths


def _share_of_jpeg(header: Header, image: Image.Image) -> float:
    """Return how much of a damaged JPEG arrived: lines of a sequential one, coefficients of a progressive one."""
    if not header.progressive:
        # libjpeg leaves blocks it never saw mid-grey.
        return changed_share(np.asarray(image), _UNREAD_LEVEL)
    if num_scans(header.payload) < 2:
        return 0.0
    # The last scan reached as far down as it makes a difference.
    before = replace(header, payload=header.payload[: last_scan_at(header.payload)] + _JPEG_END)
    after = replace(header, payload=header.payload + _JPEG_END)
    try:
        _turbo(after, 1, strict=True)
        share = 1.0
    except ValueError:
        without = np.asarray(_turbo(before, _JPEG_EIGHTHS, strict=False))
        share = changed_share(np.asarray(_turbo(after, _JPEG_EIGHTHS, strict=False)), without)
    return progressive_share(header.payload, last_scan_share=share)


def _turbo(header: Header, eighths: int, *, strict: bool) -> Image.Image:
    """Decode at `eighths` of the size; strict raises ValueError for what libjpeg only warns of."""
    width, height = _eighths_of(header, eighths)
    pixels = simplejpeg.decode_jpeg(
        header.payload,
        _JPEG_COLOURS[header.channels],
        fastdct=False,
        fastupsample=False,
        min_height=height,
        min_width=width,
        min_factor=1,
        strict=strict,
    )
    if pixels.shape[:2] != (height, width):
        raise ImageError("unsupported", f"a JPEG that does not scale to {width}x{height} px")
    if header.channels == 4:
        # Adobe's convention, which all CMYK JPEGs are taken to follow: ink is stored inverted.
        return Image.frombytes("CMYK", (width, height), np.subtract(255, pixels).tobytes())
    return Image.fromarray(pixels if header.channels == 3 else pixels.reshape(height, width))


def _eighths_of(header: Header, eighths: int) -> tuple[int, int]:
    return -(-header.width_px * eighths // _JPEG_EIGHTHS), -(-header.height_px * eighths // _JPEG_EIGHTHS)


def _decode_avif(header: Header, settings: ImageSettings) -> _Frame:
    if not header.complete:
        raise ImageError("truncated", "the AVIF ends before its last box")
    image = _open(header, AvifImageFile)
    num_frames = int(getattr(image, "n_frames", 1))
    _hold_against_caps(replace(header, width_px=image.width, height_px=image.height, num_frames=num_frames), settings)
    icc = usable_profile(image.info.get("icc_profile"))
    orientation = int(image.getexif().get(_ORIENTATION_TAG, UPRIGHT))
    return _whole(_load(image), orientation, icc)


def _decode_other(header: Header, settings: ImageSettings) -> _Frame:
    if header.format != "PNG" and not header.complete:
        raise ImageError("truncated", f"the {header.format} ends before its first frame does")
    image = _open(header, _OPENERS[header.format])
    if image.size != (header.width_px, header.height_px):
        raise ImageError("corrupt", f"{header.width_px}x{header.height_px} px by one header, {image.size} by another")
    loaded = _load_png(header, image, settings) if header.format == "PNG" else _load(image)
    return _whole(loaded, header.orientation, header.icc)


def _load_png(header: Header, image: Image.Image, settings: ImageSettings) -> Image.Image:
    """Load a PNG and make sure that all its lines were there: Pillow leaves the others zero without a word."""
    try:
        image = _load(image)
    except ImageError as error:
        share = read_share(header) if error.reason == "truncated" else 1.0
        if share == 1.0 or settings.min_read_share is None or share < settings.min_read_share:
            raise
        return _load(_open(replace(header, payload=padded(header)), PngImageFile))
    last_line = np.asarray(image.crop((0, header.height_px - 1, header.width_px, header.height_px)))
    # The last line of an interlaced picture need not be among the last to arrive.
    if last_line.any() and not header.interlaced:
        return image
    share = read_share(header)
    if share < (1.0 if settings.min_read_share is None else settings.min_read_share):
        raise ImageError("truncated", f"{share:.0%} of the picture arrived")
    return image


def _open(header: Header, opener: Callable[[io.BytesIO], ImageFile.ImageFile]) -> ImageFile.ImageFile:
    """Open with the format's own reader: the general one warns, and guesses again."""
    return opener(io.BytesIO(header.payload))


def _load(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(_reason(error), f"{type(error).__name__}: {error}") from error
    return image


def _whole(image: Image.Image, orientation: int, icc: bytes | None) -> _Frame:
    return _Frame(image, image.width, image.height, (image.width, image.height), orientation, icc)


def _finished(frame: _Frame, size: tuple[int, int], *, sample_bits: int) -> Image.Image:
    """Bring a frame to sRGB over white at the stored size, colours before the last resize."""
    image, alpha = split_alpha(frame.image, sample_bits=sample_bits)
    covered = frame.covered
    if alpha is None and image.mode != "LAB":
        image, covered = shrunk(image, covered, size)
    image = over_white(to_srgb(image, frame.icc), alpha)
    image, covered = shrunk(image, covered, size)
    return resized(image, covered, size)


def _reason(error: Exception) -> str:
    """Name what a codec complains of."""
    if isinstance(error, MemoryError):
        return "too_large"
    text = str(error).lower()
    if any(word in text for word in _CUT_SHORT):
        return "truncated"
    return "unsupported" if any(word in text for word in _NOT_SUPPORTED) else "corrupt"
