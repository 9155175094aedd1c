"""The local cache of remote files: least recently used goes first, under a cap, shared by all processes of a user.

FOLDER/files/NAME         a whole file; NAME is a hash of where it came from, its size and its time, and its own name
FOLDER/files/NAME.tmp     a download under way; it has its full length from the start, so that it counts
FOLDER/users/PID.TOKEN    the names a process uses; that process holds a lock on it for life, so a dead one is seen
FOLDER/locks/00 .. ff     who downloads: the others wait, then find the file
FOLDER/cache.lock         held for moments, while names are claimed or removed
"""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

import pyarrow.fs as pafs

from schemas.errors import DiskFullError, SettingsError

FOLDER_VARIABLE = "FORECOURT_CACHE"
CAP_VARIABLE = "FORECOURT_CACHE_BYTES"
# A few hundred shards of a usual part; one that trains on more sets the variable.
DEFAULT_CAP_BYTES = 20 << 30
_COPY_BLOCK_BYTES = 8 << 20
_TEMPORARY_SUFFIX = ".tmp"
_MAX_OWN_NAME_CHARS = 120


@dataclass(frozen=True, slots=True)
class _RemoteFile:
    path: str
    size_bytes: int
    version: str

    def cached_name(self, source: str) -> str:
        identity = f"{source}\n{self.path}\n{self.size_bytes}\n{self.version}"
        own_name = PurePosixPath(self.path).name[-_MAX_OWN_NAME_CHARS:]
        return f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}-{own_name}"


class FileCache:
    """Whole files of a remote file system as local files; cheap to make, and safe for threads, forks and processes."""

    def __init__(self, folder: Path, cap_bytes: int) -> None:
        self.folder = folder
        self.cap_bytes = cap_bytes

    @classmethod
    def default(cls) -> Self:
        """Return the user's cache: `$FORECOURT_CACHE`, else `forecourt` in the XDG cache home.

        Raises:
            SettingsError: `$FORECOURT_CACHE_BYTES` is no positive whole number.
        """
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = os.environ.get(FOLDER_VARIABLE) or os.path.join(home, "forecourt")
        text = os.environ.get(CAP_VARIABLE) or str(DEFAULT_CAP_BYTES)
        if not text.isdecimal() or int(text) == 0:
            raise SettingsError(f"{CAP_VARIABLE} must be a positive number of bytes, found {text!r}")
        return cls(Path(folder).expanduser().absolute(), int(text))

    def get(self, fs: pafs.FileSystem, path: str, *, source: str = "") -> Path:
        """Return a local copy of a remote file, fetching it where there is none of its present size and time.

        The copy stays until `release`, or until this process and its forks have ended. `source` tells apart equal
        paths of two stores.

        Raises:
            FileNotFoundError: the remote file is not there.
            DiskFullError: it is larger than the cap, or files in use fill the cache or the disk.
        """
        remote = _ask(fs, path)
        name = remote.cached_name(source)
        for kind in ("files", "users", "locks"):
            (self.folder / kind).mkdir(parents=True, exist_ok=True)
        if self._claim(name):
            return self.folder / "files" / name
        with _locked(self.folder / "locks" / name[:2]):
            if not self._claim(name):
                self._download(fs, remote, name)
        return self.folder / "files" / name

    def _claim(self, name: str) -> bool:
        """Mark a cached file as used by this process; False where it is not there."""
        with _locked(self.folder / "cache.lock"):
            try:
                os.utime(self.folder / "files" / name)
            except FileNotFoundError:
                return False
            _uses(self.folder).add(name)
        return True

    def _download(self, fs: pafs.FileSystem, remote: _RemoteFile, name: str) -> None:
        final = self.folder / "files" / name
        beside = final.with_name(name + _TEMPORARY_SUFFIX)
        with _locked(self.folder / "cache.lock"):
            self._make_room(remote)
            with beside.open("wb") as file:
                file.truncate(remote.size_bytes)
        try:
            with fs.open_input_stream(remote.path) as source, beside.open("r+b") as target:
                shutil.copyfileobj(source, target, _COPY_BLOCK_BYTES)
                copied = target.tell()
                os.fsync(target.fileno())
            if copied != remote.size_bytes or beside.stat().st_size != remote.size_bytes:
                raise OSError(errno.EIO, f"got {copied} of {remote.size_bytes} bytes", remote.path)
            with _locked(self.folder / "cache.lock"):
                beside.replace(final)
                _uses(self.folder).add(name)
        finally:
            with _locked(self.folder / "cache.lock"):
                beside.unlink(missing_ok=True)

    def _make_room(self, remote: _RemoteFile) -> None:
        """Remove what was used longest ago until the file fits; called under the cache's lock."""
        if remote.size_bytes > self.cap_bytes:
            raise DiskFullError(
                f"{remote.path} has {remote.size_bytes:,} bytes and the cache {self.folder} may hold "
                f"{self.cap_bytes:,}; set {CAP_VARIABLE} higher"
            )
        _uses(self.folder).settle()
        in_use = self._names_in_use()
        entries = [(entry, entry.stat()) for entry in os.scandir(self.folder / "files")]
        held_bytes = sum(stat.st_size for _, stat in entries)
        missing = max(
            held_bytes + remote.size_bytes - self.cap_bytes, remote.size_bytes - shutil.disk_usage(self.folder).free
        )
        for entry, stat in sorted(entries, key=lambda pair: pair[1].st_mtime_ns):
            if missing <= 0:
                return
            if entry.name not in in_use and not self._is_downloading(entry.name):
                os.unlink(entry.path)
                missing -= stat.st_size
        if missing > 0:
            raise DiskFullError(
                f"the cache {self.folder} cannot take {remote.path} ({remote.size_bytes:,} bytes): it may hold "
                f"{self.cap_bytes:,}, and what is in use leaves {missing:,} too few; close some shards, free some "
                f"disk, or set {CAP_VARIABLE} higher"
            )

    def _is_downloading(self, name: str) -> bool:
        if not name.endswith(_TEMPORARY_SUFFIX):
            return False
        with _try_locked(self.folder / "locks" / name[:2]) as is_held:
            return not is_held

    def _names_in_use(self) -> set[str]:
        """Gather what live processes use, and forget dead ones."""
        names: set[str] = set()
        for path in (self.folder / "users").iterdir():
            with _try_locked(path) as is_held:
                if is_held:
                    path.unlink()
                else:
                    names.update(path.read_text().split("\n"))
        return names


