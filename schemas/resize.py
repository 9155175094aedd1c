"""The stored size of a photo, and the way there: averaging whole blocks first, Lanczos for the rest.

Both are Pillow's, which computes in fixed point.
"""

from PIL import Image

# Codecs and block averages shrink to no less than this many times the stored size. At 2 the PSNR against a Lanczos from
# full size is 44 dB at worst over real photos, at 1 it is 31 dB (benchmarks/decode.py).
SHRINK_MARGIN = 2


def stored_size(width_px: int, height_px: int, short_side_px: int) -> tuple[int, int]:
    """Return width and height with the short side at `short_side_px`, halves rounded up; never enlarged."""
    short = min(width_px, height_px)
    if short <= short_side_px:
        return width_px, height_px
    return (
        (2 * width_px * short_side_px + short) // (2 * short),
        (2 * height_px * short_side_px + short) // (2 * short),
    )


def shrunk(
    image: Image.Image, covered: tuple[float, float], size: tuple[int, int]
) -> tuple[Image.Image, tuple[float, float]]:
    """Average whole blocks of pixels while `SHRINK_MARGIN` times the stored size remains.

    The picture covers `covered` px of the image, since scaled decodes round up.
    """
    factor = min(image.width // (SHRINK_MARGIN * size[0]), image.height // (SHRINK_MARGIN * size[1]))
    if factor < 2:
        return image, covered
    return image.reduce(factor), (covered[0] / factor, covered[1] / factor)


def resized(image: Image.Image, covered: tuple[float, float], size: tuple[int, int]) -> Image.Image:
    """Bring what the picture covers to its stored size."""
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.LANCZOS, box=(0, 0, *covered))
