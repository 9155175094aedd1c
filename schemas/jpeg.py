"""JPEG as segments: size, orientation, colour profile and frames, and the same picture without its metadata."""

import re
import struct

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ImageError
from schemas.header import Header, unpack, usable_profile
from schemas.tiff import orientation_of, read_directory

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_LOSSLESS = 0xC3
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_READABLE_FRAMES = frozenset({0xC0, 0xC1, 0xC2, _LOSSLESS, 0xC9, 0xCA})
_PROGRESSIVE_FRAMES = frozenset({0xC2, 0xCA})
# Stand alone, without a length: stuffing, TEM, restart markers, start of image.
_BARE = frozenset({0x00, 0x01, _SOI} | set(range(0xD0, 0xD8)))
_METADATA = frozenset(range(0xE0, 0xF0)) | {0xFE}
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE
_MIN_JFIF_BYTES, _MIN_ADOBE_BYTES = 14, 12
_NUM_IMAGES, _IMAGE_ENTRIES, _IMAGE_ENTRY_BYTES = 0xB001, 0xB002, 16
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


class _Segments:
    """What the segments before the first scan add up to."""

    def __init__(self) -> None:
        self.kept = [b"\xff\xd8"]
        self.frame: tuple[int, bytes] | None = None
        self.exif = b""
        self.icc: list[bytes] = []
        self.mpf: bytes | None = None
        self.gain_map = False
        self.metadata_bytes = 0

    def add(self, code: int, body: bytes) -> None:
        if code in _METADATA:
            self.metadata_bytes += len(body)
            if not _steers_the_codec(code, body):
                self._note(code, body)
                return
        elif code in _FRAMES:
            self.frame = (code, body)
        self.kept.append(struct.pack(">BBH", 0xFF, code, len(body) + 2) + body)

    def _note(self, code: int, body: bytes) -> None:
        if code == _APP1 and body.startswith(b"Exif\0\0"):
            self.exif += body[6:]
        elif code == _APP1 and b' hdrgm:Version="' in body:
            self.gain_map = True
        elif code == _APP2 and body.startswith(b"ICC_PROFILE\0"):
            self.icc.append(body[12:])
        elif code == _APP2 and body.startswith(b"MPF\0"):
            self.mpf = body[4:]


def read_jpeg(data: bytes) -> Header:
    """Read a JPEG up to its first scan.

    Raises:
        ImageError: truncated, corrupt, unsupported.
    """
    segments, scan_at = _read_segments(data)
    if segments.frame is None:
        raise ImageError("corrupt", "a JPEG scan before any frame header")
    code, body = segments.frame
    bits, height, width, channels = unpack(">BHHB", body, 0)
    if code not in _READABLE_FRAMES or bits != 8 or channels not in (1, 3, 4) or height == 0:
        raise ImageError("unsupported", f"JPEG frame 0x{code:02x}, {bits} bits, {channels} channels, {height} lines")
    if width == 0:
        raise ImageError("corrupt", "a JPEG of no width")
    num_frames = 1 if segments.gain_map else _num_pictures(segments.mpf)
    return Header(
        "MPO" if num_frames > 1 else "JPEG",
        width,
        height,
        b"".join(segments.kept) + data[scan_at:],
        channels=channels,
        num_frames=num_frames,
        metadata_bytes=segments.metadata_bytes,
        orientation=orientation_of(segments.exif),
        icc=usable_profile(_join_profile(segments.icc)),
        progressive=code in _PROGRESSIVE_FRAMES,
    )


def has_end(payload: bytes) -> bool:
    """Tell whether an end-of-image marker follows the start of the last scan."""
    return payload.rfind(b"\xff\xd9") > payload.rfind(b"\xff\xda")


def num_scans(payload: bytes) -> int:
    """Count the scans; each costs a pass over all blocks of a progressive picture."""
    return payload.count(b"\xff\xda")


def last_scan_at(payload: bytes) -> int:
    """Return where the last scan starts."""
    return payload.rfind(b"\xff\xda")


