"""From confirmed pairs to stars: each copy tied to one photo that stays, whatever order the pairs come in."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int, int]
Ranks = Sequence[int] | NDArray[np.uint32]


def stars(shares: Mapping[Pair, float], ranks: Ranks) -> dict[int, int]:
    """Tie photos to representatives: copy -> representative.

    Photos are taken in order of rank; one that nobody has claimed claims all it is confirmed to be equal to.
    `shares` holds the confirmed pairs.
    """
    neighbours: dict[int, list[int]] = defaultdict(list)
    for first, second in shares:
        neighbours[first].append(second)
        neighbours[second].append(first)
    tied: dict[int, int] = {}
    for photo in sorted(neighbours, key=lambda photo: ranks[photo]):
        if photo not in tied:
            later = [other for other in neighbours[photo] if ranks[other] > ranks[photo]]
            tied |= {other: photo for other in later if other not in tied}
    return tied


def second_looks(shares: Mapping[Pair, float], ranks: Ranks) -> set[Pair]:
    """Name the pairs that are worth comparing too: a star's centre, and what is equal to one of its copies.

    A picture that is there in many cuts has more copies than a photo has candidates, and its stars would stay apart.
    """
    tied = stars(shares, ranks)
    wanted = set()
    for first, second in shares:
        for copy, other in ((first, second), (second, first)):
            centre = tied.get(copy, copy)
            if centre != other:
                wanted.add((min(centre, other), max(centre, other)))
    return wanted - shares.keys()
