import errno
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from schemas import cache as cache_module
from schemas.cache import FileCache, release
from schemas.errors import DiskFullError, SettingsError

LOCAL = pafs.LocalFileSystem()


class LoggingSource(io.FileIO):
    """A file that writes a line for each time somebody starts to read it, and reads slowly."""

    def __init__(self, path: str, log: Path) -> None:
        super().__init__(path)
        self._log = log

    def read(self, size: int | None = -1, /) -> Any:
        if self.tell() == 0:
            with self._log.open("a") as file:
                file.write(f"{self.name}\n")
            time.sleep(0.2)
        return super().read(size if size is not None else -1)


class LoggingHandler(pafs.FSSpecHandler):  # type: ignore[misc]  # pyarrow has no types
    """The local disk in the part of a remote store."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def get_file_info(self, paths: list[str]) -> Any:
        return LOCAL.get_file_info(paths)

    def open_input_stream(self, path: str) -> Any:
        return pa.PythonFile(LoggingSource(path, self.log), mode="r")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    for name in "abcdef":
        (folder / name).write_bytes(name.encode() * 1_000)
    return folder


def cached_names(cache: FileCache) -> str:
    return "".join(sorted(name.rsplit("-", 1)[1] for name in os.listdir(cache.folder / "files")))


def get(cache: FileCache, store: Path, names: str, *, keep: bool = False) -> None:
    for name in names:
        copy = cache.get(LOCAL, str(store / name))
        assert copy.read_bytes() == (store / name).read_bytes()
        if not keep:
            release(copy)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[FileCache]:
    yield FileCache(tmp_path / "cache", 3_500)
    cache_module._USES.clear()


def test_a_file_is_fetched_once(tmp_path: Path, store: Path, cache: FileCache) -> None:
    log = tmp_path / "log"
    fs = pafs.PyFileSystem(LoggingHandler(log))
    copies = {cache.get(fs, str(store / "a")) for _ in range(3)}
    assert [copy.read_bytes() for copy in copies] == [b"a" * 1_000]
    assert len(log.read_text().splitlines()) == 1


def test_threads_that_want_one_file_fetch_it_once(tmp_path: Path, store: Path, cache: FileCache) -> None:
    log = tmp_path / "log"
    fs = pafs.PyFileSystem(LoggingHandler(log))
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: cache.get(fs, str(store / "a")), range(8)))) == 1
    assert len(log.read_text().splitlines()) == 1


def fetch_slowly(folder: Path, log: Path, path: Path) -> None:
    copy = FileCache(folder, 3_500).get(pafs.PyFileSystem(LoggingHandler(log)), str(path))
    assert copy.read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_processes_that_want_one_file_fetch_it_once(tmp_path: Path, store: Path, cache: FileCache) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=fetch_slowly, args=(cache.folder, log, store / "a")) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len(log.read_text().splitlines()) == 1


def test_a_changed_file_is_fetched_anew(store: Path, cache: FileCache) -> None:
    old = cache.get(LOCAL, str(store / "a"))
    (store / "a").write_bytes(b"A" * 1_000)
    os.utime(store / "a", (1, 1))
    new = cache.get(LOCAL, str(store / "a"))
    assert (old.read_bytes(), new.read_bytes()) == (b"a" * 1_000, b"A" * 1_000)


def test_equal_paths_of_two_stores_are_two_files(store: Path, cache: FileCache) -> None:
    assert cache.get(LOCAL, str(store / "a"), source="x") != cache.get(LOCAL, str(store / "a"), source="y")


def test_what_was_used_longest_ago_goes_first(store: Path, cache: FileCache) -> None:
    get(cache, store, "abcad")
    assert cached_names(cache) == "acd"
    get(cache, store, "e")
    assert cached_names(cache) == "ade"


def test_the_cap_holds(store: Path, cache: FileCache) -> None:
    for name in "abcdefabcdef":
        get(cache, store, name)
        assert len(cached_names(cache)) <= 3


def test_what_is_in_use_stays(store: Path, cache: FileCache) -> None:
    get(cache, store, "a", keep=True)
    get(cache, store, "bcdef")
    assert cached_names(cache) == "aef"


def test_a_cache_full_of_files_in_use_is_told(store: Path, cache: FileCache) -> None:
    get(cache, store, "abc", keep=True)
    with pytest.raises(DiskFullError, match=r"cannot take .*/d \(1,000 bytes\).*set FORECOURT_CACHE_BYTES higher"):
        cache.get(LOCAL, str(store / "d"))
    assert cached_names(cache) == "abc"


def test_a_file_used_twice_is_in_use_until_both_let_go(store: Path, cache: FileCache) -> None:
    get(cache, store, "aabc", keep=True)
    copy = cache.get(LOCAL, str(store / "a"))
    for _ in range(2):
        release(copy)
    with pytest.raises(DiskFullError):
        cache.get(LOCAL, str(store / "d"))
    release(copy)
    get(cache, store, "d")
    assert cached_names(cache) == "bcd"


HOLD_SCRIPT = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "import pyarrow.fs as pafs\n"
    "from schemas.cache import FileCache\n"
    "FileCache(Path(sys.argv[1]), 3_500).get(pafs.LocalFileSystem(), sys.argv[2])\n"
    "print('held', flush=True)\n"
    "time.sleep(60)\n"
)


def test_what_another_process_uses_stays_until_it_is_dead(store: Path, cache: FileCache) -> None:
    command = [sys.executable, "-c", HOLD_SCRIPT, str(cache.folder), str(store / "a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        get(cache, store, "bcdef")
        assert cached_names(cache) == "aef"
        other.send_signal(signal.SIGKILL)
    get(cache, store, "bcd")
    assert cached_names(cache) == "bcd"
    assert len(os.listdir(cache.folder / "users")) == 1


def test_a_fork_keeps_what_its_dead_parent_used(store: Path, cache: FileCache) -> None:
    """The parent forks a sleeper and ends; the sleeper may open the parent's file again."""
    script = HOLD_SCRIPT.replace(
        "time.sleep(60)", "import os\nif os.fork() == 0: print(os.getpid(), flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, str(cache.folder), str(store / "a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "held\n"
        sleeper = int(parent.stdout.readline())
        assert parent.wait(60) == 0
        try:
            get(cache, store, "bcdef")
            assert cached_names(cache) == "aef"
        finally:
            os.kill(sleeper, signal.SIGKILL)


def test_a_download_that_was_killed_is_cleared_away(store: Path, cache: FileCache) -> None:
    get(cache, store, "a")
    # No other file's lock is its lock: names begin with hex digits.
    left = cache.folder / "files" / "zzdead-z.tmp"
    left.write_bytes(b"z" * 2_000)
    os.utime(left, (1, 1))
    get(cache, store, "b")
    assert cached_names(cache) == "ab"


class Cut(LoggingHandler):
    """A store that loses the connection half-way, or ends early without a word."""

    def __init__(self, log: Path, error: OSError | None) -> None:
        super().__init__(log)
        self.error = error

    def open_input_stream(self, path: str) -> Any:
        source = io.BytesIO(Path(path).read_bytes()[:500])
        if self.error is not None:
            error = self.error

            def fail(_: int) -> bytes:
                raise error

            source.read = fail  # type: ignore[method-assign, assignment]  # the failing store
        return pa.PythonFile(source, mode="r")


@pytest.mark.parametrize("error", [None, OSError(errno.ECONNRESET, "reset")])
def test_a_broken_download_leaves_nothing(tmp_path: Path, store: Path, cache: FileCache, error: OSError | None) -> None:
    with pytest.raises(OSError, match=r"got 500 of 1000 bytes|reset"):
        cache.get(pafs.PyFileSystem(Cut(tmp_path / "log", error)), str(store / "a"))
    assert cached_names(cache) == ""
    get(cache, store, "a")


def test_a_file_larger_than_the_cap_is_told(store: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DiskFullError, match=r"/a has 1,000 bytes and the cache .* may hold 999; set FORECOURT_CACHE_BY"
    ):
        FileCache(tmp_path / "cache", 999).get(LOCAL, str(store / "a"))


def test_a_missing_file_is_told_as_such(store: Path, cache: FileCache) -> None:
    for name in ("nowhere", ""):
        with pytest.raises(FileNotFoundError):
            cache.get(LOCAL, str(store / name))


def test_letting_go_of_what_is_not_cached_does_nothing(store: Path) -> None:
    release(store / "a")
    assert (store / "a").exists()


def test_a_cache_that_was_deleted_fills_again(store: Path, cache: FileCache) -> None:
    copy = cache.get(LOCAL, str(store / "a"))
    copy.unlink()
    get(cache, store, "a")


def test_the_default_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORECOURT_CACHE", raising=False)
    monkeypatch.delenv("FORECOURT_CACHE_BYTES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert FileCache.default().folder == tmp_path / "xdg" / "forecourt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert FileCache.default().folder == tmp_path / ".cache" / "forecourt"
    monkeypatch.setenv("FORECOURT_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("FORECOURT_CACHE_BYTES", "1000")
    assert (FileCache.default().folder, FileCache.default().cap_bytes) == (tmp_path / "mine", 1_000)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("text", ["0", "-1", "10GB", "1.5"])
def test_a_cap_that_is_no_number_of_bytes_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FORECOURT_CACHE_BYTES", text)
    with pytest.raises(
        SettingsError, match=f"FORECOURT_CACHE_BYTES must be a positive number of bytes, found '{text}'"
    ):
        FileCache.default()
