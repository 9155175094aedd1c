import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pages.photo_urls import MAX_PHOTOS, merge_photos, offered_in, photo_key, srcset

BASE = "https://cars.example.org/listing/7"
CDN = "https://img.example.org"


def merged(*values: Any) -> list[str]:
    return list(merge_photos(offered_in(list(values)), BASE))


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ("/a/1.jpg?w=240", "/a/1.jpg?w=1600"),
        ("/a/1.jpg?width=240&height=180", "/a/1.jpg?width=1600&height=1200"),
        ("/a/1.jpg?impolicy=resize&w=240", "/a/1.jpg?impolicy=resize&w=640"),
        ("/a/1.jpg?w=240&q=60&auto=format", "/a/1.jpg"),
        ("/a/1_640x480.jpg", "/a/1_1280x960.jpg"),
        ("/a/1-600x400.jpg", "/a/1.jpg"),
        ("/a/img-1-600x400.jpg", "/a/img-1-1200x800.jpg"),
        ("/a/1_thumb.jpg", "/a/1.jpg"),
        ("/a/1_thumb.jpg", "/a/1_large.jpg"),
        ("/a/thumb_1.jpg", "/a/1.jpg"),
        ("/thumbs/1.jpg", "/large/1.jpg"),
        ("/a/640x480/1.jpg", "/a/1920x1080/1.jpg"),
        ("/a/x.jpg/120x90.webp", "/a/x.jpg/1280x960.webp"),
        ("/i/w_200,h_150,c_fill/v1/1.jpg", "/i/w_1600,h_1200,c_fill/v1/1.jpg"),
        ("/00/s/M/z/abc/$_3.JPG", "/00/s/M/z/abc/$_57.JPG"),
        ("/images/i/s-l300.jpg", "/images/i/s-l1600.jpg"),
        ("/p/abc?rule=mo-360.jpg", "/p/abc?rule=mo-1600.jpg"),
        ("/p/abc=w200-h150", "/p/abc=w1600-h1200"),
        ("/photos/1x1/car.jpg", "/photos/16x9/car.jpg"),
        ("/a/1.webp?w=240", "/a/1.jpg?w=900"),
    ],
)
def test_sizes_of_one_photo_become_its_largest(small: str, large: str) -> None:
    assert merged(CDN + small, CDN + "/other.jpg", CDN + large) == [CDN + large, CDN + "/other.jpg"]
    assert merged(CDN + large, CDN + small) == [CDN + large]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/a/1.jpg", "/a/2.jpg"), ("/a/img_1024.jpg", "/a/img_1025.jpg"), ("/a/photo-640.jpg", "/a/photo-641.jpg"),
        ("/a.php?id=640", "/a.php?id=641"), ("/a.php?photo=1&w=640", "/a.php?photo=2&w=640"), ("/a/1.jpg", "/b/1.jpg"),
        ("/a.php?s=12", "/a.php?s=13"), ("/a/car_l.jpg", "/a/car_r.jpg"), ("/a/1.jpg?v=1", "/a/1.jpg?v=2"),
        ("/a/1.jpg?crop=0,0,9,9", "/a/1.jpg?crop=9,9,18,18"), ("/a/1.jpg", "/a/1.png"), ("/a/1/2.jpg", "/a/12.jpg"),
        ("/00/z/abc/$_57.JPG", "/00/z/abd/$_57.JPG"), ("/x/2020.jpg", "/x/2021.jpg"), ("/a/front.jpg", "/a/rear.jpg"),
    ],
)  # fmt: skip
def test_different_photos_are_never_merged(one: str, other: str) -> None:
    assert merged(CDN + one, CDN + other) == [CDN + one, CDN + other]


def test_photos_come_absolute_in_order_and_each_once() -> None:
    values = [
        "//img.example.org/1.jpg",
        "/2.jpg",
        "3.jpg",
        "data:image/gif;base64,R0lGODlh",
        "//img.example.org/1.jpg#x",
    ]
    values += ["https://img.example.org/4 b.jpg", "https://img.example.org/5.jpg?a=1&amp;b=2", "javascript:void(0)"]
    assert merged(*values) == [
        "https://img.example.org/1.jpg",
        "https://cars.example.org/2.jpg",
        "https://cars.example.org/listing/3.jpg",
        "https://img.example.org/4%20b.jpg",
        "https://img.example.org/5.jpg?a=1&b=2",
    ]


