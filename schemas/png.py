"""PNG as chunks: size, orientation and colour profile, the same picture without its metadata, and how much arrived."""

import struct
import zlib
from collections.abc import Iterator

from schemas.errors import ImageError
from schemas.header import MAX_PROFILE_BYTES, UPRIGHT, Header, unpack, usable_profile
from schemas.tiff import orientation_of

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What Pillow allows a text chunk to inflate to; more is an attack, not a comment.
MAX_TEXT_BYTES = 1 << 20
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT"})
_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
_CHUNK_OVERHEAD_BYTES = 12
_INFLATE_STEP_BYTES = 1 << 20
# Adam7: first column, first line, and the steps between them, of each pass.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def read_png(data: bytes) -> Header:
    """Read a PNG to its end; of an animated one the default picture counts, as in Pillow.

    Raises:
        ImageError: truncated, corrupt, unsupported, or too_large (a text chunk that inflates without end).
    """
    chunks = _chunks(data)
    kind, body = next(chunks, (b"", b""))
    if kind == b"CgBI":
        raise ImageError("unsupported", "an Apple CgBI PNG")
    if kind != b"IHDR":
        raise ImageError("corrupt" if kind else "truncated", f"the PNG starts with chunk {kind!r}")
    width, height, bits, colour, _, _, interlace = unpack(">IIBBBBB", body, 0)
    if width == 0 or height == 0 or colour not in _CHANNELS:
        raise ImageError("corrupt", f"a PNG of {width}x{height} px, colour type {colour}")
    kept, metadata_bytes, num_frames = [SIGNATURE, _chunk(kind, body)], 0, 1
    orientation, icc, ended = UPRIGHT, None, False
    for kind, body in chunks:
        if kind in _KEPT:
            kept.append(_chunk(kind, body))
            continue
        metadata_bytes += _metadata_bytes(kind, body)
        if kind == b"eXIf":
            orientation = orientation_of(body)
        elif kind == b"iCCP":
            icc = _profile(body)
        elif kind == b"acTL":
            num_frames = max(1, int.from_bytes(body[:4]))
        ended = ended or kind == b"IEND"
    return Header(
        "PNG",
        width,
        height,
        b"".join([*kept, _END]),
        channels=_CHANNELS[colour],
        sample_bits=bits,
        num_frames=num_frames,
        metadata_bytes=metadata_bytes,
        orientation=orientation,
        icc=usable_profile(icc),
        complete=ended,
        interlaced=interlace == 1,
    )


def pixel_bytes(header: Header) -> int:
    """Return how many bytes the filtered lines of the whole picture take."""
    passes = _PASSES if header.interlaced else ((0, 0, 1, 1),)
    total = 0
    for column, line, step_x, step_y in passes:
        width = -(-(header.width_px - column) // step_x)
        height = -(-(header.height_px - line) // step_y)
        if width > 0 and height > 0:
            total += height * (1 + (width * header.channels * header.sample_bits + 7) // 8)
    return total


def read_share(header: Header) -> float:
    """Return the share of the picture's lines that the file holds, 0 to 1, without keeping them.

    Raises:
        ImageError: corrupt, where the data is no deflate stream.
    """
    expected, found = pixel_bytes(header), 0
    for step in _inflated(header.payload):
        found += len(step)
        if found >= expected:
            return 1.0
    return found / expected


def padded(header: Header) -> bytes:
    """Write the picture anew, whole: what the file does not hold is zero."""
    expected = pixel_bytes(header)
    lines = b"".join(_inflated(header.payload))[:expected].ljust(expected, b"\0")
    kept = [_chunk(kind, body) for kind, body in _chunks(header.payload) if kind in _KEPT - {b"IDAT"}]
    return b"".join([SIGNATURE, *kept, _chunk(b"IDAT", zlib.compress(lines, 1)), _END])


def _inflated(payload: bytes) -> Iterator[bytes]:
    """Yield the filtered lines in steps, as far as they go."""
    inflater = zlib.decompressobj()
    try:
        for kind, body in _chunks(payload):
            if kind == b"IDAT":
                rest = body
                while rest and not inflater.eof:
                    yield inflater.decompress(rest, _INFLATE_STEP_BYTES)
                    rest = inflater.unconsumed_tail
        yield inflater.flush()
    except zlib.error as error:
        raise ImageError("corrupt", f"the PNG's data does not inflate: {error}") from error


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and body of each chunk up to the end chunk; the last IDAT may be cut off.

    What is wrong behind the picture's data only ends the walk.

    Raises:
        ImageError: corrupt or truncated, where a chunk before the data is cut off or its checksum is wrong.
    """
    position, seen_data = len(SIGNATURE), False
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        if not kind.isalpha():
            if seen_data:
                return
            raise ImageError("corrupt", f"a PNG chunk named {kind!r}")
        position += _CHUNK_OVERHEAD_BYTES + length
        if kind == b"IDAT":
            # Its checksum is left to the stream's own: the codecs pass it over as well.
            seen_data = True
            yield kind, body
            continue
        if seen_data and position > len(data):
            return
        if position > len(data):
            raise ImageError("truncated", f"the PNG ends in chunk {kind!r}")
        checksum = zlib.crc32(body, zlib.crc32(kind))
        if struct.unpack_from(">I", data, position - 4)[0] != checksum and not seen_data:
            raise ImageError("corrupt", f"the checksum of PNG chunk {kind!r} is wrong")
        yield kind, body
        if kind == b"IEND":
            return


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _metadata_bytes(kind: bytes, body: bytes) -> int:
    """Return the size of an ancillary chunk, inflated where it is text."""
    if kind == b"zTXt":
        return _text_bytes(body.partition(b"\0")[2][1:])
    if kind == b"iTXt" and body.partition(b"\0")[2][:1] == b"\1":
        return _text_bytes(body.partition(b"\0")[2][2:].partition(b"\0")[2].partition(b"\0")[2])
    return 0 if kind in (b"fcTL", b"fdAT") else len(body)


def _text_bytes(compressed: bytes) -> int:
    inflated = _inflate(compressed, MAX_TEXT_BYTES)
    if inflated is not None and len(inflated) > MAX_TEXT_BYTES:
        raise ImageError("too_large", f"a PNG text chunk inflates to more than {MAX_TEXT_BYTES} bytes")
    return len(inflated or b"")


def _profile(body: bytes) -> bytes | None:
    name, _, rest = body.partition(b"\0")
    return _inflate(rest[1:], MAX_PROFILE_BYTES) if name and rest[:1] == b"\0" else None


def _inflate(compressed: bytes, limit: int) -> bytes | None:
    """Inflate to one byte over the limit; None where it is no deflate stream."""
    try:
        return zlib.decompressobj().decompress(compressed, limit + 1)
    except zlib.error:
        return None
