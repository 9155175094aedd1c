"""Drawn photos that do not show the car from outside: cabins, gauges, wheels, seats, engines, keys, boots, papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import cv2
import numpy as np

from pipeline.drawn_site.canvas import Colour, Pixels, fill, grain, light, mixed, ramp, scaled
from pipeline.drawn_site.dice import Dice

if TYPE_CHECKING:
    from pipeline.drawn_site.drawing import CarLook

_SIZES = ((640, 480), (640, 480), (600, 450), (480, 640), (640, 426), (512, 512))
# How far in a corner of what is seen may lie.
_STAND_SHARE = 0.17
_BLACK: Colour = (20, 20, 22)
_METAL: Colour = (170, 172, 176)


def draw_junk(look: CarLook, subject: str, slot: int) -> Pixels:
    """Draw one junk subject of a car's listing."""
    dice = Dice("junk", look.key, slot, subject)
    width, height = dice.pick(_SIZES)
    pixels = np.empty((height, width, 3), np.uint8)
    _SUBJECTS[subject](pixels, dice, look)
    pixels = _seen_from(pixels, Dice("stand", look.key, slot, subject))
    pixels = light(pixels, dice.between(0.75, 1.2), dice.between(-0.08, 0.08))
    return grain(pixels, dice, strength=dice.between(2.5, 8))


