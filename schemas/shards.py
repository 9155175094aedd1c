"""Shards: the stored JPEGs of one part in one LMDB file, key -> bytes and nothing else.

`ShardWriter` writes one beside its final name and seals it: compacted, synced, in order of key. A sealed shard never
changes, so `Shard` reads it without lock files, from any number of processes and threads. The only door to lmdb.
"""

import errno
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Self

import lmdb

from schemas.cache import release
from schemas.errors import DiskFullError, IntegrityError, RootError
from schemas.lmdb_file import broken_shard, check_whole, raw_key
from schemas.settings import Section, operational
from schemas.storage import TEMPORARY_SUFFIX, Root, sync_folder

_WARM_BLOCK_BYTES = 8 << 20
# What may still be free on a disk that could not take a whole write.
_FULL_DISK_BYTES = 64 << 20


class ShardSettings(Section):
    """How shards are written; none of it shows in what comes out."""

    initial_map_bytes: int = operational(
        256 << 20, "bytes of address space to begin with; costs neither RAM nor disk", ge=1 << 16
    )
    map_growth: float = operational(2.0, "factor by which a full map grows", gt=1.0, le=16.0)
    batch_bytes: int = operational(
        16 << 20, "bytes of photos held in memory between two transactions", ge=1, le=256 << 20
    )
    min_free_bytes: int = operational(256 << 20, "bytes of disk that writing leaves free for everything else", ge=0)


