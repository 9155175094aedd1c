"""What the bytes of a photo say before any pixel is decoded."""

import struct
from dataclasses import dataclass

from schemas.errors import ImageError

UPRIGHT = 1
MAX_PROFILE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Header:
    """A photo's first frame, as its container describes it.

    Size is as stored, before orientation. `payload` is what the codec is given: the first frame, without the metadata
    that codecs parse, warn about and grow on.
    """

    format: str
    width_px: int
    height_px: int
    payload: bytes
    channels: int = 3
    sample_bits: int = 8
    num_frames: int = 1
    metadata_bytes: int = 0
    orientation: int = UPRIGHT
    icc: bytes | None = None
    complete: bool = True
    progressive: bool = False
    interlaced: bool = False


def unpack(layout: str, data: bytes, offset: int) -> tuple[int, ...]:
    """Read integers at an offset.

    Raises:
        ImageError: truncated, where the bytes end before them.
    """
    if offset < 0 or offset + struct.calcsize(layout) > len(data):
        raise ImageError("truncated", f"the header ends at byte {len(data)}")
    return struct.unpack_from(layout, data, offset)


def usable_profile(icc: bytes | None) -> bytes | None:
    """Drop a colour profile that is empty or larger than any real one."""
    return icc if icc and len(icc) <= MAX_PROFILE_BYTES else None