def release(path: Path) -> None:
    """Let the cache remove a file that this process got from it; nothing happens for any other file."""
    folder = path.parent.parent
    if (uses := _USES.get((os.getpid(), folder))) is not None and path.parent.name == "files":
        uses.drop(path.name)
        # Never waits: the garbage collector may call this while this very thread holds the lock.
        with _try_locked(folder / "cache.lock") as is_held:
            if is_held:
                uses.settle()


class _Uses:
    """What this process uses of one cache folder, written down where other processes see it."""

    def __init__(self, folder: Path) -> None:
        self._counts: Counter[str] = Counter()
        self._dropped: deque[str] = deque()
        self._written: set[str] = set()
        self._path = folder / "users" / f"{os.getpid()}.{secrets.token_hex(4)}"
        # Never closed: the lock lasts as long as the process, and as its forks, which may open its files again.
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._handle, fcntl.LOCK_EX)

    def add(self, name: str) -> None:
        self._counts[name] += 1
        self.settle()

    def drop(self, name: str) -> None:
        """Note that one use of a name has ended; `settle` writes it down."""
        self._dropped.append(name)

    def settle(self) -> None:
        """Write down what is in use now; called under the cache's lock."""
        while self._dropped:
            self._counts[self._dropped.popleft()] -= 1
        self._counts = +self._counts
        if self._counts.keys() == self._written:
            return
        self._written = set(self._counts)
        text = "\n".join(sorted(self._written)).encode()
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text, 0)


# (process, cache folder) -> its uses; a fork keeps its own.
_USES: dict[tuple[int, Path], _Uses] = {}


def _uses(folder: Path) -> _Uses:
    """Return this process's uses; called under the cache's lock."""
    key = (os.getpid(), folder)
    if key not in _USES:
        _USES[key] = _Uses(folder)
    return _USES[key]


def _ask(fs: pafs.FileSystem, path: str) -> _RemoteFile:
    """Ask what is at `path` now; its ETag where there is one, since an object store's times are in whole seconds."""
    info = fs.get_file_info(path)
    if info.type != pafs.FileType.File:
        raise FileNotFoundError(errno.ENOENT, "no such file", path)
    with fs.open_input_stream(path) as stream:
        tags = {name.lower(): value for name, value in (stream.metadata() or {}).items()}
    return _RemoteFile(path, info.size, tags.get("etag", b"").decode() or str(info.mtime_ns))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file that is never removed."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        # By name, since a fork in between holds a copy of the handle, and would keep the lock past our close.
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


@contextmanager
def _try_locked(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock where nobody else holds it, and tell whether that is so."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
        fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)
