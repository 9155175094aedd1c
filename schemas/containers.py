"""GIF, WebP, BMP, JPEG 2000 and AVIF as blocks and boxes: what each says of its first frame."""

import struct
from collections.abc import Iterator

from schemas.errors import ImageError
from schemas.header import UPRIGHT, Header, unpack, usable_profile
from schemas.tiff import orientation_of

JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
J2K_SIGNATURE = b"\xff\x4f\xff\x51"
_GIF_TABLE, _GIF_CONTROL = 0x80, 0xF9
_ICC, _ALPHA, _EXIF, _XMP, _ANIMATED = 0x20, 0x10, 0x08, 0x04, 0x02
_SOT, _EOC = 0xFF90, b"\xff\xd9"
# A JPEG 2000 main header has a handful of marker segments, a file a handful of boxes.
_MAX_STEPS = 100_000


def read_gif(data: bytes) -> Header:
    """Read a GIF; its payload ends with the first frame.

    Raises:
        ImageError: truncated, corrupt.
    """
    width, height, flags = unpack("<HHB", data, 6)
    position = 13 + _gif_table_bytes(flags)
    kept, payload, control, metadata_bytes, num_frames = data[:position], b"", b"", 0, 0
    complete = True
    while data[position : position + 1] in (b"!", b","):
        start, is_frame = position, data[position : position + 1] == b","
        if is_frame:
            left, top, frame_width, frame_height, flags = unpack("<HHHHB", data, position + 1)
            position += 11 + _gif_table_bytes(flags)
        else:
            position += 2
        end = _end_of_blocks(data, position)
        position = len(data) if end is None else end
        block = data[start:position]
        if is_frame:
            num_frames += 1
        if is_frame and num_frames == 1:
            width, height = max(width, left + frame_width), max(height, top + frame_height)
            payload, complete = kept + control + block + b";", end is not None
        elif not is_frame and block[1:2] == bytes([_GIF_CONTROL]):
            control = block
        elif not is_frame:
            metadata_bytes += len(block)
    if not num_frames:
        raise ImageError("corrupt" if position < len(data) else "truncated", "a GIF without a frame")
    if not width or not height:
        raise ImageError("corrupt", "a GIF of no size")
    return Header(
        "GIF", width, height, payload, num_frames=num_frames, metadata_bytes=metadata_bytes, complete=complete
    )


def read_webp(data: bytes) -> Header:
    """Read a WebP; its payload is the first frame alone.

    Raises:
        ImageError: truncated, corrupt.
    """
    (size,) = unpack("<I", data, 4)
    frames, notes = [], dict[bytes, bytes]()
    canvas, whole, metadata_bytes = b"", True, 0
    for kind, body, chunk in _riff_chunks(data[12 : 8 + size]):
        if kind == b"VP8X":
            canvas = chunk
        elif kind in (b"ICCP", b"EXIF", b"XMP "):
            notes.setdefault(kind, body)
            metadata_bytes += len(body)
        elif kind in (b"ANMF", b"VP8 ", b"VP8L"):
            frames.append(chunk)
        if kind in (b"ANIM", b"ALPH"):
            notes.setdefault(kind, chunk)
        if len(frames) <= 1:
            whole = len(chunk) >= 8 + struct.unpack_from("<I", chunk, 4)[0]
    if not frames:
        raise ImageError("truncated" if 8 + size > len(data) else "corrupt", "a WebP without a frame")
    width, height = _webp_size(canvas or frames[0])
    return Header(
        "WEBP",
        width,
        height,
        _first_webp_frame(canvas, notes, frames[0]),
        num_frames=len(frames),
        metadata_bytes=metadata_bytes,
        orientation=orientation_of(notes.get(b"EXIF", b"")),
        icc=usable_profile(notes.get(b"ICCP")),
        complete=whole,
    )


def read_bmp(data: bytes) -> Header:
    """Read a BMP.

    Raises:
        ImageError: truncated, corrupt.
    """
    (size,) = unpack("<I", data, 14)
    width, height = unpack("<HH", data, 18) if size == 12 else unpack("<ii", data, 18)
    if width < 1 or height == 0:
        raise ImageError("corrupt", f"a BMP of {width}x{height} px")
    return Header("BMP", width, abs(height), data)


