"""Drawn photos of invented cars from outside: a car of flat faces in 3D, seen by a camera, before a drawn scene.

The make shows in shapes (ends.py), the model in body and size, the year in lamps, wheels and wear. Arrays are
(H, W, 3) RGB uint8. Everything follows from the look's key and the slot.
"""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.drawn_site.canvas import Camera, Colour, Pixels, grain, light, paint_faces
from pipeline.drawn_site.car import car_faces
from pipeline.drawn_site.dice import Dice
from pipeline.drawn_site.makes import Make, Model
from pipeline.drawn_site.scene import SCENES, draw_scene, draw_shadow

SIZES = ((640, 480), (640, 480), (720, 480), (640, 426), (600, 450), (640, 360), (520, 520), (480, 600))
# Azimuth of the camera from the car's nose, in degrees: three-quarter views are the commonest.
VIEWS = (38, -38, 142, -142, 90, -90, 8, -172, 58, -60, 122, -124)


@dataclass(frozen=True, slots=True)
class CarLook:
    """One car: `key` seeds all that is its own, `paint` and `interior` are sRGB."""

    key: str
    make: Make
    model: Model
    year: int
    paint: Colour
    interior: Colour


def draw_exterior(look: CarLook, slot: int) -> Pixels:
    """Draw a car in its listing's scene; slots differ by view, and slot + 100 is nearly the view of slot."""
    dice = Dice("view", look.key, slot % 100)
    width, height = dice.pick(SIZES)
    place = Dice("scene", look.key)
    scene = place.pick(SCENES)
    camera = _camera(look, dice, slot, width, height)
    if slot >= 100:
        camera = camera.moved(Dice("burst", look.key, slot))
    pixels = draw_scene(scene, Dice("scene", look.key, "in"), camera, slot)
    sun = place.between(-1.0, 1.0)
    draw_shadow(pixels, camera, look.model.body, sun)
    paint_faces(pixels, camera, car_faces(look.make, look.model, look.year, look.paint, look.key), sun)
    gain, warmth = dice.between(0.82, 1.14) * place.between(0.85, 1.08), place.between(-0.05, 0.05)
    return grain(light(pixels, gain, warmth), dice, strength=dice.between(2.0, 7.0))


def draw_cutout(look: CarLook, slot: int) -> Pixels:
    """Draw a car alone on white, as makers and some dealers show it."""
    dice = Dice("cutout", look.key, slot)
    width, height = dice.pick(((640, 427), (600, 400), (720, 405), (560, 420)))
    camera = _camera(look, dice, slot, width, height)
    pixels = np.full((height, width, 3), 255, np.uint8)
    paint_faces(pixels, camera, car_faces(look.make, look.model, look.year, look.paint, look.key), dice.between(-1, 1))
    return pixels


def _camera(look: CarLook, dice: Dice, slot: int, width: int, height: int) -> Camera:
    order = Dice("views", look.key).shuffled(VIEWS)
    azimuth = order[slot % len(order)] + dice.between(-9, 9)
    elevation = dice.between(4, 16)
    distance = dice.between(8.5, 13)
    # A car seen from the side is as wide as it is long, so the focal length follows the view.
    seen = abs(math.sin(math.radians(azimuth))) * 4.9 * look.model.length + abs(math.cos(math.radians(azimuth))) * 2.2
    focal = dice.between(0.72, 0.92) * min(width / seen, height / 2.3) * distance
    return Camera.around(
        azimuth, elevation, distance, focal, (width, height), (dice.between(-0.05, 0.05), dice.between(-0.02, 0.07))
    )
