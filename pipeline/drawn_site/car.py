"""The drawn car's body: faces of its lower body, cabin, windows, wheels and wear, in the order to paint them.

Metres; x to the nose, y to the car's left, z up, the middle of the car on the ground at the origin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from pipeline.drawn_site.canvas import Colour, Face, mixed, scaled
from pipeline.drawn_site.dice import Dice
from pipeline.drawn_site.ends import front_parts, rear_parts
from pipeline.drawn_site.makes import REFERENCE_YEAR, Make, Model
from pipeline.drawn_site.wheel import wheel_faces

GLASS: Colour = (46, 56, 66)
RUBBER: Colour = (24, 24, 26)
PLASTIC: Colour = (52, 53, 56)
RUST: Colour = (112, 62, 34)
DUST: Colour = (132, 118, 98)

Flat = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Body:
    """Proportions of a body style: lengths in metres, places along it as shares of the length from the nose."""

    length: float
    width: float
    height: float
    ground: float
    nose: float
    hood: float
    belt: float
    deck: float
    wheel: float
    axles: tuple[float, float]
    cowl: float
    roof: tuple[float, float]
    tail: float
    pillars: tuple[float, ...]


BODIES = {
    "sedan": Body(4.7, 1.82, 1.45, 0.22, 0.68, 0.84, 0.95, 0.98, 0.33, (0.19, 0.8), 0.3, (0.42, 0.68), 0.83, (0.47,)),
    "hatchback": Body(
        4.1, 1.78, 1.5, 0.22, 0.7, 0.88, 0.97, 0.99, 0.33, (0.19, 0.82), 0.26, (0.4, 0.82), 0.97, (0.46, 0.8)
    ),
    "suv": Body(
        4.6, 1.9, 1.74, 0.32, 0.86, 1.02, 1.1, 1.12, 0.39, (0.19, 0.81), 0.27, (0.38, 0.88), 0.985, (0.43, 0.76)
    ),
    "pickup": Body(
        5.5, 1.96, 1.84, 0.38, 0.98, 1.12, 1.18, 1.16, 0.41, (0.17, 0.79), 0.25, (0.34, 0.53), 0.57, (0.52,)
    ),
    "wagon": Body(
        4.75, 1.82, 1.47, 0.22, 0.68, 0.84, 0.95, 0.99, 0.33, (0.19, 0.79), 0.29, (0.41, 0.86), 0.985, (0.41, 0.74)
    ),
    "coupe": Body(4.5, 1.86, 1.31, 0.17, 0.6, 0.78, 0.88, 0.92, 0.345, (0.19, 0.8), 0.34, (0.47, 0.63), 0.88, (0.62,)),
    "van": Body(
        4.9, 1.93, 1.95, 0.26, 0.82, 1.02, 1.1, 1.12, 0.35, (0.17, 0.8), 0.15, (0.28, 0.94), 0.992, (0.34, 0.68)
    ),
}


class Shape:
    """A car's proportions with its make's and model's factors applied, and the way from shares to metres."""

    def __init__(self, make: Make, model: Model) -> None:
        body = BODIES[model.body]
        self.body = body
        self.make = make
        self.length = body.length * model.length
        self.half = body.width / 2
        self.height = body.height * model.height
        self.belt = body.belt
        self.cowl = body.cowl * (1 + 0.35 * (make.hood - 1))
        self.roof_front = self.cowl + (body.roof[0] - body.cowl) * make.rake
        self.roof_rear = body.tail - (body.tail - body.roof[1]) * (0.6 + 0.4 * make.rake)

    def x(self, share: float) -> float:
        """Turn a share of the length from the nose into metres."""
        return self.length * (0.5 - share)

    def wide(self, x: float, z: float) -> float:
        """Half of the width at a place: less at both ends and towards the roof."""
        ends = abs(2 * x / self.length) ** 6 * (0.06 + 0.3 * self.make.corner)
        cabin = max(0.0, z - self.belt) / max(0.2, self.height - self.belt)
        return self.half * (1 - ends) * (1 - 0.2 * min(cabin, 1.0))

    def side(self, points: Sequence[Flat], out: float = 0.0) -> np.ndarray:
        """Put (x, z) points on the left side, `out` metres proud of it."""
        return np.array([(x, self.wide(x, z) + out, z) for x, z in points])

    def panel(self, along: float, up: float) -> Flat:
        """Turn shares of length and of the height from sill to belt into (x, z)."""
        return self.x(along), self.body.ground + up * (self.belt - self.body.ground)

    def cabin(self, along: float, up: float) -> Flat:
        """Turn shares of the cabin's side (front to rear, belt to roof) into (x, z)."""
        front = self.cowl + (self.roof_front - self.cowl) * up
        rear = self.body.tail + (self.roof_rear - self.body.tail) * up
        base = self.belt + (self.body.deck - self.belt) * along
        return self.x(front + (rear - front) * along), base + (self.height - base) * up

    def lower_outline(self) -> list[Flat]:
        """Outline of the lower body, counter-clockwise seen from the left."""
        body, x = self.body, self.x
        low = [(x(0.01), body.ground), (x(0.99), body.ground), (x(1.0), body.ground + 0.2)]
        top = [(x(1.0), body.deck - 0.08), (x(body.tail + (1 - body.tail) * 0.7), body.deck), (x(body.tail), body.deck)]
        nose = [(x(self.cowl), self.belt), (x(0.05), body.hood), (x(0.0), body.nose), (x(0.0), body.ground + 0.15)]
        return low + rounded([*top, *nose], self.make.corner)

    def cabin_outline(self) -> list[Flat]:
        """Outline of the cabin, counter-clockwise seen from the left."""
        corners = [self.cabin(1, 0.0), self.cabin(1, 1.0), self.cabin(0, 1.0), self.cabin(0, 0.0)]
        return rounded(corners, self.make.corner * 0.9)