class ShardWriter:
    """Write one shard at `path`, a staged name; nothing there is fit to read until `seal`.

    Several threads may put. What is there of an earlier try is removed. As a context manager it abandons what was
    not sealed.
    """

    def __init__(self, path: Path, settings: ShardSettings) -> None:
        self.path = path
        self._settings = settings
        self._lock = threading.Lock()
        self._pending: dict[bytes, bytes] = {}
        self._pending_bytes = 0
        self._map_bytes = settings.initial_map_bytes
        self._compact_path = path.with_name(f"{path.name.removesuffix(TEMPORARY_SUFFIX)}.compact{TEMPORARY_SUFFIX}")
        self._sealed = False
        self._pid = os.getpid()
        with _disk_errors(path):
            self._remove_files()
            self._require_free(settings.batch_bytes)
            # One process and one lock of ours: LMDB's own lock file would only be left behind. Nothing is synced
            # before the seal, since a shard that was not sealed is thrown away.
            self._env: lmdb.Environment | None = lmdb.open(
                str(path), subdir=False, lock=False, sync=False, metasync=False, map_size=self._map_bytes, max_dbs=0
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def put(self, key: str, jpeg: bytes) -> None:
        """Store a photo; the same bytes under the same key again are fine.

        Raises:
            IntegrityError: the key is there with other bytes, or is no LMDB key.
            DiskFullError: the disk has no room for it.
        """
        raw = raw_key(key, self.path)
        with self._lock:
            found = self._find(raw)
            if found is not None:
                if found != jpeg:
                    raise IntegrityError(f"{key!r} is in {self.path} with other bytes; every photo needs its own key")
                return
            self._pending[raw] = bytes(jpeg)
            self._pending_bytes += len(jpeg)
            if self._pending_bytes >= self._settings.batch_bytes:
                self._flush()

    def get(self, key: str) -> bytes:
        """Return what was put under `key`.

        Raises:
            KeyError: nothing was.
        """
        with self._lock:
            found = self._find(raw_key(key, self.path))
        if found is None:
            raise _missing(key, self.path)
        return found

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return self._find(raw_key(key, self.path)) is not None

    def __len__(self) -> int:
        with self._lock:
            return len(self._pending) + int(self._open_env().stat()["entries"])

    def seal(self) -> None:
        """Make the file whole, minimal and lasting, ready to be renamed; nothing can be put after.

        Raises:
            DiskFullError: the disk has no room for the compacted copy.
        """
        with self._lock:
            env = self._open_env()
            self._flush()
            self._require_free(self.path.stat().st_size)
            with _disk_errors(self.path), self._compact_path.open("wb") as file:
                env.copyfd(file.fileno(), compact=True)
                os.fsync(file.fileno())
            env.close()
            self._env = None
            with _disk_errors(self.path):
                self._compact_path.replace(self.path)
                self._sealed = True
                sync_folder(self.path.parent)

    def close(self) -> None:
        """Remove what was not sealed; after a seal nothing happens."""
        if self._pid != os.getpid():
            return  # in a fork, where all this is still the parent's
        with self._lock:
            if self._env is not None:
                self._env.close()
                self._env = None
            self._pending.clear()
            if not self._sealed:
                self._remove_files()

    def _open_env(self) -> lmdb.Environment:
        if self._env is None:
            raise ValueError(f"{self.path} is sealed or closed")
        return self._env

    def _find(self, raw: bytes) -> bytes | None:
        env = self._open_env()
        if (found := self._pending.get(raw)) is not None:
            return found
        with env.begin() as txn:
            return txn.get(raw)

    def _flush(self) -> None:
        """Commit what is pending in one transaction, again from its start in a larger map where this one is full."""
        if not self._pending:
            return
        env = self._open_env()
        self._require_free(2 * self._pending_bytes)
        while True:
            try:
                with _disk_errors(self.path), env.begin(write=True) as txn:
                    for raw in sorted(self._pending):
                        txn.put(raw, self._pending[raw])
                break
            except lmdb.MapFullError:
                self._map_bytes = int(self._map_bytes * self._settings.map_growth) + self._pending_bytes
                env.set_mapsize(self._map_bytes)
        self._pending.clear()
        self._pending_bytes = 0

    def _require_free(self, needed: int) -> None:
        spare, free = self._settings.min_free_bytes, shutil.disk_usage(self.path.parent).free
        if free < needed + spare:
            raise DiskFullError(
                f"{self.path} needs {needed:,} bytes, shards.min_free_bytes leaves {spare:,} free, and the disk has "
                f"{free:,}; free some space and run the same command again (what is committed is safe)"
            )

    def _remove_files(self) -> None:
        for path in (self.path, self._compact_path, Path(f"{self.path}-lock")):
            path.unlink(missing_ok=True)


class Shard:
    """Read a sealed shard; pickled by its place, and reopened by itself in a fork.

    All shards of one file share one LMDB environment in a process; `readahead` is the first one's. With readahead a
    cold file comes in fast where it fits in RAM; without, a random read takes just its own pages.

    Raises:
        IntegrityError: the file is not there, not LMDB, or shorter than it says.
    """

    def __init__(self, path: Path | str, *, readahead: bool = True) -> None:
        self.path = Path(path)
        self._origin: tuple[Root, str] | None = None
        self._readahead = readahead
        self._closed = False
        self._opened = _acquire(self.path, readahead)

    @classmethod
    def open(cls, root: Root, name: str, *, readahead: bool = True) -> Self:
        """Open a shard by its name under a root, a remote one through the local cache."""
        path = _fetched(root, name)
        try:
            shard = cls(path, readahead=readahead)
        except IntegrityError:
            release(path)
            raise
        shard._origin = (root, name)
        return shard

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by the place: environments do not travel."""
        if self._origin is not None:
            return partial(type(self).open, readahead=self._readahead), self._origin
        return partial(type(self), readahead=self._readahead), (self.path,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_opened"):
            self.close()

    def get(self, key: str) -> bytes:
        """Return the JPEG bytes of one photo.

        Raises:
            KeyError: it is not in this shard.
        """
        found = self._txn().get(key.encode())
        if found is None:
            raise _missing(key, self.path)
        return found

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        """Return the JPEG bytes of several photos in the order asked, read in the order they lie in.

        Raises:
            KeyError: one of them is not in this shard.
        """
        found: dict[str, bytes] = {}
        txn = self._txn()
        for key in sorted(set(keys)):  # UTF-8 sorts as text does
            jpeg = txn.get(key.encode())
            if jpeg is None:
                raise _missing(key, self.path)
            found[key] = jpeg
        return [found[key] for key in keys]

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Yield all photos in order of key."""
        with self._environment().env.begin() as txn:
            for raw, jpeg in txn.cursor():
                yield raw.decode(), jpeg

    def keys(self) -> Iterator[str]:
        """Yield all keys in order, without touching the photos' pages."""
        with self._environment().env.begin() as txn:
            for raw in txn.cursor().iternext(keys=True, values=False):
                yield raw.decode()

    def __len__(self) -> int:
        return int(self._environment().env.stat()["entries"])

    def __contains__(self, key: str) -> bool:
        return self._txn().cursor().set_key(key.encode())

    def warm(self) -> int:
        """Read the file once from end to end, so that random reads come from RAM; return its bytes."""
        block = memoryview(bytearray(_WARM_BLOCK_BYTES))
        total = 0
        with self.path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                total += count
        return total

    def close(self) -> None:
        """Let go of the file; the environment closes with its last shard."""
        if not self._closed:
            self._closed = True
            self._opened.release()
            if self._origin is not None and not self._origin[0].is_local:
                release(self.path)

    def _txn(self) -> "lmdb.Transaction[bytes]":
        """Return this thread's transaction, kept for good: a sealed file has nothing newer to see."""
        opened = self._opened
        if self._closed or opened.pid != os.getpid():
            opened = self._environment()
        try:
            txn: lmdb.Transaction[bytes] = opened.threads.txn
        except AttributeError:
            txn = opened.threads.txn = opened.env.begin()
        return txn

    def _environment(self) -> "_Environment":
        """Return what is open, in a fork opened anew: an environment of the parent's must not be used here."""
        if self._closed:
            raise ValueError(f"{self.path} is closed")
        if self._opened.pid != os.getpid():
            with _process_lock():
                if self._opened.pid != os.getpid():
                    self.path = _fetched(*self._origin) if self._origin is not None else self.path
                    self._opened = _acquire(self.path, self._readahead)
        return self._opened


class _Environment:
    """One open file of one process, shared by its shards and threads."""

    def __init__(self, path: Path, identity: tuple[int, int, int], readahead: bool) -> None:
        self.identity = identity
        self.pid = identity[0]
        self.num_shards = 0
        self.threads = threading.local()
        size_bytes = check_whole(path)
        try:
            self.env = lmdb.open(
                str(path), subdir=False, readonly=True, lock=False, readahead=readahead, map_size=size_bytes, max_dbs=0
            )
        except lmdb.Error as error:
            raise broken_shard(path, str(error)) from error

    def release(self) -> None:
        """Close the file with its last shard; what a fork has of its parent's is left alone."""
        if self.pid != os.getpid():
            return
        with _process_lock():
            self.num_shards -= 1
            if self.num_shards == 0:
                del _ENVIRONMENTS[self.identity]
                self.env.close()


# (process, device, inode) -> its environment: a file put in the place of an open one is another file.
_ENVIRONMENTS: dict[tuple[int, int, int], _Environment] = {}
# A fork finds its parent's lock in the state it was in, perhaps held by a thread that is not there: each has its own.
_LOCKS: dict[int, threading.RLock] = {}


def _process_lock() -> "threading.RLock":
    return _LOCKS.setdefault(os.getpid(), threading.RLock())


def _acquire(path: Path, readahead: bool) -> _Environment:
    with _process_lock():
        # A fork closes its parent's: LMDB opens no file twice, and the parent feels nothing of it.
        for inherited in [identity for identity in _ENVIRONMENTS if identity[0] != os.getpid()]:
            _ENVIRONMENTS.pop(inherited).env.close()
        try:
            stat = path.stat()
        except OSError as error:
            raise broken_shard(path, error.strerror or str(error)) from error
        identity = (os.getpid(), stat.st_dev, stat.st_ino)
        opened = _ENVIRONMENTS.get(identity)
        if opened is None:
            opened = _ENVIRONMENTS[identity] = _Environment(path, identity, readahead)
        opened.num_shards += 1
        return opened


def _missing(key: str, path: Path) -> KeyError:
    return KeyError(f"{key!r} is not in {path}")


def _fetched(root: Root, name: str) -> Path:
    try:
        return root.local_copy(name)
    except FileNotFoundError as error:
        raise broken_shard(Path(root.path(name)), "there is no such file") from error


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn what the disk says through LMDB, or by itself, into our errors."""
    try:
        yield
    except lmdb.MapFullError:
        raise
    except (OSError, lmdb.Error) as error:
        code = error.errno if isinstance(error, OSError) else error.code
        # LMDB calls a write that was cut short an I/O error, and that is how a disk fills up.
        is_cut = code == errno.EIO and shutil.disk_usage(path.parent).free < _FULL_DISK_BYTES
        if is_cut or code in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"the disk is full at {path}; free some space and run the same command again "
                "(what is committed is safe)"
            ) from error
        raise RootError(f"cannot write {path}: {error}; check its folder, its rights and the disk") from error
