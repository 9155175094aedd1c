import re
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pages.money import Place, read_currency, read_number, read_price
from pipeline.pages.values import (
    clean_listing,
    complete_listing,
    plain_text,
    read_odometer,
    read_text,
    read_vin,
    read_year,
    without_make,
)

NOWHERE = Place()
GERMANY = Place.of("https://autos.example.de/1", currency=None)
CANADA = Place.of("https://cars.example.ca/1", currency=None)
AMERICA = Place(currency="USD")


@pytest.mark.parametrize(
    ("text", "amount", "currency"),
    [
        ("34.990 EUR", "34990", "EUR"),
        ("US$ 12,500", "12500", "USD"),
        ("\u20ac 275.000", "275000", "EUR"),
        ("\u20ac 34.990,-", "34990", "EUR"),
        ("17.600\u00a0\u20ac", "17600", "EUR"),
        ("1 234 567 kr", "1234567", "SEK"),
        ("1\u202f234\u202f567 \u20ac", "1234567", "EUR"),
        ("12'500 CHF", "12500", "CHF"),
        ("CHF 12\u2019500.-", "12500", "CHF"),
        ("$12,500.00", "12500.00", "USD"),
        ("1.234,56 \u20ac", "1234.56", "EUR"),
        ("1,234.56", "1234.56", None),
        ("\u20b9 12,34,567", "1234567", "INR"),
        ("Rs. 12.5 lakh", "1250000", "INR"),
        ("\u20b9 1.2 Crore", "12000000", "INR"),
        ("\u00a3 9,995", "9995", "GBP"),
        ("9995 GBP", "9995", "GBP"),
        ("AU $15,990", "15990", "USD"),
        ("A$15,990", "15990", "AUD"),
        ("R$ 45.900,00", "45900", "BRL"),
        ("129 900 z\u0142", "129900", "PLN"),
        ("339 000 K\u010d", "339000", "CZK"),
        ("R 189 900", "189900", "ZAR"),
        ("AED 85,000", "85000", "AED"),
        ("\u00a51,280,000", "1280000", "JPY"),
        ("Rp 1.250.000.000", "1250000000", "IDR"),
        ("$34.9k", "34900", "USD"),
        ("45295", "45295", None),
        ("45295.0", "45295", None),
        ("45295.000", "45295", None),
        ("12.500", "12500", None),
        ("12,5", "12.5", None),
        ("MSRP: $45,575", "45575", "USD"),
        ("2019 Ford Edge $34,296", "34296", "USD"),
        ("from \u20ac 12.990 or \u20ac 199/month", "12990", "EUR"),
        ("\u20ac 199 mtl. / Kaufpreis \u20ac 12.990", "12990", "EUR"),
        ("MzQyOTYuMA==", "34296", None),
        ("NDU1NzUuMA==", "45575", None),
        ("\u0661\u0662\u0665\u0660\u0660 AED", "12500", "AED"),
        ("VB 12.500", "12500", None),
    ],
)
def test_a_price_is_read_in_any_locale(text: str, amount: str, currency: str | None) -> None:
    assert read_price(text, NOWHERE) == (Decimal(amount), currency)


@pytest.mark.parametrize(
    "value",
    [
        *("", "Call for price", "auf Anfrage", "POA", "0", "$0.00", "0,00 \u20ac", 0, -5, True, float("nan"), None, []),
        *("$299/mo", "\u20ac 199 mtl.", 10**30, "9" * 400, "-", "99999999999999 EUR", "1.9%", float("inf")),
    ],
)
def test_what_is_no_price_is_null(value: Any) -> None:
    assert read_price(value, AMERICA) == (None, None)


def test_an_ambiguous_sign_means_the_money_of_the_place() -> None:
    assert read_price("$ 15,990", CANADA)[1] == "CAD"
    assert read_price("$ 15,990", Place(currency="AUD"))[1] == "AUD"
    assert read_price("150 000 kr", Place(currency="NOK"))[1] == "NOK"
    assert read_price("150 000 kr", Place.of("https://biler.example.dk", currency=None))[1] == "DKK"
    assert read_price("\u20ac 100", CANADA)[1] == "EUR"


