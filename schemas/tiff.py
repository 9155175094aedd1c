"""TIFF directories as bytes: of TIFF photos, and of the EXIF and MPF blocks inside other photos.

Codecs follow every offset of a directory, warn about bad entries and read tags nobody asked for. So the entries that
decide the picture are read here, and a TIFF goes to its codec with a new directory that holds only those.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from schemas.errors import ImageError
from schemas.header import UPRIGHT, Header, unpack, usable_profile

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES = 273, 274, 277, 278, 279
PLANAR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, ICC_PROFILE = 284, 322, 323, 324, 325, 34675
_SINGLE = (WIDTH, HEIGHT, COMPRESSION, PHOTOMETRIC, SAMPLES, ROWS_PER_STRIP, PLANAR, TILE_WIDTH, TILE_HEIGHT, 266, 317)
# 266 FillOrder, 317 Predictor, 320 ColorMap, 338 ExtraSamples,
# 339 SampleFormat, 347 JPEGTables, 529 to 532 YCbCr and reference levels, 292 and 293 fax options.
_LISTED = (BITS, STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES, 320, 338, 339, 347, 529, 530, 531, 532, 292, 293)
_KEPT = frozenset(_SINGLE + _LISTED)
_UNCOMPRESSED, _YCBCR, _SEPARATE_PLANES = 1, 6, 2
# What Pillow's libtiff is built with; another would end in its error messages.
_READABLE_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32946, 34925, 50000})
_MAX_ENTRIES = 4096
# Offsets of strips are the longest list of numbers; a picture has no more strips than lines.
_MAX_NUMBERS = 1 << 20
_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tag: its TIFF type, number of values, and their bytes in the file's byte order."""

    kind: int
    count: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Directory:
    """The first directory of a TIFF; `order` as `struct` writes it, `big` for 64-bit offsets.

    `missing` are the tags whose values lie beyond the end of the bytes.
    """

    order: str
    big: bool
    entries: Mapping[int, Entry]
    missing: frozenset[int]

    def numbers(self, tag: int) -> tuple[int, ...]:
        """Return the whole numbers of a tag, none where it is missing or of another type."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in _NUMBERS:
            return ()
        return struct.unpack(f"{self.order}{entry.count}{_NUMBERS[entry.kind]}", entry.raw)

    def number(self, tag: int, default: int) -> int:
        """Return the first whole number of a tag."""
        return next(iter(self.numbers(tag)), default)


def read_directory(data: bytes) -> Directory:
    """Read the first directory; entries of unknown types are left out.

    Raises:
        ImageError: truncated or corrupt, where there is no directory to read.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise ImageError("corrupt", "a TIFF block without a byte order")
    big = unpack(f"{order}H", data, 2)[0] == 43
    (start,) = unpack(f"{order}Q", data, 8) if big else unpack(f"{order}I", data, 4)
    (count,) = unpack(f"{order}{'Q' if big else 'H'}", data, start)
    if count > _MAX_ENTRIES:
        raise ImageError("corrupt", f"a TIFF directory of {count} entries")
    first, size = start + (8 if big else 2), 20 if big else 12
    entries: dict[int, Entry] = {}
    missing: set[int] = set()
    for position in range(first, first + count * size, size):
        if position + size > len(data):
            missing.add(WIDTH)
            break
        tag, kind = struct.unpack_from(f"{order}HH", data, position)
        where, values, value_bytes = _place_of(data, position, kind, order=order, big=big)
        if where + value_bytes > len(data):
            missing.add(tag)
        elif value_bytes:
            entries.setdefault(tag, Entry(kind, values, data[where : where + value_bytes]))
    return Directory(order, big, entries, frozenset(missing))


def orientation_of(exif: bytes) -> int:
    """Return the orientation an EXIF block gives, 1 (upright) where it gives none that exists."""
    try:
        directory = read_directory(exif.removeprefix(b"Exif\0\0"))
    except ImageError:
        return UPRIGHT
    value = directory.number(ORIENTATION, UPRIGHT)
    return value if 1 <= value <= 8 else UPRIGHT


