"""Fingerprints of a photo's pixels: one for equal pictures, one for nearly equal ones.

Both are taken of the upright sRGB pixels at stored size, before encoding.
"""

import hashlib
import math

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

_COARSE_SIDE_PX = 16
_COARSE_SHIFT = 4
_MAX_LOG_ASPECT = 4


def coarse_hash(pixels: NDArray[np.uint8]) -> str:
    """Hash what survives at 16x16 px and 16 levels, and the rough aspect: equal for equal photos, SHA-256 in hex."""
    height, width = pixels.shape[:2]
    tiny = Image.fromarray(pixels).resize((_COARSE_SIDE_PX, _COARSE_SIDE_PX), Image.Resampling.LANCZOS)
    levels = np.asarray(tiny, np.uint8) >> _COARSE_SHIFT
    log_aspect = min(max(math.log2(width / height), -_MAX_LOG_ASPECT), _MAX_LOG_ASPECT)
    return hashlib.sha256(levels.tobytes() + bytes([round(log_aspect) + _MAX_LOG_ASPECT])).hexdigest()


def phash(pixels: NDArray[np.uint8]) -> int:
    """Return the 64-bit perceptual hash; near-duplicates differ in few bits. First bit, row-major, is the highest."""
    return int(str(imagehash.phash(Image.fromarray(pixels))), 16)