def progressive_share(payload: bytes, *, last_scan_share: float) -> float:
    """Return the share of all coefficients whose last bit arrived, 0 to 1; components weigh by their samples."""
    weights = _component_weights(payload)
    arrived = {component: [0.0] * 64 for component in weights}
    scans = [match.start() for match in _MARKER.finditer(payload) if payload[match.start() + 1] == _SOS]
    for scan in scans:
        (count,) = unpack(">B", payload, scan + 4)
        first, last, bits = unpack(">BBB", payload, scan + 5 + 2 * count)
        share = last_scan_share if scan == scans[-1] else 1.0
        for index in range(count):
            (component,) = unpack(">B", payload, scan + 5 + 2 * index)
            if component in arrived and bits & 15 == 0 and first <= last < 64:
                arrived[component][first : last + 1] = [share] * (last + 1 - first)
    total = 64 * sum(weights.values())
    return sum(weights[component] * sum(shares) for component, shares in arrived.items()) / total if total else 0.0


def changed_share(pixels: NDArray[np.uint8], unread: NDArray[np.uint8] | int) -> float:
    """Return the share of lines down to the last that differs from what stands where nothing was read."""
    differs = np.abs(np.subtract(pixels, unread, dtype=np.int16)) > 1
    lines = np.flatnonzero(differs.reshape(len(pixels), -1).any(axis=1))
    return (int(lines[-1]) + 1) / len(pixels) if lines.size else 0.0


def _read_segments(data: bytes) -> tuple[_Segments, int]:
    """Walk the markers as libjpeg does: junk between segments is passed over."""
    segments, position = _Segments(), 2
    while True:
        start = data.find(b"\xff", position)
        if start < 0:
            raise ImageError("truncated", "no scan in the JPEG")
        position = start + 1
        while data[position : position + 1] == b"\xff":
            position += 1
        (code,) = unpack(">B", data, position)
        position += 1
        if code in _BARE:
            continue
        if code == _EOI:
            raise ImageError("corrupt", "a JPEG that ends before its first scan")
        (length,) = unpack(">H", data, position)
        if length < 2:
            raise ImageError("corrupt", f"a JPEG segment 0x{code:02x} of {length} bytes")
        if position + length > len(data):
            raise ImageError("truncated", "the JPEG ends in its header")
        if code == _SOS:
            return segments, position - 2
        segments.add(code, data[position + 2 : position + length])
        position += length


def _steers_the_codec(code: int, body: bytes) -> bool:
    """Tell whether libjpeg reads its colour model from this segment."""
    if code == _APP0:
        return body.startswith(b"JFIF\0") and len(body) >= _MIN_JFIF_BYTES
    return code == _APP14 and body.startswith(b"Adobe") and len(body) >= _MIN_ADOBE_BYTES


def _join_profile(chunks: list[bytes]) -> bytes | None:
    """Join the chunks of a colour profile by number; None where one is missing."""
    ordered = sorted(chunks)
    if not ordered or len(ordered[0]) < 2 or ordered[0][1] != len(ordered):
        return None
    return b"".join(chunk[2:] for chunk in ordered)


def _num_pictures(mpf: bytes | None) -> int:
    """Count the pictures of a multi-picture index; 1 where it is none that Pillow would follow."""
    if mpf is None:
        return 1
    try:
        directory = read_directory(mpf)
    except ImageError:
        return 1
    count, entries = directory.number(_NUM_IMAGES, 1), directory.entries.get(_IMAGE_ENTRIES)
    if entries is None or count < 1 or len(entries.raw) < count * _IMAGE_ENTRY_BYTES:
        return 1
    attributes = [
        struct.unpack_from(f"{directory.order}I", entries.raw, index * _IMAGE_ENTRY_BYTES)[0] for index in range(count)
    ]
    return 1 if any(attribute >> 24 & 7 for attribute in attributes) else count


def _component_weights(payload: bytes) -> dict[int, int]:
    for match in _MARKER.finditer(payload):
        if payload[match.start() + 1] in _FRAMES:
            at = match.start() + 4
            (count,) = unpack(">B", payload, at + 5)
            layout = [unpack(">BB", payload, at + 6 + 3 * index) for index in range(count)]
            return {component: (factors >> 4) * (factors & 15) for component, factors in layout}
    return {}
