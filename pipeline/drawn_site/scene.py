"""The places drawn cars stand in: a dealer's lot, a street, a showroom, a field, a garage drive."""

import cv2
import numpy as np

from pipeline.drawn_site.canvas import Camera, Colour, Pixels, fill, mixed, ramp, scaled
from pipeline.drawn_site.dice import Dice

SCENES = ("lot", "lot", "street", "street", "showroom", "field", "drive")

_SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((96, 150, 214), (196, 218, 236)),
    ((170, 178, 188), (214, 218, 222)),
    ((120, 136, 160), (236, 204, 170)),
    ((70, 120, 190), (170, 200, 230)),
)
_GROUNDS: dict[str, tuple[Colour, ...]] = {
    "lot": ((92, 93, 96), (116, 114, 110), (74, 75, 78)),
    "street": ((84, 84, 88), (104, 103, 102)),
    "showroom": ((186, 186, 190), (150, 150, 156), (206, 200, 190)),
    "field": ((96, 124, 62), (128, 134, 78), (150, 138, 100)),
    "drive": ((160, 152, 142), (132, 128, 124)),
}
_WALLS: tuple[Colour, ...] = (
    (178, 92, 70),
    (206, 200, 188),
    (148, 156, 166),
    (224, 214, 186),
    (98, 106, 118),
    (168, 148, 126),
)


def draw_scene(scene: str, dice: Dice, camera: Camera, slot: int) -> Pixels:
    """Draw the empty place; `slot` moves what is far, as turning the camera does."""
    width, height = camera.size
    pixels = np.empty((height, width, 3), np.uint8)
    horizon = max(30, min(camera.horizon_px, height - 60))
    sky, ground = dice.pick(_SKIES), dice.pick(_GROUNDS[scene])
    tone = dice.between(0.85, 1.12)
    ramp(pixels, 0, horizon, scaled(sky[0], tone), scaled(sky[1], tone))
    ramp(pixels, horizon, height, scaled(ground, 0.82 * tone), scaled(ground, 1.06 * tone))
    far = Dice("far", dice.whole(0, 1 << 30), slot)
    if scene == "showroom":
        _showroom(pixels, horizon, dice, far)
    elif scene == "field":
        _trees(pixels, horizon, far, many=16)
    else:
        _buildings(pixels, horizon, far)
        _trees(pixels, horizon, far, many=3)
    if scene == "lot":
        _parked(pixels, horizon, far)
        _markings(pixels, camera, dice)
    elif scene == "street":
        curb = horizon + (height - horizon) // 7
        ramp(pixels, horizon, curb, (168, 165, 158), (184, 180, 172))
        cv2.line(pixels, (0, curb), (width, curb), (120, 118, 112), 3, cv2.LINE_AA)
    return pixels


def draw_shadow(pixels: Pixels, camera: Camera, body: str, sun: float) -> None:
    """Darken the ground under the car, and to the side away from the sun."""
    length, reach = {"pickup": 2.85, "van": 2.6, "hatchback": 2.15}.get(body, 2.45), 1.05
    corners = [(-length, -reach), (length, -reach), (length, reach - sun * 0.5), (-length, reach - sun * 0.5)]
    points = camera.project(np.array([(x, y - sun * 0.35, 0.0) for x, y in corners]))
    mask = np.zeros(pixels.shape[:2], np.uint8)
    cv2.fillPoly(mask, [points.astype(np.int32)], 255)
    left, top, wide, high = cv2.boundingRect(points.astype(np.int32))
    left, top = max(left - 8, 0), max(top - 8, 0)
    part = (slice(top, top + high + 16), slice(left, left + wide + 16))
    kept = cv2.convertScaleAbs(cv2.blur(mask[part], (15, 15)), alpha=-0.65, beta=255)
    pixels[part] = cv2.multiply(pixels[part], cv2.merge((kept, kept, kept)), scale=1 / 255)


