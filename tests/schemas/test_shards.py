import errno
import gc
import hashlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import pytest

from schemas import shards
from schemas.errors import DiskFullError, IntegrityError, RootError
from schemas.shards import Shard, ShardSettings, ShardWriter

SETTINGS = ShardSettings(min_free_bytes=0)
SMALL = ShardSettings(min_free_bytes=0, initial_map_bytes=1 << 16, map_growth=1.1, batch_bytes=50_000)


def photos(number: int = 200, size_bytes: int = 5_000) -> dict[str, bytes]:
    rng = random.Random(number)
    return {f"demo/{i // 3}/{i % 3:03d}": rng.randbytes(rng.randrange(size_bytes)) for i in range(number)}


def seal(path: Path, content: Mapping[str, bytes], settings: ShardSettings = SETTINGS) -> Path:
    with ShardWriter(path, settings) as writer:
        for key, jpeg in content.items():
            writer.put(key, jpeg)
        writer.seal()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "demo-1.lmdb.token.tmp"


@pytest.fixture
def sealed(path: Path) -> Path:
    return seal(path, photos())


# Writing


def test_a_sealed_shard_holds_what_was_put_and_nothing_else(sealed: Path) -> None:
    with Shard(sealed) as shard:
        assert dict(shard.items()) == photos()
        assert len(shard) == len(photos())
    assert os.listdir(sealed.parent) == [sealed.name]


def test_a_sealed_shard_is_plain_lmdb_of_key_to_jpeg(sealed: Path) -> None:
    with lmdb.open(str(sealed), subdir=False, readonly=True, lock=False) as env, env.begin() as txn:
        assert {bytes(k).decode(): bytes(v) for k, v in txn.cursor()} == photos()


def test_a_full_map_grows_and_nothing_is_lost(path: Path) -> None:
    content = photos(500, 40_000)
    with Shard(seal(path, content, SMALL)) as shard:
        assert dict(shard.items()) == content


def test_a_photo_larger_than_a_batch_and_the_map_is_stored(path: Path) -> None:
    content = {"demo/1/000": os.urandom(3_000_000), "demo/2/000": b""}
    with Shard(seal(path, content, SMALL)) as shard:
        assert dict(shard.items()) == content


def test_many_threads_may_put(path: Path) -> None:
    content = photos(600)
    with ShardWriter(path, SMALL) as writer:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda item: writer.put(*item), content.items()))
        assert len(writer) == len(content)
        writer.seal()
    with Shard(path) as shard:
        assert dict(shard.items()) == content


@pytest.mark.parametrize("settings", [SETTINGS, SMALL], ids=["pending", "committed"])
def test_what_was_put_can_be_read_before_the_seal(path: Path, settings: ShardSettings) -> None:
    with ShardWriter(path, settings) as writer:
        for key, jpeg in photos().items():
            writer.put(key, jpeg)
            assert writer.get(key) == jpeg
        assert all(writer.get(key) == jpeg for key, jpeg in photos().items())
        assert "demo/0/000" in writer
        assert "demo/0/009" not in writer
        with pytest.raises(KeyError, match=r"demo/0/009.*is not in .*demo-1\.lmdb"):
            writer.get("demo/0/009")


@pytest.mark.parametrize("settings", [SETTINGS, SMALL], ids=["pending", "committed"])
def test_a_key_may_be_put_again_with_its_own_bytes_only(path: Path, settings: ShardSettings) -> None:
    with ShardWriter(path, settings) as writer:
        for _ in range(2):
            for key, jpeg in photos().items():
                writer.put(key, jpeg)
        assert len(writer) == len(photos())
        with pytest.raises(IntegrityError, match=r"'demo/0/000' is in .* with other bytes"):
            writer.put("demo/0/000", b"another")
        assert writer.get("demo/0/000") == photos()["demo/0/000"]


@pytest.mark.parametrize("key", ["", "x" * 512, "\u00e9" * 256])
def test_a_key_that_lmdb_cannot_hold_is_refused(path: Path, key: str) -> None:
    with (
        ShardWriter(path, SETTINGS) as writer,
        pytest.raises(IntegrityError, match=r"bytes in UTF-8, and an LMDB key has 1 to 511"),
    ):
        writer.put(key, b"x")


def test_the_longest_key_is_stored(path: Path) -> None:
    content = {"x" * 511: b"1", "\u00e9" * 255: b"2"}
    with Shard(seal(path, content)) as shard:
        assert dict(shard.items()) == content


