import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from pipeline.label import MAX_BODY_BYTES, LabelPage, Settings, main
from pipeline.label_queue import PhotoIndex
from pipeline.label_rows import label_rows, read_labels
from pipeline.label_store import LabelStore, open_store
from schemas.storage import Root
from tests.pipeline.roots import Listing, new_root, noise, write_part

ID = "0123456789abcdef"
KEYS = [f"demo/{listing}/{index:03}" for listing in (1, 2) for index in (0, 1)]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = new_root(tmp_path / "root")
    title = {"title": "2015 Volvo V70"}
    write_part(root, "demo-0", [Listing(str(n), [noise(2 * n), noise(2 * n + 1)], columns=title) for n in (1, 2)])
    return root


@pytest.fixture
async def page(root: Root) -> AsyncIterator[TestClient[Any, Any]]:
    store = LabelStore(root, token="run1", fence=lambda: None)
    app = LabelPage(root, store, PhotoIndex(root), Settings(), None, "127.0.0.1").app()
    async with TestClient(TestServer(app)) as client:
        yield client


def a_click(**changes: Any) -> dict[str, Any]:
    said = {"click": ID, "labeller": "ann", "key": KEYS[0], "label": "keep", "sampled_by": "random"}
    return said | changes


async def error_of(answer: ClientResponse) -> str:
    return str((await answer.json())["error"])


async def test_photos_come_with_their_neighbours_and_where_to_get_them(page: TestClient[Any, Any]) -> None:
    asked = {"labeller": "ann", "sampling": "random", "num": 4}
    said = await (await page.post("/api/next", json=asked)).json()
    assert sorted(photo["key"] for photo in said["photos"]) == KEYS
    first = next(photo for photo in said["photos"] if photo["key"] == KEYS[0])
    assert [one["key"] for one in first["neighbours"]] == [KEYS[1]]
    assert first["alt"] == "Photo 1 of 2015 Volvo V70 (demo/1)"
    photo = await page.get(first["url"])
    assert (photo.status, photo.content_type) == (200, "image/jpeg")
    assert "immutable" in photo.headers["Cache-Control"]
    assert (await photo.read())[:2] == b"\xff\xd8"
    again = await page.get(f"/photo/{KEYS[0]}", headers={"If-None-Match": photo.headers["ETag"]})
    assert (again.status, again.headers["Cache-Control"]) == (304, "private, no-cache")
    assert (await page.get("/photo/demo/9/000")).status == 404


async def test_a_label_is_on_disk_with_how_its_photo_was_chosen(page: TestClient[Any, Any], root: Root) -> None:
    click = a_click(label="junk", junk_type="wheel", sampled_by="uncertain")
    for _ in range(2):
        said = await (await page.post("/api/label", json=click)).json()
        assert (said["counts"]["labels"], said["mine"]) == (1, 1)
    (row,) = label_rows(read_labels(root))
    assert row[:-1] == (KEYS[0], "junk", "wheel", "uncertain", "ann")
    undo = {"labeller": "ann", "key": KEYS[0], "labelled_at": said["labelled_at"]}
    for removed in (True, False):
        said = await (await page.post("/api/undo", json=undo)).json()
        assert said["removed"] is removed
    assert read_labels(root).num_rows == 0


async def test_a_clicks_photo_is_named_as_the_server_knows_it(page: TestClient[Any, Any], root: Root) -> None:
    for key in ("demo/9/000", "../../root.json"):
        answer = await page.post("/api/label", json=a_click(key=key))
        assert answer.status == 404
        assert "is stored here" in await error_of(answer)
    assert read_labels(root).num_rows == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "maybe"},
        {"sampled_by": "import"},
        {"labeller": " "},
        {"labeller": "a\nb"},
        {"labeller": "a" * 65},
        {"click": "x"},
        {"junk_type": "wheel"},
        {"more": 1},
    ],
    ids=str,
)
async def test_a_click_that_says_something_impossible_is_refused(
    page: TestClient[Any, Any], root: Root, changes: dict[str, Any]
) -> None:
    answer = await page.post("/api/label", json=a_click(**changes))
    assert answer.status == 400
    assert await error_of(answer)
    assert read_labels(root).num_rows == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:8100"},
        {"Host": "192.168.0.7"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
    ids=str,
)
async def test_what_comes_from_another_site_is_refused(
    page: TestClient[Any, Any], root: Root, headers: dict[str, str]
) -> None:
    for answer in (
        await page.post("/api/label", json=a_click(), headers=headers),
        await page.get(f"/photo/{KEYS[0]}", headers=headers),
        await page.get("/", headers=headers),
    ):
        assert answer.status == 403
    assert read_labels(root).num_rows == 0


