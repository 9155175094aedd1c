import itertools
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from pipeline.drawn_site.photos import photo_bytes
from pipeline.drawn_site.real import RealStock
from pipeline.drawn_site.stock import BROKEN, DrawnStock, Listing, Photo, make_vin
from schemas.errors import ImageError, UsageError
from schemas.hashes import coarse_hash
from schemas.image import ImageSettings, decode

FIRST = 660_000_000
VIN_VALUES = {**{str(n): n for n in range(10)}, **dict(zip("ABCDEFGH", range(1, 9), strict=True))}
VIN_VALUES |= dict(zip("JKLMNPR", (1, 2, 3, 4, 5, 7, 9), strict=True)) | dict(
    zip("STUVWXYZ", range(2, 10), strict=True)
)
HEADER = "file,make,model,year,price_usd,kind,price_native,currency,mileage_km,body,listing_id\n"


def stock(num_ids: int = 1000, **changes: int) -> DrawnStock:
    return DrawnStock(**{"seed": 0, "first": FIRST, "last": FIRST + num_ids - 1} | changes)


def listings(of: DrawnStock) -> list[Listing]:
    return [of.listing(number) for number in range(of.first, of.last + 1) if of.state(number) == "live"]


def photos(of: DrawnStock) -> list[tuple[Listing, Photo]]:
    return [(listing, photo) for listing in listings(of) for photo in listing.photos]


def test_some_sixty_per_cent_of_ids_are_gone_in_three_ways() -> None:
    states = Counter(stock().state(number) for number in range(FIRST, FIRST + 1000))
    assert set(states) == {"live", "gone_404", "gone_410", "gone_page"}
    assert 550 < 1000 - states["live"] < 650


def test_a_listing_depends_on_seed_and_id_alone() -> None:
    forward, backward = stock(), stock()
    ids = [number for number in range(FIRST, FIRST + 300) if forward.state(number) == "live"]
    assert [forward.listing(number) for number in ids] == [backward.listing(number) for number in ids[::-1]][::-1]
    assert listings(stock(seed=1)) != listings(stock())


def test_a_wider_range_changes_no_listing() -> None:
    assert listings(stock(1000))[: len(listings(stock(300)))] == listings(stock(300))


def test_vins_are_right_and_of_one_car_each() -> None:
    weights = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
    vins = [make_vin(0, FIRST + number) for number in range(500)]
    for vin in vins:
        remainder = sum(VIN_VALUES[letter] * weight for letter, weight in zip(vin, weights, strict=True)) % 11
        assert vin[8] == ("X" if remainder == 10 else str(remainder))
    assert len(set(vins)) == len(vins)


def test_price_follows_age_and_make() -> None:
    priced = [listing.fields for listing in listings(stock(3000)) if listing.fields.get("currency") == "USD"]

    def mean(make: str, years: range) -> float:
        prices = [float(car["price"]) for car in priced if car["make"] == make and car["year"] in years]
        return sum(prices) / len(prices)

    assert mean("Elmsted", range(2021, 2027)) > 2 * mean("Dorvan", range(2021, 2027))
    assert mean("Avalor", range(2022, 2027)) > 2 * mean("Avalor", range(2004, 2015))


def test_what_is_planted_is_about_what_was_promised() -> None:
    shown = [photo for _, photo in photos(stock(3000))]
    sound = [photo for photo in shown if photo.broken is None]
    copies = [photo for photo in sound if photo.copy or photo.stock]
    own = [photo for photo in sound if not photo.copy and not photo.stock]
    assert 0.08 < len(copies) / len(shown) < 0.15
    assert 0.42 < sum(photo.kind == "junk" for photo in own) / len(own) < 0.58
    assert {photo.broken for photo in shown if photo.broken} == set(BROKEN)
    assert {"exact", "reencode", "resize", "crop", "banner", "bright"} == {photo.copy for photo in sound if photo.copy}
    assert any(photo.near_of for photo in own)
    assert any(photo.junk_type == "flat" for photo in own)


def test_each_stock_photo_is_in_at_least_four_listings_of_different_cars() -> None:
    shown = defaultdict(set)
    for listing, photo in photos(stock()):
        if photo.stock is not None:
            shown[photo.stock].add(listing.fields.get("vin", listing.listing_id))
    assert len(shown) == 5
    assert min(map(len, shown.values())) >= 4