def test_an_empty_shard_is_a_shard(path: Path) -> None:
    with Shard(seal(path, {})) as shard:
        assert (len(shard), list(shard.keys()), list(shard.items()), shard.get_many([])) == (0, [], [], [])


def test_the_order_of_putting_does_not_show(tmp_path: Path) -> None:
    content = photos(1_000, 30_000)
    shuffled = dict(random.Random(0).sample(list(content.items()), len(content)))
    sizes = set()
    for name, items in [("a", content), ("b", shuffled)]:
        with Shard(seal(tmp_path / name, items, SMALL)) as shard:
            assert list(shard.items()) == sorted(content.items())
        sizes.add((tmp_path / name).stat().st_size)
    assert max(sizes) < 1.02 * min(sizes)


def test_a_sealed_shard_has_no_free_pages(sealed: Path) -> None:
    with lmdb.open(str(sealed), subdir=False, readonly=True, lock=False) as env:
        stat = env.stat()
        used = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] + 2
        assert sealed.stat().st_size == used * stat["psize"]


def test_what_was_not_sealed_is_removed(path: Path) -> None:
    with ShardWriter(path, SMALL) as writer:
        for key, jpeg in photos().items():
            writer.put(key, jpeg)
        assert path.exists()
    assert os.listdir(path.parent) == []


def test_what_an_earlier_try_left_is_replaced(path: Path) -> None:
    for left in (path, Path(f"{path}-lock"), path.with_name("demo-1.lmdb.token.compact.tmp")):
        left.write_bytes(b"half a shard")
    with Shard(seal(path, {"demo/1/000": b"x"})) as shard:
        assert dict(shard.items()) == {"demo/1/000": b"x"}
    assert os.listdir(path.parent) == [path.name]