def rounded(points: Sequence[Flat], share: float) -> list[Flat]:
    """Cut each inner corner of an open line twice, so that it turns in three steps."""
    line = list(points)
    for _ in range(2):
        cut = [line[0]]
        for before, corner, after in zip(line, line[1:], line[2:], strict=False):
            cut.append(_toward(corner, before, share))
            cut.append(_toward(corner, after, share))
        line = [*cut, line[-1]]
        share *= 0.6
    return line


def _toward(start: Flat, end: Flat, share: float) -> Flat:
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


# A listing's photos are mostly asked for one after another.
@lru_cache(maxsize=32)
def car_faces(make: Make, model: Model, year: int, paint: Colour, key: str) -> tuple[Face, ...]:
    """Build a car's faces, farthest first for any camera above the ground."""
    shape = Shape(make, model)
    age = REFERENCE_YEAR - year
    paint = mixed(paint, (150, 148, 142), min(0.28, max(0, age - 6) * 0.02))
    wheels = [wheel_faces(shape.x(axle), shape.half, shape.body.wheel, make.wheel, age) for axle in shape.body.axles]
    faces = [face for far, _ in wheels for face in far]
    lower, cabin = shape.lower_outline(), shape.cabin_outline()
    faces += _strips(shape, lower, paint)
    faces += front_parts(shape, model, age, paint) + rear_parts(shape, age, paint)
    faces += _both(shape, lower, paint)
    faces += _side_details(shape, model, age, paint, key)
    faces += [face for _, near in wheels for face in near]
    faces += _cabin_strips(shape, cabin, paint)
    faces += _both(shape, cabin, paint)
    faces += _windows(shape, model, age)
    return tuple(faces)


def _strips(shape: Shape, outline: Sequence[Flat], colour: Colour) -> list[Face]:
    """Build the faces that run across the car, one for each edge of an outline."""
    faces = []
    for (x0, z0), (x1, z1) in pairwise(outline):
        left0, left1 = shape.wide(x0, z0), shape.wide(x1, z1)
        points = np.array([(x0, left0, z0), (x0, -left0, z0), (x1, -left1, z1), (x1, left1, z1)])
        length = math.hypot(x1 - x0, z1 - z0) or 1.0
        faces.append(Face(points, colour, ((z0 - z1) / length, 0.0, (x1 - x0) / length)))
    return faces


def _cabin_strips(shape: Shape, outline: Sequence[Flat], paint: Colour) -> list[Face]:
    """Build windscreen, roof and rear window: steep faces are glass within pillars."""
    faces = []
    for face in _strips(shape, outline, paint):
        faces.append(face)
        if face.normal[2] > 0.93 or (
            shape.body is BODIES["van"] and face.normal[0] < 0 and shape.make.window == "boxed"
        ):
            continue
        middle = face.points * (1.0, 0.86, 1.0) + (0.004 * np.sign(face.normal[0]), 0, 0.004)
        faces.append(Face(middle, scaled(GLASS, 1.15), face.normal, shine=0.9))
    return faces


