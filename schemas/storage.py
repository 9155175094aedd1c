"""The one file-system door: a root is a local folder or an object-store URL, and reads and writes the same way.

Names are relative to the root, with forward slashes. A write is whole or not there: locally a file is written beside
and renamed, on an object store it is one upload.
"""

import errno
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Self

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from schemas.cache import FileCache
from schemas.errors import DiskFullError, IntegrityError, RootError, RootVersionError
from schemas.tables import FORMAT_VERSION

MARK = "root.json"
TEMPORARY_SUFFIX = ".tmp"
_DISK_FOLDER = "lost+found"


class Root:
    """A data set's root; cheap to make, and pickled by its text alone."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._cache: FileCache | None = None
        try:
            if "://" in text:
                self._fs, self._base = pafs.FileSystem.from_uri(text)
            else:
                self._fs, self._base = pafs.LocalFileSystem(), str(Path(text).expanduser().absolute())
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            raise RootError(f"root {self} is neither a folder nor a readable object-store URL: {error}") from error
        if not self._base:
            raise RootError(f"root {self} names no bucket")
        self.is_local = isinstance(self._fs, pafs.LocalFileSystem)

    def __str__(self) -> str:
        """Show the root as it was named, without the keys that a URL may carry."""
        return repr(re.sub(r"//[^/?]*@", "//", self.text))

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        """Pickle by the text: file systems do not travel."""
        return type(self), (self.text,)

    @classmethod
    def open(cls, text: str, *, create: bool = False) -> Self:
        """Open a root, with `create` make it where there is none.

        Raises:
            RootError: it is not there, not a folder, or cannot be read.
            RootVersionError: it was written in another version of the format.
        """
        root = cls(text)
        with reported(f"root {root}"):
            if root.exists(MARK):
                root._check_version()
            elif not create:
                raise RootError(f"no data set at {root} (no {MARK} there); start one with pipeline/crawl.py")
            else:
                root._refuse_foreign()
                root.write_bytes(MARK, json.dumps({"format_version": FORMAT_VERSION}).encode())
        return root

    def path(self, name: str) -> str:
        """Return the full path of `name`, as its file system and plain tools on a local root know it."""
        return str(PurePosixPath(self._base) / name)

    def exists(self, name: str) -> bool:
        """Tell whether a file or folder of that name is there."""
        with reported(self.path(name)):
            return bool(self._fs.get_file_info(self.path(name)).type != pafs.FileType.NotFound)

    def size_bytes(self, name: str) -> int:
        """Return the size of a file."""
        with reported(self.path(name)):
            info = self._fs.get_file_info(self.path(name))
            if info.type != pafs.FileType.File:
                raise FileNotFoundError(errno.ENOENT, "no such file", name)
            return int(info.size)

    def list_folders(self, folder: str) -> list[str]:
        """List the folders right in `folder`, as names under the root, sorted; empty where it is not there."""
        with reported(self.path(folder)):
            infos = self._fs.get_file_info(pafs.FileSelector(self.path(folder), allow_not_found=True))
            found = [i.base_name for i in infos if i.type == pafs.FileType.Directory]
            return sorted(str(PurePosixPath(folder) / name) for name in found)

    def list(self, folder: str, *, suffix: str = "") -> list[str]:
        """List the files right in `folder`, as names under the root, sorted; empty where it is not there."""
        with reported(self.path(folder)):
            if self.is_local:
                return _list_local(Path(self.path(folder)), folder, suffix)
            infos = self._fs.get_file_info(pafs.FileSelector(self.path(folder), allow_not_found=True))
            found = [i.base_name for i in infos if i.type == pafs.FileType.File and i.base_name.endswith(suffix)]
            return sorted(str(PurePosixPath(folder) / name) for name in found)

    def read_bytes(self, name: str) -> bytes:
        """Read a whole file.

        Raises:
            FileNotFoundError: it is not there.
        """
        with reported(self.path(name)):
            if self.is_local:
                return Path(self.path(name)).read_bytes()
            with self._fs.open_input_stream(self.path(name)) as stream:
                return bytes(stream.read())

    def write_bytes(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write a whole file: after a crash it is the old or the new one, never half of it."""
        with reported(self.path(name), writing=True):
            if not self.is_local:
                with self._fs.open_output_stream(self.path(name)) as stream:
                    stream.write(data)
                return
            final = Path(self.path(name))
            _make_folder(final.parent)
            beside = final.with_name(f"{final.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
            try:
                with beside.open("wb") as file:
                    file.write(data)
                    file.flush()
                    if durable:
                        os.fsync(file.fileno())
                beside.replace(final)
            except OSError:
                beside.unlink(missing_ok=True)
                raise
            if durable:
                sync_folder(final.parent)

    def staged(self, name: str, token: str) -> Path:
        """Return a local path to write what will become `name`; beside it where the root is local."""
        if self.is_local:
            folder = Path(self.path(name)).parent
        else:
            # A folder of its own, which goes with it: another thread may stage at the same moment.
            folder = Path(tempfile.gettempdir()) / f"forecourt-{token}-{name.replace('/', '-')}"
        with reported(str(folder), writing=True):
            _make_folder(folder)
        return folder / f"{PurePosixPath(name).name}.{token}{TEMPORARY_SUFFIX}"

    def publish(self, staged: Path, name: str) -> None:
        """Turn a synced staged file into `name`: a rename here, an upload on an object store."""
        with reported(self.path(name), writing=True):
            if self.is_local:
                final = Path(self.path(name))
                staged.replace(final)
                sync_folder(final.parent)
                return
            with staged.open("rb") as source, self._fs.open_output_stream(self.path(name)) as target:
                shutil.copyfileobj(source, target, 8 << 20)
            self.discard(staged)

    def discard(self, staged: Path) -> None:
        """Remove a staged file; nothing happens where it is not there."""
        with reported(str(staged)):
            staged.unlink(missing_ok=True)
            if not self.is_local and staged.parent.is_dir():
                staged.parent.rmdir()

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where it is not there."""
        with reported(self.path(name)):
            if self.is_local:
                Path(self.path(name)).unlink(missing_ok=True)
            elif self.exists(name):
                self._fs.delete_file(self.path(name))

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a Parquet file of this root.

        Raises:
            FileNotFoundError: it is not there.
            IntegrityError: it cannot be read as Parquet.
        """
        with reported(self.path(name)):
            wanted = None if columns is None else [*columns]
            try:
                return pq.read_table(self.path(name), columns=wanted, filesystem=self._fs, partitioning=None)
            except pa.ArrowInvalid as error:
                raise IntegrityError(
                    f"{self.path(name)} is no Parquet file: {error}; run pipeline/verify.py"
                ) from error

    def dataset_source(self) -> tuple[pafs.FileSystem, str]:
        """Return the Arrow file system and the root's path in it, for readers that scan."""
        return self._fs, self._base

    def local_copy(self, name: str) -> Path:
        """Return a local file with the content of `name`; a remote one comes through the cache."""
        if self.is_local:
            return Path(self.path(name))
        if self._cache is None:
            self._cache = FileCache.default()
        with reported(self.path(name)):
            return self._cache.get(self._fs, self.path(name), source=self.text)

    def require_free_bytes(self, needed: int) -> None:
        """Check the local disk before work starts.

        Raises:
            DiskFullError: less than `needed` is free.
        """
        folder = Path(self._base) if self.is_local else Path(tempfile.gettempdir())
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise DiskFullError(
                f"{needed:,} bytes are needed on the disk of {folder} and {free:,} are free; "
                "free some space or use another --root (what is committed is safe)"
            )

    def _check_version(self) -> None:
        try:
            found = json.loads(self.read_bytes(MARK))["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise RootVersionError(f"{self.path(MARK)} does not say its format_version; is this a root?") from error
        if found != FORMAT_VERSION:
            raise RootVersionError(
                f"root {self} has format {found!r} and this version of Forecourt writes format "
                f"{FORMAT_VERSION}; use the version that wrote it, or another --root (nothing was touched)"
            )

    def _refuse_foreign(self) -> None:
        """Refuse a folder full of something else: it must not become a root by a slip of the keyboard."""
        base = self._fs.get_file_info(self._base)
        if base.type == pafs.FileType.File:
            raise RootError(f"root {self} is a file; name a folder")
        if base.type == pafs.FileType.NotFound:
            return
        for info in self._fs.get_file_info(pafs.FileSelector(self._base)):
            # A run killed in its first moment leaves the mark half written; a new disk has folders of its own.
            is_ours = info.base_name.startswith(f"{MARK}.") and info.base_name.endswith(TEMPORARY_SUFFIX)
            if not is_ours and not info.base_name.startswith(".") and info.base_name != _DISK_FOLDER:
                raise RootError(f"root {self} holds {info.base_name!r} and no {MARK}; name an empty or a new folder")


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make the bytes of `path` last through a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they last through a power cut."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _list_local(path: Path, folder: str, suffix: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            found = [entry.name for entry in entries if entry.name.endswith(suffix) and entry.is_file()]
            return sorted(str(PurePosixPath(folder) / name) for name in found)
    except FileNotFoundError:
        return []


@contextmanager
def reported(what: str, *, writing: bool = False) -> Iterator[None]:
    """Turn a full disk and an unusable place into errors that say what to do; a file missing to a reader stays that."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not writing:
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"the disk is full at {what}; free some space and run the same command again "
                "(what is committed is safe)"
            ) from error
        raise RootError(f"cannot use {what}: {error}; check the path, its rights and the network") from error
