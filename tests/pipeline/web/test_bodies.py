import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.web.bodies import Body
from schemas.errors import FetchError

TEXT = b"a car like no other " * 50


def read(data: bytes, encoding: str = "", *, max_bytes: int = 10_000, cut: bool = False, step: int = 7) -> bytes:
    body = Body(encoding, max_bytes, cut=cut)
    for start in range(0, len(data), step):
        if not body.add(data[start : start + step]):
            break
    return body.finish()


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (TEXT, ""),
        (TEXT, "identity"),
        (gzip.compress(TEXT), "gzip"),
        (gzip.compress(TEXT), " X-GZip "),
        (gzip.compress(TEXT[:99]) + gzip.compress(TEXT[99:]), "gzip"),
        (gzip.compress(TEXT) + b"\0" * 100, "gzip"),
        (zlib.compress(TEXT), "deflate"),
    ],
)
def test_bodies_come_out_as_they_went_in(data: bytes, encoding: str, step: int) -> None:
    assert read(data, encoding, step=step) == TEXT


def test_deflate_without_its_header_is_understood() -> None:
    assert read(raw_deflate(TEXT), "deflate", step=1000) == TEXT


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_bytes_survive(data: bytes, step: int) -> None:
    assert read(gzip.compress(data), "gzip", step=step) == data


def test_a_cap_holds_to_the_byte() -> None:
    assert read(TEXT, max_bytes=len(TEXT)) == TEXT
    assert read(gzip.compress(TEXT), "gzip", max_bytes=len(TEXT)) == TEXT
    for data, encoding in ((TEXT, ""), (gzip.compress(TEXT), "gzip")):
        with pytest.raises(FetchError, match="too_large"):
            read(data, encoding, max_bytes=len(TEXT) - 1)


def test_a_bomb_is_refused_without_being_unpacked() -> None:
    bomb = gzip.compress(b"\0" * 100_000_000)
    body = Body("gzip", 1_000_000)
    with pytest.raises(FetchError, match="too_large"):
        body.add(bomb)
    assert len(body._data) <= 1_000_001


def test_many_empty_members_are_bounded_by_what_is_received() -> None:
    with pytest.raises(FetchError, match="too_large"):
        read(gzip.compress(b"") * 1000, "gzip", max_bytes=10_000, step=100_000)


@pytest.mark.parametrize(
    "data", [gzip.compress(TEXT)[:-9], b"\x1f\x8b", b"plain text", gzip.compress(TEXT)[:30] + b"x" * 50]
)
def test_what_does_not_decode_is_corrupt(data: bytes) -> None:
    with pytest.raises(FetchError, match="corrupt"):
        read(data, "gzip")


def test_an_empty_body_needs_no_encoding() -> None:
    assert read(b"", "gzip") == b""


def test_an_announced_length_over_the_cap_is_refused() -> None:
    with pytest.raises(FetchError, match="too_large: 11 bytes announced, the limit is 10"):
        Body("", 10).expect(11)
    Body("", 10).expect(10)
    Body("", 10).expect(None)
    Body("", 10, cut=True).expect(11)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "nonsense"])
def test_an_encoding_that_was_not_asked_for_is_refused(encoding: str) -> None:
    with pytest.raises(FetchError, match="unsupported"):
        Body(encoding, 10)


def test_a_body_can_be_cut_instead() -> None:
    assert read(TEXT, max_bytes=30, cut=True) == TEXT[:30]
    assert read(gzip.compress(TEXT), "gzip", max_bytes=30, cut=True) == TEXT[:30]