async def test_a_post_that_a_form_of_another_site_could_make_is_refused(page: TestClient[Any, Any]) -> None:
    answer = await page.post("/api/label", data=json.dumps(a_click()), headers={"Content-Type": "text/plain"})
    assert answer.status == 415


async def test_a_body_is_no_longer_than_a_click_needs(page: TestClient[Any, Any]) -> None:
    answer = await page.post("/api/label", json=a_click(labeller="a" * MAX_BODY_BYTES))
    assert answer.status == 413


async def test_the_page_loads_nothing_from_elsewhere(page: TestClient[Any, Any]) -> None:
    answer = await page.get("/", headers={"Host": "localhost:9000"})
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    text = await answer.text()
    assert [scheme for scheme in ("http:", "https:", "//") if f'"{scheme}' in text] == []


@pytest.mark.parametrize(
    ("sampling", "prompt", "message"),
    [
        ("uncertain", "", "no filter yet"),
        ("likely_junk", "", "no filter yet"),
        ("prompt", "", "type what to look for"),
        ("prompt", "a car dashboard", "holds no embeddings"),
    ],
)
async def test_a_way_to_choose_that_lacks_something_says_what(
    page: TestClient[Any, Any], sampling: str, prompt: str, message: str
) -> None:
    answer = await page.post("/api/next", json={"labeller": "ann", "sampling": sampling, "prompt": prompt})
    assert answer.status == 400
    assert message in await error_of(answer)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return line


def test_labels_go_out_and_come_in_again_and_a_second_time_changes_nothing(
    root: Root, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given.csv"
    given.write_text(f"key,label\n{KEYS[0]},keep\n{KEYS[1]},junk\n{KEYS[2]},unsure\n", encoding="ascii")
    counts = {"labels": 3, "keep": 1, "junk": 1, "unsure": 1}
    for _ in range(2):
        assert main(["--root", root.text, "--import", str(given), "--sampled-by", "random", "--labeller", "ann"]) == 0
        assert last_line(capsys) == counts
        assert len(root.list("labels")) == 1
    assert {row.sampled_by for row in label_rows(read_labels(root))} == {"random"}
    assert main(["--root", root.text, "--export", str(tmp_path / "out.csv")]) == 0
    assert last_line(capsys) == counts
    assert main(["--root", root.text, "--import", str(tmp_path / "out.csv")]) == 0
    assert last_line(capsys) == counts
    assert read_labels(root).num_rows == 3


def test_labels_can_be_exported_while_the_page_is_open_and_imported_when_it_is_not(
    root: Root, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_store(root) as store:
        store.label(ID, key=KEYS[0], label="junk", junk_type=None, sampled_by="random", labeller="ann")
        assert main(["--root", root.text, "--export", str(tmp_path / "out.csv")]) == 0
        assert last_line(capsys)["junk"] == 1
        assert main(["--root", root.text, "--import", str(tmp_path / "out.csv")]) == 1
        assert "is alive; wait for it, or end it" in last_line(capsys)["error"]


def test_a_file_with_a_mistake_imports_nothing_and_ends_as_misuse(
    root: Root, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given.csv"
    given.write_text(f"key,label\n{KEYS[0]},keep\ndemo/9/000,keep\n{KEYS[1]},kep\n", encoding="ascii")
    assert main(["--root", root.text, "--import", str(given)]) == 2
    error = last_line(capsys)["error"]
    assert "line 3: no photo 'demo/9/000'" in error
    assert "line 4: label 'kep'" in error
    assert "Nothing was imported" in error
    assert read_labels(root).num_rows == 0


def test_a_labeller_needs_a_name(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", root.text, "--labeller", " "]) == 2
    assert "--labeller" in last_line(capsys)["error"]
