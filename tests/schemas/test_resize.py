import numpy as np
import pytest
from PIL import Image

from schemas.resize import resized, shrunk, stored_size


@pytest.mark.parametrize(
    ("size", "short_side_px", "expected"),
    [
        ((1600, 1200), 256, (341, 256)),
        ((1200, 1600), 256, (256, 341)),
        ((1000, 512), 256, (500, 256)),
        ((513, 342), 256, (384, 256)),
        ((3, 2), 1, (2, 1)),
        ((256, 200), 256, (256, 200)),
        ((10_000, 1), 256, (10_000, 1)),
    ],
)
def test_the_short_side_is_exact_and_halves_round_up(
    size: tuple[int, int], short_side_px: int, expected: tuple[int, int]
) -> None:
    assert stored_size(*size, short_side_px) == expected


def test_blocks_are_averaged_only_while_twice_the_size_remains() -> None:
    image = Image.new("RGB", (1000, 800))
    assert shrunk(image, (1000, 800), (125, 100))[0].size == (250, 200)
    assert shrunk(image, (1000, 800), (250, 200))[0].size == (500, 400)
    assert shrunk(image, (1000, 800), (251, 201))[0] is image
    _, covered = shrunk(Image.new("RGB", (1001, 801)), (1001, 801), (125, 100))
    assert covered == (1001 / 4, 801 / 4)


def test_what_has_its_size_is_left_alone() -> None:
    image = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 30))
    assert resized(image, (30, 10), (30, 10)) is image
