import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from lxml import html
from PIL import Image

from pipeline.report import main
from schemas.storage import Root
from tests.pipeline.reported import HOSTILE_MAKE, crawled, curated, deduplicated, embedded, labelled, published, scored
from tests.pipeline.roots import new_root

MAX_PAGE_BYTES = 8_000_000
ANCHORS = "funnel prices models cars duplicates conflicts junk-filter splits leak-audit politeness costs".split()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Root:
    return curated(tmp_path_factory.mktemp("report") / "root")


@pytest.fixture(scope="module")
def page(whole: Root, tmp_path_factory: pytest.TempPathFactory) -> html.HtmlElement:
    out = tmp_path_factory.mktemp("page") / "page.html"
    assert main(["--root", whole.text, "--out", str(out)]) == 0
    return html.fromstring(out.read_text(encoding="utf-8"))


def report(root: Root, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main(["--root", root.text, *arguments]) == 0
    answer: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return answer


def page_of(root: Root, capsys: pytest.CaptureFixture[str], *arguments: str) -> html.HtmlElement:
    return html.fromstring(Path(str(report(root, capsys, *arguments)["report"])).read_text(encoding="utf-8"))


def words_of(page: html.HtmlElement, anchor: str) -> str:
    return " ".join(" ".join(page.get_element_by_id(anchor).itertext()).split())


def rows_of(page: html.HtmlElement, anchor: str, caption: str) -> list[list[str]]:
    (table,) = [t for t in page.get_element_by_id(anchor).iter("table") if caption in t.find("caption").text_content()]
    return [[cell.text_content() for cell in row.iter("td")] for row in table.find("tbody").iter("tr")]


def test_a_published_data_set_has_its_report_and_charts_in_its_folder(
    whole: Root, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = report(whole, capsys)
    page = Path(str(answer["report"]))
    version = (Path(whole.path("datasets/cars/LATEST"))).read_text(encoding="ascii").strip()
    assert page == Path(whole.path(f"datasets/cars/{version}/report.html"))
    assert page.stat().st_size < MAX_PAGE_BYTES
    plots = [Path(str(plot)) for plot in answer["plots"]]  # type: ignore[attr-defined]  # a list in the JSON line
    assert {plot.parent for plot in plots} == {page.parent / "report"}
    assert {plot.name for plot in plots} == {path.name for path in (page.parent / "report").iterdir()}
    for plot in plots:
        with Image.open(plot) as picture:
            assert picture.format == "PNG"
            assert picture.width >= 680


def test_the_page_asks_nothing_of_anyone_and_says_what_each_image_shows(page: html.HtmlElement) -> None:
    assert [section.get("id") for section in page.iter("section")] == ANCHORS
    addresses = [e.get(name) for e in page.iter() for name in ("src", "srcset", "href") if e.get(name)]
    assert {address.partition(":")[0] for address in addresses if not address.startswith("#")} == {"data"}
    assert list(page.iter("script")) == []
    images = list(page.iter("img"))
    assert len(images) > 40
    assert [image for image in images if not (image.get("alt") or "").strip()] == []


def test_words_from_listings_and_labellers_are_no_markup(page: html.HtmlElement) -> None:
    assert HOSTILE_MAKE.encode() not in html.tostring(page)
    assert HOSTILE_MAKE in words_of(page, "models")
    assert "<u>seats</u>" in words_of(page, "junk-filter")
    assert [e.tag for e in page.iter("script", "b", "i", "u")] == []


def test_photos_are_small_jpegs(page: html.HtmlElement) -> None:
    photos = [image for image in page.iter("img") if image.get("src").startswith("data:image/jpeg")]
    assert photos
    for photo in photos:
        with Image.open(io.BytesIO(base64.b64decode(photo.get("src").partition(",")[2]))) as picture:
            assert picture.format == "JPEG"
            assert max(picture.size) <= 160
            assert picture.size == (int(photo.get("width")), int(photo.get("height")))


@pytest.mark.slow
def test_the_same_root_gives_the_same_page(whole: Root, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = []
    for name in ("one", "two"):
        out = tmp_path / name / "page.html"
        answer = report(whole, capsys, "--out", str(out))
        assert answer["report"] == str(out)
        pages.append(out.read_bytes())
        assert (out.parent / "page" / "prices.png").exists()
    assert pages[0] == pages[1]


def test_shares_are_those_of_the_tables(page: html.HtmlElement) -> None:
    found = dict(zip(("photos", "listings"), rows_of(page, "prices", "Shares of what has a price"), strict=True))
    # 40 listings of 5,000 + 2,100 n dollars, one without a price; above 50,000 from the 22nd on, above 70,000 the 31st.
    assert found["listings"] == ["listings", "39", "46.2 %", "23.1 %", "$47,000"]
    models = rows_of(page, "models", "most frequent")
    assert sum(int(row[2].replace(",", "")) for row in models) == int(found["photos"][1]) + 3
    assert sum(float(row[3].rstrip(" %")) for row in models) == pytest.approx(100, abs=0.5)


def test_duplicates_are_shown_with_the_kept_one_first(page: html.HtmlElement) -> None:
    counted = {row[0]: row[1:4] for row in rows_of(page, "duplicates", "Clusters of equal pictures")}
    assert counted == {"exact": ["4", "8", "4"], "stock photo": ["1", "5", "5"]}
    rows = page.get_element_by_id("duplicates").find_class("row")
    marks = [[mark.text_content() for mark in row.find_class("mark")] for row in rows]
    assert marks.count(["kept", "dropped: exact_duplicate"]) == 4
    assert ["dropped: stock_photo"] * 5 in marks


def test_pictures_in_listings_that_disagree_are_shown_as_conflicts(page: html.HtmlElement) -> None:
    # Each tenth listing shows a photo of the one before it, another make for another price.
    assert rows_of(page, "conflicts", "Clusters whose listings disagree") == [["make, model, price", "4", "8"]]
    rows = page.get_element_by_id("conflicts").find_class("row")
    assert [len(row.find_class("photo")) for row in rows] == [2, 2, 2, 2]
    assert "Another make, model, price in 2 listings" in words_of(page, "conflicts")


def test_the_filter_shows_threshold_bound_and_the_labels_that_contradict_it(page: html.HtmlElement) -> None:
    words = words_of(page, "junk-filter")
    assert "Labels that contradict the filter: look again (2 of 2)" in words
    assert "Removed, just above the threshold" in words
    assert "with 95 % confidence" in words
    kept, junk = rows_of(page, "junk-filter", "Labels against the filter")
    assert int(kept[1]) + int(kept[2]) + int(junk[1]) + int(junk[2]) == 107


def test_the_leak_audit_finds_no_group_on_two_sides_and_what_a_split_by_photo_would_do(page: html.HtmlElement) -> None:
    assert re.search(r"groups on two sides here 0 of \d+; must be 0", words_of(page, "leak-audit"))
    target, photos, groups, classes, by_photo, by_group, *_ = rows_of(page, "leak-audit", "linear probe")[0]
    assert (target, classes) == ("make and model", "10")
    assert int(groups) < int(photos)
    assert float(by_photo.rstrip(" %")) > float(by_group.rstrip(" %")) + 20


@pytest.mark.slow
def test_the_audit_takes_no_more_photos_than_it_may(whole: Root, capsys: pytest.CaptureFixture[str]) -> None:
    page = page_of(whole, capsys, "--set", "report.audit_photos=40")
    taken = re.search(r"Taken: (\d+) of \d+ photos", words_of(page, "leak-audit"))
    assert taken is not None
    assert 0 < int(taken[1]) <= 40


def test_refusals_and_their_reasons_are_in_the_politeness_record(page: html.HtmlElement) -> None:
    assert rows_of(page, "politeness", "What owners kept from us") == [["page", "robots", "1"]]
    assert "ended in 429 1 too many requests" in words_of(page, "politeness")
    assert "of these unexplained 1 must be 0" in words_of(page, "politeness")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stages", "absent"),
    [
        ((), ["dedup.py", "score.py", "label.py", "curate.py"]),
        ((deduplicated,), ["score.py", "label.py", "curate.py"]),
        ((deduplicated, embedded), ["score.py", "label.py", "curate.py"]),
        ((deduplicated, embedded, labelled, scored), ["curate.py"]),
        ((deduplicated, published), ["score.py", "label.py", "embed.py"]),
        ((deduplicated, embedded, scored), ["label.py", "curate.py"]),
    ],
)
def test_each_stage_of_completeness_has_a_page_that_says_what_to_run(
    stages: tuple[Callable[[Root], None], ...],
    absent: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = crawled(tmp_path / "root", num_listings=40 if labelled in stages else 12)
    for stage in stages:
        stage(root)
    answer = report(root, capsys)
    page = html.fromstring(Path(str(answer["report"])).read_text(encoding="utf-8"))
    assert [section.get("id") for section in page.iter("section")] == ANCHORS
    said = " ".join(code.text or "" for code in page.iter("code"))
    assert set(re.findall(r"pipeline/(\w+\.py)", said)) == set(absent)
    if published not in stages:
        assert answer["report"] == root.path("reports/report.html")


def test_an_empty_root_has_a_page_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = page_of(new_root(tmp_path / "root"), capsys)
    assert "crawl.py" in words_of(page, "funnel")


def test_a_small_data_set_says_why_there_is_no_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = crawled(tmp_path / "root", num_listings=2)
    for stage in (deduplicated, embedded, published):
        stage(root)
    words = words_of(page_of(root, capsys), "leak-audit")
    assert "No probe for make and model: 0 classes that enough groups have, a probe needs 2." in words


def test_of_several_data_sets_one_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = crawled(tmp_path / "root", num_listings=3)
    deduplicated(root)
    published(root, "cars")
    published(root, "others")
    assert main(["--root", root.text]) == 2
    assert "cars, others; name one with --dataset" in capsys.readouterr().out
    assert "others" in str(report(root, capsys, "--dataset", "others")["report"])
    assert main(["--root", root.text, "--dataset", "none"]) == 2
    assert "no data set 'none'" in capsys.readouterr().out
