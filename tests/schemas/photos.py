"""Drawn photos, colour profiles and the slow, plain way to decode, for tests of the image door."""

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
ADOBE_RGB = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
PROPHOTO = ((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249))


def drawn(width: int = 320, height: int = 240, seed: int = 0) -> Image.Image:
    """Draw a smooth, colourful RGB picture with a few hard edges and no two equal corners."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    waves = [0.5 + 0.5 * np.sin(rng.uniform(2, 9) * x + rng.uniform(2, 9) * y + phase) for phase in (0, 2, 4)]
    pixels = (np.stack(waves, axis=-1) * 255).astype(np.uint8)
    pixels[height // 3 : height // 2, width // 5 : width // 2] = (200, 30, 40)
    pixels[: height // 8, : width // 8] = (250, 250, 20)
    return Image.fromarray(pixels)


def saved(image: Image.Image, name: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, name, **options)
    return target.getvalue()


def oriented(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


def slow(data: bytes) -> NDArray[np.uint8]:
    """Decode with Pillow at full size: upright, by LittleCMS where there is a profile, over white."""
    with Image.open(io.BytesIO(data)) as opened:
        icc = opened.info.get("icc_profile")
        image = ImageOps.exif_transpose(opened)
        image.load()
    alpha = None
    if image.has_transparency_data:
        layered = image.convert("LA" if image.mode in ("L", "LA", "1") else "RGBA")
        image, alpha = layered.convert(layered.mode.removesuffix("A")), layered.getchannel("A")
    elif image.mode in ("P", "1"):
        image = image.convert("RGB")
    if icc is not None:
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(icc)),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
        )
        assert converted is not None
        image = converted
    page = Image.new("RGB", image.size, "white")
    page.paste(image.convert("RGB"), mask=alpha)
    return np.asarray(page)


def rgb_profile(primaries: tuple[tuple[float, ...], ...], gamma: float) -> bytes:
    """Build a matrix profile; `primaries` are XYZ under D50."""
    tags = {b"rXYZ": _xyz(primaries[0]), b"gXYZ": _xyz(primaries[1]), b"bXYZ": _xyz(primaries[2])}
    return _profile(b"RGB ", tags | {name: _gamma(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")})


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", {b"kTRC": _gamma(gamma)})


def cmyk_profile() -> bytes:
    """Build a press of two grid points an ink: each ink darkens, black most."""
    grid = []
    for inks in np.ndindex(2, 2, 2, 2):
        cyan, magenta, yellow, black = inks
        lightness = 255 * (1 - 0.3 * cyan - 0.3 * magenta - 0.1 * yellow) * (1 - 0.85 * black)
        grid += [round(lightness), 128 - 40 * cyan + 60 * magenta, 128 - 40 * cyan - 10 * magenta + 70 * yellow]
    ramp = bytes(range(256))
    identity = b"".join(struct.pack(">i", 65536 * (row == column)) for row in range(3) for column in range(3))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + 4 * ramp + bytes(grid) + 3 * ramp
    return _profile(b"CMYK", {b"A2B0": lut, b"A2B1": lut}, kind=b"prtr", space=b"Lab ")


def _profile(model: bytes, tags: dict[bytes, bytes], *, kind: bytes = b"mntr", space: bytes = b"XYZ ") -> bytes:
    tags = tags | {b"wtpt": _xyz((0.9642, 1.0, 0.8249)), b"desc": b"desc\0\0\0\0\0\0\0\2a\0" + bytes(79)}
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, 128 + 4 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI4s4s4s", 132 + 12 * len(tags) + len(body), b"\0\0\0\0", 0x02400000, kind, model, space)
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + _xyz((0.9642, 1.0, 0.8249))[8:]
    return header.ljust(128, b"\0") + table + body


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def _gamma(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
