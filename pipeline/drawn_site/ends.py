"""The drawn car's front and rear: grille, lamps, badge and bumpers in the shapes that tell one make from another.

Shapes are polygons in a box of [-1, 1] x [-1, 1], counter-clockwise; the year makes lamps thinner and brighter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.drawn_site.canvas import Colour, Face, scaled

if TYPE_CHECKING:
    from pipeline.drawn_site.car import Shape
    from pipeline.drawn_site.makes import Model

Flat = tuple[float, float]
Polygon = list[Flat]

CHROME: Colour = (188, 190, 194)
BLACK: Colour = (18, 18, 20)
LENS: Colour = (214, 220, 226)
AMBER: Colour = (216, 146, 50)
RED: Colour = (176, 22, 26)
PLATE: Colour = (228, 228, 220)


def _box(left: float, bottom: float, right: float, top: float) -> Polygon:
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


def _disc(x: float, y: float, wide: float, high: float, steps: int = 14) -> Polygon:
    turns = [2 * math.pi * step / steps for step in range(steps)]
    return [(x + wide * math.cos(turn), y + high * math.sin(turn)) for turn in turns]


GRILLES: dict[str, tuple[Polygon, ...]] = {
    "trapezoid": ([(-0.62, -1), (0.62, -1), (1, 1), (-1, 1)],),
    "box": (_box(-1.25, -1.1, 1.25, 0.9),),
    "kidney": (
        [
            (-0.62, -0.9),
            (-0.16, -0.9),
            (-0.08, -0.6),
            (-0.08, 0.7),
            (-0.2, 0.95),
            (-0.66, 0.95),
            (-0.78, 0.6),
            (-0.74, -0.6),
        ],
        [(0.16, -0.9), (0.62, -0.9), (0.74, -0.6), (0.78, 0.6), (0.66, 0.95), (0.2, 0.95), (0.08, 0.7), (0.08, -0.6)],
    ),
    "oval": (_disc(0, -0.1, 0.8, 0.75),),
    "shield": ([(0, -1.5), (0.5, -0.9), (0.62, 1.05), (-0.62, 1.05), (-0.5, -0.9)],),
    "bars": (_box(-1.15, -0.7, 1.15, 0.75),),
    "slots": tuple(
        _box(place - 0.075, -0.8, place + 0.075, 0.75) for place in (-0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75)
    ),
    "none": (_box(-0.9, 0.55, 0.9, 0.66),),
    "hexagon": ([(-0.6, -1.35), (0.6, -1.35), (1.0, -0.25), (0.7, 0.85), (-0.7, 0.85), (-1.0, -0.25)],),
    "split": (_box(-1.1, 0.35, 1.1, 0.8), _box(-1.1, -0.9, 1.1, -0.35)),
}
# One head lamp, on the car's left: the right one is its mirror. Towards +1 is outwards.
LAMPS: dict[str, tuple[Polygon, ...]] = {
    "slit": ([(-1.2, -0.35), (1, 0.1), (1, 0.6), (-1.1, 0.1)],),
    "rectangle": (_box(-0.8, -0.9, 0.95, 0.85),),
    "twin_round": (_disc(-0.5, 0, 0.46, 0.75), _disc(0.5, 0.05, 0.46, 0.75)),
    "round": (_disc(0.1, 0, 0.72, 1.15, 18),),
    "teardrop": ([(-1.1, -0.5), (-0.3, -0.95), (0.6, -0.6), (1, 0.7), (0.9, 1.1), (-0.2, 0.35)],),
    "hammer": (
        [(-1.0, -0.12), (0.1, -0.12), (0.1, -0.8), (0.95, -0.8), (0.95, 0.85), (0.1, 0.85), (0.1, 0.16), (-1.0, 0.16)],
    ),
    "strip": (_box(-2.6, 0.05, 1, 0.4),),
    "arrow": ([(-1.1, 0.55), (0.2, -0.9), (0.5, -0.55), (-0.1, 0.1), (1, 0.9), (1, 1.15)],),
    "stacked": (_box(0.15, 0.15, 0.95, 1.0), _box(0.15, -0.95, 0.95, -0.1)),
}
# One tail lamp, on the side that is right to the eye.
TAILS: dict[str, tuple[Polygon, ...]] = {
    "bar": (_box(-2.8, -0.1, 1, 0.35),),
    "vertical": (_box(0.2, -1.5, 0.95, 1.1),),
    "l_shape": ([(-0.9, -0.1), (0.35, -0.1), (0.35, -1.0), (0.95, -1.0), (0.95, 0.7), (-0.9, 0.7)],),
    "round": (_disc(-0.55, 0, 0.42, 0.7), _disc(0.5, 0, 0.45, 0.75)),
    "wing": ([(-1.1, 0.5), (0.95, -0.9), (0.95, 0.8)],),
    "column": ([(0.3, -1.6), (0.8, -1.6), (0.95, -0.3), (0.75, 1.9), (0.45, 1.9), (0.4, -0.2)],),
    "square": (_box(0.1, -0.7, 0.95, 0.75),),
    "strip": (_box(-2.8, 0.2, 1, 0.42), _box(0.75, -0.8, 1, 0.42)),
    "boomerang": ([(-0.9, 0.8), (0.3, -0.15), (0.1, -1.1), (0.5, -1.1), (0.95, -0.05), (-0.6, 1.1)],),
}
BADGES: dict[str, tuple[Polygon, ...]] = {
    "ring": (_disc(0, 0, 1, 1), _disc(0, 0, 0.6, 0.6)),
    "cross": (_box(-0.3, -1, 0.3, 1), _box(-1, -0.3, 1, 0.3)),
    "disc": (_disc(0, 0, 0.9, 0.9),),
    "dot": (_disc(0, 0, 0.5, 0.5),),
    "triangle": ([(-1, -0.8), (1, -0.8), (0, 1.1)],),
    "slash": ([(-1, -1), (-0.6, -1), (1, 1), (0.6, 1)],),
    "bar": (_box(-1.8, -0.3, 1.8, 0.3),),
    "wave": ([(-1.4, -0.2), (0, -0.7), (1.4, -0.2), (1.4, 0.3), (0, -0.2), (-1.4, 0.3)],),
    "diamond": ([(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)],),
    "hex": ([(-0.5, -0.9), (0.5, -0.9), (1, 0), (0.5, 0.9), (-0.5, 0.9), (-1, 0)],),
}


class _Panel:
    """The front or rear of a car as a flat drawing board: across in half-widths (to the eye's right), up in metres."""

    def __init__(self, shape: Shape, *, front: bool) -> None:
        self._x = (shape.length / 2 + 0.012) * (1 if front else -1)
        self._half = shape.wide(shape.length * 0.48, 0.5) * (1 if front else -1)
        self._normal = (1.0 if front else -1.0, 0.0, 0.15)

    def face(self, polygon: Sequence[Flat], colour: Colour, shine: float = 0.5) -> Face:
        points = np.array([(self._x, across * self._half, up) for across, up in polygon])
        return Face(points, colour, self._normal, shine=shine)

    def shape(self, polygon: Sequence[Flat], middle: Flat, size: Flat, colour: Colour, shine: float = 0.5) -> Face:
        placed = [(middle[0] + a * size[0], middle[1] + b * size[1]) for a, b in polygon]
        return self.face(placed, colour, shine)

    def pair(self, polygon: Sequence[Flat], middle: Flat, size: Flat, colour: Colour) -> list[Face]:
        mirrored = [(-a, b) for a, b in reversed(polygon)]
        right = self.shape(polygon, middle, size, colour, 0.2)
        return [right, self.shape(mirrored, (-middle[0], middle[1]), size, colour, 0.2)]


def front_parts(shape: Shape, model: Model, age: int, paint: Colour) -> list[Face]:
    """Build bumper, grille, lamps and badge of the nose."""
    panel, body, make = _Panel(shape, front=True), shape.body, shape.make
    low, high = body.ground, body.nose
    room = high - low
    faces = [panel.face(_box(-0.96, low, 0.96, low + 0.24 * room), scaled(paint, 0.7), 1.0)]
    faces.append(panel.face(_box(-0.62, low + 0.06, 0.62, low + 0.2 * room + 0.02), BLACK))
    middle = (0.0, low + 0.62 * room)
    size = (0.5, 0.27 * room)
    for polygon in GRILLES[make.grille]:
        framed = [(a * 1.07, b * 1.09) for a, b in polygon] if make.grille not in ("slots", "none") else polygon
        faces.append(panel.shape(framed, middle, size, CHROME if age > 5 or make.grille == "kidney" else (70, 72, 76)))
        faces.append(panel.shape(polygon, middle, size, BLACK))
    faces += _bars(panel, model, make.grille, middle, size)
    thin = 1.2 - 0.45 * (1 - min(age, 20) / 20)
    lamp = (0.76, low + 0.72 * room)
    for polygon in LAMPS[make.lamp]:
        faces += panel.pair([(a * 1.1, b * 1.15) for a, b in polygon], lamp, (0.2, 0.15 * room * thin), BLACK)
        glow = (246, 250, 255) if age < 7 else LENS if age < 14 else (206, 204, 180)
        faces += panel.pair(polygon, lamp, (0.19, 0.14 * room * thin), glow)
    if age >= 12:
        faces += panel.pair(_box(-0.5, -1, 0.5, 1), (0.93, lamp[1]), (0.05, 0.1 * room), AMBER)
    elif age < 6:
        faces += panel.pair(_box(-1, -0.3, 1, 0.3), (0.76, low + 0.36 * room), (0.15, 0.05), (250, 252, 255))
    for place, polygon in enumerate(BADGES[make.badge]):
        faces.append(
            panel.shape(
                polygon,
                (0.0, high - 0.06 * room),
                (0.065, 0.055),
                CHROME if place != 1 or make.badge != "ring" else BLACK,
            )
        )
    faces.append(panel.face(_box(-0.26, low + 0.12, 0.26, low + 0.23), PLATE))
    return faces


def _bars(panel: _Panel, model: Model, grille: str, middle: Flat, size: Flat) -> list[Face]:
    if grille in ("slots", "none", "split"):
        return []
    count, faces = model.bars, []
    upright = grille in ("kidney", "shield")
    for step in range(count):
        place = -0.75 + 1.5 * (step + 0.5) / count
        line = (
            _box(place * 0.8 - 0.025, -0.75, place * 0.8 + 0.025, 0.8)
            if upright
            else _box(-0.6, place - 0.04, 0.6, place + 0.04)
        )
        faces.append(panel.shape(line, middle, size, (126, 128, 132)))
    return faces


def rear_parts(shape: Shape, age: int, paint: Colour) -> list[Face]:
    """Build bumper, lid seam, lamps, badge and plate of the tail."""
    panel, body, make = _Panel(shape, front=False), shape.body, shape.make
    low, high = body.ground, body.deck - 0.06
    room = high - low
    bumper = (60, 61, 64) if make.arch == "square" else scaled(paint, 0.72)
    faces = [panel.face(_box(-0.95, low, 0.95, low + 0.32 * room), bumper, 1.0)]
    faces.append(panel.face(_box(-0.8, low + 0.34 * room, 0.8, low + 0.355 * room), scaled(paint, 0.4)))
    faces.append(panel.face(_box(-0.5, low, 0.5, low + 0.1), BLACK))
    bright = (226, 24, 28) if age < 8 else RED if age < 15 else (138, 34, 32)
    for polygon in TAILS[make.tail]:
        faces += panel.pair(
            [(a * 1.06, b * 1.12) for a, b in polygon], (0.75, low + 0.72 * room), (0.2, 0.16 * room), (60, 10, 12)
        )
        faces += panel.pair(polygon, (0.75, low + 0.72 * room), (0.195, 0.15 * room), bright)
    if age >= 10:
        faces += panel.pair(_box(-1, -0.5, 1, 0.5), (0.8, low + 0.5 * room), (0.09, 0.05), AMBER)
    for polygon in BADGES[make.badge]:
        faces.append(panel.shape(polygon, (0.0, low + 0.84 * room), (0.06, 0.05), CHROME))
    faces.append(panel.face(_box(-0.27, low + 0.44 * room, 0.27, low + 0.44 * room + 0.12), PLATE))
    return faces
