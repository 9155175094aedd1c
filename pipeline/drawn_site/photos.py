"""The bytes of the demo site's photos: pictures drawn and encoded, edited copies, and every kind of broken file."""

import struct
import zlib
from io import BytesIO

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.drawn_site.dice import Dice
from pipeline.drawn_site.drawing import CarLook, draw_cutout, draw_exterior
from pipeline.drawn_site.junk import draw_flat, draw_junk, draw_placeholder
from pipeline.drawn_site.makes import INTERIORS, MAKES, MODEL_BY_NAME, PAINTS
from pipeline.drawn_site.stock import Photo, Picture, draw_car, encoding_of

Pixels = NDArray[np.uint8]

# What an oversized photo says its length is; the site sends zeros until the reader has had enough.
OVERSIZED_BYTES = 400 << 20


def photo_bytes(seed: int, photo: Photo) -> bytes:
    """Return what the site sends for a drawn or broken photo."""
    if photo.broken is not None:
        return _broken(seed, photo)
    assert photo.picture is not None
    return encode_picture(seed, photo.picture)


def encode_picture(seed: int, picture: Picture) -> bytes:
    """Draw a picture, edit it, and encode it in its format."""
    pixels = edited(draw(seed, picture), picture)
    dice = Dice("quality", picture.content)
    match encoding_of(picture):
        case "png":
            return _png(pixels)
        case "webp":
            buffer = BytesIO()
            Image.fromarray(pixels).save(buffer, "WEBP", quality=dice.whole(70, 90), method=0)
            return buffer.getvalue()
    quality = dice.whole(45, 70) if picture.edit == "reencode" else dice.whole(78, 93)
    return _jpeg(pixels, quality)


def draw(seed: int, picture: Picture) -> Pixels:
    """Draw a picture before any edit: (H, W, 3) RGB."""
    if picture.owner.startswith("placeholder-"):
        return draw_placeholder(picture.owner)
    if picture.owner.startswith("stock-"):
        return draw_cutout(_stock_look(picture.owner), slot=0)
    if picture.subject.startswith("flat"):
        return draw_flat(int(picture.subject[4:]))
    look = look_of(seed, int(picture.owner))
    if picture.kind == "junk":
        return draw_junk(look, picture.subject, picture.slot)
    return draw_cutout(look, picture.slot) if picture.subject == "cutout" else draw_exterior(look, picture.slot)


def look_of(seed: int, listing_id: int) -> CarLook:
    """Return how the car of an original listing looks."""
    make, model, fields = draw_car(seed, listing_id)
    paint = PAINTS[fields["exterior_color"]][0]
    interior = INTERIORS[fields.get("interior_color", "Black")]
    return CarLook(f"{seed}-{listing_id}", make, model, fields["year"], paint, interior)


def _stock_look(owner: str) -> CarLook:
    for make in MAKES:
        for model in make.models:
            if owner == f"stock-{make.name}-{model.name}".lower():
                paint = PAINTS["Silver"][0]
                return CarLook(owner, make, MODEL_BY_NAME[make.name, model.name], 2024, paint, INTERIORS["Black"])
    raise ValueError(f"no model is called {owner}")


def edited(pixels: Pixels, picture: Picture) -> Pixels:
    """Apply a copy's edit: resized, cropped by 5 % of each side, under a dealer's banner, or brightened."""
    height, width = pixels.shape[:2]
    dice = Dice("edit", picture.content)
    match picture.edit:
        case "resize":
            share = dice.between(0.5, 0.8)
            size = (round(width * share), round(height * share))
            return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        case "crop":
            return pixels[height // 20 : height - height // 20, width // 20 : width - width // 20]
        case "banner":
            banner = pixels.copy()
            colour = (dice.whole(0, 120), dice.whole(0, 120), dice.whole(90, 255))
            cv2.rectangle(banner, (0, 0), (width // 2, height // 7), colour, -1)
            cv2.putText(
                banner,
                "DEMO MOTORS",
                (8, height // 10),
                cv2.FONT_HERSHEY_DUPLEX,
                width / 900,
                (250, 250, 250),
                1,
                cv2.LINE_AA,
            )
            return banner
        case "bright":
            return np.asarray(cv2.convertScaleAbs(pixels, alpha=dice.between(1.08, 1.16), beta=0), np.uint8)
        case _:
            return pixels


def _jpeg(pixels: Pixels, quality: int) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling="420"))


def _png(pixels: Pixels) -> bytes:
    done, packed = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    return packed.tobytes()


def _broken(seed: int, photo: Photo) -> bytes:
    match photo.broken:
        case "truncated_jpeg":
            assert photo.picture is not None
            pixels = draw(seed, photo.picture)
            whole = _jpeg(pixels, 85)
            return whole[: int(len(whole) * Dice("cut", photo.path).between(0.3, 0.8))]
        case "truncated_png":
            assert photo.picture is not None
            whole = _png(draw(seed, photo.picture))
            return whole[: int(len(whole) * Dice("cut", photo.path).between(0.3, 0.8))]
        case "html":
            return b"<!doctype html><html><body><h1>Image not available</h1></body></html>"
        case "text":
            return b"The requested image could not be generated.\n" * 20
        case "svg":
            return (
                b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="48"><rect width="64" height="48"/></svg>'
            )
        case "heic":
            return b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0\0\0\x0cmeta\0\0\0\0" + bytes(2000)
        case "bomb_png":
            return _png_head(60_000, 60_000)
        case "bomb_gif":
            return (
                b"GIF89a"
                + struct.pack("<HHBBB", 65_000, 65_000, 0x80, 0, 0)
                + bytes(6)
                + b",\0\0\0\0\xe8\xfd\xe8\xfd\0\x02\x02L\x01\0;"
            )
        case _:
            return b""


def _png_head(width: int, height: int) -> bytes:
    """Make a small PNG whose header promises a giant picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 16), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
