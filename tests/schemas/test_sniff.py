import pytest

from schemas.sniff import sniff
from tests.schemas.photos import drawn, saved


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    body = major + bytes(4) + b"".join(compatible)
    return (8 + len(body)).to_bytes(4) + b"ftyp" + body


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (ftyp(b"avif", b"mif1"), "AVIF"),
        (ftyp(b"mif1", b"avif", b"miaf"), "AVIF"),
        (ftyp(b"avis", b"msf1"), "AVIF"),
        (ftyp(b"heic", b"mif1"), "HEIF"),
        (ftyp(b"heix"), "HEIF"),
        (ftyp(b"mif1", b"heic"), "HEIF"),
        (ftyp(b"isom", b"avc1"), None),
        (ftyp(b"mp42", b"isom"), None),
        (ftyp(b"qt  "), None),
        (b"RIFF\x10\0\0\0WAVEfmt ", None),
        (b"BM and some text that is no bitmap", None),
        (b"\n<svg/>", None),
        (b"{}", None),
        (b"", None),
    ],
)
def test_containers_shared_with_films_and_texts_are_told_apart(data: bytes, name: str | None) -> None:
    assert sniff(data) == name


def test_a_cut_jpeg_is_still_a_jpeg() -> None:
    assert sniff(saved(drawn(), "JPEG")[:100]) == "JPEG"
    assert sniff(saved(drawn(), "MPO", save_all=True, append_images=[drawn(seed=1)])) == "MPO"
