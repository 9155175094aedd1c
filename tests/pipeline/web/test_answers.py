"""How headers are read, whatever bytes they are made of."""

import pytest

from pipeline.web.answers import read_headers


def wire(value: bytes) -> str:
    """Decode as the HTTP client does."""
    return value.decode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("sent", "read"),
    [(b'"1"', '"1"'), (b"W/\xff\xfe", "W/\ufffd\ufffd"), ("\u00fc".encode(), "\u00fc")],
)
def test_headers_are_text_that_can_be_stored(sent: bytes, read: str) -> None:
    assert read_headers([("ETag", wire(sent))]) == [("etag", read)]


def test_an_address_keeps_its_bytes_escaped() -> None:
    assert read_headers([("Location", wire(b"/caf\xe9"))]) == [("location", "/caf%E9")]


def test_a_validator_not_worth_its_space_is_left_out() -> None:
    kept = [("etag", "x" * 1024), ("server", "x" * 1025)]
    assert read_headers([*kept, ("Last-Modified", "x" * 1025)]) == kept
