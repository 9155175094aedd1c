"""Bodies of answers: decoded while they arrive, and never more of them than a cap."""

import zlib

from schemas.errors import FetchError

ACCEPT_ENCODING = "gzip, deflate"
_GZIP = 16 + zlib.MAX_WBITS
_MEMBER = b"\x1f"


class Body:
    """Collects a body that may be compressed.

    `cut` keeps what fits instead of refusing a body that is too large.
    """

    def __init__(self, encoding: str, max_bytes: int, *, cut: bool = False) -> None:
        self._max_bytes = max_bytes
        self._cut = cut
        self._received_bytes = 0
        self._data = bytearray()
        self._tried_raw = self._padding = False
        self._decoder = _decoder(encoding.strip().lower())
        self._encoding = encoding

    def expect(self, num_bytes: int | None) -> None:
        """Refuse a body by the length it announces."""
        if num_bytes is not None and num_bytes > self._max_bytes and not self._cut:
            raise FetchError("too_large", f"{num_bytes} bytes announced, the limit is {self._max_bytes}")

    def add(self, chunk: bytes) -> bool:
        """Take in what arrived; False once no more is wanted.

        Raises:
            FetchError: `too_large` over the cap, as received or decoded; `corrupt` where it does not decode.
        """
        self._received_bytes += len(chunk)
        if self._decoder is None:
            self._data += chunk[: self._max_bytes + 1 - len(self._data)]
        else:
            self._inflate(chunk)
        if len(self._data) <= self._max_bytes and self._received_bytes <= self._max_bytes:
            return True
        if not self._cut:
            raise FetchError("too_large", f"more than {self._max_bytes} bytes")
        return False

    def finish(self) -> bytes:
        """Return the whole body.

        Raises:
            FetchError: `corrupt` where a compressed body ends too early.
        """
        if self._decoder is not None and self._received_bytes and not self._decoder.eof and not self._cut:
            raise FetchError("corrupt", f"the {self._encoding} body ends too early")
        return bytes(self._data[: self._max_bytes])

    def _inflate(self, chunk: bytes) -> None:
        assert self._decoder is not None
        try:
            self._feed(chunk)
        except zlib.error as error:
            if self._data or self._tried_raw or self._encoding.strip().lower() != "deflate":
                raise FetchError("corrupt", f"the {self._encoding} body does not decode: {error}") from error
            # Some servers send deflate without the zlib header that the name stands for.
            self._tried_raw = True
            self._decoder = zlib.decompressobj(-zlib.MAX_WBITS)
            self._inflate(chunk)

    def _feed(self, chunk: bytes) -> None:
        assert self._decoder is not None
        while chunk and len(self._data) <= self._max_bytes:
            if self._decoder.eof:
                # A gzip body may have several members; what follows the last one is padding.
                self._padding = self._padding or not chunk.startswith(_MEMBER)
                if self._padding:
                    return
                self._decoder = zlib.decompressobj(_GZIP)
            self._data += self._decoder.decompress(chunk, self._max_bytes + 1 - len(self._data))
            chunk = self._decoder.unused_data if self._decoder.eof else self._decoder.unconsumed_tail


def _decoder(encoding: str) -> "zlib._Decompress | None":
    if encoding in {"", "identity"}:
        return None
    if encoding in {"gzip", "x-gzip"}:
        return zlib.decompressobj(_GZIP)
    if encoding == "deflate":
        return zlib.decompressobj()
    raise FetchError("unsupported", f"content encoding {encoding[:40]!r}, which was not asked for")