def _both(shape: Shape, outline: Sequence[Flat], colour: Colour, out: float = 0.0, shine: float = 1.0) -> list[Face]:
    """Build a face on the left side and its mirror on the right."""
    left = shape.side(outline, out)
    right = (left * (1.0, -1.0, 1.0))[::-1]
    return [Face(left, colour, (0.0, 1.0, 0.1), shine=shine), Face(right, colour, (0.0, -1.0, 0.1), shine=shine)]


def _side_details(shape: Shape, model: Model, age: int, paint: Colour, key: str) -> list[Face]:
    at = shape.panel
    faces = _both(shape, [at(0.02, 0.0), at(0.98, 0.0), at(0.985, 0.3), at(0.015, 0.3)], scaled(paint, 0.82))
    shoulder = [at(0.04, 0.82), at(0.96, 0.86), at(0.96, 0.93), at(0.04, 0.88)]
    faces += _both(shape, shoulder, mixed(scaled(paint, 1.12), (255, 255, 255), max(0.04, 0.2 - 0.012 * age)))
    sill = PLASTIC if model.body in ("suv", "pickup") or shape.make.arch == "square" else scaled(paint, 0.55)
    faces += _both(shape, [at(0.05, 0.0), at(0.95, 0.0), at(0.95, 0.12), at(0.05, 0.12)], sill)
    for low, high, start, end in _CREASES[model.line]:
        line = [at(start, low), at(end, high), at(end, high + 0.035), at(start, low + 0.035)]
        faces += _both(shape, line, scaled(paint, 0.62))
    faces += _doors(shape, model, paint)
    for axle in shape.body.axles:
        faces += _arch(shape, axle)
    return faces + _wear(shape, age, key)


# Model.line -> creases along the side: height at start and end (sill to belt), start and end along the length.
_CREASES: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "straight": ((0.6, 0.6, 0.1, 0.95),),
    "rising": ((0.38, 0.8, 0.25, 0.97),),
    "double": ((0.66, 0.7, 0.06, 0.97), (0.34, 0.38, 0.27, 0.73)),
    "low": ((0.27, 0.3, 0.28, 0.73),),
    "none": (),
}


def _doors(shape: Shape, model: Model, paint: Colour) -> list[Face]:
    at, seam = shape.panel, scaled(paint, 0.45)
    first, last = shape.cowl + 0.02, min(shape.body.tail - 0.04, 0.76)
    middle = (first + last) / 2 + 0.01
    cuts = [first, last] if model.body == "coupe" else [first, middle, last]
    faces = []
    for cut in cuts:
        faces += _both(shape, [at(cut, 0.13), at(cut + 0.004, 0.13), at(cut + 0.004, 0.98), at(cut, 0.98)], seam)
    for cut in cuts[1:]:
        handle = [at(cut - 0.045, 0.73), at(cut - 0.01, 0.73), at(cut - 0.01, 0.79), at(cut - 0.045, 0.79)]
        faces += _both(shape, handle, scaled(paint, 0.5), out=0.01)
    mirror = [at(first + 0.02, 0.98), at(first + 0.06, 0.98), at(first + 0.055, 1.16), at(first + 0.02, 1.14)]
    # The mirror's glass looks along the car and stands out from it.
    (x, low), (_, high) = at(first + 0.04, 0.98), at(first + 0.04, 1.16)
    inner, outer = shape.wide(x, low), shape.wide(x, low) + 0.19
    for side in (1, -1):
        glass = np.array([(x, side * y, z) for y, z in ((inner, low), (outer, low), (outer, high), (inner, high))])
        faces.append(Face(glass, scaled(paint, 0.62), (1.0, 0.0, 0.0), one_sided=False, shine=0.6))
    return faces + _both(shape, mirror, scaled(paint, 0.8), out=0.12)