def test_a_killed_writer_leaves_only_staged_names(path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from schemas.shards import ShardSettings, ShardWriter\n"
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "writer = ShardWriter(Path(sys.argv[1]), ShardSettings(min_free_bytes=0))\n"
        "writer.put('demo/1/000', b'x')\n"
        "writer.seal()\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    left = os.listdir(path.parent)
    assert len(left) == 2
    assert all(name.endswith(".tmp") for name in left)


def test_nothing_can_be_put_after_the_seal(path: Path) -> None:
    with ShardWriter(path, SETTINGS) as writer:
        writer.seal()
        for late in (lambda: writer.put("demo/1/000", b"x"), lambda: writer.get("demo/1/000"), writer.seal):
            with pytest.raises(ValueError, match="is sealed or closed"):
                late()


def test_space_is_asked_for_first(path: Path) -> None:
    greedy = ShardSettings(min_free_bytes=1 << 60)
    with pytest.raises(DiskFullError, match=r"shards\.min_free_bytes leaves .* free, and the disk has"):
        ShardWriter(path, greedy)
    assert os.listdir(path.parent) == []


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(RootError, match=r"cannot write .*nowhere"):
        ShardWriter(tmp_path / "nowhere" / "a.tmp", SETTINGS)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(writer: ShardWriter) -> None:
    for number in range(100):
        writer.put(f"demo/{number}/000", os.urandom(100_000))
    writer.seal()


@pytest.mark.parametrize("is_foreseen", [True, False])
def test_a_disk_that_fills_up_is_told_and_left_clean(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, is_foreseen: bool
) -> None:
    if not is_foreseen:
        monkeypatch.setattr(ShardWriter, "_require_free", lambda *_: None)
    settings = ShardSettings(min_free_bytes=0, batch_bytes=200_000)
    with pytest.raises(DiskFullError, match=r"what is committed is safe"), ShardWriter(small_disk / "a", settings) as w:
        fill(w)
    assert os.listdir(small_disk) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_found_while_compacting_is_told_and_left_clean(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    with ShardWriter(path, SETTINGS) as writer:
        writer.put("demo/1/000", b"x")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match="the disk is full at"):
            writer.seal()
    assert os.listdir(path.parent) == []


# Reading


def test_photos_are_read_by_key_by_many_keys_and_in_order(sealed: Path) -> None:
    content = photos()
    keys = random.Random(1).choices(list(content), k=300)
    with Shard(sealed) as shard:
        assert [shard.get(key) for key in keys] == shard.get_many(keys) == [content[key] for key in keys]
        assert list(shard.keys()) == sorted(content)
        assert list(shard.items()) == sorted(content.items())
        assert "demo/0/000" in shard
        assert "demo/0/009" not in shard


def test_a_missing_key_is_named_with_its_file(sealed: Path) -> None:
    with Shard(sealed) as shard:
        for ask in (lambda: shard.get("demo/0/009"), lambda: shard.get_many(["demo/0/000", "demo/0/009"])):
            with pytest.raises(KeyError, match=r"'demo/0/009' is not in .*demo-1\.lmdb"):
                ask()


def test_keys_sort_as_text_beyond_ascii(path: Path) -> None:
    keys = ["a/1/000", "\u00e9/1/000", "\u4e2d/1/000", "\U0001f697/1/000", "z/1/000"]
    with Shard(seal(path, {key: key.encode() for key in keys})) as shard:
        assert list(shard.keys()) == sorted(keys)
        assert shard.get_many(keys) == [key.encode() for key in keys]


def test_two_shards_of_a_file_share_one_environment_until_the_last_is_closed(sealed: Path) -> None:
    os.link(sealed, sealed.with_name("other name"))
    first, second = Shard(sealed), Shard(sealed.with_name("other name"))
    assert len(shards._ENVIRONMENTS) == 1
    first.close()
    first.close()
    assert second.get("demo/0/000") == photos()["demo/0/000"]
    with pytest.raises(ValueError, match="is closed"):
        first.get("demo/0/000")
    second.close()
    assert shards._ENVIRONMENTS == {}


def test_a_forgotten_shard_closes_its_file(sealed: Path) -> None:
    Shard(sealed)
    gc.collect()
    assert shards._ENVIRONMENTS == {}


def test_a_file_in_the_place_of_an_open_one_is_another_file(path: Path, tmp_path: Path) -> None:
    seal(path, {"demo/1/000": b"old"})
    with Shard(path) as old:
        seal(tmp_path / "new", {"demo/1/000": b"new"}).replace(path)
        with Shard(path) as new:
            assert (old.get("demo/1/000"), new.get("demo/1/000")) == (b"old", b"new")


def test_reading_leaves_the_file_and_its_folder_alone(sealed: Path) -> None:
    sealed.chmod(0o400)
    before = (sealed.stat().st_mtime_ns, hashlib.sha256(sealed.read_bytes()).hexdigest())
    with Shard(sealed) as shard:
        assert shard.warm() == sealed.stat().st_size
        assert len(list(shard.items())) == len(photos())
    assert (sealed.stat().st_mtime_ns, hashlib.sha256(sealed.read_bytes()).hexdigest()) == before
    assert os.listdir(sealed.parent) == [sealed.name]


def test_many_threads_read_one_shard(sealed: Path) -> None:
    content = photos()
    with Shard(sealed, readahead=False) as shard, ThreadPoolExecutor(16) as pool:
        keys = random.Random(2).choices(list(content), k=4_000)
        assert list(pool.map(shard.get, keys)) == [content[key] for key in keys]


def test_threads_open_and_close_a_file_at_once(sealed: Path) -> None:
    expected = photos()["demo/0/000"]

    def once(_: int) -> bool:
        with Shard(sealed) as shard:
            return shard.get("demo/0/000") == expected

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(once, range(800)))
    assert shards._ENVIRONMENTS == {}


@pytest.mark.parametrize("damage", ["one page", "half", "one page left", "meta only", "ten bytes", "empty"])
def test_a_cut_file_is_found_before_it_is_mapped(sealed: Path, damage: str) -> None:
    size = sealed.stat().st_size
    left = {"one page": size - 4096, "half": size // 2, "one page left": 4096, "meta only": 152, "ten bytes": 10}
    os.truncate(sealed, left.get(damage, 0))
    with pytest.raises(IntegrityError, match=r"demo-1\.lmdb.* is not a sealed shard: it .*verify\.py, with --repair"):
        Shard(sealed)
    assert shards._ENVIRONMENTS == {}


def test_what_is_no_lmdb_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff\xd8" * 10_000)
    with pytest.raises(IntegrityError, match="is not a sealed shard: it is no LMDB file"):
        Shard(tmp_path / "a")
    with pytest.raises(IntegrityError, match="is not a sealed shard: No such file or directory"):
        Shard(tmp_path / "b")
    with pytest.raises(IntegrityError, match="is not a sealed shard: Is a directory"):
        Shard(tmp_path)


def test_a_shard_still_being_written_elsewhere_does_not_break_a_reader(path: Path) -> None:
    with ShardWriter(path, SMALL) as writer:
        for key, jpeg in photos().items():
            writer.put(key, jpeg)
        size = path.stat().st_size
        shutil.copy(path, path.with_name("copy"))
    assert size > 0
    with Shard(path.with_name("copy")) as shard:
        assert all(photos()[key] == jpeg for key, jpeg in shard.items())
