import json
import pickle
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.sites import COLUMNS, PageReading, SiteFile, load_site, main, read_page, user_agent
from schemas.errors import SiteFileError
from schemas.settings import result_settings
from schemas.tables import LISTINGS, table_of
from tests.pipeline.site_reading import CAR_PAGE, GOOD, URL, read

CONFIGS = Path(__file__).parent.parent.parent / "pipeline" / "configs" / "sites"


def written(folder: Path, **changes: Any) -> Path:
    values = {key: value for key, value in (GOOD | changes).items() if value is not None}
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_site_file_is_loaded_and_keeps_its_values(tmp_path: Path) -> None:
    site = load_site(written(tmp_path))
    assert (site.name, site.ids.first, site.ids.last) == ("demo", 1, 9)
    assert site.gone.status == (404, 410)
    assert site.extract.kind == ("json_ld",)
    assert site.politeness.requests_per_second == 1.0
    assert site.url_of(7) == "http://127.0.0.1:8099/listing/7"
    assert site.url_of("a/b c") == "http://127.0.0.1:8099/listing/a%2Fb%20c"
    assert user_agent(site).startswith("Forecourt/")
    assert user_agent(site).endswith(" (+mailto:data@example.org)")


def test_a_site_survives_pickling_and_json(tmp_path: Path) -> None:
    fields = {"script": "window.x=", "fields": {"price": "a.b"}}
    site = load_site(
        written(tmp_path, extract={"kind": ["state", "css"], "state": fields, "css": {"fields": {"title": "h1"}}})
    )
    assert pickle.loads(pickle.dumps(site)) == site
    assert SiteFile.model_validate_json(site.model_dump_json()) == site
    assert "politeness" not in result_settings(site)
    assert "ids" not in result_settings(site)
    assert result_settings(site)["extract"]["kind"] == ["state", "css"]


@pytest.mark.parametrize("name", ["list", "demo-lists", "demo-listing-2", "demo_list"])
def test_only_names_that_make_a_part_of_another_site_are_refused(tmp_path: Path, name: str) -> None:
    assert load_site(written(tmp_path, name=name)).name == name


