"""Any Pillow mode and colour profile become 8-bit sRGB over white.

A profile is used where LittleCMS accepts it for the picture's colour model (relative colorimetric); where there is none
or it does not fit, Pillow's own conversion is.
"""

import functools
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_WHITE = 255
# The colour model a profile must be for, by Pillow mode.
_PROFILE_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}
_LATTICE_STEPS = 17
# A profile that moves no colour of the lattice by more than this is sRGB under another name.
_SAME_LEVELS = 1
_CACHED_PROFILES = 32


def split_alpha(image: Image.Image, *, sample_bits: int = 8) -> tuple[Image.Image, Image.Image | None]:
    """Return the picture in mode L, RGB, CMYK or LAB, and its opacity in mode L, None where it has none.

    `sample_bits` says how deep the numbers of modes I and I;16 are.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image, sample_bits)
    if image.mode in ("L", "RGB", "CMYK", "LAB") and "transparency" not in image.info:
        return image, None
    if image.has_transparency_data:
        is_grey = image.mode in ("1", "L", "LA", "La")
        layered = image.convert("LA" if is_grey else "RGBA")
        return layered.convert("L" if is_grey else "RGB"), layered.getchannel("A")
    return image.convert("L" if image.mode == "1" else "RGB"), None


def to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """Convert a picture of mode L, RGB, CMYK or LAB to sRGB."""
    transform = _transform(icc, image.mode) if icc else None
    if transform is None:
        return image.convert("RGB")
    return transform.apply(image)


def over_white(image: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """Lay an RGB picture over white."""
    if alpha is None:
        return image
    page = Image.new("RGB", image.size, (_WHITE, _WHITE, _WHITE))
    page.paste(image, mask=alpha)
    return page


@functools.lru_cache(maxsize=_CACHED_PROFILES)
def _transform(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the way to sRGB; None where the profile does not fit the mode, is broken, or changes nothing.

    LittleCMS lets threads share a transform.
    """
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if profile.profile.xcolor_space.strip() != _PROFILE_SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode == "RGB":
        lattice = _lattice()
        moved = np.asarray(transform.apply(lattice), np.int16) - np.asarray(lattice, np.int16)
        if int(np.abs(moved).max()) <= _SAME_LEVELS:
            return None
    return transform


def _lattice() -> Image.Image:
    levels = np.linspace(0, _WHITE, _LATTICE_STEPS).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    return Image.fromarray(grid.reshape(_LATTICE_STEPS, -1, 3))


def _eight_bits(image: Image.Image, sample_bits: int) -> tuple[Image.Image, Image.Image | None]:
    """Bring deep grey to 8 bits by its high byte, as Pillow does for deep colour."""
    numbers: NDArray[Any] = np.asarray(image)
    if image.mode == "F":
        # Floating-point pictures run to 1 by convention, some to 255.
        finite = np.nan_to_num(numbers.astype(np.float32))
        scaled = finite * _WHITE if float(finite.max(initial=0)) <= 1 else finite
        return Image.fromarray(np.clip(scaled, 0, _WHITE).astype(np.uint8)), None
    clear = image.info.get("transparency")
    # Whole numbers stored four bytes each often hold eight bits.
    shift = 0 if image.mode == "I" and int(numbers.max(initial=0)) <= _WHITE else max(sample_bits - 8, 0)
    grey = np.clip(numbers >> shift, 0, _WHITE).astype(np.uint8)
    if not isinstance(clear, int):
        return Image.fromarray(grey), None
    return Image.fromarray(grey), Image.fromarray(np.where(numbers == clear, 0, _WHITE).astype(np.uint8))
