"""What an LMDB file can hold and says about itself, without LMDB: a cut file must be found before it is mapped.

The layout is that of `MDB_page` and `MDB_meta` in lmdb.h and mdb.c 0.9, on a 64-bit machine in its own byte order.
"""

import os
import struct
from pathlib import Path

from schemas.errors import IntegrityError

# LMDB's limit, the same in every build that is shipped.
MAX_KEY_BYTES = 511
_MAGIC = 0xBEEFC0DE
_DATA_VERSION = 1
_META_BYTES = 152
_MAGIC_AT, _PAGE_SIZE_AT, _LAST_PAGE_AT = 16, 40, 136


def check_whole(path: Path) -> int:
    """Return the size of an LMDB file that is all there; a cut one kills its reader by SIGBUS at a missing page.

    Raises:
        IntegrityError: it is not there, not LMDB, or shorter than it says.
    """
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            first = file.read(_META_BYTES)
            if len(first) < _META_BYTES or struct.unpack_from("=II", first, _MAGIC_AT) != (_MAGIC, _DATA_VERSION):
                raise broken_shard(path, "it is no LMDB file of this kind of machine")
            (page_bytes,) = struct.unpack_from("=I", first, _PAGE_SIZE_AT)
            file.seek(page_bytes)
            second = file.read(_META_BYTES)
    except OSError as error:
        raise broken_shard(path, error.strerror or str(error)) from error
    needed_bytes = 2 * page_bytes
    if len(second) == _META_BYTES:
        # The newer of the two meta pages counts; each ends with its last page and its transaction.
        ends = [struct.unpack_from("=QQ", meta, _LAST_PAGE_AT) for meta in (first, second)]
        last_page, _ = max(ends, key=lambda end: end[1])
        needed_bytes = (last_page + 1) * page_bytes
    if size_bytes < needed_bytes:
        raise broken_shard(path, f"it has {size_bytes:,} bytes and says it has {needed_bytes:,}")
    return size_bytes


def broken_shard(path: Path, found: str) -> IntegrityError:
    """Make the error of a shard that cannot be read."""
    return IntegrityError(
        f"{path} is not a sealed shard: {found}; run pipeline/verify.py, with --repair its part is made again"
    )


def raw_key(key: str, path: Path) -> bytes:
    """Return a key as it is stored.

    Raises:
        IntegrityError: LMDB cannot store it.
    """
    raw = key.encode()
    if not 0 < len(raw) <= MAX_KEY_BYTES:
        raise IntegrityError(
            f"key {key[:80]!r} for {path} has {len(raw)} bytes in UTF-8, and an LMDB key has 1 to {MAX_KEY_BYTES}; "
            "shorten the site's name or the listing id"
        )
    return raw
