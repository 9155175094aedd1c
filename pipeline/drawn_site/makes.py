"""The invented makes and models of the demo site: what tells them apart is shape, never a word or a colour.

A make is its grille, lamps, tail lamps, side windows, wheel arches, wheels and proportions; a model a body and a size.
"""

from dataclasses import dataclass

REFERENCE_YEAR = 2026
FIRST_YEAR = 2004


@dataclass(frozen=True, slots=True)
class Model:
    """One model: `length` and `height` are factors on its body style, `line` the crease along its doors."""

    name: str
    body: str
    new_price_usd: int
    length: float = 1.0
    height: float = 1.0
    line: str = "straight"
    bars: int = 3


@dataclass(frozen=True, slots=True)
class Make:
    """One make: the names of its shapes, its proportions (factors), and how common it is."""

    name: str
    grille: str
    lamp: str
    tail: str
    window: str
    arch: str
    wheel: str
    badge: str
    corner: float
    hood: float
    rake: float
    share: float
    models: tuple[Model, ...]


MAKES: tuple[Make, ...] = (
    Make(
        *("Avalor", "trapezoid", "slit", "bar", "upswept", "round", "five", "ring"),
        corner=0.24, hood=1.0, rake=1.05, share=20,
        models=(
            Model("Meridian", "sedan", 29000, line="rising"),
            Model("Cinder", "suv", 36000, bars=5),
            Model("Pico", "hatchback", 21000, length=0.94),
        ),
    ),
    Make(
        *("Brenko", "box", "rectangle", "vertical", "straight", "square", "six", "cross"),
        corner=0.08, hood=1.08, rake=0.75, share=16,
        models=(
            Model("Hauler", "pickup", 47000, length=1.05, bars=2),
            Model("Ridge", "suv", 52000, length=1.06, height=1.06, bars=7),
        ),
    ),
    Make(
        *("Castrel", "kidney", "twin_round", "l_shape", "kinked", "round", "ten", "disc"),
        corner=0.2, hood=1.16, rake=1.0, share=12,
        models=(
            Model("S4", "sedan", 56000, length=1.04, line="double"),
            Model("S4 Touring", "wagon", 60000, length=1.04, line="double"),
            Model("Z2", "coupe", 68000, line="rising"),
        ),
    ),
    Make(
        *("Dorvan", "oval", "round", "round", "arched", "round", "dish", "dot"),
        corner=0.34, hood=0.82, rake=1.2, share=10,
        models=(
            Model("Bello", "hatchback", 19000, length=0.9, height=1.04),
            Model("Familia", "van", 34000, line="low"),
        ),
    ),
    Make(
        *("Elmsted", "shield", "teardrop", "wing", "floating", "flat", "mesh", "triangle"),
        corner=0.28, hood=1.2, rake=1.12, share=8,
        models=(
            Model("Regent", "sedan", 82000, length=1.1, line="rising", bars=9),
            Model("Consort", "coupe", 98000, length=1.05, line="double"),
        ),
    ),
    Make(
        *("Fjordal", "bars", "hammer", "column", "straight", "round", "four", "slash"),
        corner=0.14, hood=1.02, rake=0.88, share=8,
        models=(
            Model("V60", "wagon", 45000, length=1.03),
            Model("X40", "suv", 43000, length=0.95, line="low", bars=6),
            Model("L30", "sedan", 41000, bars=6),
        ),
    ),
    Make(
        *("Gantry", "slots", "round", "square", "boxed", "square", "steel", "bar"),
        corner=0.04, hood=1.1, rake=0.5, share=7,
        models=(
            Model("Trail", "suv", 39000, length=0.9, height=1.1, line="none", bars=7),
            Model("Mule", "pickup", 36000, line="none", bars=7),
        ),
    ),
    Make(
        *("Halden", "none", "strip", "strip", "arched", "flat", "turbine", "wave"),
        corner=0.36, hood=0.86, rake=1.3, share=6,
        models=(
            Model("Ion", "hatchback", 33000, line="low"),
            Model("Aero", "sedan", 48000, length=1.03, line="none"),
        ),
    ),
    Make(
        *("Ibera", "hexagon", "arrow", "boomerang", "upswept", "flat", "five", "diamond"),
        corner=0.16, hood=0.95, rake=1.12, share=5,
        models=(
            Model("Toro", "hatchback", 24000, line="rising", bars=4),
            Model("Duna", "suv", 31000, length=0.93, line="rising", bars=4),
        ),
    ),
    Make(
        *("Kestora", "split", "stacked", "column", "boxed", "round", "steel", "hex"),
        corner=0.12, hood=0.7, rake=0.7, share=4,
        models=(
            Model("Cargo", "van", 37000, length=1.08, height=1.05, line="none", bars=2),
            Model("Metro", "van", 31000, length=0.9, line="low", bars=2),
        ),
    ),
)  # fmt: skip

BY_NAME = {make.name: make for make in MAKES}
MODEL_BY_NAME = {(make.name, model.name): model for make in MAKES for model in make.models}

# What the site's dealers call a body style.
BODY_NAMES = {
    "sedan": "Sedan",
    "suv": "SUV",
    "hatchback": "Hatchback",
    "pickup": "Pickup Truck",
    "wagon": "Wagon",
    "coupe": "Coupe",
    "van": "Van",
}

# Name -> sRGB; how common each is stands beside it.
PAINTS: dict[str, tuple[tuple[int, int, int], float]] = {
    "White": ((236, 237, 238), 20),
    "Black": ((28, 29, 33), 17),
    "Silver": ((178, 182, 186), 15),
    "Gray": ((104, 108, 114), 14),
    "Blue": ((36, 70, 142), 10),
    "Red": ((168, 30, 34), 9),
    "Green": ((38, 84, 60), 4),
    "Beige": ((196, 182, 150), 4),
    "Orange": ((214, 104, 34), 3),
    "Brown": ((92, 64, 48), 2),
    "Yellow": ((228, 190, 46), 2),
}

INTERIORS: dict[str, tuple[int, int, int]] = {
    "Black": (44, 44, 48),
    "Gray": (112, 114, 118),
    "Beige": (186, 166, 132),
    "Brown": (104, 68, 46),
    "Red": (128, 36, 38),
}