def test_image_objects_and_lists_of_sizes_are_one_photo_each() -> None:
    first = {
        "@type": "ImageObject",
        "contentUrl": f"{CDN}/1.jpg",
        "url": "https://cars.example.org/photo/1",
        "width": 800,
    }
    second = {"url": f"{CDN}/2-small.jpg", "width": "320px"}
    third = {"small": f"{CDN}/aa.jpg", "large": f"{CDN}/bb.jpg"}
    fourth = [{"url": f"{CDN}/c1.jpg", "width": 320}, {"url": f"{CDN}/c2.jpg", "width": 1024}]
    fifth = {"sizes": {"thumb": {"url": f"{CDN}/d1.jpg", "width": 99}, "full": {"url": f"{CDN}/d2.jpg", "width": 999}}}
    assert merged(first, second, third, fourth, fifth) == [
        f"{CDN}/1.jpg",
        f"{CDN}/2-small.jpg",
        f"{CDN}/bb.jpg",
        f"{CDN}/c2.jpg",
        f"{CDN}/d2.jpg",
    ]


def test_a_srcset_offers_its_widest() -> None:
    text = f"{CDN}/x,1.jpg 400w, {CDN}/y.jpg 1600w,{CDN}/z.jpg 800w"
    assert merge_photos([srcset(text)], BASE) == (f"{CDN}/y.jpg",)
    assert merge_photos([srcset("/1.jpg, /2.jpg 2x")], BASE) == ("https://cars.example.org/2.jpg",)


@pytest.mark.parametrize("width", [-1, 0, "nan", "inf", "-inf", "1e999", float("nan"), "wide"])
def test_a_width_that_no_picture_has_is_no_width(width: Any) -> None:
    assert merged({"url": f"{CDN}/1.jpg", "width": width}) == [f"{CDN}/1.jpg"]


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("/1.jpg 1x,/2.jpg 2x", ["/1.jpg", "/2.jpg"]),
        (" , /1.jpg , /2.jpg,", ["/1.jpg", "/2.jpg"]),
        ("/1.jpg 640w 480h, /2.jpg", ["/1.jpg", "/2.jpg"]),
        ("/1.jpg 1.2.3x, /2.jpg wide", ["/1.jpg", "/2.jpg"]),
        ("data:image/gif;base64,AA== 1x, /2.jpg 2x", ["data:image/gif;base64,AA==", "/2.jpg"]),
        (" ,, ", []),
    ],
)
def test_a_srcset_is_split_as_browsers_split_it(text: str, urls: list[str]) -> None:
    assert [offer.url for offer in srcset(text)] == urls


@pytest.mark.parametrize("text", [" " * 50_000, "a" * 49_990 + " b", "a," * 25_000, "a, " * 16_000, "\n1" * 25_000])
def test_a_hostile_srcset_is_read_in_bounded_time(text: str) -> None:
    start = time.monotonic()
    srcset(text)
    assert time.monotonic() - start < 2


def test_a_listing_has_a_bounded_number_of_photos() -> None:
    assert len(merged(*(f"{CDN}/{i}.jpg" for i in range(3000)))) == MAX_PHOTOS
    assert merged(f"{CDN}/{'x' * 5000}.jpg") == []


@given(
    st.lists(
        st.text(max_size=60) | st.dictionaries(st.sampled_from(["url", "width", "sizes", "@id"]), st.text(max_size=9))
    )
)
def test_no_address_breaks_the_merging(values: list[Any]) -> None:
    assert all(url.startswith("http") for url in merged(*values))


@given(st.text(max_size=80))
def test_no_path_breaks_the_key(path: str) -> None:
    assert photo_key(f"https://x.example/{path.replace('[', '').replace(']', '')}")[0]
