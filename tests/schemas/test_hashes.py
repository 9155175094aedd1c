import hashlib
import math

import imagehash
import numpy as np
import pytest
from PIL import Image

from schemas.hashes import coarse_hash, phash
from tests.schemas.photos import drawn


def test_phash_is_imagehash_with_the_first_bit_highest() -> None:
    for seed in range(20):
        photo = drawn(256 + seed, 256, seed)
        bits = imagehash.phash(photo).hash.flatten()
        assert phash(np.asarray(photo)) == sum(1 << (63 - index) for index, bit in enumerate(bits) if bit)


def test_coarse_hash_is_what_the_design_says() -> None:
    photo = drawn(384, 256)
    levels = np.asarray(photo.resize((16, 16), Image.Resampling.LANCZOS)) >> 4
    assert levels.size == 768
    expected = hashlib.sha256(levels.astype(np.uint8).tobytes() + bytes([round(math.log2(1.5)) + 4])).hexdigest()
    assert coarse_hash(np.asarray(photo)) == expected


def test_coarse_hash_tells_pictures_and_shapes_apart() -> None:
    flat = np.full((256, 256, 3), 200, np.uint8)
    assert coarse_hash(flat) == coarse_hash(flat.copy())
    assert coarse_hash(flat) != coarse_hash(np.full((256, 512, 3), 200, np.uint8))
    assert coarse_hash(flat) != coarse_hash(np.asarray(drawn(256, 256)))


@pytest.mark.parametrize(("width", "height"), [(5000, 1), (1, 5000)])
def test_extreme_shapes_have_hashes(width: int, height: int) -> None:
    line = np.zeros((height, width, 3), np.uint8)
    assert len(coarse_hash(line)) == 64
    assert 0 <= phash(line) < 1 << 64