def test_a_relisted_car_has_its_vin_and_photos_that_name_their_originals() -> None:
    site = stock()
    again = [listing for listing in listings(site) if listing.relisted_from is not None]
    assert len(again) > 10
    for listing in again:
        assert listing.relisted_from is not None
        before = site.listing(listing.relisted_from)
        assert listing.fields["vin"] == before.fields["vin"]
        for photo in listing.photos:
            assert photo.copy_of is not None
            assert site.listing(photo.copy_of[0]).photos[photo.copy_of[1]].picture is not None


def test_exact_copies_are_byte_equal_under_other_urls_some_under_other_types() -> None:
    site = stock(500)
    pairs = [
        (photo, site.listing(photo.copy_of[0]).photos[photo.copy_of[1]])
        for _, photo in photos(site)
        if photo.copy == "exact" and photo.copy_of
    ]
    assert all(photo.path != original.path for photo, original in pairs)
    assert any(photo.content_type != original.content_type for photo, original in pairs)
    for photo, original in pairs[:25]:
        assert photo_bytes(0, photo) == photo_bytes(0, original)


def test_an_edition_sells_some_and_reprices_some() -> None:
    before, after = stock(), stock(edition=1)
    live = [number for number in range(FIRST, FIRST + 1000) if before.state(number) == "live"]
    sold = [number for number in live if after.state(number) != "live"]
    cheaper = [n for n in live if n not in sold and after.listing(n).fields != before.listing(n).fields]
    assert 10 < len(sold) < 80
    assert 40 < len(cheaper) < 150
    assert all(after.listing(n).photos == before.listing(n).photos for n in live if n not in sold)


def test_no_two_pictures_share_a_coarse_hash_and_equal_bytes_do() -> None:
    assert_apart(photos(stock(120)))


@pytest.mark.slow
def test_no_two_pictures_of_many_listings_share_a_coarse_hash() -> None:
    assert_apart(photos(stock(500, seed=3)))


def assert_apart(shown: list[tuple[Listing, Photo]]) -> None:
    contents = {photo.content: photo for _, photo in shown if photo.broken is None}
    hashes = defaultdict(set)
    for photo in contents.values():
        hashes[coarse_hash(decode(photo_bytes(0, photo), ImageSettings()).pixels)].add(photo.content)
    assert [group for group in hashes.values() if len(group) > 1] == []


@pytest.mark.parametrize("kind", [kind for kind in BROKEN if kind not in ("missing", "oversized")])
def test_broken_photos_are_rejected_for_the_reason_the_truth_gives(kind: str) -> None:
    broken = [photo for _, photo in photos(stock(2000)) if photo.broken == kind][:3]
    assert broken
    for photo in broken:
        with pytest.raises(ImageError) as caught:
            decode(photo_bytes(0, photo), ImageSettings())
        assert caught.value.reason == BROKEN[kind]


def test_real_photos_make_listings_by_their_listing_id(tmp_path: Path) -> None:
    rows = ("b.jpg,,Rex,,,exterior,,,,,7", "a.jpg,Ford,Ka,2009,4000,exterior,,,,Hatchback,")
    more = ("c.jpg,Seat,Ibiza,2011,,junk,5500,EUR,90000,,7", "d.jpg,,,,,unknown,,,,,")
    (tmp_path / "labels.csv").write_text(HEADER + "\n".join([*rows, *more]) + "\n")
    site = RealStock(tmp_path, first=5)
    found = [site.listing(number) for number in range(site.first, site.last + 1)]
    assert [[photo.file for photo in listing.photos] for listing in found] == [["a.jpg"], ["b.jpg", "c.jpg"], ["d.jpg"]]
    assert [str(found[0].fields[name]) for name in ("price", "currency", "year")] == ["4000", "USD", "2009"]
    assert found[1].fields["make"] == "Seat"
    assert found[1].fields["model"] == "Rex"
    assert (str(found[1].fields["price"]), found[1].fields["currency"]) == ("5500", "EUR")
    assert (found[1].fields["odometer"], found[1].fields["odometer_unit"]) == (90000, "km")
    assert found[2].fields == {}


def test_the_shared_real_photos_make_955_listings(shared_data: Path) -> None:
    site = RealStock(shared_data / "cars", first=FIRST)
    found = [site.listing(number) for number in range(site.first, site.last + 1)]
    assert len(found) == 955
    assert len(set(itertools.chain(*(listing.photos for listing in found)))) == 1788


def test_a_folder_without_labels_is_misuse(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"labels\.csv"):
        RealStock(tmp_path, first=1)
    (tmp_path / "labels.csv").write_text("file,make\na.jpg,Ford\n")
    with pytest.raises(UsageError, match="missing: model, year, price_usd, listing_id"):
        RealStock(tmp_path, first=1)