def read_jpeg2000(data: bytes) -> Header:
    """Read a JPEG 2000 file or bare codestream.

    Raises:
        ImageError: truncated, corrupt.
    """
    start, end, icc = 0, len(data), None
    if not data.startswith(J2K_SIGNATURE):
        found = {kind: (at, until) for kind, at, until in _boxes(data, 0, len(data))}
        if b"jp2c" not in found:
            raise ImageError("truncated", "a JPEG 2000 file without a codestream")
        start, end = found[b"jp2c"]
        for kind, at, until in _boxes(data, *found.get(b"jp2h", (0, 0))):
            if kind == b"colr" and data[at : at + 1] == b"\2":
                icc = data[at + 3 : until]
    right, bottom, left, top = unpack(">IIII", data, start + 8)
    (channels,) = unpack(">H", data, start + 40)
    (depth,) = unpack(">B", data, start + 42)
    if right <= left or bottom <= top:
        raise ImageError("corrupt", "a JPEG 2000 picture of no size")
    return Header(
        "JPEG2000",
        right - left,
        bottom - top,
        data,
        channels=channels,
        sample_bits=(depth & 127) + 1,
        icc=usable_profile(icc),
        complete=end <= len(data) and _has_all_tiles(data, start),
    )


def read_avif(data: bytes) -> Header:
    """Read an AVIF's boxes; its size, frames, profile and rotation are the codec's to say.

    Raises:
        ImageError: truncated.
    """
    boxes = list(_boxes(data, 0, len(data)))
    # The codec hands EXIF to a parser that warns about bad entries; the rotation that counts is in boxes of its own.
    payload = data
    for kind, at, until in boxes:
        if kind == b"meta":
            payload = payload[:at] + payload[at:until].replace(b"Exif", b"skip") + payload[until:]
    complete = bool(boxes) and boxes[-1][2] <= len(data)
    return Header("AVIF", 1, 1, payload, orientation=UPRIGHT, complete=complete)


def _gif_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & _GIF_TABLE else 0


def _end_of_blocks(data: bytes, position: int) -> int | None:
    """Return where a chain of GIF sub-blocks ends, None where the file ends first."""
    while position < len(data):
        length = data[position]
        position += 1 + length
        if length == 0:
            return position
    return None


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield type, body and the whole of each chunk; the last may be cut off."""
    position = 0
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        end = position + 8 + length + length % 2
        yield kind, data[position + 8 : position + 8 + length], data[position:end]
        position = end


def _webp_size(chunk: bytes) -> tuple[int, int]:
    kind = chunk[:4]
    if kind == b"VP8X":
        low_x, high_x, low_y, high_y = unpack("<HBHB", chunk, 12)
        return 1 + low_x + (high_x << 16), 1 + low_y + (high_y << 16)
    if kind == b"VP8L":
        (bits,) = unpack("<I", chunk, 9)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind != b"VP8 ":
        raise ImageError("corrupt", "an animated WebP without a canvas")
    width, height = unpack("<HH", chunk, 14)
    if not width & 0x3FFF or not height & 0x3FFF:
        raise ImageError("corrupt", "a WebP of no size")
    return width & 0x3FFF, height & 0x3FFF


def _first_webp_frame(canvas: bytes, notes: dict[bytes, bytes], frame: bytes) -> bytes:
    chunks = [frame]
    if canvas:
        flags = canvas[8] & ~(_ICC | _EXIF | _XMP)
        animation = [notes[b"ANIM"]] if flags & _ANIMATED and b"ANIM" in notes else []
        alpha = [notes[b"ALPH"]] if frame[:4] == b"VP8 " and b"ALPH" in notes else []
        chunks = [canvas[:8] + bytes([flags]) + canvas[9:], *animation, *alpha, frame]
    body = b"WEBP" + b"".join(chunk + b"\0" * (len(chunk) % 2) for chunk in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _boxes(data: bytes, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of each box's content; the end may lie beyond the file's."""
    for _ in range(_MAX_STEPS):
        if position + 8 > min(end, len(data)):
            return
        length, kind = struct.unpack_from(">I4s", data, position)
        content = position + 8
        if length == 1:
            (length,) = unpack(">Q", data, content)
            content += 8
        until = end if length == 0 else position + length
        if until < content:
            return
        yield kind, content, until
        position = until


def _has_all_tiles(data: bytes, start: int) -> bool:
    """Walk the tile parts of a codestream by their lengths, to its end marker."""
    position = start + 2
    for _ in range(_MAX_STEPS):
        if data[position : position + 2] == _EOC:
            return True
        if position + 4 > len(data):
            return False
        marker, length = struct.unpack_from(">HH", data, position)
        if marker != _SOT:
            position += 2 + length
            continue
        if position + 12 > len(data):
            return False
        (part_bytes,) = struct.unpack_from(">I", data, position + 6)
        if part_bytes == 0:
            # The last part may leave its length open: it runs to the end marker.
            return data.rfind(_EOC) > position
        position += max(part_bytes, 12)
    return False