def _seen_from(pixels: Pixels, dice: Dice) -> Pixels:
    """Look from where one photographer happened to stand: no two photos of two cars' seats lie on each other."""
    height, width = pixels.shape[:2]
    corners = [(x, y) for y in (0, 1) for x in (0, 1)]
    ends = [(x * width, y * height) for x, y in corners]
    starts = [
        (abs(x - dice.between(0, _STAND_SHARE)) * width, abs(y - dice.between(0, _STAND_SHARE)) * height)
        for x, y in corners
    ]
    view = cv2.getPerspectiveTransform(np.array(starts, np.float32), np.array(ends, np.float32))
    return np.asarray(cv2.warpPerspective(pixels, view, (width, height), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def draw_flat(number: int) -> Pixels:
    """Draw one colour and nothing else; 16 levels lie between any two of the 4,096 numbers."""
    colour = [16 * (number >> shift & 15) + 8 for shift in (8, 4, 0)]
    return np.full((480, 640, 3), colour, np.uint8)


def draw_placeholder(name: str) -> Pixels:
    """Draw a dealer's card that stands where photos are missing."""
    dice = Dice("placeholder", name)
    pixels = np.full((420, 560, 3), dice.pick(((226, 228, 232), (52, 60, 74), (238, 232, 216))), np.uint8)
    ink = (90, 96, 106) if pixels[0, 0, 0] > 128 else (210, 214, 220)
    cv2.rectangle(pixels, (200, 110), (360, 220), ink, 6, cv2.LINE_AA)
    cv2.circle(pixels, (280, 165), 34, ink, 6, cv2.LINE_AA)
    cv2.putText(pixels, "PHOTO COMING SOON", (90, 300), cv2.FONT_HERSHEY_DUPLEX, 1.15, ink, 2, cv2.LINE_AA)
    cv2.putText(
        pixels,
        name.replace("placeholder-", "").upper() + " CARS",
        (190, 350),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.8,
        ink,
        2,
        cv2.LINE_AA,
    )
    return pixels


def _interior(pixels: Pixels, dice: Dice, look: CarLook) -> None:
    """Draw the cabin from the driver's or the passenger's door: windscreen, dashboard, wheel, screen, seat backs."""
    height, width = pixels.shape[:2]
    trim = scaled(look.interior, dice.between(0.8, 1.15))
    top = int(height * dice.between(0.22, 0.46))
    _windscreen(pixels, dice, top, scaled(trim, 1.2))
    ramp(pixels, top, height, scaled(trim, 1.05), scaled(trim, 0.55))
    crest = [(width * share, top + height * dice.between(-0.05, 0.07)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    under = top + height * dice.between(0.14, 0.24)
    fill(pixels, [*crest, (width, under), (0, under + height * dice.between(-0.04, 0.04))], scaled(trim, 0.75))
    left, above = int(width * dice.between(0.4, 0.62)), top + int(height * dice.between(0.04, 0.14))
    right, below = left + int(width * dice.between(0.14, 0.3)), above + int(height * dice.between(0.09, 0.2))
    cv2.rectangle(pixels, (left, above), (right, below), dice.pick(((30, 44, 62), (26, 62, 58), (64, 58, 70))), -1)
    cv2.rectangle(pixels, (left, above), (right, below), _BLACK, 4)
    rows, columns, step = dice.whole(1, 4), dice.whole(3, 6), dice.whole(14, 22)
    for row in range(rows):
        for column in range(columns):
            spot = (left + 10 + column * (right - left) // columns, below + 16 + row * step)
            cv2.circle(pixels, spot, 5, (140, 142, 146), -1, cv2.LINE_AA)
    vent = (dice.whole(16, 34), dice.whole(10, 24))
    for share in (dice.between(0.03, 0.12), dice.between(0.34, 0.46), dice.between(0.84, 0.94)):
        middle = (int(width * share), int(under - height * dice.between(0.03, 0.1)))
        cv2.ellipse(pixels, middle, vent, 0, 0, 360, _BLACK, -1, cv2.LINE_AA)
        cv2.ellipse(pixels, middle, vent, 0, 0, 360, (120, 122, 126), 2, cv2.LINE_AA)
    hub = (int(width * dice.between(0.16, 0.36)), int(top + height * dice.between(0.2, 0.34)))
    _steering_wheel(pixels, hub, int(height * dice.between(0.17, 0.28)), dice)
    for share in (dice.between(-0.04, 0.1), dice.between(0.56, 0.7)):
        high, wide = height * dice.between(0.68, 0.86), width * dice.between(0.24, 0.36)
        seat = [(width * share, height), (width * (share + 0.04), high), (width * share + wide, high - height * 0.02)]
        fill(pixels, [*seat, (width * (share + 0.06) + wide, height)], scaled(trim, 1.2))


def _windscreen(pixels: Pixels, dice: Dice, top: int, pillar: Colour) -> None:
    """Draw what is seen through the windscreen, its pillars and the mirror."""
    height, width = pixels.shape[:2]
    ramp(pixels, 0, top, (188, 206, 222), (150, 160, 150))
    _houses(pixels, dice, top)
    for side in (0, width):
        inward = 1 if side == 0 else -1
        above, below = (inward * width * dice.between(*at) for at in ((0.06, 0.2), (0.01, 0.06)))
        fill(pixels, [(side, 0), (side + above, 0), (side + below, top), (side, top)], pillar)
    x, y = int(width * dice.between(0.4, 0.7)), int(top * dice.between(0.05, 0.25))
    size = (int(width * dice.between(0.1, 0.18)), int(height * dice.between(0.04, 0.07)))
    cv2.rectangle(pixels, (x, y), (x + size[0], y + size[1]), _BLACK, -1)


def _houses(pixels: Pixels, dice: Dice, bottom: int) -> None:
    """Draw what stands outside, behind glass."""
    width = pixels.shape[1]
    for _ in range(dice.whole(3, 8)):
        x, high, wide = dice.whole(0, width), int(bottom * dice.between(0.2, 0.9)), dice.whole(width // 20, width // 5)
        colour = dice.pick(((92, 112, 78), (150, 138, 124), (110, 116, 124), (196, 190, 178)))
        cv2.rectangle(pixels, (x, bottom - high), (x + wide, bottom), colour, -1)


def _steering_wheel(pixels: Pixels, middle: tuple[int, int], radius: int, dice: Dice) -> None:
    tilt = dice.between(0.86, 1.0)
    axes = (int(radius * tilt), radius)
    for turn in (0, 180, 90):
        end = (
            int(middle[0] + axes[0] * math.cos(math.radians(turn))),
            int(middle[1] + axes[1] * math.sin(math.radians(turn))),
        )
        cv2.line(pixels, middle, end, (46, 46, 50), max(6, radius // 6), cv2.LINE_AA)
    cv2.ellipse(pixels, middle, axes, 0, 0, 360, (26, 26, 28), max(8, radius // 6), cv2.LINE_AA)
    cv2.circle(pixels, middle, radius // 3, (40, 40, 44), -1, cv2.LINE_AA)
    cv2.circle(pixels, middle, radius // 9, _METAL, -1, cv2.LINE_AA)


def _gauges(pixels: Pixels, dice: Dice, look: CarLook) -> None:
    """Draw the instruments: two or three round dials with ticks and needles."""
    height, width = pixels.shape[:2]
    ramp(pixels, 0, height, scaled(look.interior, 0.5), _BLACK)
    glow = dice.pick(((230, 236, 240), (240, 120, 40), (110, 190, 250), (236, 60, 50)))
    count = dice.pick((2, 2, 3))
    hood = [
        (0, height * 0.2),
        (width * 0.5, height * 0.05),
        (width, height * 0.2),
        (width, height * 0.9),
        (0, height * 0.9),
    ]
    fill(pixels, hood, (14, 14, 16))
    for place in range(count):
        middle = (
            int(width * (place + 0.5 + dice.between(-0.05, 0.05)) / count),
            int(height * dice.between(0.45, 0.55)),
        )
        radius = int(min(width / count, height) * dice.between(0.36, 0.44))
        cv2.circle(pixels, middle, radius, (34, 34, 38), -1, cv2.LINE_AA)
        cv2.circle(pixels, middle, radius, _METAL, 3, cv2.LINE_AA)
        for step in range(21):
            turn = math.radians(135 + 13.5 * step)
            inner = 0.78 if step % 2 == 0 else 0.86
            ends = [
                (int(middle[0] + r * radius * math.cos(turn)), int(middle[1] + r * radius * math.sin(turn)))
                for r in (inner, 0.93)
            ]
            cv2.line(pixels, ends[0], ends[1], glow, 3 if step % 2 == 0 else 1, cv2.LINE_AA)
        turn = math.radians(135 + 270 * dice.between(0.0, 0.8))
        tip = (int(middle[0] + 0.75 * radius * math.cos(turn)), int(middle[1] + 0.75 * radius * math.sin(turn)))
        cv2.line(pixels, middle, tip, (230, 40, 30), 5, cv2.LINE_AA)
        cv2.circle(pixels, middle, radius // 8, (60, 60, 64), -1, cv2.LINE_AA)
    text = f"{dice.whole(1000, 199999)} {dice.pick(('mi', 'km'))}"
    cv2.putText(
        pixels, text, (int(width * 0.4), int(height * 0.86)), cv2.FONT_HERSHEY_SIMPLEX, 0.8, glow, 2, cv2.LINE_AA
    )


def _wheel(pixels: Pixels, dice: Dice, look: CarLook) -> None:
    """Draw one wheel that fills the photo, within its arch."""
    height, width = pixels.shape[:2]
    ramp(pixels, 0, height, look.paint, scaled(look.paint, 0.75))
    ramp(pixels, int(height * 0.88), height, (96, 95, 94), (120, 118, 114))
    middle = (int(width * dice.between(0.42, 0.58)), int(height * dice.between(0.5, 0.56)))
    radius = int(min(width, height) * dice.between(0.36, 0.43))
    cv2.circle(pixels, middle, int(radius * 1.14), (12, 12, 13), -1, cv2.LINE_AA)
    cv2.circle(pixels, middle, radius, (32, 32, 34), -1, cv2.LINE_AA)
    for ring in (0.96, 0.88):
        cv2.circle(pixels, middle, int(radius * ring), (44, 44, 46), 2, cv2.LINE_AA)
    rim = int(radius * dice.between(0.66, 0.76))
    cv2.circle(pixels, middle, rim, _METAL, -1, cv2.LINE_AA)
    cv2.circle(pixels, middle, int(rim * 0.9), (52, 52, 56), -1, cv2.LINE_AA)
    cv2.circle(pixels, middle, int(rim * 0.55), (104, 92, 84), 8, cv2.LINE_AA)
    spokes, start, wide = dice.pick((5, 5, 6, 7, 10)), dice.between(0, 6.28), dice.between(0.09, 0.2)
    for step in range(spokes):
        turn = start + step * 2 * math.pi / spokes
        spoke = [(0.15, turn - 3 * wide), (0.93, turn - wide), (0.93, turn + wide), (0.15, turn + 3 * wide)]
        fill(
            pixels,
            [(middle[0] + r * rim * math.cos(t), middle[1] + r * rim * math.sin(t)) for r, t in spoke],
            (196, 198, 202),
        )
    cv2.circle(pixels, middle, rim // 6, (120, 122, 126), -1, cv2.LINE_AA)


def _seats(pixels: Pixels, dice: Dice, look: CarLook) -> None:
    """Draw seats through an open door: backs with head rests, cushions, stitched pleats."""
    height, width = pixels.shape[:2]
    trim = scaled(look.interior, dice.between(0.9, 1.2))
    ramp(pixels, 0, height, scaled(trim, 0.45), scaled(trim, 0.3))
    window = int(height * dice.between(0.12, 0.24))
    cv2.rectangle(pixels, (0, 0), (width, window), (160, 176, 186), -1)
    _houses(pixels, dice, window)
    top, fold, front = (height * dice.between(*at) for at in ((0.2, 0.3), (0.56, 0.7), (0.78, 0.94)))
    start, slope, pleats, across = dice.between(-0.1, 0.12), dice.between(0.04, 0.2), dice.whole(2, 6), dice.whole(0, 4)
    for place in range(dice.pick((2, 2, 3))):
        left = width * (start + 0.46 * place + dice.between(-0.03, 0.03))
        wide, shade = width * dice.between(0.34, 0.43), scaled(trim, 1 - 0.12 * place)
        middle, rest = left + wide / 2, (int(wide * dice.between(0.15, 0.24)), int(height * dice.between(0.06, 0.1)))
        cv2.ellipse(pixels, (int(middle), int(top - height * 0.06)), rest, 0, 0, 360, shade, -1, cv2.LINE_AA)
        _quad(pixels, (left + wide * slope, left + wide * (1 - slope)), top, (left, left + wide), fold, shade)
        cushion = (left - wide * 0.08, left + wide * 1.08)
        _quad(pixels, (left, left + wide), fold, cushion, front, scaled(shade, 1.16))
        for pleat in range(pleats):
            x = int(left + wide * (0.15 + 0.7 * (pleat + 0.5) / pleats))
            cv2.line(pixels, (x, int(top + 14)), (x, int(front - 10)), scaled(shade, 0.75), 2, cv2.LINE_AA)
        for seam in range(across):
            y = int(top + (front - top) * (seam + 1) / (across + 1))
            cv2.line(pixels, (int(left + wide * 0.1), y), (int(left + wide * 0.9), y), scaled(shade, 0.7), 2)


def _engine(pixels: Pixels, dice: Dice, look: CarLook) -> None:
    """Draw what is under the hood: covers, hoses, caps, battery."""
    height, width = pixels.shape[:2]
    ramp(pixels, 0, height, (58, 58, 60), (34, 34, 36))
    fill(pixels, [(0, 0), (width, 0), (width, height * 0.1), (0, height * 0.16)], look.paint)
    for _ in range(dice.whole(16, 26)):
        x, y = dice.whole(0, width), dice.whole(int(height * 0.15), height)
        size = (dice.whole(24, 110), dice.whole(18, 70))
        shade = scaled(dice.pick(((70, 70, 74), (120, 122, 124), (36, 36, 38), (90, 84, 78))), dice.between(0.7, 1.2))
        cv2.rectangle(pixels, (x, y), (x + size[0], y + size[1]), shade, -1)
        cv2.rectangle(pixels, (x, y), (x + size[0], y + size[1]), (18, 18, 18), 2)
    for _ in range(dice.whole(6, 11)):
        start = (dice.whole(0, width), dice.whole(int(height * 0.2), height))
        cv2.ellipse(
            pixels,
            start,
            (dice.whole(40, 150), dice.whole(20, 90)),
            dice.whole(0, 180),
            0,
            dice.whole(90, 240),
            (24, 24, 26),
            dice.whole(6, 14),
            cv2.LINE_AA,
        )
    cover = [
        (width * 0.3, height * 0.35),
        (width * 0.68, height * 0.33),
        (width * 0.72, height * 0.6),
        (width * 0.27, height * 0.62),
    ]
    fill(pixels, cover, dice.pick(((48, 48, 52), (120, 24, 26), (140, 142, 146))))
    for colour in ((220, 190, 40), (60, 90, 180), (20, 20, 22)):
        cv2.circle(
            pixels,
            (dice.whole(40, width - 40), dice.whole(int(height * 0.3), height - 30)),
            dice.whole(10, 20),
            colour,
            -1,
            cv2.LINE_AA,
        )


def _key(pixels: Pixels, dice: Dice, look: CarLook) -> None:
    """Draw keys on a table."""
    height, width = pixels.shape[:2]
    table = dice.pick(((160, 120, 84), (206, 204, 200), (88, 66, 52), (60, 62, 66)))
    ramp(pixels, 0, height, scaled(table, 1.1), scaled(table, 0.85))
    for _ in range(dice.whole(10, 18)):
        y = dice.whole(0, height)
        cv2.line(
            pixels,
            (0, y),
            (width, y + dice.whole(-12, 12)),
            scaled(table, dice.between(0.86, 1.08)),
            dice.whole(1, 4),
            cv2.LINE_AA,
        )
    for _ in range(dice.pick((1, 2, 2))):
        x, y, turn = width * dice.between(0.3, 0.7), height * dice.between(0.35, 0.65), dice.between(0, 6.28)
        along, across = np.array((math.cos(turn), math.sin(turn))), np.array((-math.sin(turn), math.cos(turn)))
        middle = np.array((x, y))
        blade = [middle + along * a + across * b for a, b in ((60, -12), (190, -10), (196, 0), (190, 10), (60, 12))]
        fill(pixels, [(p[0], p[1]) for p in blade], (196, 196, 190))
        case = [
            middle + along * a + across * b
            for a, b in ((-80, -34), (-60, -44), (60, -38), (72, 0), (60, 38), (-60, 44), (-80, 34))
        ]
        fill(pixels, [(p[0], p[1]) for p in case], (28, 28, 30))
        for a in (-40, -5, 28):
            spot = middle + along * a
            cv2.circle(pixels, (int(spot[0]), int(spot[1])), 11, (90, 92, 96), -1, cv2.LINE_AA)
        ring = middle - along * 110
        cv2.circle(pixels, (int(ring[0]), int(ring[1])), 34, _METAL, 5, cv2.LINE_AA)


def _boot(pixels: Pixels, dice: Dice, look: CarLook) -> None:
    """Draw the boot from behind: opening, folded seats, carpet, sill, lamps, and what was left in it."""
    height, width = pixels.shape[:2]
    ramp(pixels, 0, height, scaled(look.paint, 0.9), scaled(look.paint, 0.7))
    inside = scaled(look.interior, 0.5)

    # No two cars' boots are one shape: else another car's would be the same picture in another colour.
    def level(low: float, high: float) -> float:
        return float(height * dice.between(low, high))

    def span(middle: float, low: float, high: float) -> tuple[float, float]:
        half = width * dice.between(low, high)
        return width * middle - half, width * middle + half

    middle = dice.between(0.44, 0.56)
    top, back, floor, sill = level(0.06, 0.24), level(0.26, 0.36), level(0.42, 0.54), level(0.62, 0.78)
    _quad(pixels, span(middle, 0.26, 0.38), top, span(middle, 0.38, 0.48), sill, scaled(inside, 0.6))
    seats, carpet = span(middle, 0.2, 0.3), span(middle, 0.24, 0.34)
    _quad(pixels, seats, back, carpet, floor, inside)
    _quad(pixels, carpet, floor, span(middle, 0.34, 0.44), sill - height * 0.02, mixed(inside, (92, 90, 88), 0.6))
    for share in dice.pick(((0.5,), (0.38,), (0.62,), (0.33, 0.67))):
        x = int(seats[0] + (seats[1] - seats[0]) * share)
        cv2.line(pixels, (x, int(back)), (x, int(floor)), _BLACK, 3)
    _quad(pixels, span(middle, 0.4, 0.48), sill, span(middle, 0.38, 0.46), sill + level(0.04, 0.09), (26, 26, 28))
    lamp, wide = (int(level(0.34, 0.56)), int(level(0.62, 0.8))), int(width * dice.between(0.03, 0.07))
    for x in (int(width * 0.01), int(width * 0.99) - wide):
        cv2.rectangle(pixels, (x, lamp[0]), (x + wide, lamp[1]), (170, 24, 26), -1)
    for _ in range(dice.whole(1, 4)):
        x, y = dice.whole(int(width * 0.2), int(width * 0.65)), int(level(0.4, 0.6))
        size = (dice.whole(width // 16, width // 5), dice.whole(height // 14, height // 6))
        colour = dice.pick(((150, 110, 70), (40, 70, 120), (120, 30, 34), (60, 62, 66), (190, 184, 170)))
        cv2.rectangle(pixels, (x, y), (x + size[0], y + size[1]), colour, -1)
        cv2.rectangle(pixels, (x, y), (x + size[0], y + size[1]), scaled(colour, 0.6), 3)


def _quad(
    pixels: Pixels, above: tuple[float, float], top: float, below: tuple[float, float], bottom: float, colour: Colour
) -> None:
    """Fill what lies between two level edges."""
    fill(pixels, [(above[0], top), (above[1], top), (below[1], bottom), (below[0], bottom)], colour)


def _paper(pixels: Pixels, dice: Dice, look: CarLook) -> None:
    """Draw a window sticker or service book: a page with lines of text."""
    height, width = pixels.shape[:2]
    ramp(pixels, 0, height, scaled(look.interior, 0.8), scaled(look.interior, 0.6))
    left, top, right, bottom = (
        int(v) for v in (width * dice.between(0.08, 0.2), height * 0.06, width * dice.between(0.8, 0.93), height * 0.94)
    )
    cv2.rectangle(pixels, (left, top), (right, bottom), (242, 241, 234), -1)
    cv2.rectangle(
        pixels, (left, top), (right, top + height // 10), dice.pick(((30, 60, 130), (140, 20, 30), (20, 90, 60))), -1
    )
    for y in range(top + height // 7, bottom - 14, dice.whole(15, 22)):
        x = left + 14
        while x < right - 40:
            wide = dice.whole(10, 60)
            cv2.line(pixels, (x, y), (min(x + wide, right - 14), y), (70, 70, 76), dice.pick((2, 3, 5)))
            x += wide + dice.whole(6, 26)


_SUBJECTS: dict[str, Callable[[Pixels, Dice, CarLook], None]] = {
    "interior": _interior,
    "gauges": _gauges,
    "wheel": _wheel,
    "seats": _seats,
    "engine": _engine,
    "key": _key,
    "boot": _boot,
    "paper": _paper,
}