def test_an_ids_file_is_found_beside_the_site_file(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("1\n2\n")
    site = load_site(written(tmp_path, ids={"file": "ids.txt"}))
    assert site.ids.file == str(tmp_path / "ids.txt")


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"naem": "x"}, ["unknown key naem", "known here", "base_url"]),
    ({"gone": {"statuses": [404]}}, ["unknown key gone.statuses", "css, status"]),
    ({"extract": {"kind": "css", "fields": {"prize": ".p"}}}, ["extract.css", "unknown field prize", "price"]),
    ({"extract": {"kind": "css", "fields": {"price": "p >>"}}}, ["extract.css", "price", "no CSS selector"]),
    ({"extract": {"kind": "state", "script": "x=", "fields": {"price": "a[["}}}, ["extract.state", "JMESPath"]),
    ({"extract": {"kind": "html"}}, ["extract.kind", "json_ld"]),
    ({"extract": None}, ["extract is missing", "kind: json_ld"]),
    ({"politeness": None}, ["politeness is missing", "contact"]),
    ({"politeness": {"requests_per_second": 1.0}}, ["politeness.contact is missing", "mailto:", "User-Agent"]),
    ({"politeness": {"contact": ""}}, ["politeness.contact is missing", "mailto:"]),
    ({"politeness": {"contact": "me"}}, ["politeness.contact", "'me' is no contact", "mailto:"]),
    ({"politeness": {"contact": "mailto:a@b.org\nX: y"}}, ["politeness.contact", "no contact"]),
    ({"politeness": {"contact": "http://a.org"}}, ["politeness.contact", "no contact"]),
    ({"politeness": {"contact": "mailto:a@b.org", "requests_per_second": 0}}, ["greater than 0", "found 0"]),
    ({"politeness": {"contact": "mailto:a@b.org", "concurrency": 0}}, ["politeness.concurrency"]),
    ({"name": "My Site"}, ["name", "found 'My Site'", "small letters"]),
    ({"name": "demo-list"}, ["name", "`-list`", "found 'demo-list'"]),
    ({"name": "demo-list-2"}, ["name", "`-list-`"]),
    ({"name": "a/b"}, ["name", "found 'a/b'"]),
    ({"name": "a\n"}, ["name"]),
    ({"base_url": "ftp://x.org"}, ["base_url", "http:// or https://", "found 'ftp://x.org'"]),
    ({"base_url": "cars.example.org"}, ["base_url", "http:// or https://"]),
    ({"base_url": "http://x.org:99999"}, ["base_url"]),
    ({"listing_url": "/listing"}, ["listing_url", "{id}", "found '/listing'"]),
    ({"listing_url": "/{page}/{id}"}, ["listing_url", "{page}"]),
    ({"ids": {"first": 9, "last": 1}}, ["ids", "reversed", "first 9", "last 1"]),
    ({"ids": {"first": 9}}, ["ids", "first and last"]),
    ({"ids": {"first": 1, "last": 2, "file": "x"}}, ["ids", "or file"]),
    ({"ids": {"file": "none.txt"}}, ["ids.file", "none.txt", "relative"]),
    ({"gone": {"css": ">>"}}, ["gone.css", "no CSS selector"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_a_site_file_that_cannot_work_is_refused_with_what_to_do(
    changes: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(SiteFileError) as error:
        load_site(path)
    assert all(word in str(error.value) for word in [*words, str(path)]), str(error.value)


@pytest.mark.parametrize("text", [b"", b"- a\n- b\n", b"name: [", b"\xff\xfe\x00", b"a" * 10 + b": {"])
def test_what_is_no_site_file_is_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    with pytest.raises(SiteFileError, match=r"bad\.yaml"):
        load_site(path)
    with pytest.raises(SiteFileError, match="cannot read"):
        load_site(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_example_lacks_nothing_but_the_contact(path: Path, tmp_path: Path) -> None:
    with pytest.raises(SiteFileError, match=r"politeness\.contact is missing") as error:
        load_site(path)
    assert ";" not in str(error.value).partition("politeness.contact")[2].partition("User-Agent")[2]
    filled = tmp_path / path.name
    filled.write_text(path.read_text().replace('contact: ""', 'contact: "mailto:data@example.org"'))
    assert "example.org" in load_site(filled).base_url


def test_each_kind_has_a_shipped_example() -> None:
    kinds = [yaml.safe_load(path.read_text())["extract"]["kind"] for path in CONFIGS.glob("*.yaml")]
    assert {kind for kind in kinds if isinstance(kind, str)} == {"json_ld", "state", "css"}


def test_the_example_of_the_original_shape_reads_such_a_page() -> None:
    values = yaml.safe_load((CONFIGS / "state_example.yaml").read_text())
    values["politeness"]["contact"] = "mailto:data@example.org"
    vehicle = {
        "heading": "2012 FIAT 500 Sport",
        "makeName": "FIAT",
        "modelName": "500",
        "year": 2012,
        "mileage": 101000,
    }
    vehicle |= {"pricing": {"salePrice": 4300}, "vin": "3C3CFFBR0CT383069", "mpg": {"city": 30, "highway": 38}}
    state = {"page": {"vehicle": vehicle}, "inventory": {"7": {"images": [{"url": "//img.example.org/1.jpg"}]}}}
    html = f"<html><script>window.__PAGE_STATE__={json.dumps(state)};</script></html>".encode()
    reading = read_page(html, url=URL, site=SiteFile.model_validate(values))
    assert reading.listing is not None
    assert (reading.listing["make"], reading.listing["price"], reading.listing["odometer_mi"]) == (
        "FIAT",
        4300,
        101000.0,
    )
    assert reading.photo_urls == ("https://img.example.org/1.jpg",)


def test_a_listing_has_every_column_and_fits_the_table() -> None:
    reading = read(CAR_PAGE)
    assert reading.outcome == "found"
    assert reading.error is None
    assert reading.listing is not None
    assert tuple(reading.listing) == COLUMNS
    assert (reading.listing["price"], reading.listing["currency"]) == (Decimal("45295.00"), "USD")
    assert reading.listing["url"] == URL
    row = reading.listing | {"site": "demo", "listing_id": "7", "num_photos": len(reading.photo_urls)}
    assert table_of([row], LISTINGS).num_rows == 1
    assert reading.photo_urls == ("https://cars.example.org/1.jpg",)


@pytest.mark.parametrize("status", [404, 410])
def test_a_status_that_means_gone_is_gone(status: int) -> None:
    assert read(CAR_PAGE, status=status) == PageReading("gone", None, None, ())


def test_a_page_that_says_gone_is_gone() -> None:
    assert read("<html><h1 class=unavailable>Sold</h1></html>").outcome == "gone"


@pytest.mark.parametrize(
    ("status", "html", "error"),
    [
        (403, "<html><title>403 Forbidden</title><h1>403 Forbidden</h1><hr>nginx</html>", "http_403"),
        (429, "<html><title>429 Too Many Requests</title><h1>429 Too Many Requests</h1></html>", "http_429"),
        (500, "<html><h1>Internal Server Error</h1></html>", "http_500"),
        (503, "", "http_503"),
        (200, "", "no_listing"),
        (200, "   ", "no_listing"),
        (200, "plain text", "no_listing"),
        (200, "<html><h1>This car has been sold</h1><p>See similar cars below.</p></html>", "no_listing"),
        (200, "<html><title>Used cars near you | Cars</title><p>" + "A used car. " * 300 + "</p></html>", "no_listing"),
        (200, "{\"error\": 1}", "no_listing"),
        (200, "\x00\x01\x02", "no_listing"),
    ],
)  # fmt: skip
def test_a_page_without_a_listing_fails_with_the_reason(status: int, html: str, error: str) -> None:
    assert read(html, status=status) == PageReading("failed", error, None, ())


def test_an_answer_that_is_no_page_is_no_listing() -> None:
    site = SiteFile.model_validate(GOOD)
    assert read_page(b"\xff\xd8\xff", url=URL, site=site, content_type="image/jpeg").error == "no_listing"


def test_the_script_prints_what_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    page.write_bytes(CAR_PAGE)
    assert main([str(written(tmp_path)), str(page), "--url", URL]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["outcome"], line["error"]) == ("found", None)
    assert (line["listing"]["price"], line["listing"]["make"]) == (45295.0, "Acura")
    assert line["photos"] == ["https://cars.example.org/1.jpg"]


def test_the_script_exits_1_for_a_page_that_is_no_listing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    page.write_text("<script>var dd={'host':'geo.captcha-delivery.com'}</script>")
    assert main([str(written(tmp_path)), str(page)]) == 1
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line == {"outcome": "failed", "error": "block_page", "listing": None, "photos": []}


def test_the_script_exits_2_for_what_it_cannot_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = str(written(tmp_path))
    for argv in ([good, str(tmp_path / "none.html")], [str(tmp_path / "none.yaml"), good], [good], ["--nonsense"]):
        assert main(argv) == 2
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["error"]


def test_a_script_that_reads_no_page_does_not_wait_for_the_libraries_of_markup() -> None:
    code = "import sys, pipeline.sites; raise SystemExit('rdflib' in sys.modules or 'extruct' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