def _buildings(pixels: Pixels, horizon: int, dice: Dice) -> None:
    width, left = pixels.shape[1], -dice.whole(0, 120)
    while left < width:
        wide, high = dice.whole(70, 240), dice.whole(20, max(24, int(horizon * 0.85)))
        wall = scaled(dice.pick(_WALLS), dice.between(0.75, 1.1))
        cv2.rectangle(pixels, (left, horizon - high), (left + wide, horizon), wall, -1)
        step = dice.whole(18, 34)
        glass = mixed(wall, (60, 76, 96), 0.7)
        for top in range(horizon - high + 8, horizon - 14, step):
            for start in range(left + 8, left + wide - 12, step):
                cv2.rectangle(pixels, (start, top), (start + step // 2, top + step // 2), glass, -1)
        left += wide + dice.pick((0, 6, 40))


def _trees(pixels: Pixels, horizon: int, dice: Dice, many: int) -> None:
    width = pixels.shape[1]
    for _ in range(many):
        x, size = dice.whole(0, width), dice.whole(16, 54)
        leaf = scaled((58, 96, 48), dice.between(0.6, 1.3))
        cv2.rectangle(pixels, (x - 3, horizon - size), (x + 3, horizon + 2), (74, 58, 44), -1)
        cv2.circle(pixels, (x, horizon - size), size * 2 // 3, leaf, -1, cv2.LINE_AA)
        cv2.circle(pixels, (x + size // 2, horizon - size + 6), size // 2, scaled(leaf, 0.86), -1, cv2.LINE_AA)


def _parked(pixels: Pixels, horizon: int, dice: Dice) -> None:
    """Draw small cars in the distance, as blobs with a cabin and wheels."""
    x, width = -dice.whole(0, 60), pixels.shape[1]
    while x < width:
        size = dice.whole(52, 84)
        paint = dice.pick(((200, 200, 204), (60, 62, 70), (150, 40, 40), (50, 80, 130), (230, 230, 230)))
        base, tall = horizon + 10, size // 4
        cv2.rectangle(pixels, (x, base - tall), (x + size, base), paint, -1)
        roof = [(x + size * 0.2, base - tall), (x + size * 0.32, base - 2 * tall), (x + size * 0.72, base - 2 * tall)]
        fill(pixels, [*roof, (x + size * 0.88, base - tall)], scaled(paint, 0.6))
        for share in (0.22, 0.78):
            cv2.circle(pixels, (int(x + size * share), base), size // 9, (24, 24, 26), -1, cv2.LINE_AA)
        x += size + dice.whole(8, 90)


def _markings(pixels: Pixels, camera: Camera, dice: Dice) -> None:
    paint = dice.pick(((214, 214, 208), (206, 178, 70)))
    offset = dice.between(-0.4, 0.4)
    for lane in (-4.6, -1.9, 1.9, 4.6):
        y = lane + offset
        points = [(-3.5, y, 0.0), (3.2, y, 0.0), (3.2, y + 0.12, 0.0), (-3.5, y + 0.12, 0.0)]
        fill(pixels, [(x, z) for x, z in camera.project(np.array(points))], paint)


def _showroom(pixels: Pixels, horizon: int, dice: Dice, far: Dice) -> None:
    width, height = pixels.shape[1], pixels.shape[0]
    wall = dice.pick(((212, 212, 214), (84, 86, 92), (196, 188, 176), (120, 130, 142)))
    ramp(pixels, 0, horizon, scaled(wall, 0.9), scaled(wall, 1.08))
    step = far.whole(90, 170)
    for x in range(-far.whole(0, step), width, step):
        cv2.rectangle(
            pixels, (x, horizon // 6), (x + step - 14, horizon - 6), scaled(wall, far.between(0.78, 1.16)), -1
        )
    for x in range(far.whole(0, 60), width, far.whole(80, 130)):
        cv2.ellipse(pixels, (x, 12), (26, 7), 0, 0, 360, (255, 252, 240), -1, cv2.LINE_AA)
    tile = scaled((150, 150, 154), 0.95)
    for row in range(6):
        y = horizon + int((height - horizon) * (row / 6) ** 1.6)
        cv2.line(pixels, (0, y), (width, y), tile, 1)