@pytest.mark.parametrize(
    ("text", "code"),
    [("EUR", "EUR"), ("eur", "EUR"), ("\u20ac", "EUR"), ("US$", "USD"), ("Euro", "EUR"), ("XX", None), ("", None)],
)
def test_a_currency_becomes_its_iso_code(text: str, code: str | None) -> None:
    assert read_currency(text, NOWHERE) == code


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("70.000\u00a0km", (70000.0, "km")),
        ("70\u202f000 km", (70000.0, "km")),
        ("Kilometerstand: 70.000 km", (70000.0, "km")),
        ("Mileage (in km): 7500 km", (7500.0, "km")),
        ("Mileage (in km): 7500", (7500.0, "km")),
        ("12k miles", (12000.0, "mi")),
        ("101,000 mi.", (101000.0, "mi")),
        ("144000 mi", (144000.0, "mi")),
        ("135723mi", (135723.0, "mi")),
        ("70 Tkm", (70000.0, "km")),
        ("7,5 tkm", (7500.0, "km")),
        ("790 km", (790.0, "km")),
        ("0 miles", (0.0, "mi")),
        ("101000", (101000.0, None)),
        (101000, (101000.0, None)),
        ({"value": 790, "unitText": "KMT"}, (790.0, "km")),
        ({"value": "70.000\u00a0km", "unitText": "km"}, (70000.0, "km")),
        ({"@type": "QuantitativeValue", "value": "12,345", "unitCode": "SMI"}, (12345.0, "mi")),
        ([{"value": 12, "unitCode": "KMT"}], (12.0, "km")),
        ("2019, 45.000 km, Diesel", (45000.0, "km")),
        ("n/a", (None, None)),
        (-4, (None, None)),
        (10**9, (None, None)),
        (None, (None, None)),
    ],
)
def test_an_odometer_is_read_with_its_unit(value: Any, expected: tuple[float | None, str | None]) -> None:
    assert read_odometer(value) == expected


def test_an_odometer_without_a_unit_takes_that_of_the_place() -> None:
    for place, unit in [
        (GERMANY, "km"),
        (AMERICA, "mi"),
        (Place(odometer_unit="km", currency="USD"), "km"),
        (NOWHERE, None),
    ]:
        listing: dict[str, Any] = {"odometer": 1000.0}
        complete_listing(listing, place)
        assert listing["odometer_unit"] == unit
        assert listing["odometer_mi"] == {"km": 621.371, "mi": 1000.0}.get(unit or "")


@pytest.mark.parametrize(
    ("value", "year"),
    [
        ("08/2022", 2022), ("2012-10-01", 2012), ("10/2012", 2012), (2019, 2019), (2019.0, 2019), ("2019", 2019),
        ("Year: 2023", 2023), ("01.03.2018", 2018), ("10/12", 2012), ("03/98", 1998), ("2022-08-01T00:00:00Z", 2022),
        ("Erstzulassung 10/2012", 2012), (["2017-01-01"], 2017), ({"@value": "2016"}, 2016), ("2012 FIAT 500", 2012),
        ("1776", None), ("2.000 km", None), ("20190", None), (0, None), (True, None), ("new", None), (None, None),
        (10**30, None), (float("nan"), None),
    ],
)  # fmt: skip
def test_a_year_is_read_from_dates_and_texts(value: Any, year: int | None) -> None:
    assert read_year(value) == year


@pytest.mark.parametrize(
    ("value", "vin"),
    [
        ("5J8YD3H35KL010338", "5J8YD3H35KL010338"),
        (" 5j8yd3h35kl010338 ", "5J8YD3H35KL010338"),
        ("VIN: 5J8YD3H35KL010338", "5J8YD3H35KL010338"),
        ("https://x.example/?vin%3D3C3CFFBR0CT383069%26site", "3C3CFFBR0CT383069"),
        ("5J8YD3H35KL01033", None),
        ("5J8YD3H35KL0I0338", None),
        ("11111111111111111", None),
        ("ABCDEFGHJKLMNPRST", None),
        (None, None),
    ],
)
def test_a_vin_has_its_shape(value: Any, vin: str | None) -> None:
    assert read_vin(value) == vin


@pytest.mark.parametrize(
    ("model", "make", "left"),
    [
        ("BMW i4", "BMW", "i4"), ("2022 BMW i4", "bmw", "i4"), ("i4", "BMW", "i4"), ("MINI Cooper", "MINI", "Cooper"),
        ("BMW", "BMW", None), ("500", "FIAT", "500"), ("Fordor", "Ford", "Fordor"), ("Golf", None, "Golf"),
    ],
)  # fmt: skip
def test_a_model_does_not_repeat_its_make(model: str, make: str | None, left: str | None) -> None:
    assert without_make(model, make) == left


def test_text_comes_without_tags_entities_and_long_white_space() -> None:
    html = "<p>17&quot; wheels</p><script>x()</script>\n\n&lt;b&gt;Full&lt;/b&gt; &amp;amp; clean \u2009 < 5000 km"
    assert plain_text(html, max_chars=500) == '17" wheels Full & clean < 5000 km'
    assert plain_text({"@type": "Brand", "name": "BMW"}) == "BMW"
    assert plain_text([None, {"name": "A"}]) == "A"
    assert plain_text(True) is None
    assert plain_text("\ud800 broken") == "? broken"


def test_a_description_is_bounded() -> None:
    text = read_text("description", "word " * 100_000, NOWHERE)
    assert text is not None
    assert len(text) <= 10_000


@pytest.mark.parametrize(
    "secret",
    [
        "+49 (0)30 - 555 0100", "0049 30 5550100", "030 / 901820", "+1 703-596-3818", "(703) 596-3818", "703.596.3818",
        "555-555-0100", "Tel. 0170 1234567", "Call 555-0123", "WhatsApp: 0170/1234567", "phone 06 12 34 56 78",
        "tel:+497035963818", "https://wa.me/491701234567", "jane.doe@example.org", "jane.doe (at) example (dot) org",
        "jane [at] example.org", "mailto:jane@example.co.uk",
    ],
)  # fmt: skip
def test_phone_numbers_and_mail_addresses_are_cut(secret: str) -> None:
    text = (
        read_text("description", f"Great car, one owner. Reach us: {secret}. 70.000 km, 34.990 \u20ac", GERMANY) or ""
    )
    assert sum(c.isdigit() for c in text) == len("7000034990")
    assert "@" not in text
    assert "jane" not in text
    assert "Great car, one owner." in text
    assert "70.000 km, 34.990 \u20ac" in text


