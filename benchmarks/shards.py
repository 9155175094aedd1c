"""Write and read photos as a shard, as files in 256 folders, and as a tar with an index: photos a second, in one run.

Every store holds the same photos (random bytes of about a stored JPEG's size) under the same keys. Writing ends when
the bytes are on the disk: one sync of the shard, of the tar, of the file system of the files. Reading is warm, from
one process, once through in order of key and once in a random order, by CPU time, since nothing waits. Each figure is
the median of the rounds, and the stores take turns in each round. The ratios are the shard's rate over the peer's.
Claim: random reads are at least 1.3 times as fast as the tar's and 3 times as fast as the files'.

    python -m benchmarks.shards
    python -m benchmarks.shards --photos 20000 --rounds 5 --folder /mnt/disk
"""

import argparse
import io
import json
import os
import random
import statistics
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from schemas.shards import Shard, ShardSettings, ShardWriter
from schemas.tables import photo_key

# The claim: the shard's random reads over the peer's.
WANTED = {"tar": 1.3, "files": 3.0}
_PHOTOS_PER_LISTING = 4
_NUM_FOLDERS = 256


class Reader(Protocol):
    """A store that is open for reading."""

    def get(self, key: str) -> bytes:
        """Return one photo."""

    def close(self) -> None:
        """Let go of the store."""


Store = tuple[Callable[[Path, Mapping[str, bytes]], None], Callable[[Path], Reader]]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=5_000)
    parser.add_argument("--bytes", type=int, default=14_000, help="mean size of a photo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where to write; the default is the folder for temporary files")
    arguments = parser.parse_args(argv)
    photos = make_photos(arguments.photos, arguments.bytes)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in STORES}
    for number in range(arguments.rounds):
        for name, store in STORES.items():
            with tempfile.TemporaryDirectory(prefix="forecourt-shards-", dir=arguments.folder) as folder:
                measured[name].append(measure(store, Path(folder) / name, photos, seed=number))
    rates = {name: medians(rounds) for name, rounds in measured.items()}
    ratios = {
        name: {what: round(rates["shard"][what] / rates[name][what], 2) for what in rates[name]} for name in WANTED
    }
    ok = all(ratios[name]["random_per_s"] >= wanted for name, wanted in WANTED.items())
    print(json.dumps({"ok": ok, "photos": len(photos), "photos_per_s": rates, "shard_over": ratios}))
    return 0 if ok else 1


def make_photos(number: int, mean_bytes: int) -> dict[str, bytes]:
    """Make photos of half to one and a half times the mean size, from a fixed seed."""
    rng = random.Random(0)
    keys = (
        photo_key("demo", f"{660_000_000 + i // _PHOTOS_PER_LISTING}", i % _PHOTOS_PER_LISTING) for i in range(number)
    )
    return {key: rng.randbytes(rng.randint(mean_bytes // 2, mean_bytes * 3 // 2)) for key in keys}


def measure(store: Store, path: Path, photos: Mapping[str, bytes], *, seed: int) -> dict[str, float]:
    """Write a store and read it in two orders; photos a second of each, and the bytes on disk a photo."""
    write, read = store
    rng = random.Random(seed)
    # Two orders, so that no store is read in the order it was written in.
    put_order, read_order = (rng.sample(sorted(photos), len(photos)) for _ in range(2))
    started_s = time.perf_counter()
    write(path, {key: photos[key] for key in put_order})
    figures = {"write_per_s": len(photos) / (time.perf_counter() - started_s)}
    reader = read(path)
    try:
        if any(reader.get(key) != jpeg for key, jpeg in photos.items()):  # warms, too
            raise AssertionError(f"{path} does not give back what was written")
        for name, keys in (("in_order_per_s", sorted(photos)), ("random_per_s", read_order)):
            started_s = time.process_time()
            for key in keys:
                reader.get(key)
            figures[name] = len(photos) / (time.process_time() - started_s)
    finally:
        reader.close()
    return figures


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """Return the median of each figure over the rounds."""
    return {name: round(statistics.median(figures[name] for figures in rounds)) for name in rounds[0]}


def write_shard(path: Path, photos: Mapping[str, bytes]) -> None:
    """Write and seal a shard."""
    with ShardWriter(path, ShardSettings()) as writer:
        for key, jpeg in photos.items():
            writer.put(key, jpeg)
        writer.seal()


class Files:
    """One file a photo, spread over folders by a checksum of the key."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def file(self, key: str) -> str:
        """Return where the photo lies."""
        return f"{self._path}/{zlib.crc32(key.encode()) % _NUM_FOLDERS:02x}/{key.replace('/', '_')}.jpg"

    def get(self, key: str) -> bytes:
        """Return one photo."""
        with open(self.file(key), "rb", buffering=0) as file:
            return file.read()

    def close(self) -> None:
        """Nothing is held open."""


def write_files(path: Path, photos: Mapping[str, bytes]) -> None:
    """Write the files, then sync them all at once, which is kinder to them than one by one."""
    files = Files(path)
    for number in range(_NUM_FOLDERS):
        (path / f"{number:02x}").mkdir(parents=True)
    for key, jpeg in photos.items():
        with open(files.file(key), "wb", buffering=0) as file:
            file.write(jpeg)
    os.sync()


class Tar:
    """A tar file whose index is held in memory; a read is one system call."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as tar:
            self._index = {member.name: (member.size, member.offset_data) for member in tar}
        self._handle = os.open(path, os.O_RDONLY)

    def get(self, key: str) -> bytes:
        """Return one photo."""
        return os.pread(self._handle, *self._index[key])

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def write_tar(path: Path, photos: Mapping[str, bytes]) -> None:
    """Write the tar and sync it."""
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        for key, jpeg in photos.items():
            member = tarfile.TarInfo(key)
            member.size = len(jpeg)
            tar.addfile(member, io.BytesIO(jpeg))
        tar.close()
        file.flush()
        os.fsync(file.fileno())


STORES: Mapping[str, Store] = {
    "shard": (write_shard, Shard),
    "files": (write_files, Files),
    "tar": (write_tar, Tar),
}

if __name__ == "__main__":
    raise SystemExit(main())
