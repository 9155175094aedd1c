"""Drawn photos and what dealers do to them, as stored JPEGs: inputs of the tests of the copy tier."""

from functools import cache
from io import BytesIO

import cv2
import numpy as np
from PIL import Image

from pipeline.drawn_site.photos import Pixels, draw
from pipeline.drawn_site.stock import Picture
from schemas.image import ImageSettings, store

SEED = 1


@cache
def drawn(owner: int, slot: int = 1, *, kind: str = "exterior", subject: str = "view") -> Pixels:
    return draw(SEED, Picture(str(owner), slot, kind, subject))


def source(pixels: Pixels, *, quality: int = 90) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def stored(pixels: Pixels, *, quality: int = 90) -> bytes:
    return store(source(pixels, quality=quality), ImageSettings()).jpeg


def cropped(pixels: Pixels, share: float = 0.05) -> Pixels:
    down, right = round(share * pixels.shape[0]), round(share * pixels.shape[1])
    inner = pixels[down : pixels.shape[0] - down, right : pixels.shape[1] - right]
    return np.asarray(cv2.resize(inner, (pixels.shape[1], pixels.shape[0])), np.uint8)


def bannered(pixels: Pixels) -> Pixels:
    covered = pixels.copy()
    height, width = pixels.shape[0] // 7, pixels.shape[1] // 2
    covered[:height, :width] = (200, 20, 40)
    cv2.putText(
        covered, "CITY MOTORS", (10, height * 2 // 3), cv2.FONT_HERSHEY_SIMPLEX, width / 300, (255, 255, 255), 2
    )
    return covered


def repainted(pixels: Pixels) -> Pixels:
    """Turn every hue, as a maker's picture of the same car in another colour."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    hsv[:, :, 0] = (hsv[:, :, 0] + 60) % 180
    hsv[:, :, 1] = np.maximum(hsv[:, :, 1], 120)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)