@pytest.mark.parametrize(
    "text",
    [
        "2019 Acura MDX - VIN: 5J8YD3H35KL010338",
        "BMW i4 f\u00fcr \u20ac 34.990",
        "Price 1 234 567 kr, 120 000 km, EZ 08/2022, HU 12/2027",
        "Built 2012-10-01, 1.998 cm3, 105 kW (143 PS)",
        "Stock #1234567890 at $12,500 with 101,000 miles",
        "2004 - 2011, 5.2 L, 245/40 R18, 10 x 100.000 km",
        "Mileage 101,000 mi. Price 4,300 USD 1,234,567",
        "Golf VI 2.0 TSI 155 kW 7,7 l/100km",
        "Angebotsnummer 301-2345678",
        "ISOFIX at home, ABS at 4 wheels",
    ],
)
@pytest.mark.parametrize("place", [GERMANY, AMERICA, CANADA, NOWHERE])
def test_prices_distances_years_and_vins_are_not_taken_for_phones(text: str, place: Place) -> None:
    assert read_text("title", text, place) == text


def test_the_names_of_sellers_are_cut_from_the_description() -> None:
    raw = {"description": "Autohaus Beispiel GmbH offers this car.", "_names": ["Autohaus Beispiel GmbH"]}
    assert clean_listing(raw, GERMANY)["description"] == "offers this car."


def test_a_label_is_no_part_of_a_short_text() -> None:
    raw = {"exterior_color": "Colour: Grey", "engine": "Engine size: 5,2L", "transmission": "n/a"}
    assert clean_listing(raw, NOWHERE) == {"exterior_color": "Grey", "engine": "5,2L"}


def test_miles_per_gallon_come_alone_named_or_as_a_pair() -> None:
    assert clean_listing({"city_mpg": 19, "highway_mpg": "26 mpg"}, NOWHERE) == {"city_mpg": 19.0, "highway_mpg": 26.0}
    both = {"city_mpg": "22 city / 30 highway", "highway_mpg": "22 city / 30 highway"}
    assert clean_listing(both, NOWHERE) == {"city_mpg": 22.0, "highway_mpg": 30.0}
    assert clean_listing({"city_mpg": "19/26", "highway_mpg": "19/26"}, NOWHERE) == {
        "city_mpg": 19.0,
        "highway_mpg": 26.0,
    }
    assert clean_listing({"city_mpg": "7,7 l/100km"}, NOWHERE) == {}


_ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "value", "@value", "price"]), inner)
    ),
    max_leaves=8,
)


def test_scripts_and_styles_are_cut_with_what_they_hold_where_they_end() -> None:
    assert plain_text("a<SCRIPT x=1>b</script >c<style>d</style\n>e") == "a c e"
    assert plain_text("a<script>b<b>c") == "a b c"
    assert plain_text("a<style>b</script>c") == "a b c"


HOSTILE_TEXTS = (
    "<script>", "<style>", "&lt;script&gt;", "&amp;lt;script&amp;gt;", "<", "<!--", "</", "1 ", "1.", "1-", "(1", "0 ",
    "+49 ", "a@", "(at)", "a at ", " ", "\n", "stock: ", "2019-", "555-123-4567 ",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_a_hostile_text_is_read_in_bounded_time(text: str) -> None:
    start = time.monotonic()
    names = ("title", "description", "price", "odometer", "vin", "city_mpg")
    clean_listing(dict.fromkeys(names, text * 12_000), GERMANY)
    assert time.monotonic() - start < 2


@given(_ANY_JSON)
def test_no_value_of_a_page_breaks_the_reading(value: Any) -> None:
    names = ("title", "make", "model", "year", "price", "currency", "odometer", "odometer_unit", "vin", "city_mpg")
    listing = clean_listing(dict.fromkeys(names, value), GERMANY)
    complete_listing(listing, GERMANY)
    assert all(text == text.encode("utf-8", "replace").decode() for text in listing.values() if isinstance(text, str))


@given(st.integers(min_value=1, max_value=9_999_999))
def test_every_whole_price_is_read_back_in_every_grouping(amount: int) -> None:
    for written in (f"{amount:,}", f"{amount:,}".replace(",", "."), f"{amount:,}".replace(",", "\u202f"), str(amount)):
        assert read_price(f"{written} EUR", NOWHERE) == (Decimal(amount), "EUR")


@given(st.text(alphabet="0123456789., '\u00a0kmKM", max_size=400))
def test_a_number_is_read_in_bounded_time_or_not_at_all(text: str) -> None:
    number = read_number(text)
    assert number is None or re.search(r"\d", text)
