"""Draws that depend on their key alone: the same words give the same numbers on every machine and Python."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_SCALE = 2.0**64


def unit(*key: object) -> float:
    """Draw one number in [0, 1) from a key."""
    return int.from_bytes(_digest(key), "big") / _SCALE


def token(*key: object) -> str:
    """Draw 8 hex digits from a key."""
    return _digest(key).hex()[:8]


def _digest(key: tuple[object, ...]) -> bytes:
    return hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()


class Dice:
    """A row of draws from one key; only `Random.random`, which no Python release may change, is used."""

    def __init__(self, *key: object) -> None:
        self._next = random.Random(int.from_bytes(_digest(key), "big")).random

    def chance(self, share: float) -> bool:
        """Say yes in `share` of all cases."""
        return self._next() < share

    def between(self, low: float, high: float) -> float:
        """Draw from [low, high)."""
        return low + (high - low) * self._next()

    def whole(self, low: int, high: int) -> int:
        """Draw a whole number, both ends included."""
        return low + int((high - low + 1) * self._next())

    def pick(self, choices: Sequence[T]) -> T:
        """Draw one of `choices`, all as likely."""
        return choices[int(len(choices) * self._next())]

    def weighted(self, choices: Sequence[T], weights: Sequence[float]) -> T:
        """Draw one of `choices` by weight."""
        left = self._next() * sum(weights)
        for choice, weight in zip(choices, weights, strict=True):
            left -= weight
            if left < 0:
                return choice
        return choices[-1]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return the items in a drawn order."""
        return [item for _, _, item in sorted((self._next(), place, item) for place, item in enumerate(items))]
