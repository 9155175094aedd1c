"""The drawn photos' camera and brushes: faces in metres onto pixels, light, and grain."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.drawn_site.dice import Dice

Pixels = NDArray[np.uint8]
Points = NDArray[np.float64]
Colour = tuple[int, int, int]

# Bits after the point of the coordinates OpenCV fills with.
_SHIFT = 4
_GRAIN_SIDE_PX = 1024


@dataclass(frozen=True, slots=True)
class Face:
    """A flat face: `points` (N, 3) in metres, x to the car's nose, y to its left, z up.

    With `one_sided` it shows only to a camera that sees the points run counter-clockwise. `shine` says how much its
    colour follows the light; `normal` is where it looks.
    """

    points: Points
    colour: Colour
    normal: tuple[float, float, float] = (0.0, 0.0, 1.0)
    one_sided: bool = True
    shine: float = 1.0


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera that looks at the middle of the car."""

    azimuth: float
    elevation: float
    distance: float
    focal: float
    size: tuple[int, int]
    shift: tuple[float, float]

    @classmethod
    def around(
        cls,
        azimuth: float,
        elevation: float,
        distance: float,
        focal: float,
        size: tuple[int, int],
        shift: tuple[float, float],
    ) -> "Camera":
        """Place a camera: degrees, metres, focal length in pixels, and the shift of the car as shares of the size."""
        return cls(math.radians(azimuth), math.radians(elevation), distance, focal, size, shift)

    def moved(self, dice: Dice) -> "Camera":
        """Return the camera of a second shot from nearly the same place."""
        turn = math.radians(dice.pick((-1, 1)) * dice.between(2.0, 4.0))
        shift = (self.shift[0] + dice.between(-0.03, 0.03), self.shift[1] + dice.between(-0.02, 0.02))
        return replace(self, azimuth=self.azimuth + turn, focal=self.focal * dice.between(0.95, 1.05), shift=shift)

    def project(self, points: Points) -> NDArray[np.float64]:
        """Project (N, 3) metres to (N, 2) pixels."""
        sin_a, cos_a = math.sin(self.azimuth), math.cos(self.azimuth)
        sin_e, cos_e = math.sin(self.elevation), math.cos(self.elevation)
        x, y, z = points[:, 0], points[:, 1], points[:, 2] - 0.7
        along = x * cos_a + y * sin_a
        right = y * cos_a - x * sin_a
        depth = np.maximum(self.distance - along * cos_e - z * sin_e, 0.3)
        up = z * cos_e - along * sin_e
        middle_x, middle_y = self.size[0] * (0.5 + self.shift[0]), self.size[1] * (0.52 + self.shift[1])
        return np.stack((middle_x + self.focal * right / depth, middle_y - self.focal * up / depth), axis=1)

    @property
    def horizon_px(self) -> int:
        """Row of the horizon."""
        return int(self.size[1] * (0.52 + self.shift[1]) - self.focal * math.tan(self.elevation))

    @property
    def direction(self) -> tuple[float, float, float]:
        """Where the camera stands, seen from the car; length 1."""
        flat = math.cos(self.elevation)
        return flat * math.cos(self.azimuth), flat * math.sin(self.azimuth), math.sin(self.elevation)


def paint_faces(pixels: Pixels, camera: Camera, faces: Sequence[Face], sun: float) -> None:
    """Fill faces in the order given; `sun` in [-1, 1] says from which side the light comes."""
    if not faces:
        return
    projected = camera.project(np.concatenate([face.points for face in faces]))
    fixed = np.clip(projected * (1 << _SHIFT), -(1 << 20), 1 << 20).astype(np.int32)
    toward = np.array((0.35, 0.75 * (1 if math.sin(camera.azimuth) >= 0 else -1) + 0.3 * sun, 0.75))
    toward /= np.linalg.norm(toward)
    ends = np.cumsum([len(face.points) for face in faces])
    starts = ends - [len(face.points) for face in faces]
    for face, start, end, seen in zip(faces, starts, ends, _face_camera(projected, starts, ends), strict=True):
        outline = fixed[start:end]
        if seen or not face.one_sided:
            lit = 0.62 + 0.48 * max(0.0, float(np.dot(face.normal, toward)))
            gain = 1 + face.shine * (lit - 1)
            cv2.fillPoly(pixels, [outline], [min(255, int(part * gain)) for part in face.colour], cv2.LINE_AA, _SHIFT)


def _face_camera(outlines: Points, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> list[bool]:
    """Tell for each outline, all in one array, whether its points run counter-clockwise to the eye."""
    after = np.arange(1, len(outlines) + 1)
    after[ends - 1] = starts
    x, y = outlines[:, 0], outlines[:, 1]
    areas = np.add.reduceat(x * y[after] - y * x[after], starts)
    # Rows grow downwards, so counter-clockwise is a negative area.
    return [bool(area < 0) for area in areas]


def fill(pixels: Pixels, points: Iterable[tuple[float, float]], colour: Colour) -> None:
    """Fill a polygon given in pixels."""
    outline = (np.asarray(list(points)) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(pixels, [outline], colour, cv2.LINE_AA, _SHIFT)


def ramp(pixels: Pixels, top: int, bottom: int, upper: Colour, lower: Colour) -> None:
    """Fill the rows from `top` to `bottom` with a vertical change of colour."""
    top, bottom = max(top, 0), min(bottom, len(pixels))
    if bottom > top:
        share = np.linspace(0, 1, bottom - top)[:, None, None]
        column = (np.asarray(upper) * (1 - share) + np.asarray(lower) * share).astype(np.uint8)
        pixels[top:bottom] = cv2.resize(column, (pixels.shape[1], bottom - top), interpolation=cv2.INTER_NEAREST)


def light(pixels: Pixels, gain: float, warmth: float) -> Pixels:
    """Return the picture under another light: `warmth` above 0 is redder."""
    levels = np.arange(256)[:, None] * np.array((gain * (1 + warmth), gain, gain * (1 - warmth)))
    table = np.clip(levels, 0, 255).astype(np.uint8)[None]
    return np.asarray(cv2.LUT(pixels, np.ascontiguousarray(table)), np.uint8)


def grain(pixels: Pixels, dice: Dice, *, strength: float) -> Pixels:
    """Return the picture with camera noise; `strength` is its deviation in levels."""
    height, width = pixels.shape[:2]
    top, left = dice.whole(0, _GRAIN_SIDE_PX - height), dice.whole(0, _GRAIN_SIDE_PX - width)
    noise = _grain_tile()[top : top + height, left : left + width]
    return np.asarray(cv2.addWeighted(pixels, 1.0, noise, strength / 32, -128 * strength / 32), np.uint8)


@lru_cache(maxsize=1)
def _grain_tile() -> Pixels:
    # Mean 128, deviation 32, the same every time.
    noise = np.random.default_rng(7).normal(128, 32, (_GRAIN_SIDE_PX, _GRAIN_SIDE_PX, 3))
    return np.clip(noise, 0, 255).astype(np.uint8)


def scaled(colour: Colour, factor: float) -> Colour:
    """Return a colour lighter (above 1) or darker."""
    red, green, blue = (max(0, min(255, round(part * factor))) for part in colour)
    return red, green, blue


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    """Return `one` with `share` of `other`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue
