import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import DiskFullError, IntegrityError, RootError, RootVersionError
from schemas.storage import MARK, Root, reported


@pytest.fixture(params=["local", "object store"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    if request.param == "local":
        return Root.open(str(tmp_path / "set"), create=True)
    make: Callable[[], str] = request.getfixturevalue("new_bucket")
    return Root.open(make(), create=True)


def test_what_is_written_is_read_back_listed_and_removed(root: Root) -> None:
    root.write_bytes("receipts/crawl/b.json", b"old")
    root.write_bytes("receipts/crawl/b.json", b"new")
    root.write_bytes("receipts/crawl/a.json", b"a")
    root.write_bytes("receipts/crawl/deeper/c.json", b"c")
    assert root.read_bytes("receipts/crawl/b.json") == b"new"
    assert root.size_bytes("receipts/crawl/a.json") == 1
    assert root.list("receipts/crawl") == ["receipts/crawl/a.json", "receipts/crawl/b.json"]
    assert root.list("receipts/crawl", suffix=".lmdb") == []
    root.remove("receipts/crawl/a.json")
    root.remove("receipts/crawl/a.json")
    assert root.list("receipts/crawl") == ["receipts/crawl/b.json"]


def test_folders_are_listed_apart_from_files(root: Root) -> None:
    for name in ("receipts/embed/b/0.json", "receipts/embed/a/0.json", "receipts/embed/c.json", "receipts/x/0.json"):
        root.write_bytes(name, b"x")
    assert root.list_folders("receipts/embed") == ["receipts/embed/a", "receipts/embed/b"]
    assert root.list_folders("receipts/embed/a") == []
    assert root.list_folders("") == ["receipts"]


def test_a_missing_name_is_told_as_such(root: Root) -> None:
    assert root.list("no/such/folder") == []
    assert root.list_folders("no/such/folder") == []
    assert not root.exists("no/such/file")
    for ask in (root.read_bytes, root.size_bytes, root.read_table):
        with pytest.raises(FileNotFoundError):
            ask("no/such/file")


def test_there_is_no_local_copy_of_a_missing_remote_file(new_bucket: Callable[[], str]) -> None:
    with pytest.raises(FileNotFoundError):
        Root.open(new_bucket(), create=True).local_copy("no/such/file")


def test_names_right_under_the_root_have_no_leading_slash(root: Root) -> None:
    assert root.list("") == [MARK]
    assert root.exists(MARK)


def test_a_root_is_pickled_by_its_text(root: Root) -> None:
    root.write_bytes("a", b"1")
    assert pickle.loads(pickle.dumps(root)).read_bytes("a") == b"1"


def test_staged_files_of_two_folders_do_not_meet_and_become_real_when_published(root: Root) -> None:
    staged = {name: root.staged(name, "token") for name in ("photos/demo-1.parquet", "listings/demo-1.parquet")}
    assert len(set(staged.values())) == 2
    for name, path in staged.items():
        assert path.name.endswith(".token.tmp")
        path.write_text(name)
        assert not root.exists(name)
    for name, path in staged.items():
        root.publish(path, name)
        assert root.read_bytes(name) == name.encode()
        assert not path.exists()
        assert path.parent.exists() == root.is_local


def test_a_staged_file_can_be_discarded(root: Root) -> None:
    staged = root.staged("photos/demo-1.parquet", "token")
    root.discard(staged)
    staged = root.staged("photos/demo-1.parquet", "token")
    staged.write_bytes(b"x")
    root.discard(staged)
    assert not staged.exists()
    assert staged.parent.exists() == root.is_local


def test_a_published_file_takes_the_place_of_the_old_one(root: Root) -> None:
    root.write_bytes("a/b", b"old")
    staged = root.staged("a/b", "token")
    staged.write_bytes(b"new")
    root.publish(staged, "a/b")
    assert root.read_bytes("a/b") == b"new"
    assert root.list("a") == ["a/b"]


def test_tables_are_read_by_column(root: Root) -> None:
    staged = root.staged("photos/a.parquet", "token")
    pq.write_table(pa.table({"key": ["a", "b"], "size": [1, 2]}), staged)
    root.publish(staged, "photos/a.parquet")
    assert root.read_table("photos/a.parquet").num_columns == 2
    assert root.read_table("photos/a.parquet", ["size"]).to_pydict() == {"size": [1, 2]}


def test_a_broken_table_is_named(root: Root) -> None:
    root.write_bytes("photos/a.parquet", b"no Parquet at all")
    with pytest.raises(IntegrityError, match=r"photos/a\.parquet is no Parquet file.*verify\.py"):
        root.read_table("photos/a.parquet")


def test_a_local_copy_has_the_content_of_now(root: Root) -> None:
    root.write_bytes("shards/a.lmdb", b"one")
    assert root.local_copy("shards/a.lmdb").read_bytes() == b"one"
    root.write_bytes("shards/a.lmdb", b"two")
    assert root.local_copy("shards/a.lmdb").read_bytes() == b"two"


def test_opening_finds_the_set_that_is_there(root: Root) -> None:
    before = root.read_bytes(MARK)
    again = Root.open(root.text, create=True)
    assert Root.open(root.text).read_bytes(MARK) == again.read_bytes(MARK) == before


def test_another_format_stops_the_run_and_is_left_alone(root: Root) -> None:
    root.write_bytes(MARK, b'{"format_version": 99}')
    with pytest.raises(RootVersionError, match=r"format 99 .* writes format 1; use the version that wrote it"):
        Root.open(root.text, create=True)
    assert root.read_bytes(MARK) == b'{"format_version": 99}'


@pytest.mark.parametrize("mark", [b"", b"[]", b"\xff", b"{}"])
def test_a_mark_that_says_nothing_is_no_root(root: Root, mark: bytes) -> None:
    root.write_bytes(MARK, mark)
    with pytest.raises(RootVersionError, match="does not say its format_version"):
        Root.open(root.text)


def test_nothing_is_made_unless_asked(root: Root) -> None:
    text = root.text.replace("/set", "/other")
    with pytest.raises(RootError, match=r"no data set at .*other.* \(no root\.json there\)"):
        Root.open(text)
    assert Root(text).list("") == []


def test_a_new_disk_becomes_a_root(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".Trash-0").mkdir()
    assert Root.open(str(tmp_path), create=True).exists("root.json")


def test_what_holds_other_files_does_not_become_a_root(root: Root) -> None:
    text = root.text.replace("/set", "/other")
    Root(text).write_bytes("thesis.tex", b"x")
    with pytest.raises(RootError, match=r"holds 'thesis\.tex' and no root\.json; name an empty or a new folder"):
        Root.open(text, create=True)
    assert Root(text).list("") == ["thesis.tex"]


def test_a_run_killed_in_its_first_moment_can_be_run_again(tmp_path: Path) -> None:
    (tmp_path / f"{MARK}.1a2b3c4d.tmp").write_bytes(b"{")
    (tmp_path / ".snapshots").mkdir()
    assert Root.open(str(tmp_path), create=True).exists(MARK)


def test_a_file_is_no_root(tmp_path: Path) -> None:
    (tmp_path / "cars").write_bytes(b"x")
    with pytest.raises(RootError, match=r"cars.* is a file; name a folder"):
        Root.open(str(tmp_path / "cars"), create=True)
    with pytest.raises(RootError, match="cars"):
        Root.open(str(tmp_path / "cars"))


def test_a_file_url_is_a_local_folder(tmp_path: Path) -> None:
    root = Root.open(f"file://{tmp_path}/a/b", create=True)
    assert root.is_local
    assert (tmp_path / "a/b" / MARK).exists()


@pytest.mark.parametrize("text", ["https://example.org/a", "ftp://a/b", "s3://bucket/a?nonsense=1"])
def test_a_url_of_no_object_store_is_refused(text: str) -> None:
    with pytest.raises(RootError, match="neither a folder nor a readable object-store URL"):
        Root.open(text)


def test_a_url_without_a_bucket_is_refused() -> None:
    with pytest.raises(RootError, match="'s3://' names no bucket"):
        Root.open("s3://")


def test_keys_in_a_url_are_not_shown(new_bucket: Callable[[], str]) -> None:
    text = new_bucket().replace("s3://", "s3://name:secret@")
    with pytest.raises(RootError) as caught:
        Root.open(text)
    assert "no data set at" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="rights do not bind root")
def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    try:
        with pytest.raises(RootError, match="check the path, its rights"):
            Root.open(str(locked / "set"), create=True)
    finally:
        locked.chmod(0o700)


def test_a_place_that_takes_no_files_is_told() -> None:
    with pytest.raises(RootError, match=r"/proc/cars.*check the path, its rights"):
        Root.open("/proc/cars", create=True)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_as_such(code: int) -> None:
    with pytest.raises(DiskFullError, match=r"the disk is full at here.*what is committed is safe"), reported("here"):
        raise OSError(code, os.strerror(code))


def test_free_space_is_asked_for_before_the_folder_is_there(tmp_path: Path) -> None:
    root = Root(str(tmp_path / "not/yet"))
    root.require_free_bytes(1)
    with pytest.raises(DiskFullError, match="bytes are needed on the disk of"):
        root.require_free_bytes(1 << 60)


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path / "set"), create=True)
    root.write_bytes("a.json", b"old")
    # Killed between the write beside and the rename.
    script = (
        "import os, pathlib, signal, sys\n"
        "from schemas.storage import Root\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Root(sys.argv[1]).write_bytes('a.json', b'new')\n"
    )
    assert subprocess.run([sys.executable, "-c", script, root.text], check=False).returncode == -9
    assert root.read_bytes("a.json") == b"old"
    left = [name for name in root.list("") if name not in {"a.json", MARK}]
    assert len(left) == 1
    assert left[0].endswith(".tmp")
