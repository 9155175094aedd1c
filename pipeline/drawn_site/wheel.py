"""The drawn car's wheels: the make sets the pattern of the rim, the year its size and shine."""

import math

import numpy as np

from pipeline.drawn_site.canvas import Colour, Face

TYRE: Colour = (26, 26, 28)
_STEPS = 22

# Pattern -> number of spokes, their half-width in radians at hub and rim, and slant in radians.
_SPOKES = {
    "four": (4, 0.3, 0.2, 0.0),
    "five": (5, 0.22, 0.14, 0.0),
    "six": (6, 0.2, 0.2, 0.0),
    "ten": (10, 0.1, 0.08, 0.0),
    "mesh": (16, 0.06, 0.05, 0.12),
    "turbine": (9, 0.12, 0.2, 0.6),
}


def wheel_faces(x: float, half: float, radius: float, pattern: str, age: int) -> tuple[list[Face], list[Face]]:
    """Build the wheels of one axle: what shows under the car, and the faces on both of its sides."""
    far = [Face(_disc(x, side * (half - 0.2), radius, 1.0), TYRE, one_sided=False, shine=0.0) for side in (1, -1)]
    near = []
    for side in (1, -1):
        near += [_placed(face, x, side * (half - 0.005), radius, side) for face in _rim(pattern, age)]
    return far, near


def _rim(pattern: str, age: int) -> list[tuple[list[tuple[float, float]], Colour]]:
    """Build a wheel's face of radius 1, as polygons and colours."""
    rim = 0.76 - 0.009 * min(age, 20)
    metal: Colour = (196, 199, 203) if age < 10 else (150, 150, 150)
    dark: Colour = (40, 40, 44)
    polygons = [(_circle(1.0), TYRE), (_circle(rim), metal)]
    if pattern == "dish":
        return [*polygons, (_circle(rim * 0.86), (168, 171, 176)), (_circle(rim * 0.3), (120, 122, 126))]
    if pattern == "steel":
        polygons.append((_circle(rim * 0.9), (70, 72, 76)))
        for step in range(8):
            turn = step * math.pi / 4
            hole = [
                (0.66 * rim * math.cos(turn) + 0.12 * a, 0.66 * rim * math.sin(turn) + 0.12 * b)
                for a, b in _circle(1.0, 8)
            ]
            polygons.append((hole, (16, 16, 18)))
        return [*polygons, (_circle(rim * 0.28), (130, 132, 136))]
    polygons.append((_circle(rim * 0.92), dark))
    count, inner, outer, slant = _SPOKES[pattern]
    for step in range(count):
        turn = step * 2 * math.pi / count + math.pi / 2
        spoke = [
            _polar(0.16 * rim, turn - 2 * inner),
            _polar(0.95 * rim, turn - outer + slant),
            _polar(0.95 * rim, turn + outer + slant),
            _polar(0.16 * rim, turn + 2 * inner),
        ]
        polygons.append((spoke, metal))
    return [*polygons, (_circle(rim * 0.2), metal), (_circle(rim * 0.1), dark)]


def _placed(face: tuple[list[tuple[float, float]], Colour], x: float, y: float, radius: float, side: int) -> Face:
    # Seen from the left the nose is on the left: x runs against the eye's right there, along it on the other side.
    points = np.array([(x - side * a * radius, y, radius + b * radius) for a, b in face[0]])
    return Face(points, face[1], (0.0, float(side), 0.0), shine=0.5)


def _disc(x: float, y: float, radius: float, share: float) -> np.ndarray:
    return np.array([(x + a * radius * share, y, radius + b * radius * share) for a, b in _circle(1.0)])


def _circle(radius: float, steps: int = _STEPS) -> list[tuple[float, float]]:
    return [_polar(radius, 2 * math.pi * step / steps) for step in range(steps)]


def _polar(radius: float, turn: float) -> tuple[float, float]:
    return radius * math.cos(turn), radius * math.sin(turn)
