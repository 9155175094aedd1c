from pathlib import Path
from typing import Any

import pytest

from pipeline.label_csv import COLUMNS, export_labels, import_labels
from pipeline.label_queue import PhotoIndex
from pipeline.label_rows import label_rows, read_labels, settled_labels
from pipeline.label_store import LabelStore
from schemas.errors import UsageError
from schemas.storage import Root
from tests.pipeline.roots import Listing, new_root, noise, write_part

KEYS = [f"demo/1/{index:03}" for index in range(3)]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = new_root(tmp_path / "root")
    write_part(root, "demo-0", [Listing("1", [noise(1), noise(2), noise(3), None])])
    return root


def imported(root: Root, text: str | bytes, *, sampled_by: str = "import", labeller: str = "import") -> int:
    file = Path(root.path("given.csv"))
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    store = LabelStore(root, token=f"run{len(root.list('labels'))}", fence=lambda: None)
    return import_labels(file, store, PhotoIndex(root), sampled_by=sampled_by, labeller=labeller)


def settled(root: Root) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in settled_labels(root).to_pylist()]


def test_a_line_may_say_more_than_the_options(root: Root) -> None:
    text = f"label,key,sampled_by,junk_type,labeller\njunk,{KEYS[0]},uncertain,wheel,bob\n\n keep , {KEYS[1]} ,,,\n"
    assert imported(root, text, sampled_by="random", labeller="ann") == 2
    assert settled(root) == [(KEYS[0], "junk", "wheel", "uncertain", 1), (KEYS[1], "keep", None, "random", 1)]


def test_a_file_as_a_spreadsheet_saves_it_can_be_read(root: Root) -> None:
    assert imported(root, b"\xef\xbb\xbfkey,label\r\n" + f'"{KEYS[0]}","keep"\r\n'.encode()) == 1


def test_the_import_made_last_counts_and_the_same_again_adds_nothing(root: Root) -> None:
    first, second = f"key,label\n{KEYS[0]},keep\n", f"key,label\n{KEYS[0]},junk\n"
    assert [imported(root, text) for text in (first, first, second, second, first)] == [1, 0, 1, 0, 1]
    assert settled(root)[0][1] == "keep"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key;label\n", "line 1: the columns must be key,label"),
        ("", "found nothing"),
        ("key,label,sampled-by\n", "found key,label,sampled-by"),
        ("key,label,label\n", "each once"),
        (f"key,label\n{KEYS[0]}\n", "line 2: 1 cells where the header has 2"),
        ("key,label\n,keep\n", "line 2: no photo ''"),
        ("key,label\ndemo/1/003,keep\n", "no photo 'demo/1/003' is stored"),
        (f"key,label\n{KEYS[0]},Keep\n", "label 'Keep' is none of keep, junk, unsure"),
        (f"key,label,junk_type\n{KEYS[0]},keep,wheel\n", "junk_type 'wheel' of a photo that is labelled keep"),
        (f"key,label,sampled_by\n{KEYS[0]},keep,chance\n", "sampled_by 'chance' is none of random"),
        (f"key,label,labelled_at\n{KEYS[0]},keep,noon\n", "labelled_at 'noon' is no time such as"),
        (f"key,label,labeller\n{KEYS[0]},keep,{'a' * 65}\n", "is no name of up to 64"),
        (f"key,label\n{KEYS[0]},keep\n{KEYS[0]},junk\n", "line 3: demo/1/000 by import is in an earlier line"),
        ("key,label\n" + "x,keep\n" * 12, "and 2 more lines"),
        (f'key,label\n"{KEYS[0]},keep\n', "no CSV in UTF-8"),
        (b"key,label\n\xff,keep\n", "no CSV in UTF-8"),
        ("key,label\n" + f"{KEYS[1]},keep\n{KEYS[0]},nope\n", "line 3"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_is_named_with_its_line_and_nothing_is_imported(root: Root, text: str | bytes, message: str) -> None:
    with pytest.raises(UsageError, match="othing was imported") as raised:
        imported(root, text)
    assert message in str(raised.value)
    assert "given.csv" in str(raised.value)
    assert root.list("labels") == []


def test_a_file_that_is_not_there_is_named(root: Root, tmp_path: Path) -> None:
    store = LabelStore(root, token="run", fence=lambda: None)
    with pytest.raises(UsageError, match=r"cannot read .*none\.csv"):
        import_labels(tmp_path / "none.csv", store, PhotoIndex(root), sampled_by="import", labeller="import")
    with pytest.raises(UsageError, match=r"cannot write .*none/out\.csv"):
        export_labels(tmp_path / "none" / "out.csv", [])


def test_an_export_carries_all_that_another_root_needs(root: Root, tmp_path: Path) -> None:
    imported(root, f"key,label\n{KEYS[0]},keep\n{KEYS[1]},junk\n", sampled_by="random", labeller="ann")
    imported(root, f"key,label,junk_type\n{KEYS[0]},junk,wheel\n", labeller="Bob, the second")
    file = tmp_path / "out.csv"
    export_labels(file, label_rows(read_labels(root)))
    assert file.read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)
    other = new_root(tmp_path / "other")
    write_part(other, "demo-0", [Listing("1", [noise(1), noise(2), noise(3)])])
    assert imported(other, file.read_bytes()) == 3
    assert settled(other) == settled(root)
    assert imported(other, file.read_bytes()) == 0