def _arch(shape: Shape, axle: float) -> list[Face]:
    """Build a wheel arch: round, cut flat above, or squared with cladding."""
    middle, radius = shape.x(axle), shape.body.wheel
    kind = shape.make.arch
    if kind == "square":
        outer = [(1.5, -0.4), (1.25, 1.15), (0.95, 1.42), (-0.95, 1.42), (-1.25, 1.15), (-1.5, -0.4)]
        inner = [(1.2, -0.4), (1.05, 0.95), (0.8, 1.15), (-0.8, 1.15), (-1.05, 0.95), (-1.2, -0.4)]
    else:
        steps = [math.pi * step / 10 for step in range(11)]
        rise = 1.1 if kind == "flat" else 1.2
        inner = [(1.17 * math.cos(turn), rise * math.sin(turn)) for turn in steps]
        outer = [(1.1 * x, 1.1 * z) for x, z in inner]
    faces = []
    floor = shape.body.ground - shape.body.wheel
    for ring, colour in ((outer, PLASTIC), (inner, (10, 10, 11))):
        if ring is outer and kind == "flat":
            continue
        # Seen from the left the nose is on the left, so x runs against the eye's right.
        points = [(middle - x * radius, radius + max(z * radius, floor)) for x, z in ring]
        faces += _both(shape, points, colour, shine=0.4)
    return faces


def _windows(shape: Shape, model: Model, age: int) -> list[Face]:
    """Build the side windows: their outline is the make's, the pillars between are the body's."""
    kind, at = shape.make.window, shape.cabin
    glass = scaled(GLASS, 0.8 if age < 8 else 1.15)
    rear = {"upswept": (0.9, 0.42), "kinked": (0.86, 0.08), "floating": (0.99, 0.04)}.get(kind, (0.93, 0.08))
    top = 0.9 if kind != "boxed" else 0.82
    outline = [(0.05, 0.07), rear, (0.96 if kind == "floating" else 0.9, top), (0.1, top)]
    if kind == "upswept":
        outline.insert(1, (0.62, 0.09))
    if kind == "kinked":
        outline.insert(2, (0.965, 0.42))
    if kind == "arched":
        outline = [(0.04, 0.07), (0.95, 0.07), (0.9, 0.55), (0.72, 0.84), (0.45, 0.93), (0.2, 0.86), (0.07, 0.6)]
    faces = _both(shape, [at(*place) for place in outline], glass, out=0.006, shine=0.7)
    shine = [(0.14, 0.5), (0.34, 0.5), (0.28, top - 0.08), (0.15, top - 0.08)]
    faces += _both(shape, [at(*place) for place in shine], scaled(glass, 1.5), out=0.007, shine=0.5)
    thick = 0.06 if kind == "boxed" else 0.018
    pillar = RUBBER if kind in ("floating", "upswept", "arched") else (70, 72, 76)
    for place in shape.body.pillars:
        stripe = [at(place, 0.05), at(place + thick, 0.05), at(place + thick, top + 0.03), at(place, top + 0.03)]
        faces += _both(shape, stripe, pillar, out=0.009)
    if model.body == "van" and kind == "boxed":
        faces += _both(shape, [at(0.7, 0.05), at(0.97, 0.05), at(0.95, top), at(0.7, top)], (88, 90, 94), out=0.01)
    return faces


def _wear(shape: Shape, age: int, key: str) -> list[Face]:
    """Build dust from the third year on, scratches and rust from the ninth."""
    dice, at, faces = Dice("wear", key), shape.panel, list[Face]()
    if age > 3:
        rise = min(0.34, 0.02 * age)
        faces += _both(
            shape, [at(0.03, 0.0), at(0.97, 0.0), at(0.96, rise), at(0.6, rise * 0.7), at(0.04, rise)], DUST, shine=0.6
        )
    for _ in range(max(0, age - 8) // 2):
        along, up, size = dice.between(0.06, 0.9), dice.between(0.05, 0.5), dice.between(0.008, 0.03)
        spot = [
            (along, up),
            (along + size, up - size),
            (along + 1.6 * size, up + size),
            (along + size, up + 2.4 * size),
        ]
        faces += _both(shape, [at(*place) for place in spot], RUST, out=0.004)
    for _ in range(max(0, age - 6) // 3):
        along, up = dice.between(0.2, 0.8), dice.between(0.3, 0.75)
        scratch = [at(along, up), at(along + 0.08, up + 0.03), at(along + 0.08, up + 0.045), at(along, up + 0.012)]
        faces += _both(shape, scratch, (206, 204, 200), out=0.004)
    return faces
