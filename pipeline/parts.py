"""Which ids make which part, and in what order: aligned blocks in a keyed permutation that needs no memory per id."""

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import UsageError

Interval = tuple[int, int]  # both ends included

MAX_ID_BYTES = 200  # an id is part of a photo's key, and LMDB's keys end at 511 bytes
_MAX_DIGITS = 18
_ROUNDS = 4


class Permutation:
    """A keyed permutation of 0..size-1: a Feistel network over the next even number of bits, walked until inside.

    Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002), method 2 (cycle walking): at most four steps on
    average.
    """

    def __init__(self, size: int, key: str) -> None:
        self.size = size
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half_bits) - 1
        self._keys = [hashlib.blake2b(f"{key}/{i}".encode(), digest_size=16).digest() for i in range(_ROUNDS)]

    def __getitem__(self, index: int) -> int:
        """Return the image of `index`."""
        if not 0 <= index < self.size:
            raise IndexError(f"{index} is outside 0..{self.size - 1}")
        value = self._encrypt(index)
        while value >= self.size:
            value = self._encrypt(value)
        return value

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return (self[index] for index in range(self.size))

    def _encrypt(self, value: int) -> int:
        left, right = value >> self._half_bits, value & self._mask
        for key in self._keys:
            digest = hashlib.blake2b(right.to_bytes(8, "big"), digest_size=8, key=key).digest()
            left, right = right, left ^ (int.from_bytes(digest, "big") & self._mask)
        return left << self._half_bits | right


@dataclass(frozen=True, slots=True)
class Block:
    """The ids a run wants of one part: intervals in order, or names where ids are no numbers."""

    part: str
    intervals: tuple[Interval, ...] = ()
    names: tuple[str, ...] = ()

    def holds(self, listing_id: str) -> bool:
        """Tell whether an id is in the block."""
        if not is_number(listing_id):
            return listing_id in self.names
        return any(first <= int(listing_id) <= last for first, last in self.intervals)

    def ids(self, key: str) -> Iterator[str]:
        """Give the ids in a keyed order."""
        if self.names:
            order = Permutation(len(self.names), f"{key}/{self.part}")
            return (self.names[i] for i in order)
        starts = [0]
        for first, last in self.intervals:
            starts.append(starts[-1] + last - first + 1)
        if not starts[-1]:
            return iter(())
        return (self._id_at(i, starts) for i in Permutation(starts[-1], f"{key}/{self.part}"))

    def _id_at(self, index: int, starts: list[int]) -> str:
        which = bisect_right(starts, index) - 1
        return str(self.intervals[which][0] + index - starts[which])


def range_blocks(site: str, first: int, last: int, *, ids_per_part: int, key: str) -> Iterator[Block]:
    """Give the parts of an id range, both ends included, in a keyed order."""
    first_block, last_block = first // ids_per_part, last // ids_per_part
    for offset in Permutation(last_block - first_block + 1, f"{key}/{site}"):
        start = (first_block + offset) * ids_per_part
        yield Block(f"{site}-{start}", ((max(first, start), min(last, start + ids_per_part - 1)),))


def listed_blocks(
    site: str, ids: Iterable[str], *, committed: Collection[str], ids_per_part: int, key: str
) -> Iterator[Block]:
    """Give the parts of ids from a file in a keyed order.

    Numbers make the same aligned blocks as a range does. Others are cut in the file's order, less those of `committed`
    parts: then what is left after an interrupted run is cut as it was the first time.
    """
    unique = list(dict.fromkeys(ids))
    by_block: dict[int, list[int]] = {}
    for number in map(int, filter(is_number, unique)):
        by_block.setdefault(number // ids_per_part, []).append(number)
    blocks = [
        Block(f"{site}-{block * ids_per_part}", merge((n, n) for n in numbers))
        for block, numbers in sorted(by_block.items())
    ]
    names = [name for name in unique if not is_number(name) and name not in committed]
    for start in range(0, len(names), ids_per_part):
        chunk = tuple(names[start : start + ids_per_part])
        blocks.append(Block(f"{site}-list-{_file_name(chunk[0])}", names=chunk))
    if not blocks:
        return iter(())
    return (blocks[i] for i in Permutation(len(blocks), f"{key}/{site}"))


def read_ids(path: Path) -> list[str]:
    """Read listing ids, one a line; blank lines and lines that start with # are passed over.

    Raises:
        UsageError: the file cannot be read, holds no id, or an id with a slash or white space in it.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the ids of {path}: {error}") from error
    ids = [line for line in lines if line and not line.startswith("#")]
    for number, line in enumerate(lines, start=1):
        if line and not line.startswith("#") and not _is_id(line):
            raise UsageError(
                f"{path} line {number}: {line[:80]!r} is no id; one id a line, printable, without slashes or blanks, "
                f"{MAX_ID_BYTES} bytes at most"
            )
    if not ids:
        raise UsageError(f"{path} holds no ids; one id a line")
    return ids


def parse_range(text: str) -> Interval:
    """Read `A:B`, both ends included.

    Raises:
        UsageError: no two numbers, or reversed.
    """
    first, colon, last = text.partition(":")
    if not (colon and first.strip().isdecimal() and last.strip().isdecimal()):
        raise UsageError(f"--ids takes A:B with two numbers, both included, such as 1000:1999; found {text!r}")
    if int(first) > int(last):
        raise UsageError(f"--ids {text}: the range is reversed, {first} is above {last}; write {last}:{first}")
    return int(first), int(last)


def merge(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """Join intervals that touch or overlap, in order."""
    merged: list[Interval] = []
    for first, last in sorted(intervals):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def subtract(wanted: Iterable[Interval], covered: Iterable[Interval]) -> tuple[Interval, ...]:
    """Return what of `wanted` is not in `covered`."""
    left = list(merge(wanted))
    for first, last in merge(covered):
        left = [
            piece
            for a, b in left
            for piece in ((a, min(b, first - 1)), (max(a, last + 1), b))
            if piece[0] <= piece[1] and not (first <= piece[0] and piece[1] <= last)
        ]
        left = list(merge(left))
    return tuple(left)


def count(intervals: Iterable[Interval]) -> int:
    """Return how many ids the intervals hold."""
    return sum(last - first + 1 for first, last in intervals)


def is_number(listing_id: str) -> bool:
    """Tell whether an id is a plain number, which belongs to an aligned block."""
    return (
        len(listing_id) <= _MAX_DIGITS
        and listing_id.isascii()
        and listing_id.isdecimal()
        and (listing_id == "0" or not listing_id.startswith("0"))
    )


def _is_id(text: str) -> bool:
    return text.isprintable() and "/" not in text and " " not in text and len(text.encode()) <= MAX_ID_BYTES


def _file_name(listing_id: str) -> str:
    """Return an id as a file name: kept where it is plain, else hashed."""
    if listing_id.isascii() and all(c.isalnum() or c in "-_" for c in listing_id) and len(listing_id) <= 64:
        return listing_id
    return hashlib.sha256(listing_id.encode()).hexdigest()[:16]
