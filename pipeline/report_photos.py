"""The photos of a report, small and inline."""

import base64
from collections.abc import Iterable

import cv2

from pipeline.report_blocks import Drawing, Photo
from pipeline.same_picture import StoredPhotos
from schemas.image import decode_stored, encode
from schemas.storage import Root

SIDE_PX = 160
_QUALITY = 80


def thumbnails(root: Root, photos: Iterable[Photo]) -> dict[str, Drawing]:
    """Return an inline image for the key of each photo; a shard is opened once.

    Raises:
        IntegrityError: no committed shard holds a photo.
    """
    wanted = sorted({(photo.part, photo.key) for photo in photos})
    stored = StoredPhotos(root)
    try:
        return {key: thumbnail(stored.get(part, key)) for part, key in wanted}
    finally:
        stored.close()


def thumbnail(jpeg: bytes) -> Drawing:
    """Reduce a stored photo to at most 160 px a side."""
    pixels = decode_stored(jpeg)
    height_px, width_px = pixels.shape[:2]
    scale = min(1.0, SIDE_PX / max(width_px, height_px))
    small_px = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    small = cv2.resize(pixels, small_px, interpolation=cv2.INTER_AREA).astype("uint8")
    encoded = base64.b64encode(encode(small, _QUALITY)).decode("ascii")
    return Drawing(f"data:image/jpeg;base64,{encoded}", *small_px)