def read_tiff(data: bytes) -> Header:
    """Read a TIFF photo's first page.

    Raises:
        ImageError: truncated, corrupt, unsupported.
    """
    directory = read_directory(data)
    if directory.missing & {WIDTH, HEIGHT, COMPRESSION, PHOTOMETRIC}:
        raise ImageError("truncated", "the TIFF ends in its directory")
    compression, photometric = directory.number(COMPRESSION, _UNCOMPRESSED), directory.number(PHOTOMETRIC, 0)
    if compression not in _READABLE_COMPRESSIONS or (photometric == _YCBCR and compression == _UNCOMPRESSED):
        raise ImageError("unsupported", f"a TIFF of compression {compression}, photometric {photometric}")
    width, height = directory.number(WIDTH, 0), directory.number(HEIGHT, 0)
    if width < 1 or height < 1:
        raise ImageError("corrupt", f"a TIFF of {width}x{height} px")
    icc = directory.entries.get(ICC_PROFILE)
    orientation = directory.number(ORIENTATION, UPRIGHT)
    return Header(
        "TIFF",
        width,
        height,
        _with_clean_directory(data, directory),
        channels=directory.number(SAMPLES, 1),
        sample_bits=directory.number(BITS, 1),
        metadata_bytes=sum(len(entry.raw) for tag, entry in directory.entries.items() if tag not in _KEPT),
        orientation=orientation if 1 <= orientation <= 8 else UPRIGHT,
        icc=usable_profile(icc.raw if icc else None),
        complete=_is_complete(data, directory),
    )


def _place_of(data: bytes, position: int, kind: int, *, order: str, big: bool) -> tuple[int, int, int]:
    """Return where an entry's values start, how many they are, and their bytes, 0 where the entry is of no use."""
    letter, inline = ("Q", 8) if big else ("I", 4)
    (count,) = struct.unpack_from(f"{order}{letter}", data, position + 4)
    size = count * _TYPE_BYTES.get(kind, 0)
    where = position + 4 + inline
    if size > inline:
        (where,) = struct.unpack_from(f"{order}{letter}", data, where)
    too_many = kind in _NUMBERS and kind != 1 and count > _MAX_NUMBERS
    return (where, 0, 0) if too_many else (where, count, size)


def _is_complete(data: bytes, directory: Directory) -> bool:
    """Tell whether all strips or tiles lie within the file, and all tags that say how to read them."""
    if directory.missing & (_KEPT | {ICC_PROFILE}):
        return False
    is_raw = directory.number(COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED
    for offsets_tag, bytes_tag in ((STRIP_OFFSETS, STRIP_BYTES), (TILE_OFFSETS, TILE_BYTES)):
        offsets = directory.numbers(offsets_tag)
        # The sizes of raw pieces are often wrong, and not what the codec goes by.
        sizes = _raw_sizes(directory, len(offsets)) if is_raw else directory.numbers(bytes_tag)
        if any(offset + max(size, 1) > len(data) for offset, size in zip(offsets, sizes, strict=False)):
            return False
    return True


def _raw_sizes(directory: Directory, count: int) -> list[int]:
    """Return the bytes of each uncompressed strip or tile."""
    bits = directory.numbers(BITS) or (1,)
    samples = 1 if directory.number(PLANAR, 1) == _SEPARATE_PLANES else directory.number(SAMPLES, 1)
    depth = sum(bits) if len(bits) == samples else bits[0] * samples
    if TILE_OFFSETS in directory.entries:
        return [directory.number(TILE_HEIGHT, 1) * ((directory.number(TILE_WIDTH, 1) * depth + 7) // 8)] * count
    height = directory.number(HEIGHT, 1)
    rows = min(max(directory.number(ROWS_PER_STRIP, height), 1), height)
    strips = -(-height // rows)
    line_bytes = (directory.number(WIDTH, 1) * depth + 7) // 8
    return [line_bytes * min(rows, height - rows * (index % strips)) for index in range(count)]


def _with_clean_directory(data: bytes, directory: Directory) -> bytes:
    """Append a directory of the kept tags to the file and point its header there."""
    order, big = directory.order, directory.big
    letter, inline = ("Q", 8) if big else ("I", 4)
    padded = data + b"\0" * (-len(data) % 8)
    kept = dict(_kept(directory))
    values_at = len(padded) + (16 if big else 6) + len(kept) * (20 if big else 12)
    table, values = [struct.pack(f"{order}{'Q' if big else 'H'}", len(kept))], b""
    for tag in sorted(kept):
        entry = kept[tag]
        field = entry.raw.ljust(inline, b"\0")
        if len(entry.raw) > inline:
            field = struct.pack(f"{order}{letter}", values_at + len(values))
            values += entry.raw + b"\0" * (len(entry.raw) % 2)
        table.append(struct.pack(f"{order}HH{letter}", tag, entry.kind, entry.count) + field)
    table.append(struct.pack(f"{order}{letter}", 0))
    at, letter_bytes = (8, 8) if big else (4, 4)
    start = struct.pack(f"{order}{letter}", len(padded))
    return padded[:at] + start + padded[at + letter_bytes :] + b"".join(table) + values


def _kept(directory: Directory) -> Iterable[tuple[int, Entry]]:
    for tag, entry in directory.entries.items():
        if tag in _SINGLE:
            yield tag, Entry(entry.kind, 1, entry.raw[: _TYPE_BYTES[entry.kind]])
        elif tag in _KEPT:
            yield tag, entry
