"""Name a photo's format from its bytes, never from its name or content type, and read its header."""

from collections.abc import Callable, Mapping

from schemas.containers import J2K_SIGNATURE, JP2_SIGNATURE, read_avif, read_bmp, read_gif, read_jpeg2000, read_webp
from schemas.errors import ImageError
from schemas.header import Header
from schemas.jpeg import read_jpeg
from schemas.png import SIGNATURE as PNG_SIGNATURE
from schemas.png import read_png
from schemas.tiff import read_tiff

_JPEG_SIGNATURE = b"\xff\xd8\xff"
_BMP_HEADER_BYTES = (12, 16, 40, 52, 56, 64, 108, 124)
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1", b"miaf"}
)

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (_JPEG_SIGNATURE, "JPEG"),
    (PNG_SIGNATURE, "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (JP2_SIGNATURE, "JPEG2000"),
    (J2K_SIGNATURE, "JPEG2000"),
    # Pictures that nobody here reads: told from what is no picture at all.
    (b"\xff\x0a", "JXL"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JXL"),
    (b"II\xbc\x01", "JXR"),
    (b"8BPS", "PSD"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"BPG\xfb", "BPG"),
    (b"v/1\x01", "EXR"),
    (b"P5\n", "PPM"),
    (b"P6\n", "PPM"),
)

_READERS: Mapping[str, Callable[[bytes], Header]] = {
    "JPEG": read_jpeg,
    "PNG": read_png,
    "GIF": read_gif,
    "WEBP": read_webp,
    "BMP": read_bmp,
    "TIFF": read_tiff,
    "JPEG2000": read_jpeg2000,
    "AVIF": read_avif,
}


def sniff(data: bytes) -> str | None:
    """Return the format as Pillow names it (JPEG, MPO, PNG, ..., HEIF); None for what is no picture."""
    name = _container(data)
    if name != "JPEG":
        return name
    try:
        return read_jpeg(data).format
    except ImageError:
        return name


def read_header(data: bytes) -> Header:
    """Read what can be known without decoding.

    Raises:
        ImageError: not_an_image, unsupported, truncated, corrupt, too_large.
    """
    name = _container(data)
    if name is None:
        raise ImageError("not_an_image", f"{len(data)} bytes that start with {data[:8]!r}")
    reader = _READERS.get(name)
    if reader is None:
        raise ImageError("unsupported", name)
    return reader(data)


def _container(data: bytes) -> str | None:
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    # Two letters alone would make photos of texts: the size of the second header has few values.
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADER_BYTES:
        return "BMP"
    return _brand(data) if data[4:8] == b"ftyp" else None


def _brand(data: bytes) -> str | None:
    """Tell AVIF and HEIF from the films that share their container."""
    size = int.from_bytes(data[:4])
    major, compatible = data[8:12], data[16 : max(16, size)]
    brands = {major, *(compatible[at : at + 4] for at in range(0, min(len(compatible), 256), 4))}
    if major in _AVIF_BRANDS or (major in _HEIF_BRANDS and brands & _AVIF_BRANDS):
        return "AVIF"
    return "HEIF" if major in _HEIF_BRANDS else None
